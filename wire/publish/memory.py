"""The publisher in memory: the same promises on a log that lives in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from schemas.errors import TapeError
from wire.publish.port import Headers, Sent, closed, fail, succeed, too_large

DEFAULT_LIMIT = 1_048_588


class Log(Protocol):
    """What is written to: `wire.share.memory.MemoryLog`, or anything of its shape."""

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> tuple[int, int]:
        """Write one record; returns its partition and offset. Raises `NotFoundError` (TAPE-2004)."""
        ...


class MemoryPublisher:
    """A `Publisher` on a log in memory; every record is confirmed at once."""

    def __init__(self, log: Log, *, limits: Mapping[str, int] | None = None) -> None:
        self._log = log
        self._limits = dict(limits or {})
        self._lock = threading.Lock()
        self._closed = False

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Future[Sent]:
        """Take one record; see `Publisher.publish`."""
        future: Future[Sent] = Future()
        moment = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        with self._lock:  # order of calls is the order in the log
            if self._closed:
                raise closed()
            try:
                self._check(topic, key, value)
                place = self._log.append(topic, key, value, list(headers), partition=partition, timestamp_ms=moment)
            except TapeError as error:
                fail(future, error)
                return future
        succeed(future, Sent(topic, *place))
        return future

    def _check(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        limit = self._limits.get(topic, DEFAULT_LIMIT)
        size = len(key or b"") + len(value or b"")
        if size > limit:
            raise too_large(topic, size, limit)

    def flush(self, timeout: float | None = None) -> None:
        """Do nothing: everything is confirmed already."""

    def close(self, timeout: float | None = None) -> None:
        """Take no more records."""
        with self._lock:
            self._closed = True
