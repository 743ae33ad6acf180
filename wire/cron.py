"""Moments named by cron expressions, in any time zone, by the library `cronsim`.

Rules of Debian's cron: of the days of month and week one must match, or both if either is a star; a moment that the
change to summer time leaves out comes right after it, one that comes twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from schemas.errors import InvalidError


class Cron:
    """A cron expression in a time zone.

    >>> Cron("0 9 * * MON-FRI", "UTC").after(datetime(2026, 1, 2, 9, tzinfo=UTC)).isoformat()
    '2026-01-05T09:00:00+00:00'
    """

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """Raises `InvalidError` (TAPE-1002) that names the wrong field: `cron` or `timezone`."""
        self._expression = expression
        try:
            self._zone = ZoneInfo(timezone)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidError(
                f"{timezone!r} is not a time zone", field="timezone", hint="use an IANA name, UTC or Europe/Berlin"
            ) from error
        try:
            next(self._moments(datetime.now(UTC)))
        except (CronSimError, StopIteration, AssertionError, TypeError) as error:
            raise InvalidError(
                f"{expression!r} names no moment: {error or 'no day matches'}",
                field="cron",
                hint="minute hour day month weekday, e.g. '0 9 * * MON-FRI'",
            ) from error

    def after(self, moment: datetime) -> datetime:
        """Return the first moment after this one, in UTC."""
        return next(self._moments(moment))

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last moment after the one and not after the other, in UTC; None when there is none."""
        if self.after(after) > until:
            return None
        found = next(self._moments(until, reverse=True))
        following = self.after(found)
        return following if following <= until else found  # backwards it stops short of `until` itself

    def _moments(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        for moment in CronSim(self._expression, start.astimezone(self._zone), reverse=reverse):
            yield moment.astimezone(UTC)
