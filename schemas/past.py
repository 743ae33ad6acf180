"""A job's past: what its earlier attempts came to, in headers of the record that brings it back (ADR 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from schemas.errors import FailureClass
from schemas.model import Open
from schemas.outcome import Failure

ATTEMPT, PAST, REPLAY = "tape-attempt", "tape-past", "tape-replay"
"""Attempts spent, what they came to, and how often the job came back from the dead letters."""
DUE, TARGET = "tape-due", "tape-target"
"""On delay topics only: milliseconds of the epoch, and the job topic that follows."""
OWN = frozenset({ATTEMPT, PAST, REPLAY, DUE, TARGET})
KEPT = 10
"""Attempts whose story is kept: the first and the last ones."""
TEXT = 400
"""Characters of an error text in the past; the whole is in the event of that attempt."""

Header = tuple[str, bytes | None]


class Try(Open):
    """One attempt that is over."""

    attempt: int = Field(ge=0)
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime
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


class Past(Open):
    """What is known of a job before this record: attempts spent, replays, and the tries themselves."""

    spent: int = Field(default=0, ge=0)
    replays: int = Field(default=0, ge=0)
    tries: tuple[Try, ...] = ()

    def after(self, last: Try) -> Past:
        """Return the past once `last` has ended too; the first try and the newest are kept."""
        tries = (*self.tries, last)
        if len(tries) > KEPT:
            tries = (tries[0], *tries[-(KEPT - 1) :])
        return self.model_copy(update={"spent": self.spent + int(last.spent), "tries": tries})


_TRIES = TypeAdapter(tuple[Try, ...])


def read(headers: Iterable[Header]) -> Past:
    """Return the past that a record's headers tell; what strangers wrote wrongly there counts as nothing."""
    found = {name: raw for name, raw in headers if name in OWN and raw is not None}
    if not found:
        return Past()
    try:
        tries = _TRIES.validate_json(found[PAST]) if PAST in found else ()
    except ValidationError:
        tries = ()
    return Past(spent=_number(found.get(ATTEMPT)), replays=_number(found.get(REPLAY)), tries=tries)


def write(headers: Sequence[Header], past: Past) -> list[Header]:
    """Return a record's headers with this past in place of the one they told; all foreign ones stay, in order."""
    kept = [header for header in headers if header[0] not in OWN]
    kept.append((ATTEMPT, str(past.spent).encode()))
    if past.tries:
        kept.append((PAST, _TRIES.dump_json(past.tries, exclude_none=True)))
    if past.replays:
        kept.append((REPLAY, str(past.replays).encode()))
    return kept


def _number(raw: bytes | None) -> int:
    text = (raw or b"").decode("ascii", "replace")
    return min(int(text), 1_000_000) if text.isdecimal() and len(text) < 8 else 0
