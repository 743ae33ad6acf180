"""Put a record aside: write it anew at the end of its queue, then accept the old one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue

import structlog

from schemas.past import FORMER, LINE
from wire.publish import Publisher, Sent
from wire.share import AckType
from workers.attempt import Record, line_of, place_of
from workers.tenants import Moved

_LOG = structlog.get_logger("tickertape.aside")


class Aside:
    """Writes records anew and acknowledges them once that is confirmed, in a thread of its own.

    The lease loop must never wait for a publisher whose buffer is full. A worker that dies in between leaves the record
    twice, as one `tape-line`: the job's claim lets one of them run.
    """

    def __init__(
        self, publisher: Publisher, done: Callable[[Record, AckType], None], keep: Callable[[Record], None]
    ) -> None:
        self._publisher, self._done, self._keep = publisher, done, keep
        self._queue: SimpleQueue[Moved | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="aside", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def __call__(self, moved: Moved) -> None:
        """Put one record aside; what cannot be written is kept: a release would spend one of its deliveries."""
        self._queue.put(moved)

    def stop(self, timeout: float) -> None:
        """Write what waits, and end the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _serve(self) -> None:
        while (moved := self._queue.get()) is not None:
            self.write(moved)

    def write(self, moved: Moved) -> None:
        """Write one record anew, now."""
        record = moved.record
        headers = record.headers
        if not any(name == LINE and raw for name, raw in headers):
            headers = (*headers, (LINE, line_of(record).encode()))
        if record.delivery_count > 1:
            headers = (*headers, (FORMER, str(place_of(record)).encode()))
        try:
            sent = self._publisher.publish(
                record.topic, key=record.key, value=record.value, headers=headers, partition=moved.partition
            )
        except Exception as error:  # one record's trouble must not end the thread
            self._kept(record, error)
        else:
            sent.add_done_callback(partial(self._written, record))

    def _written(self, record: Record, sent: Future[Sent]) -> None:
        error: BaseException | None = CancelledError() if sent.cancelled() else sent.exception()
        if error is not None:
            self._kept(record, error)
        else:
            self._done(record, AckType.ACCEPT)

    def _kept(self, record: Record, error: BaseException) -> None:
        _LOG.warning("not put aside", topic=record.topic, offset=record.offset, error=str(error))
        self._keep(record)
