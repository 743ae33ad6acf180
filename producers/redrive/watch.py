"""What becomes of redriven jobs: their events after the one that says they are queued again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from schemas.errors import InvalidError
from schemas.event import FINAL, STATE_OF, Event, EventType, State
from schemas.ids import derived_id
from schemas.topics import Names
from wire.follow import Received

FAILED = frozenset({State.DEAD, State.FAILED, State.EXPIRED})
"""Ends that mean: it would have been better not to send it back."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many redriven jobs there are, how many have ended, and how many of those failed again."""

    moved: int = 0
    settled: int = 0
    failed: int = 0

    @property
    def open(self) -> int:
        """Jobs that have not ended yet."""
        return self.moved - self.settled


def queued_id(job: str, letter: str, replay: int) -> str:
    """Return the id of the event that says that a letter's job is queued again."""
    return derived_id(job, EventType.QUEUED, "redrive", letter, str(replay))


@dataclass
class Watch:
    """Ends of jobs, counted from the event that tells of their redrive: all before it is of an earlier life."""

    marks: dict[str, str] = field(default_factory=dict)
    _armed: set[str] = field(default_factory=set)
    _ends: dict[str, State] = field(default_factory=dict)

    def expect(self, job: str, letter: str, replay: int) -> None:
        """Look out for a job's end after its `replay`-th return, by this letter."""
        mark = queued_id(job, letter, replay)
        if self.marks.get(job) != mark:
            self.marks[job] = mark
            self._armed.discard(job)
            self._ends.pop(job, None)

    def take(self, batch: Iterable[Received]) -> None:
        """Read a batch of events, in their order."""
        for record in batch:
            job = (record.key or b"").decode("utf-8", "replace")
            mark = self.marks.get(job)
            if mark is None or record.value is None or job in self._ends:
                continue
            try:
                event = Event.model_validate_json(record.value)
            except ValueError:
                continue
            if event.id == mark:
                self._armed.add(job)
            state = STATE_OF[event.type]
            if job in self._armed and state in FINAL and state is not None:
                self._ends[job] = state

    def tally(self, jobs: Iterable[str]) -> Tally:
        """Return how these jobs fare."""
        moved = settled = failed = 0
        for job in jobs:
            moved += 1
            end = self._ends.get(job)
            settled += end is not None
            failed += end in FAILED
        return Tally(moved, settled, failed)

    def failures(self) -> list[str]:
        """Return the jobs that failed again."""
        return [job for job, end in self._ends.items() if end in FAILED]


def trips(tally: Tally, percent: float, least: int) -> bool:
    """Whether more than `percent` of the jobs that ended have failed, once `least` have ended."""
    return tally.settled >= max(1, least) and tally.failed * 100 > percent * tally.settled


@lru_cache(maxsize=256)  # asked once a letter, and letters have few topics
def ours(names: Names, topic: str | None) -> bool:
    """Whether a topic is one of our job topics; what becomes of other systems' records is not told to us."""
    try:
        names.parse_jobs(topic or "")
    except InvalidError:
        return False
    return True
