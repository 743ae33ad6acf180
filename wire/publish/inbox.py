"""Where callers leave records for the sender's thread: bounded, with one wake-up for many records."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from schemas.errors import UnavailableError
from wire.publish.lane import Record
from wire.publish.port import closed, not_flushed


class Item(NamedTuple):
    """A record and where it should go."""

    topic: str
    partition: int | None
    record: Record


class Inbox:
    """A bounded buffer of records that are not confirmed yet, most of which the sender has taken already."""

    def __init__(self, limit: int, *, max_block_s: float, wake: Callable[[], None]) -> None:
        self._limit = limit
        self._max_block_s = max_block_s
        self._wake = wake
        self._room = threading.Condition(threading.Lock())
        self._items: deque[Item] = deque()
        self._count = self._bytes = self._waiting = 0
        self._asleep = self._closing = False
        self.owner: threading.Thread | None = None

    def put(self, item: Item) -> None:
        """Leave a record; waits for room. Raises `UnavailableError` (TAPE-5003 closed, TAPE-5004 no room)."""
        size = item.record.size
        with self._room:
            if self._closing:
                raise closed()
            if self._bytes + size > self._limit and self._bytes:
                self._await_room(size)
            self._bytes += size
            self._count += 1
            self._items.append(item)
            wake, self._asleep = self._asleep, False
        if wake:
            self._wake()

    def _await_room(self, size: int) -> None:
        # The sender makes the room, so a callback that publishes on the sender's own thread must not wait for it.
        wait_s = 0.0 if threading.current_thread() is self.owner else self._max_block_s
        self._waiting += 1
        try:
            free = self._room.wait_for(
                lambda: self._closing or not self._bytes or self._bytes + size <= self._limit, wait_s
            )
        finally:
            self._waiting -= 1
        if self._closing:
            raise closed()
        if not free:
            raise UnavailableError(
                f"{self._bytes} bytes wait to be published, and no room came within {wait_s:g} s", code="TAPE-5004"
            )

    def take(self) -> deque[Item]:
        """Take every record left since the last time."""
        if not self._items:
            return self._items
        with self._room:
            taken, self._items = self._items, deque()
        return taken

    def sleep(self) -> bool:
        """Ask to be woken by the next record; False when there is one already."""
        with self._room:
            self._asleep = not self._items
            return self._asleep

    def release(self, count: int, size: int) -> None:
        """Give the room of settled records back."""
        with self._room:
            self._count -= count
            self._bytes -= size
            if self._waiting:
                self._room.notify_all()

    def drain(self, timeout: float | None) -> None:
        """Wait until every record is settled. Raises `TimeoutExceeded` (TAPE-7002)."""
        with self._room:
            self._waiting += 1
            try:
                if not self._room.wait_for(lambda: self._count == 0, timeout):
                    raise not_flushed(self._count, timeout)
            finally:
                self._waiting -= 1

    def close(self) -> bool:
        """Take no more records and free who waits for room; False when that was done before."""
        with self._room:
            first = not self._closing
            self._closing = True
            self._room.notify_all()
            return first
