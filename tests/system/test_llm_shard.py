"""Weights that two processes keep a part of each: the losses and files of whole ones, and what such a run survives."""

from __future__ import annotations

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


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_whole_weights_do_and_leaves_the_same_files(built: Built, tmp_path: Path, case: str) -> None:
    begun, asked = built(case) if case in METHODS else built("lora")
    asked = {"dropout": 0.0, "steps": 6, "validation_steps": 3} | asked | CASES[case]
    whole = Bench(begun, tmp_path / "whole").run(**asked)
    shard = Bench(begun, tmp_path / "shard").run(**asked | SHARDED)
    near = 1e-2 if asked.get("precision") == "bfloat16" else 1e-4
    assert losses(shard) == pytest.approx(losses(whole), rel=near)
    assert losses(shard, "grad_norm") == pytest.approx(losses(whole, "grad_norm"), rel=10 * near)
    assert losses(shard, "valid_loss") == pytest.approx(losses(whole, "valid_loss"), rel=near)
    assert shapes(shard.out) == shapes(whole.out)
    assert set(files(shard.out)) == set(files(whole.out))
    assert (shard.trainable, shard.parameters, shard.tokens) == (whole.trainable, whole.parameters, whole.tokens)


@pytest.mark.parametrize("case", ["lora", "full", "moe"])
def test_when_one_dies_the_next_attempt_makes_the_same_bytes(built: Built, tmp_path: Path, case: str) -> None:
    begun, asked = built(case) if case in METHODS else built("lora")
    asked = {"steps": 40, "validation_steps": 8} | asked | CASES[case] | SHARDED
    calm = Bench(begun, tmp_path / "calm").run(**asked)
    again = survived(Bench(begun, tmp_path / "stormy"), **asked)
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
