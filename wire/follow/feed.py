"""A feed's hand-over: one side puts batches in, the other takes them out, either may end it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

STOP_S = 0.05
"""How often a waiting reader looks at an event that somebody else may set."""


class Handover(Generic[T]):
    """A queue of work with an end: `finish` lets the reader take what is left, `close` ends it at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._finished = False
        self._error: Exception | None = None
        self.closed = False

    def put(self, item: T) -> None:
        """Hand one over."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def finish(self, error: Exception | None = None) -> None:
        """Say that no more will come, or why."""
        with self._changed:
            self._finished = True
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> bool:
        """End it for both sides; False when that was done before."""
        with self._changed:
            first, self.closed = not self.closed, True
            self._items.clear()
            self._changed.notify_all()
            return first

    def take(self, timeout: float | None) -> T | None:
        """Return the next; None after `timeout`, or when no more will come. Raises what `finish` was given."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._finished or self.closed, timeout)
            if self._items:
                return self._items.popleft()
            if self._error is not None and not self.closed:
                raise self._error
            return None

    @property
    def over(self) -> bool:
        """Whether nothing will ever come again."""
        with self._changed:
            return self.closed or (self._finished and not self._items and self._error is None)


class HandoverFeed(Generic[T, R]):
    """A `Feed` that opens what is handed over; `release` is called once, when it ends."""

    def __init__(
        self,
        source: Handover[T],
        *,
        unpack: Callable[[T], list[R]],
        stop: threading.Event | None,
        release: Callable[[], None],
    ) -> None:
        self._source = source
        self._unpack = unpack
        self._stop = stop
        self._release = release

    def poll(self, timeout: float | None = None) -> list[R]:
        """Return the next batch that has records; see `Feed.poll`."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._ended():
            left = None if until is None else max(0.0, until - time.monotonic())
            wait = left if self._stop is None else min(STOP_S, STOP_S if left is None else left)
            item = self._source.take(wait)
            batch = [] if item is None else self._unpack(item)
            if batch:
                return batch
            if until is not None and time.monotonic() >= until:
                return []
        return []

    def _ended(self) -> bool:
        if self._stop is not None and self._stop.is_set():
            self.close()
        if self._source.over:
            self.close()
            return True
        return False

    def close(self) -> None:
        """End the feed; see `Feed.close`."""
        if self._source.close():
            self._release()

    def __iter__(self) -> Iterator[list[R]]:
        return self

    def __next__(self) -> list[R]:
        try:
            batch = self.poll()
        except BaseException:
            self.close()
            raise
        if not batch:
            raise StopIteration
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
