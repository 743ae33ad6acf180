"""What is drawn: for each job and metric, where along the axis and how high."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from schemas.errors import InvalidError

Record = Mapping[str, Any]
COUNTS = frozenset({"step", "steps", "time", "best_step", "losses", "part"})
"""Numbers in a record that are no metrics."""


class Axis(StrEnum):
    """What lies along the axis."""

    STEP = "step"
    EPOCH = "epoch"
    TIME = "time"
    TOKENS = "tokens"


TITLES = {Axis.STEP: "step", Axis.EPOCH: "epoch", Axis.TIME: "seconds since it started", Axis.TOKENS: "tokens"}
NAMES = {
    "loss": "loss (nats per token)", "valid_loss": "validation loss (nats per token)", "lr": "learning rate",
    "grad_norm": "norm of the gradient", "energy_wh": "energy (Wh)", "eta_s": "time left (s)",
    "tokens_per_s": "tokens per second", "peak_memory_bytes": "peak memory (bytes)",
}  # fmt: skip
"""What a metric is called in a picture, with its unit."""


def titled(metrics: Iterable[str], axis: Axis) -> str:
    """Return what stands above a picture of them."""
    return f"{', '.join(NAMES.get(metric, metric).partition(' (')[0] for metric in metrics)} by {TITLES[axis]}"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one job; `smooth` is what is drawn in front of `y` where that was asked for."""

    job: str
    label: str
    metric: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    smooth: tuple[float, ...] | None = None

    @property
    def drawn(self) -> tuple[float, ...]:
        """The values to look at."""
        return self.y if self.smooth is None else self.smooth

    def row(self, axis: Axis) -> dict[str, Any]:
        """Return it as plain data; `points` are pairs."""
        points = [list(pair) for pair in zip(self.x, self.drawn, strict=True)]
        return {"job": self.job, "label": self.label, "metric": self.metric, "x": axis.value, "points": points}


def metrics(records: Iterable[Record]) -> list[str]:
    """Return the names of all metrics in the records."""
    return sorted({name for record in records for name in record if name not in COUNTS and _number(record[name])})


def pick(job: str, label: str, records: Sequence[Record], metric: str, axis: Axis) -> Series:
    """Return one metric of a job along an axis.

    Raises `InvalidError` (TAPE-1010) that lists what there is, where the metric or the axis is not in the records.
    """
    found = [record for record in records if _number(record.get(metric))]
    if metric in COUNTS or not found:
        known = ", ".join(metrics(records)) or "none"
        raise InvalidError(
            f"the job has no metric {metric!r}", code="TAPE-1010", field="--metric", job=job, hint=f"it has: {known}"
        )
    placed = [record for record in found if _number(record.get(axis))]
    if not placed:
        known = ", ".join(one for one in Axis if any(_number(record.get(one)) for record in found))
        raise InvalidError(
            f"nothing says at which {axis} {metric!r} was measured", code="TAPE-1010", field="--x", job=job,
            hint=f"use one of: {known}" + ("" if axis != Axis.TIME else "; times are in the events, kept for a week"),
        )  # fmt: skip
    return Series(
        job, label, metric, tuple(float(one[axis]) for one in placed), tuple(float(one[metric]) for one in placed)
    )


def smoothed(values: Sequence[float], weight: float) -> tuple[float, ...]:
    """Return a running mean in which each value before counts `weight` times the next, 0 ≤ weight < 1.

    It is divided by the sum of its weights, so that it does not begin at nought (as Adam's moments are,
    arXiv:1412.6980, section 3).
    """
    total = weights = 0.0
    found = []
    for value in values:
        total, weights = weight * total + value, weight * weights + 1
        found.append(total / weights)
    return tuple(found)


def _number(value: object) -> bool:
    return type(value) in (int, float)
