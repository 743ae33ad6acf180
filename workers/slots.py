"""Slots: room for running jobs. One thread a slot; each owns a runner (inline, or a warm child process)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from workers.attempt import Record
from workers.runner import Runner

Work = Callable[[Record, Runner], None]
ADAPT_S = 0.01
"""How often a light pool with a backlog asks itself how many of its slots should compete."""
STALE_S = 0.5
"""A measure older than this says nothing of now."""
LEAST = 2
IDLE, FULL, PARALLEL = 0.6, 0.8, 1.15
"""Shares of one core that this process used: below `IDLE` its jobs wait for something, from `FULL` on they wait for the
interpreter's lock, above `PARALLEL` they run outside that lock, on several cores."""


class Pool:
    """A fixed number of slots that take records from one queue.

    A `light` pool may be given more records than it has slots; the others get exactly as many as can run. Sixteen
    threads that all want the interpreter's lock do less than two, so a light pool with a backlog lets as many slots
    compete as help: see `adapt`. `clock` and `cpu` are in seconds, `cpu` of the whole process.
    """

    def __init__(
        self,
        size: int,
        make: Callable[[], Runner],
        work: Work,
        *,
        name: str,
        light: bool,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.size, self.name, self.light = size, name, light
        self.room = size
        self._make, self._work, self._cpu = make, work, cpu
        self._queue: deque[Record] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._active = size
        self._stopping = False
        self._looked, self._spent = 0.0, 0.0
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(size)
        ]

    def start(self) -> None:
        """Start the slots' threads."""
        for thread in self._threads:
            thread.start()

    def give(self, record: Record) -> None:
        """Hand a record to the next slot that is free."""
        with self._changed:
            self._queue.append(record)
            if self._active < self.room:
                self._changed.notify()

    @property
    def waiting(self) -> int:
        """Records that no slot has taken yet."""
        return len(self._queue)

    def drop(self) -> list[Record]:
        """Take back every record that no slot has started."""
        dropped: list[Record] = []
        while (record := self._pop()) is not None:
            dropped.append(record)
        return dropped

    def adapt(self, now: float) -> bool:
        """Let as many slots compete as help; return whether that should be looked at again after `ADAPT_S`.

        Jobs that compute in Python gain nothing from more threads, and lose by their switching; jobs that wait, or that
        compute outside the interpreter's lock, gain. How much of a core the process uses tells them apart.
        """
        if not self.light or now - self._looked < ADAPT_S:
            return self.room < self.size
        elapsed, self._looked = now - self._looked, now
        spent, self._spent = self._spent, self._cpu()
        room = self.size if elapsed > STALE_S else self._fitting((self._spent - spent) / elapsed)
        if room > self.room:
            with self._changed:
                self.room = room
                self._changed.notify(room)
        self.room = room
        return self.waiting > 0

    def _fitting(self, share: float) -> int:
        if FULL <= share <= PARALLEL:
            return max(min(LEAST, self.size), self.room // 2)
        if share < IDLE and not self._queue:
            return self.size
        if share < IDLE or share > PARALLEL:
            return min(self.size, self.room * 2)
        return self.room

    def stop(self, timeout: float) -> bool:
        """Let running jobs end, and their runners close; return whether all did within `timeout` seconds."""
        with self._changed:
            self.room, self._stopping = self.size, True
            self._changed.notify_all()
        share = timeout / max(1, len(self._threads))
        for thread in self._threads:
            if thread.is_alive():
                thread.join(share)
        return not any(thread.is_alive() for thread in self._threads)

    def _pop(self) -> Record | None:
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def _next(self) -> Record | None:
        """Return the next record, waiting for it; None when there will be none."""
        if self._active <= self.room and (record := self._pop()) is not None:
            return record
        with self._changed:
            self._active -= 1
            while True:
                if self._active < self.room and (record := self._pop()) is not None:
                    self._active += 1
                    return record
                if self._stopping:
                    return None
                self._changed.wait()

    def _serve(self) -> None:
        runner = self._make()
        try:
            runner.warm()
            while (record := self._next()) is not None:
                self._work(record, runner)
                runner.warm()
        finally:
            runner.close()
