"""Weights that two processes keep a part of each: the losses and files of whole ones, and what such a run survives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_llm_devices as devices
from safetensors import safe_open
from test_llm_devices import METHODS, Bench, Built, base, built, losses, survived

from schemas.row import Row
from tests.unit.train_rig import ROWS, files
from workers.llm import model as models
from workers.llm.score import perplexity
from workers.llm.settings import TrainResult

__all__ = ["base", "built"]
pytestmark = devices.pytestmark
SHARDED: dict[str, Any] = {"sharding": "full"}
CASES: dict[str, dict[str, Any]] = {name: {} for name in METHODS} | {
    "full": {"method": "full", "gradient_checkpointing": True},
    "dora": {"dora": True, "precision": "bfloat16"},
}


def shapes(out: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors."""
    found = {}
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


Sharded = Callable[[str], tuple[Path, dict[str, Any], TrainResult]]


@pytest.fixture(scope="module")
def sharded(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """What a case begins with, how it is asked for, and what two processes leave of it that nobody disturbed."""

    @cache
    def made(case: str) -> tuple[Path, dict[str, Any], TrainResult]:
        begun, asked = built(case) if case in METHODS else built("lora")
        asked = {"dropout": 0.0, "steps": 40, "validation_steps": 5} | asked | CASES[case]
        return begun, asked, Bench(begun, tmp_path_factory.mktemp("sharded") / case).run(**asked | SHARDED)

    return made


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_whole_weights_do_and_leaves_the_same_files(sharded: Sharded, tmp_path: Path, case: str) -> None:
    """Beside one process with whole weights, whose steps are those of two (`test_llm_devices`)."""
    begun, asked, shard = sharded(case)
    whole = Bench(begun, tmp_path / "whole").run(**asked | {"devices": 1})
    near = 1e-2 if asked.get("precision") == "bfloat16" else 1e-4
    for name, first, wide in (("loss", 6, 1), ("grad_norm", 6, 10), ("valid_loss", 1, 1)):
        assert losses(shard, name)[:first] == pytest.approx(losses(whole, name)[:first], rel=wide * near)
    assert len(losses(shard, "valid_loss")) == len(losses(whole, "valid_loss")) == 8
    assert shapes(shard.out) == shapes(whole.out)
    assert set(files(shard.out)) == set(files(whole.out))
    assert (shard.trainable, shard.parameters, shard.tokens) == (whole.trainable, whole.parameters, whole.tokens)


@pytest.mark.parametrize("case", ["lora", "full", "moe"])
def test_when_one_dies_the_next_attempt_makes_the_same_bytes(sharded: Sharded, tmp_path: Path, case: str) -> None:
    begun, asked, calm = sharded(case)
    again = survived(Bench(begun, tmp_path), **asked | SHARDED)
    assert 2 <= again.resumed < 40 and again.exact
    assert files(again.out) == files(calm.out)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_ends_early_with_the_weights_of_the_best_validation(base: Path, tmp_path: Path, method: str) -> None:
    """The rows held out say the opposite of what is learnt."""
    held = [Row(row.prompt, "bad" if row.completion == "good" else "good", row.id) for row in ROWS[:5]]
    done = Bench(base, tmp_path).run(
        valid=held, method=method, lr=5e-2 if method == "lora" else 5e-3, patience=2, validation_steps=2, steps=60,
        dropout=0.0, checkpoint_steps=None, **SHARDED,
    )  # fmt: skip
    found = losses(done, "valid_loss")
    assert done.best_step == 2 * (1 + found.index(min(found))) == done.steps - 4
    model = models.load(base, adapter=done.out) if method == "lora" else models.load(done.out)
    assert perplexity(model, held).nats_per_token == pytest.approx(min(found), rel=1e-4), "they are of that step"
    assert found[-1] > min(found) + 0.01, "and not of the last"
