"""Patience: validations without a better one are counted from the best, and the count outlives a death."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wire.blobs.memory import Memory
from workers.checkpoint import Checkpoints
from workers.llm import resume
from workers.llm.settings import TrainParams
from workers.llm.watch import Watch, Work

pytestmark = pytest.mark.model


class Bench:
    """Attempts at one training that are told of validations, and train nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.attempts = folder, Memory(), 0
        self.facts = resume.facts(TrainParams(), "base", [], device="cpu", threads=1) | {"teacher": None}

    def watch(self, patience: int = 3) -> Watch:
        self.attempts += 1
        out = self.folder / f"out-{self.attempts}"
        out.mkdir()
        kept = Checkpoints(
            lambda: self.store, job="j", kind="training", attempt=self.attempts, advanced=lambda _: None
        )  # fmt: skip
        work = Work(self.folder, [], [], out, _silent, lambda: False, kept)
        return Watch(work, dict(self.facts), patience=patience)

    def save(self, watch: Watch, step: int) -> None:
        folder = self.folder / f"saved-{self.attempts}-{step}"
        folder.mkdir()
        watch.save(step, folder)
        watch.close()


def _silent(told: dict[str, Any]) -> None: ...


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def told(watch: Watch, losses: list[float], start: int = 0) -> list[bool]:
    """Return, for each validation, whether it was one too many."""
    found = []
    for step, loss in enumerate(losses, start + 1):
        watch.validated(loss, step)
        found.append(watch.enough)
    return found


def test_a_better_validation_begins_the_count_anew(bench: Bench) -> None:
    watch = bench.watch(patience=2)
    assert told(watch, [3.0, 3.5, 2.0, 2.5, 1.9, 2.0, 1.9]) == [False] * 6 + [True]
    assert watch.best == (1.9, 5), "as good is not better"
    watch.close()


def test_the_count_goes_on_where_a_death_left_it(bench: Bench, tmp_path: Path) -> None:
    first = bench.watch()
    assert told(first, [3.0, 3.5, 3.6]) == [False] * 3
    bench.save(first, 3)
    second = bench.watch()
    assert second.take_up(tmp_path / "in") is not None
    assert (second.best, second.start) == ((3.0, 1), 3)
    assert told(second, [3.7], start=3) == [True], "the third in a row, of two attempts"
    second.close()


def test_without_patience_none_is_too_many(bench: Bench) -> None:
    watch = bench.watch()
    watch.patience = None
    assert told(watch, [1.0, *[2.0] * 9]) == [False] * 10
    watch.close()
