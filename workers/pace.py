"""How long the jobs of a kind take here: what tells whether one can still be done in time."""

from __future__ import annotations

from collections import deque

KEPT = 200
LEAST = 20
"""With fewer jobs seen nothing is known."""


class Pace:
    """The latest durations of each kind's successful jobs, in seconds. Thread-safe: each step is one operation."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Take in how long a job ran."""
        self._seen.setdefault(kind, deque(maxlen=KEPT)).append(seconds)

    def p95(self, kind: str) -> float | None:
        """Return the time in which 95 of 100 jobs of the kind end (nearest rank), None where too few were seen."""
        if (kept := self._seen.get(kind)) is None:
            return None
        seen = sorted(kept.copy())
        return seen[-(-95 * len(seen) // 100) - 1] if len(seen) >= LEAST else None
