"""Follows a training from its first step to its last: progress, losses, checkpoints, and when to stop."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from schemas.errors import JobError
from schemas.row import Row
from workers.llm import pack, resume
from workers.llm.data import IGNORED, Encoded
from workers.llm.team import Alone, Team

LOSS = "valid_loss"
Progress = Callable[[dict[str, Any]], None]
TELL_S = 0.2
"""Steps are told at most this often: those between are in the metrics, and in what is told of them together."""


@dataclass(slots=True)
class Work:
    """What is trained on, and who hears of it."""

    base: Path
    rows: Sequence[Row]
    valid: Sequence[Row]
    out: Path
    progress: Progress
    should_stop: Callable[[], bool]
    checkpoints: resume.Keeper | None
    halved: bool = False
    """Whether memory ran out, and fewer rows are taken at a time than were asked for."""
    team: Team = field(default_factory=Alone)
    scratch: Path | None = None
    """Where a team has its checkpoints on their way; one process makes a folder for itself."""


class Running:
    """Count, mean, variance and bounds of numbers that are not kept (Welford, Technometrics 4, 1962)."""

    __slots__ = ("_squares", "count", "highest", "lowest", "mean")

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        self.lowest, self.highest = math.inf, -math.inf

    def add(self, value: float) -> None:
        """Take in one more."""
        self.count += 1
        apart = value - self.mean
        self.mean += apart / self.count
        self._squares += apart * (value - self.mean)
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)

    @property
    def variance(self) -> float:
        """The variance of the numbers themselves; 0 of fewer than two."""
        return self._squares / self.count if self.count > 1 else 0.0

    def told(self) -> dict[str, float]:
        """Return what is told of several losses; nothing of a single one, which is told itself."""
        if self.count < 2:
            return {}
        found = {"mean": self.mean, "variance": self.variance, "min": self.lowest, "max": self.highest}
        return {"losses": self.count, **{f"loss_{name}": round(value, 6) for name, value in found.items()}}


class Trend:
    """The loss, smoothed over about twenty steps, and the lowest it has been."""

    __slots__ = ("_count", "lowest", "value")

    def __init__(self) -> None:
        self._count, self.value, self.lowest = 0, 0.0, math.inf

    def add(self, loss: float) -> bool:
        """Take in a step; return whether the training falls apart: twice its lowest, and more than a nat above."""
        self._count += 1
        self.value += (loss - self.value) * max(1 / self._count, 0.1)
        if self._count >= 20:
            self.lowest = min(self.lowest, self.value)
        return self.value > self.lowest + max(1.0, self.lowest)


class Collate:
    """Pads a batch on the right, and tells how many tokens are not padding."""

    def __init__(self, pad: int, watch: Watch) -> None:
        self.pad, self.watch = pad, watch

    def __call__(self, rows: Sequence[Encoded] | Sequence[pack.Pack]) -> dict[str, Any]:
        import torch

        packed = [row for row in rows if isinstance(row, tuple)]
        single = [row for found in packed for row in found] or [row for row in rows if isinstance(row, Encoded)]
        if not single[0].held:
            self.watch.loaded.append((sum(len(row.input_ids) for row in single), len(single)))
        if packed:
            return pack.collate(packed, self.pad)
        widest = max(len(row.input_ids) for row in single)

        def padded(values: Sequence[list[int]], filler: int) -> Any:
            return torch.tensor([[*value, *[filler] * (widest - len(value))] for value in values])

        return {
            "input_ids": padded([row.input_ids for row in single], self.pad),
            "attention_mask": padded([[1] * len(row.input_ids) for row in single], 0),
            "labels": padded([row.labels for row in single], IGNORED),
        }


class Watch:
    """Follows one training: passes progress on, keeps losses and checkpoints, and says when to stop."""

    def __init__(
        self, work: Work, facts: dict[str, Any], *, every: int | None = None, patience: int | None = None
    ) -> None:
        self.work, self.facts = work, facts
        self.every, self.patience = every, patience
        self.path = work.out / resume.METRICS
        self.metrics = self.path.open("w", encoding="utf-8")
        self.losses: list[float] = []
        self.loaded: deque[tuple[int, int]] = deque()
        self.valid_loss: float | None = None
        self.validated_at: int | None = None
        self.best: tuple[float, int] = (math.inf, 0)
        self.worse = self.part = 0
        self.tokens = self.samples = self.start = self.before = 0
        self.fresh = [0, 0]
        self.stopped = False
        self.began = self.saved_at = time.monotonic()
        self.told_at = float("-inf")
        self.untold = Running()
        self.trend = Trend()
        self.more: Callable[[], dict[str, Any]] = dict
        """What is told of a step beside its loss."""

    def take_up(self, scratch: Path) -> str | None:
        """Return the folder of the checkpoint to go on from, if there is one, with what was known by then."""
        keeper = self.work.checkpoints
        found = keeper.newest(scratch / "last", partial(resume.fits, self.facts)) if keeper else None
        if found is None:
            return None
        folder = scratch / "last" / str(found.step)
        exact = resume.exact(self.facts, found.facts)
        self.facts |= {"threads": found.facts["threads"], "exact": exact}
        self.metrics.close()
        state = resume.load(folder, self.path)
        self.metrics = self.path.open("a", encoding="utf-8")
        self.losses, self.tokens, self.start = state["losses"], state["tokens"], found.step
        self.samples = state.get("samples", 0)  # that of an older version has none
        if state["validations"] is not None:
            self.valid_loss, self.validated_at, best, at, self.worse = state["validations"]
            self.best = best, at
        self.before = self.tokens
        for loss in self.losses:
            self.trend.add(loss)
        self.work.progress({"resumed": found.step, "exact": exact})
        return str(folder)

    def begin(self) -> None:
        """The first step begins now."""
        self.began = self.saved_at = time.monotonic()

    def trained(self) -> None:
        """A batch was trained on, the oldest of those that were loaded: some are loaded ahead."""
        self.fresh = [have + more for have, more in zip(self.fresh, self.loaded.popleft(), strict=True)]

    def stepped(self, step: int, steps: int) -> bool:
        """A step is done: count its tokens, hear whether to stop, and return whether to keep a checkpoint of it.

        None of the last: it is done, nobody stops it, and its checkpoint is the model.
        """
        on = self.work.team.first and step < steps
        stop = on and self.work.should_stop()
        tokens, rows, stops, saves = self.work.team.sum(*self.fresh, stop, on and self._due(step, stop))
        self.tokens, self.samples, self.fresh = self.tokens + tokens, self.samples + rows, [0, 0]
        self.stopped = bool(stops)
        return bool(saves)

    def _due(self, step: int, stop: bool) -> bool:
        """Whether to keep a checkpoint after this step: the last for now, or one that is due while none is sent."""
        keeper = self.work.checkpoints
        if keeper is None or stop:
            return keeper is not None
        late = time.monotonic() - self.saved_at >= resume.EVERY_S if self.every is None else step % self.every == 0
        return late and not keeper.busy

    def save(self, step: int, folder: Path) -> None:
        """Hand over what the Trainer saved."""
        assert self.work.checkpoints is not None
        self.saved_at = time.monotonic()
        self.work.team.wait()  # each process wrote a part of it
        if not self.work.team.first:
            return
        state = {"losses": self.losses, "tokens": self.tokens, "samples": self.samples, "validations": None}
        told = {}
        if self.validated_at is not None:
            state["validations"] = [self.valid_loss, self.validated_at, *self.best, self.worse]
        if self.validated_at == step:
            told = {LOSS: self.valid_loss}
        resume.save(folder, self.path, state)
        self.work.checkpoints.keep(step, folder, **self.facts, **told)

    def predicted(self) -> None:
        """A batch was validated on: not a step, but it moves."""
        self.part += 1
        if time.monotonic() - self.told_at >= TELL_S:
            self.work.progress({"phase": "validation", "part": self.part})
            self.told_at = time.monotonic()

    def validated(self, loss: float, step: int) -> bool:
        """Take in a validation; return whether to keep a checkpoint: it is the best so far."""
        if not math.isfinite(loss):
            raise diverged(f"the validation loss is {loss}", step)
        self.valid_loss, self.validated_at = loss, step
        better = loss < self.best[0]
        self.best, self.worse = ((loss, step), 0) if better else (self.best, self.worse + 1)
        self.write({"step": step, LOSS: loss})
        self.work.progress({"step": step, LOSS: round(loss, 6), "best_step": self.best[1]})
        return better and self.work.checkpoints is not None

    @property
    def enough(self) -> bool:
        """Whether validations have not got better for too long."""
        return self.patience is not None and self.worse >= self.patience

    def close(self) -> None:
        """The training is over: what is being kept is waited for."""
        self.metrics.close()
        if self.work.checkpoints is not None:
            self.work.checkpoints.flush()

    def write(self, record: dict[str, Any]) -> None:
        self.metrics.write(json.dumps(record) + "\n")
        self.metrics.flush()

    def log(self, logs: dict[str, Any], step: int, steps: int) -> None:
        loss = float(logs["loss"])
        norm = float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise diverged(f"the loss is {loss} and the gradient's norm {norm}", step)
        self.losses.append(loss)
        if self.trend.add(loss):
            raise diverged(f"the loss went up from {self.trend.lowest:.3g} to {self.trend.value:.3g}", step)
        self.untold.add(loss)
        passed = time.monotonic() - self.began
        record = {
            "step": step,
            "steps": steps,
            "epoch": round(float(logs.get("epoch", 0.0)), 4),
            "loss": round(loss, 6),
            "lr": float(logs["learning_rate"]),
            "grad_norm": round(norm, 6),
            **self.more(),
            "tokens": self.tokens,
            "samples": self.samples,
            "tokens_per_s": round((self.tokens - self.before) / passed, 1) if passed else 0.0,
            "eta_s": round(passed / (step - self.start) * (steps - step), 1),
        }
        self.write({key: value for key, value in record.items() if key not in {"tokens_per_s", "eta_s"}})
        if step == steps or time.monotonic() - self.told_at >= TELL_S:
            self.work.progress(record | self.untold.told())
            self.told_at, self.untold = time.monotonic(), Running()


def diverged(told: str, step: int) -> JobError:
    """Return the error of a training that leads nowhere."""
    return JobError(told, code="TAPE-6009", hint="lower the learning rate, or raise the warm-up", step=step)


def callback(watch: Watch) -> Any:
    from transformers import TrainerCallback

    class Follow(TrainerCallback):  # type: ignore[misc]
        """Hands the Trainer's own moments to the watch."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if logs and "loss" in logs:
                watch.log(logs, state.global_step, state.max_steps)
            state.log_history.clear()  # it is in metrics.jsonl, and would be in every checkpoint

        def on_substep_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.trained()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.trained()
            control.should_save |= watch.stepped(state.global_step, state.max_steps)
            control.should_training_stop |= watch.stopped

        def on_prediction_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.predicted()

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
            better = watch.validated(float(metrics["eval_loss"]), state.global_step)
            control.should_save |= better and state.global_step < state.max_steps
            control.should_training_stop |= watch.enough

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.save(state.global_step, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Follow()
