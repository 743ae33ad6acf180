"""A job's past: what its earlier attempts came to, in headers of the record that brings it back (ADR 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import StrEnum

from pydantic import Field, TypeAdapter, ValidationError

from schemas.errors import FailureClass
from schemas.model import Moment, Open
from schemas.outcome import Failure

ATTEMPT, PAST, REPLAY, HINT = "tape-attempt", "tape-past", "tape-replay", "tape-hint"
"""Attempts spent, what they came to, how often the job came back from the dead letters, and how to run it next."""
DUE, TARGET = "tape-due", "tape-target"
"""On delay topics only: milliseconds of the epoch, and the job topic that follows."""
LINE = "tape-line"
"""TOPIC/PARTITION/OFFSET of the record that this one is a copy of: it was put off, and no attempt ended."""
FORMER = "tape-former"
"""The place of the record that this one was written anew from, where that had been delivered before."""
LIFE = "tape-life"
"""The line by which this life of the job began: a client's record, or one that came back from the dead letters."""
QUOTA = "tape-quota"
"""TIMES/TICKET: how often the tenant's quota put this record off, and its place in the line for the tenant's rate."""
CHECKPOINT = "tape-checkpoint"
"""REACHED/CREDITS: how far the job's newest checkpoint is, in its own measure, and how many attempts that came further
than those before went unspent for it."""
OWN = frozenset({ATTEMPT, PAST, REPLAY, HINT, DUE, TARGET, LINE, LIFE, FORMER, QUOTA, CHECKPOINT})
KEPT = 10
"""Attempts whose story is kept: the first and the last ones."""
TEXT = 400
"""Characters of an error text in the past; the whole is in the event of that attempt."""

Header = tuple[str, bytes | None]


class Hint(StrEnum):
    """What the next attempt should do otherwise than the last; each is stronger than those before it."""

    NONE = "none"
    SMALLER = "smaller"
    ELSEWHERE = "elsewhere"
    ALONE = "alone"


class Try(Open):
    """One attempt that is over."""

    attempt: int = Field(ge=0)
    started_at: Moment | None = None
    ended_at: Moment
    worker: str
    failure: FailureClass
    code: str
    message: str = ""
    spent: bool = Field(default=True, description="whether it counts against the job's limit")

    @classmethod
    def of(cls, failure: Failure, **fields: object) -> Try:
        """Return the attempt that ended with this failure."""
        told = {"failure": failure.failure, "code": failure.code, "message": failure.message[:TEXT]}
        return cls.model_validate(told | fields)

    @property
    def waited(self) -> bool:
        """Whether the job only waited for a dependency."""
        return self.failure is FailureClass.DEPENDENCY and not self.spent


class Past(Open):
    """What is known of a job before this record: attempts spent, replays, and the tries themselves."""

    spent: int = Field(default=0, ge=0)
    replays: int = Field(default=0, ge=0)
    hint: Hint = Hint.NONE
    tries: tuple[Try, ...] = ()
    reached: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="how far its newest checkpoint is")
    credits: int = Field(default=0, ge=0, description="attempts that were not spent, for they came further")
    put_off: int = Field(default=0, ge=0, description="how often a quota put it off since its last attempt")
    ticket: int = Field(default=0, ge=0, description="its place in the line for its tenant's rate; 0: none")

    def rested(self, seconds: float) -> Past:
        """Return the past once the job was put off for so long by no fault: no try, and no wait for a dependency."""
        if not self.tries or not self.tries[-1].waited:
            return self
        last = self.tries[-1]
        since = (last.started_at or last.ended_at) + timedelta(seconds=seconds)
        return self.model_copy(update={"tries": (*self.tries[:-1], last.model_copy(update={"started_at": since}))})

    def held_up(self, seconds: float, ticket: int) -> Past:
        """Return the past once a quota has put the job off for so long."""
        return self.rested(seconds).model_copy(update={"put_off": self.put_off + 1, "ticket": ticket})

    def welcomed(self) -> Past:
        """Return the past once its tenant's quota has let it in."""
        return self.model_copy(update={"put_off": 0, "ticket": 0})

    def after(self, last: Try) -> Past:
        """Return the past once `last` has ended too; the first try and the newest are kept.

        An unbroken wait for a dependency is one try: an outage must not push the story of the real attempts out. Its
        `started_at` says since when the job waits, moved on by the time for which it ran in between.
        """
        before = self.tries
        if last.waited:
            since = last.ended_at
            if before and before[-1].waited:
                ran = max(last.ended_at - (last.started_at or last.ended_at), timedelta())
                since, before = (before[-1].started_at or before[-1].ended_at) + ran, before[:-1]
            last = last.model_copy(update={"started_at": min(since, last.ended_at)})
        tries = (*before, last)
        if len(tries) > KEPT:
            tries = (tries[0], *tries[-(KEPT - 1) :])
        return self.model_copy(update={"spent": self.spent + int(last.spent), "tries": tries})


_TRIES = TypeAdapter(tuple[Try, ...])
_NONE = Past()


def read(headers: Iterable[Header]) -> Past:
    """Return the past that a record's headers tell; what strangers wrote wrongly there counts as nothing."""
    found = {name: raw for name, raw in headers if name in OWN and raw is not None}
    if not found:
        return _NONE
    try:
        tries = _TRIES.validate_json(found[PAST]) if PAST in found else ()
    except ValidationError:
        tries = ()
    hint = next((hint for hint in Hint if hint.value.encode() == found.get(HINT)), Hint.NONE)
    reached, _, unspent = (found.get(CHECKPOINT) or b"").partition(b"/")
    times, _, ticket = (found.get(QUOTA) or b"").partition(b"/")
    return Past(
        spent=_number(found.get(ATTEMPT)),
        replays=_number(found.get(REPLAY)),
        hint=hint,
        tries=tries,
        reached=_measure(reached),
        credits=_number(unspent),
        put_off=_number(times),
        ticket=_number(ticket, 16),
    )


def write(headers: Sequence[Header], past: Past) -> list[Header]:
    """Return a record's headers with this past in place of the one they told; all foreign ones stay, in order."""
    kept = [header for header in headers if header[0] not in OWN]
    kept.append((ATTEMPT, str(past.spent).encode()))
    if past.tries:
        kept.append((PAST, _TRIES.dump_json(past.tries, exclude_none=True)))
    if past.replays:
        kept.append((REPLAY, str(past.replays).encode()))
    if past.hint is not Hint.NONE:
        kept.append((HINT, past.hint.value.encode()))
    if past.reached or past.credits:
        kept.append((CHECKPOINT, f"{past.reached!r}/{past.credits}".encode()))
    if past.put_off:
        kept.append((QUOTA, f"{past.put_off}/{past.ticket}".encode()))
    return kept


def _measure(raw: bytes) -> float:
    try:
        found = float(raw[:40] or b"0")
    except ValueError:
        return 0.0
    return found if 0 <= found < math.inf else 0.0


def _number(raw: bytes | None, digits: int = 7) -> int:
    text = (raw or b"").decode("ascii", "replace")
    return min(int(text), 10 ** (digits - 1)) if text.isdecimal() and len(text) <= digits else 0
