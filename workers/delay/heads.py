"""What was read from the delay topics and may not move on yet: a short line per partition, in order. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from schemas.delays import Plan, plan, ready
from schemas.errors import InvalidError
from wire.follow.port import Received

Place = tuple[str, int]

RECORDS, BYTES = 1_000, 1 << 20
"""How long a partition's line may get before no more is fetched."""


class Heads:
    """The lines, each in the order of its partition."""

    def __init__(self, delays: dict[str, str]) -> None:
        """`delays` tells the delay of each topic."""
        self._delays = delays
        self._lines: dict[Place, deque[Received]] = {}
        self._bytes: dict[Place, int] = {}
        self._plans: dict[Place, tuple[int, Plan | None]] = {}

    def add(self, records: Iterable[Received]) -> None:
        """Put records at the ends of their lines."""
        for record in records:
            place = (record.topic, record.partition)
            self._lines.setdefault(place, deque()).append(record)
            self._bytes[place] = self._bytes.get(place, 0) + _size(record)

    def drop(self, places: Collection[Place]) -> None:
        """Forget these lines: they are somebody else's, or will be read again."""
        for place in places:
            self._lines.pop(place, None)
            self._bytes.pop(place, None)
            self._plans.pop(place, None)

    def clear(self) -> None:
        """Forget all lines."""
        self.drop(list(self._lines))

    def full(self) -> set[Place]:
        """Return the partitions of which enough is here."""
        return {place for place, line in self._lines.items() if len(line) >= RECORDS or self._bytes[place] >= BYTES}

    def wait(self, now_ms: int) -> float | None:
        """Return the seconds until some head moves on; None when there is none."""
        waits = [self._wait(place, line[0], now_ms) for place, line in self._lines.items() if line]
        return min(waits, default=None)

    def due(self, now_ms: int, limit: int, most: int) -> list[Received]:
        """Return what moves on now, at most `limit` records of `most` bytes (but one always), and keep it."""
        found: list[Received] = []
        size = 0
        for place, line in self._lines.items():
            for record in line:
                if len(found) >= limit or (found and size + _size(record) > most):
                    return found
                if self._due(place, record, now_ms):
                    break
                found.append(record)
                size += _size(record)
        return found

    def moved(self, records: Iterable[Received]) -> None:
        """Take out what was returned by `due` and has moved on."""
        for record in records:
            place = (record.topic, record.partition)
            head = self._lines[place].popleft()
            assert head.offset == record.offset, "lines move from the front"
            self._bytes[place] -= _size(record)

    def first(self, place: Place) -> int | None:
        """Return the offset at the head of a line."""
        line = self._lines.get(place)
        return line[0].offset if line else None

    def _wait(self, place: Place, record: Received, now_ms: int) -> float:
        known = self._plans.get(place)
        if known is None or known[0] != record.offset:
            known = self._plans[place] = (record.offset, _plan(record))
        return self._of(place, record, known[1], now_ms)

    def _due(self, place: Place, record: Received, now_ms: int) -> bool:
        return self._of(place, record, _plan(record), now_ms) > 0

    def _of(self, place: Place, record: Received, found: Plan | None, now_ms: int) -> float:
        if found is None:
            return 0.0  # it waits for nothing that anybody could tell
        return ready(self._delays[place[0]], found.due_ms, record.timestamp_ms, now_ms)


def _plan(record: Received) -> Plan | None:
    try:
        return plan(record.headers)
    except InvalidError:
        return None


def _size(record: Received) -> int:
    headers = sum(len(name) + len(raw or b"") for name, raw in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers
