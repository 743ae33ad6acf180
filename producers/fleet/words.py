"""Times and numbers as a sentence has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from producers.fleet.view import Seen
from schemas.errors import CODES


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


def hint(code: str) -> str | None:
    """Return the way out that belongs to a code."""
    return CODES[code].hint if code in CODES else None
