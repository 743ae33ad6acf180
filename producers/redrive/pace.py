"""How fast a redrive goes, and which letters go first. Pure but for the clock that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from producers.dead.letter import Letter
from schemas.redrive import Line

BATCH = 250
"""Letters in one transaction: large enough to be quick, small enough to be lost to a fenced runner."""
BATCH_BYTES = 8 << 20
"""Bytes of the letters in one transaction, so that it is written in time whatever their size."""
LEAST = 10
"""Jobs that must have ended before the share of failures among them means anything."""

MOMENT_S = 0.0005


@dataclass(frozen=True)
class Pace:
    """What a run was asked for; None leaves what the redrive was run with before.

    `canary` jobs go first, and their outcomes are awaited for `canary_timeout_s` seconds at most (None: until none of
    them has run for ten minutes); then `rate` jobs a
    second at most; it halts when more than `halt_above` percent of those that ended have failed again. With `wait`, the
    run ends only when every job has.
    """

    canary: int | None = None
    rate: float | None = None
    halt_above: float | None = None
    canary_timeout_s: float | None = None
    wait: bool = False


class Metronome:
    """Says how many may go now, and how long to wait before the next."""

    def __init__(self, rate: float | None, clock: Callable[[], float]) -> None:
        self.rate, self._clock = rate, clock
        self._due = clock()

    @property
    def size(self) -> int:
        """The most letters that may go at once: a quarter of a second's worth, so that a low rate is even."""
        return BATCH if self.rate is None else max(1, min(BATCH, int(self.rate / 4)))

    def went(self, count: int) -> None:
        """Count what went; an idle time is not made up for by a burst."""
        if self.rate is not None:
            self._due = max(self._due, self._clock()) + count / self.rate

    def left(self) -> float:
        """Seconds until the next may go; less than a clock can tell is nothing."""
        left = 0.0 if self.rate is None else self._due - self._clock()
        return left if left > MOMENT_S else 0.0


def batches(letters: Iterable[Letter], size: int) -> Iterator[list[Letter]]:
    """Yield letters in batches of at most `size`, and of `BATCH_BYTES` unless one alone is larger."""
    batch: list[Letter] = []
    weight = 0
    for letter in letters:
        own = len(letter.record.value or b"") + sum(len(raw or b"") for _, raw in letter.record.headers)
        if batch and (len(batch) >= size or weight + own > BATCH_BYTES):
            yield batch
            batch, weight = [], 0
        batch.append(letter)
        weight += own
    if batch:
        yield batch


def sample(lines: Sequence[Line], count: int) -> list[Line]:
    """Return `count` lines that stand for all: from every kind and code in turn, the oldest first."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.kind, line.code), []).append(line)
    found: list[Line] = []
    depth = 0
    while len(found) < min(count, len(lines)):
        found += [group[depth] for group in groups.values() if depth < len(group)]
        depth += 1
    return found[:count]
