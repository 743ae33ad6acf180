"""What becomes of redriven jobs: their events after the one that says they are queued again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from schemas.dead import Fate
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


@dataclass(slots=True)
class _Life:
    """What a letter's return came to: `queued` once the event that tells of it was seen."""

    queued: bool = False
    end: State | None = None


@dataclass
class Watch:
    """Ends of jobs, counted from the event that tells of their redrive: all before it is of an earlier life.

    Several letters may be of one job. Nothing tells which of them an end is of, so it is that of all which are queued
    by then. And only a dead job lives again: another end stands for those queued later, whose worker may keep silent.
    """

    _jobs: dict[str, dict[str, _Life]] = field(default_factory=dict)
    _letters: dict[str, _Life] = field(default_factory=dict)

    def expect(self, fate: Fate) -> None:
        """Look out for the end of a job that was moved; its return must not have been read yet."""
        if fate.letter not in self._letters:
            life = self._letters[fate.letter] = _Life()
            self._jobs.setdefault(fate.job, {})[queued_id(fate.job, fate.letter, fate.replay)] = life

    def take(self, batch: Iterable[Received]) -> None:
        """Read a batch of events, in their order."""
        for record in batch:
            lives = self._jobs.get((record.key or b"").decode("utf-8", "replace"), {})
            if record.value is None or all(life.end for life in lives.values()):
                continue
            try:
                event = Event.model_validate_json(record.value)
            except ValueError:
                continue
            end = STATE_OF[event.type]
            if event.id in lives:
                lives[event.id].queued = True
                end = next((life.end for life in lives.values() if life.end not in {None, State.DEAD}), None)
            if end in FINAL:
                for life in lives.values():
                    life.end = life.end or (end if life.queued else None)

    def tally(self, letters: Iterable[str]) -> Tally:
        """Return how the jobs of these letters fare."""
        moved = settled = failed = 0
        for letter in letters:
            moved += 1
            life = self._letters.get(letter)
            end = None if life is None else life.end
            settled += end is not None
            failed += end in FAILED
        return Tally(moved, settled, failed)

    def ended(self, letter: str) -> bool:
        """Whether the job of a letter has ended since it was moved."""
        life = self._letters.get(letter)
        return life is not None and life.end is not None

    def failures(self) -> list[str]:
        """Return the jobs that failed again."""
        return [job for job, lives in self._jobs.items() if any(life.end in FAILED for life in lives.values())]


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
