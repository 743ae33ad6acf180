"""Try again later: what could not be made durable now, while its lease is held and renewed."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable

import structlog

from workers.attempt import Record, place_of

_LOG = structlog.get_logger("tickertape.again")
FIRST_S, LONGEST_S = 0.5, 30.0


def pause(tries: int, chance: float) -> float:
    """Return seconds to wait before try number `tries` (from 1): exponential, full jitter, at most 30 s.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015). `chance` is uniform in [0, 1).
    """
    return max(0.05, float(min(LONGEST_S, FIRST_S * 2.0 ** min(tries, 10)) * chance))


class Again:
    """One thread that calls things back after a pause that grows with each try for the same record."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock, self._chance = clock, chance
        self._heap: list[tuple[float, int, Record, Callable[[], None]]] = []
        self._tries: dict[tuple[str, int, int], int] = {}
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="again", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def later(self, record: Record, call: Callable[[], None]) -> None:
        """Call `call` after a pause; each further try for the same record waits longer."""
        place = place_of(record)
        with self._changed:
            tries = self._tries[place] = self._tries.get(place, 0) + 1
            due = self._clock() + pause(tries, self._chance())
            heapq.heappush(self._heap, (due, next(self._order), record, call))
            self._changed.notify()

    def forget(self, record: Record) -> None:
        """The record is settled: its next trouble, if any, starts with the shortest pause."""
        if self._tries:
            with self._changed:
                self._tries.pop(place_of(record), None)

    @property
    def pending(self) -> int:
        """Calls that wait."""
        return len(self._heap)

    def stop(self) -> None:
        """End the thread; what waits is left to the lease's next holder."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        while (due := self._next()) is not None:
            record, call = due
            try:
                call()
            except Exception:  # one record's trouble must not end the tries of all the others
                _LOG.exception("trying again failed", topic=record.topic, offset=record.offset)
                self.later(record, call)

    def _next(self) -> tuple[Record, Callable[[], None]] | None:
        with self._changed:
            while not self._stopped:
                if self._heap and self._heap[0][0] <= self._clock():
                    return heapq.heappop(self._heap)[2:]
                self._changed.wait(self._heap[0][0] - self._clock() if self._heap else None)
        return None
