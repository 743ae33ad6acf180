"""Slots: room for running jobs. One thread a slot; each owns a runner (inline, or a warm child process)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

from workers.attempt import Record
from workers.runner import Runner

Work = Callable[[Record, Runner], None]
_LOG = structlog.get_logger("tickertape.slots")


class Pool:
    """A fixed number of slots that take records from one queue.

    A `light` pool may be given more records than it has slots; the others get exactly as many as can run.
    """

    def __init__(self, size: int, make: Callable[[], Runner], work: Work, *, name: str, light: bool) -> None:
        self.size, self.name, self.light = size, name, light
        self._make, self._work = make, work
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(size)
        ]

    def start(self) -> None:
        """Start the slots' threads."""
        for thread in self._threads:
            thread.start()

    def give(self, record: Record) -> None:
        """Hand a record to the next slot that is free."""
        self._queue.put(record)

    @property
    def waiting(self) -> int:
        """Records that no slot has taken yet."""
        return self._queue.qsize()

    def drop(self) -> list[Record]:
        """Take back every record that no slot has started."""
        dropped: list[Record] = []
        while True:
            try:
                record = self._queue.get_nowait()
            except queue.Empty:
                return dropped
            if record is not None:
                dropped.append(record)

    def stop(self, timeout: float) -> bool:
        """Let running jobs end, and their runners close; return whether all did within `timeout` seconds."""
        for _ in self._threads:
            self._queue.put(None)
        share = timeout / max(1, len(self._threads))
        for thread in self._threads:
            if thread.is_alive():
                thread.join(share)
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        runner = self._make()
        try:
            runner.warm()
            while (record := self._queue.get()) is not None:
                self._work(record, runner)
                runner.warm()
        finally:
            runner.close()
