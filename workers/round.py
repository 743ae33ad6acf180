"""Whose turn it is among the sources of a pool, and how fast a pool settles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

WEIGHTS = {"interactive": 4, "bulk": 1}
"""Turns per round: interactive jobs first, bulk never starved."""


class Laned(Protocol):
    """Something that belongs to a lane."""

    @property
    def lane(self) -> str: ...


S = TypeVar("S", bound=Laned)


class Rate:
    """Settled jobs a second, smoothed over about a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since, self._count, self.value = clock(), 0, 0.0

    def add(self, count: int) -> None:
        """Count settled jobs."""
        self._count += count
        elapsed = self._clock() - self._since
        if elapsed >= 0.05:
            weight = min(1.0, elapsed * 2)
            self.value += weight * (self._count / elapsed - self.value)
            self._since, self._count = self._clock(), 0


class Round(Generic[S]):
    """Whose turn it is among the sources of a pool: a circle in which each has as many places as its lane weighs."""

    def __init__(self, sources: Sequence[S]) -> None:
        self.sources = list(sources)
        self._circle = [source for source in sources for _ in range(WEIGHTS.get(source.lane, 1))]
        self._at = 0
        self.asked_at = 0.0

    def order(self) -> list[S]:
        """Return every source once, the one whose turn it is first."""
        ordered: list[S] = []
        for source in self._circle[self._at :] + self._circle[: self._at]:
            if source not in ordered:
                ordered.append(source)
        return ordered

    def served(self) -> None:
        """The turn was used: the next place of the circle has it."""
        self._at = (self._at + 1) % len(self._circle)

    def skip(self, waiting: Sequence[S]) -> None:
        """The turn was in vain: give it to the next source that does not wait already."""
        for _ in self._circle:
            self.served()
            if self._circle[self._at] not in waiting:
                return
