"""What is told of the rows of a training before a model is loaded, and what refuses it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidError
from schemas.job import Training
from schemas.row import Row
from wire import datasets
from wire.blobs.memory import Memory
from wire.rows.check import Check
from workers import vet as module
from workers.context import CancelledByRequest, Context
from workers.lineage import pinned
from workers.vet import vet

LEARNT = [("2+2=", "4"), ("3+3=", "6"), ("2+2=", "4"), ("3+3=", "7"), ("who?", "a.b@example.com")]
HELD = [("5+5=", "10"), ("3+3=", "6")]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.stopped = folder, Memory(), False

    def context(self) -> Context:
        return Context(
            job="j", kind="training", attempt=1, worker="w", tenant="t", cache=self.folder, scratch=self.folder,
            open_store=lambda: self.store, report=lambda _: None, stopped=lambda: self.stopped,
        )  # fmt: skip

    def register(self, name: str, **parts: list[tuple[str, str]]) -> None:
        folder = self.folder / name
        folder.mkdir()
        with Check(folder) as check:
            for part, found in parts.items():
                path = folder / f"{part}.in"
                path.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in found))
                check.take(part, path)
            now = datetime(2030, 1, 2, tzinfo=UTC)
            datasets.register(self.store, name, check.finish(), recipe="auto", by="me", now=now)

    def vet(self, learnt: Any, held: Any = (), **given: Any) -> dict[str, int]:
        same = given.pop("same", False)
        params = pinned(Training(base="file:b", **{"data": "file:/rows/a.jsonl", **given}), self.context())
        return vet(self.context(), params, rows(learnt), rows(held), same=same)


def rows(found: list[tuple[str, str]]) -> list[Row]:
    return [Row(asked, told, str(line), line) for line, (asked, told) in enumerate(found, 1)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(bench: Bench, *found: Any, **given: Any) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        bench.vet(*found, **given)
    assert caught.value.code == "TAPE-1014"
    return caught.value


def test_rows_that_nobody_registered_are_checked(bench: Bench) -> None:
    assert bench.vet(LEARNT) == {"conflict": 1, "duplicate": 1, "personal": 1}
    assert bench.vet(LEARNT, HELD[:1], validation="blob:held.jsonl") == {"conflict": 1, "duplicate": 1, "personal": 1}
    assert bench.vet([("a", "b")]) == {}
    assert bench.vet([("a", "b" * 40_000)]) == {"long": 1}, "it is cut to max_length, and refuses nothing"
    assert list(bench.folder.iterdir()) == [], "what it needed is gone"


def test_a_question_to_validate_on_is_not_learnt(bench: Bench) -> None:
    error = refused(bench, LEARNT, HELD, validation="file:/rows/held.jsonl")
    assert error.message == (
        "2 rows to learn from ask what is to be validated on; line 2: "
        "the same is asked in line 2 of the validation part (held.jsonl)"
    )
    place = {"file": "a.jsonl", "line": 2, "field": "line", "rule": "leak"}
    assert {name: error.place[name] for name in place} == place
    assert "tape data check" in error.hint


def test_a_leak_is_named_behind_many_warnings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.rows.check.SHOWN", 1)
    assert refused(bench, LEARNT, HELD, validation="file:/rows/held.jsonl").place["line"] == 2


def test_rows_that_are_their_own_validation_are_told_and_counted_once(bench: Bench) -> None:
    found = bench.vet(LEARNT, LEARNT, validation="file:/rows/a.jsonl", same=True)
    assert found == {"leak": 5, "conflict": 1, "duplicate": 1, "personal": 1}


def test_a_registered_set_brings_its_own_warnings(bench: Bench) -> None:
    bench.register("one", train=LEARNT, validation=HELD[:1])
    known = {"conflict": 1, "duplicate": 1, "personal": 1}
    assert bench.vet(LEARNT, data="dataset:one") == known
    assert bench.vet(LEARNT, HELD[:1], data="dataset:one", validation="dataset:one") == known
    raw = bench.vet(LEARNT, [("b", "c"), ("b", "d")], data="dataset:one", validation="blob:b.jsonl")
    assert raw == known | {"conflict": 2}


def test_two_registered_sets_are_compared(bench: Bench) -> None:
    bench.register("one", train=LEARNT[:2])
    bench.register("two", train=HELD)
    error = refused(bench, LEARNT[:2], HELD, data="dataset:one", validation="dataset:two#train")
    assert error.place["file"].startswith("dataset:one@")
    assert "(dataset:two@" in error.message
    assert bench.vet(LEARNT[:1], HELD, data="dataset:one", validation="dataset:two#train") == {}


def test_it_ends_when_the_job_is_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 2)
    bench.stopped = True
    with pytest.raises(CancelledByRequest):
        bench.vet(LEARNT)
