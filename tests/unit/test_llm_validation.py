"""The loss on held-out rows: each row once and each token alike, by whatever batches and processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_rig import Bench
from train_rig import ROWS, files

from schemas.architecture import Architecture
from schemas.row import Row
from workers.llm import model as models
from workers.llm import pretrain, validation
from workers.llm.data import IGNORED, Encoded, encode
from workers.llm.settings import TrainParams
from workers.llm.train import train
from workers.llm.watch import Collate

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]
HELD = [
    Row("Headline: Velmora", "profit falls", "1"),
    Row("", "Quillon soars in the second quarter, and on", "2"),
    Row("Sentiment:", "good", "3"),
    Row("Headline:", "Brastow profit sinks", "4"),
    Row("bad", "good", "5"),
]
SHAPE = {"layers": 1, "heads": 2, "width": 16, "context": 64, "vocabulary": 300}


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 5))
def test_every_row_is_in_one_round_of_one_process(count: int, size: int, devices: int) -> None:
    found = [list(validation.rounds(count, size, devices, rank)) for rank in range(devices)]
    assert sorted(index for rank in found for members in rank for index in members) == list(range(count))
    assert len({len(rank) for rank in found}) == 1, "whoever has no row left still works on the weights with the others"
    assert all(len(members) <= size for rank in found for members in rank)
    shares = [sum(map(len, rank)) for rank in found]
    assert max(shares) - min(shares) <= 1


def by_hand(module: Any, rows: Sequence[Encoded]) -> float:
    """The mean over all learnt tokens, from one row after another."""
    import torch

    module.eval()
    found: list[float] = []
    for row in rows:
        with torch.no_grad():
            said = module(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        found += [-float(said[at - 1, label]) for at, label in enumerate(row.labels) if at and label != IGNORED]
    return sum(found) / len(found)


class Silent:
    """What a validation's batches tell a watch: nothing."""


rows = st.lists(
    st.tuples(st.lists(st.integers(0, 250), min_size=2, max_size=24), st.integers(1, 23)), min_size=1, max_size=14
)


@settings(deadline=None, max_examples=60)  # the first one loads the model
@given(rows, st.integers(1, 9))
def test_the_loss_is_that_of_all_tokens_by_every_size_of_batch(
    blank: Path, drawn: list[tuple[list[int], int]], size: int
) -> None:
    module = loaded(blank)
    held = [
        Encoded(ids, [IGNORED if at < min(skip, len(ids) - 1) else label for at, label in enumerate(ids)], False, True)
        for ids, skip in drawn
    ]
    counted: list[int] = []
    found = validation.loss(module, held, Collate(0, Silent()), size=size, moved=lambda: counted.append(1))  # type: ignore[arg-type]
    assert found == pytest.approx(by_hand(module, held), rel=1e-5)
    assert len(counted) == -(-len(held) // size)


@cache
def loaded(path: Path) -> Any:
    return models.load(path, threads=1).module


Case = Callable[[Path, Path], tuple[Path, dict[str, Any]]]


def tuned(blank: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    return blank, {"method": "full"}


def packed(blank: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    return blank, {"method": "full", "packing": True}


def taught(blank: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    tokenizer, _ = pretrain.borrow(blank)
    pretrain.blank(folder / "student", Architecture(**SHAPE), tokenizer, seed=1)
    return folder / "student", {"method": "distill", "teacher": blank, "temperature": 2.0, "teacher_share": 0.5}


def built(family: str) -> Case:
    def made(blank: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
        shape = Architecture(**SHAPE, family=family, **({"experts": 4} if family == "moe" else {}))
        pretrain.blank(folder / family, shape, pretrain.borrow(blank)[0], seed=1)
        return folder / family, {"method": "pretrain", "architecture": shape}

    return made


CASES = {"full": tuned, "packed": packed, "distill": taught, "gpt2": built("gpt2"), "moe": built("moe")}


@pytest.mark.parametrize("case", CASES)
def test_every_method_tells_the_loss_of_the_model_that_it_leaves(blank: Path, tmp_path: Path, case: str) -> None:
    base, method = CASES[case](blank, tmp_path)
    given = {"steps": 3, "batch_size": 2, "lr": 1e-2, "threads": 1, "device": "cpu", "max_length": 16}
    done = train(TrainParams(**given | method), base=base, rows=ROWS, valid=HELD, out=tmp_path / "out")
    model = models.load(done.out, threads=1)
    if method["method"] == "pretrain":
        held = pretrain.blocks(HELD, model.tokenizer, 16)
    else:
        held = [encode(row, model.tokenizer, 16) for row in HELD]
    assert len(held) % 2, "the last batch is smaller"
    assert done.valid_loss == pytest.approx(by_hand(model.module, held), rel=1e-5)


def test_to_validate_changes_nothing_of_what_is_learnt(blank: Path, tmp_path: Path) -> None:
    """Nothing is drawn meanwhile: dropout and the order of the rows go on as they would."""
    never = Bench(blank, tmp_path / "never").run()
    often = Bench(blank, tmp_path / "often").run(validation_steps=1)
    name = "adapter_model.safetensors"
    assert files(often.out)[name] == files(never.out)[name]
    lines = [json.loads(line) for line in (often.out / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "valid_loss" in line]) == often.steps
