"""One job's events as they come in, and the means to wait for more of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice

from schemas.errors import TapeError, TimeoutExceeded
from schemas.event import FINAL, STATE_OF, Event, EventType, State, follow

LIMIT = 10_000
"""Events kept of one job; beyond it the oldest go: a stream of tokens must not fill the memory of who waits."""


class Log:
    """The events of one job that were seen so far, each once, in the order they came; thread-safe."""

    def __init__(self, job: str, since: datetime, *, limit: int = LIMIT) -> None:
        self.job, self.since = job, since
        self.revived: datetime | None = None
        self.covered = False
        self.final: Event | None = None
        self.state: State | None = None
        self.error: TapeError | None = None
        self._limit = limit
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._seen: set[str] = set()
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def add(self, event: Event) -> None:
        """Take one event; a repeat, and anything after the end is dropped, unless a dead job lives again."""
        with self._changed:
            if event.id in self._seen or (self.final is not None and not self._revives(event)):
                return
            if event.type is EventType.DEAD and self.revived is not None and event.time < self.revived:
                return
            self.final = None
            self._seen.add(event.id)
            self._events.append(event)
            if len(self._events) > self._limit:
                self._seen.discard(self._events.popleft().id)
                self._dropped += 1
            self.state = follow(self.state, event)
            if STATE_OF[event.type] in FINAL:
                self.final = event
            self._tell()

    def _revives(self, event: Event) -> bool:
        return self.state is State.DEAD and STATE_OF[event.type] is not None and follow(self.state, event) != self.state

    def fail(self, error: TapeError) -> None:
        """Tell every waiter that no more events can come."""
        with self._changed:
            self.error = error
            self._tell()

    def after(self, index: int) -> tuple[list[Event], int, bool]:
        """Return the events from `index` on, the index after them, and whether the last event is among them.

        Raises the error that ended the feed once everything before it was handed out.
        """
        with self._changed:
            fresh = list(islice(self._events, max(0, index - self._dropped), None))
            if not fresh and self.final is None and self.error is not None:
                raise self.error
            return fresh, self._dropped + len(self._events), self.final is not None

    def wait_final(self, timeout_s: float | None) -> Event | None:
        """Wait for the last event; None after `timeout_s` seconds. Raises the error that ended the feed."""
        with self._changed:
            self._changed.wait_for(lambda: self.final is not None or self.error is not None, timeout_s)
            return self.ended()

    def ended(self) -> Event | None:
        """Return the last event, None when there is none yet. Raises the error that ended the feed."""
        if self.final is None and self.error is not None:
            raise self.error
        return self.final

    def events(self, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[Event]:
        """Yield every event, those seen already first, until the last one.

        Raises `TimeoutExceeded` (TAPE-7002) when that takes longer than `timeout_s` seconds in all.
        """
        end = None if timeout_s is None else clock() + timeout_s
        index, last = 0, False
        while not last:
            with self._changed:
                if not self._changed.wait_for(
                    lambda: self._has(index),  # noqa: B023 - called before the loop goes on
                    None if end is None else max(0.0, end - clock()),
                ):
                    raise late(self.job)
            fresh, index, last = self.after(index)
            yield from fresh

    @contextmanager
    def listening(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback` called, in the feed's thread, at every change."""
        with self._changed:
            self._listeners.append(callback)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(callback)

    def _has(self, index: int) -> bool:
        return self._dropped + len(self._events) > index or self.final is not None or self.error is not None

    def _tell(self) -> None:
        self._changed.notify_all()
        for callback in self._listeners:
            callback()


def late(job: str) -> TimeoutExceeded:
    """The error of a wait that took too long."""
    return TimeoutExceeded("the job has not ended yet", code="TAPE-7002", job=job)
