"""Times and numbers as a sentence has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from producers.fleet.view import Seen
from schemas.control import parted
from schemas.dead import Fate
from schemas.errors import CODES
from schemas.event import State

WORDS = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "was cancelled",
    State.EXPIRED: "expired before it ran",
    State.DEAD: "became a dead letter",
}
"""What became of a job, after `It`."""


def ago(now: datetime, moment: datetime) -> str:
    """Return how long ago a moment was."""
    return f"{span(now - moment)} ago"


def span(length: timedelta) -> str:
    """Return a length of time, whichever way it goes."""
    seconds = abs(length.total_seconds())
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def exact(moment: datetime) -> str:
    """Return a moment to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def count(workers: Sequence[Seen]) -> str:
    """Return how many workers serve."""
    return "one worker serves" if len(workers) == 1 else f"{len(workers)} workers serve"


STUBBORN = timedelta(seconds=10)
"""How long after it was told to stop a job that has a process of its own runs at most: it is killed before."""


def stops(told: timedelta, holder: Seen | None) -> str:
    """Return what becomes of a job that was told so long ago to stop; `holder` has it now, as far as is known."""
    if holder is None or told <= STUBBORN:
        return "its worker stops it"
    return (
        f"{holder.id} still has it: a handler that runs in its worker's thread and never looks up is not stopped, "
        "keeps its slot, and how it ends counts"
    )


def refused(breaker: str, cause: str, takers: int) -> tuple[str, dict[str, Any]]:
    """Return who was refused its credentials, if it is a breaker for one worker, and the facts about the cause.

    A cause begins with its code. `takers`: how many workers take such jobs; all of them are refused.
    """
    dependency, worker = parted(breaker)
    found = cause.partition(" ")[0]
    code = found if found in CODES else None
    told = f"{dependency} refuses the credentials of {worker}" + (" and of the others" if takers > 1 else "")
    told += f" ({code})" if code else ""
    facts = {"worker": worker, "cause": cause or None, "code": code, "way out": hint(code) if code else None}
    return told if worker else "", {name: value for name, value in facts.items() if value is not None}


def discarded(fate: Fate, now: datetime) -> str:
    """Return the sentence that tells who decided that it stays dead."""
    return f" It was discarded {ago(now, fate.time)} by {fate.by}" + (f": {fate.reason}." if fate.reason else ".")


def hint(code: str) -> str | None:
    """Return the way out that belongs to a code."""
    return CODES[code].hint if code in CODES else None
