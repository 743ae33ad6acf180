"""Which recurring job is due: a fold of the compacted topic, and the clock. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from schemas import codec
from schemas.errors import InvalidError
from schemas.recur import Fired, Recurring, name_of
from wire.cron import Cron
from wire.follow.port import Received

_LOG = structlog.get_logger("tickertape.recurring")
PAUSE = timedelta(seconds=60)
"""How long a firing that was refused waits."""


class Due(NamedTuple):
    """A template that fires now, for which moment, and where its records lie."""

    template: Recurring
    moment: datetime
    partition: int


@dataclass(slots=True)
class _Entry:
    template: Recurring
    cron: Cron
    partition: int
    not_before: datetime | None = None


class Calendar:
    """The recurring jobs of the partitions that were read; what was missed fires once, for its latest moment."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._fired: dict[str, datetime] = {}
        self._next: dict[str, datetime] = {}

    def read(self, records: Iterable[Received]) -> None:
        """Take in records, in their order; one that nobody can read counts as none."""
        for record in records:
            name, fired = name_of(record.key)
            self._next.pop(name, None)
            if record.value is None:
                (self._fired if fired else self._entries).pop(name, None)
                continue
            try:
                if fired:  # what we fired ourselves comes back later, and must not undo what we fired since
                    moment = codec.parse(Fired, record.value).moment
                    self._fired[name] = max(moment, self._fired.get(name, moment))
                else:
                    template = codec.parse(Recurring, record.value)
                    self._entries[name] = _Entry(template, Cron(template.cron, template.timezone), record.partition)
            except InvalidError as error:
                _LOG.error("recurring job not readable", name=name, offset=record.offset, error=str(error))
                (self._fired if fired else self._entries).pop(name, None)

    def clear(self) -> None:
        """Forget everything: somebody else fires now, or it will be read again."""
        self._entries.clear()
        self._fired.clear()
        self._next.clear()

    def wait(self, now: datetime) -> float | None:
        """Return the seconds until something is due; None when there is nothing."""
        moments = [self._moment(name, entry) for name, entry in self._entries.items()]
        return max(0.0, (min(moments) - now).total_seconds()) if moments else None

    def due(self, now: datetime) -> list[Due]:
        """Return what fires now, each for the latest of its moments."""
        found = []
        for name, entry in self._entries.items():
            if self._moment(name, entry) <= now:
                moment = entry.cron.latest(self._last(name, entry), now)
                if moment is not None:
                    found.append(Due(entry.template, moment, entry.partition))
        return found

    def fired(self, due: Due) -> None:
        """It is written: this moment never fires again."""
        self._fired[due.template.name] = due.moment
        self._next.pop(due.template.name, None)

    def postpone(self, due: Due, now: datetime) -> None:
        """It cannot be written: look again in a while."""
        self._entries[due.template.name].not_before = now + PAUSE
        self._next.pop(due.template.name, None)

    def _last(self, name: str, entry: _Entry) -> datetime:
        added = entry.template.added_at
        return max(added, self._fired.get(name, added))

    def _moment(self, name: str, entry: _Entry) -> datetime:
        found = self._next.get(name)
        if found is None:
            found = entry.cron.after(self._last(name, entry))
            if entry.not_before is not None:
                found = max(found, entry.not_before)
            self._next[name] = found
        return found
