"""Attempts at one training that are killed, stopped and taken up again, in one store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_rig import ROWS

from schemas.row import Row
from wire.blobs.memory import Memory
from workers.checkpoint import Checkpoints, found_of
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.train import train

STEPS = 12


class Killed(BaseException):
    """What a SIGKILL is to the code: nothing after it runs."""


class Bench:
    """Attempts at one training, each with its own checkpoints in one store."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder, self.store = base, folder, Memory()
        folder.mkdir(exist_ok=True)
        self.attempts = 0
        self.kept: list[float] = []
        self.told: list[dict[str, Any]] = []

    def run(
        self, *, die_at: int | None = None, stop_at: int | None = None, hook: Callable[[int], None] | None = None,
        valid: list[Row] | None = None, rows: list[Row] | None = None, **given: Any,
    ) -> TrainResult:  # fmt: skip
        self.attempts += 1
        told: list[dict[str, Any]] = []

        def progress(record: dict[str, Any]) -> None:
            told.append(record)
            self.told.append(record)
            if hook is not None:
                hook(record.get("step", 0))
            if die_at is not None and record.get("step") == die_at:
                raise Killed

        with Checkpoints(
            lambda: self.store, job="j", kind="training", attempt=self.attempts, advanced=self.kept.append
        ) as kept:
            return train(
                TrainParams(**SETTINGS | given), base=self.base, rows=rows or ROWS, valid=valid or ROWS[:3],
                out=self.folder / f"out-{self.attempts}", progress=progress, checkpoints=kept,
                should_stop=lambda: bool(stop_at and told and told[-1].get("step", 0) >= stop_at),
            )  # fmt: skip

    def steps(self) -> list[int]:
        return [found.step for found in found_of(self.store, "j")]


SETTINGS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 2, "accumulation": 3, "lr": 3e-3, "dropout": 0.1, "threads": 1, "device": "cpu",
    "checkpoint_steps": 2,
}  # fmt: skip
