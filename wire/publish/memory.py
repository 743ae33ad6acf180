"""The publisher in memory: the same promises on a log that lives in this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future

from schemas.errors import NotFoundError, TapeError
from wire.partition import partition_for
from wire.publish.port import Headers, Sent, closed, fail, no_partition, succeed, too_large
from wire.share.memory import MemoryLog

DEFAULT_LIMIT = 1_048_588


class MemoryPublisher:
    """A `Publisher` on a log in memory; every record is confirmed at once, and the log's clock dates it."""

    def __init__(self, log: MemoryLog, *, limits: Mapping[str, int] | None = None) -> None:
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
        with self._lock:  # the order of calls is the order in the log
            if self._closed:
                raise closed()
            try:
                where = destination(self._log, self._limits, topic, key=key, value=value, partition=partition)
                place = self._log.append(topic, key, value, list(headers), where)
            except TapeError as error:
                fail(future, error)
                return future
        succeed(future, Sent(topic, *place))
        return future

    def flush(self, timeout: float | None = None) -> None:
        """Do nothing: everything is confirmed already."""

    def close(self, timeout: float | None = None) -> None:
        """Take no more records."""
        with self._lock:
            self._closed = True


def destination(
    log: MemoryLog, limits: Mapping[str, int], topic: str, *, key: bytes | None, value: bytes | None,
    partition: int | None,
) -> int | None:  # fmt: skip
    """Return the partition that a record goes to; none: each in turn.

    Raises `NotFoundError` (TAPE-2004), `InvalidError`: TAPE-1006 too large, TAPE-1002 no such partition.
    """
    count = log.partitions(topic)
    if not count:
        raise NotFoundError("the topic does not exist", code="TAPE-2004", topic=topic)
    limit = limits.get(topic, DEFAULT_LIMIT)
    size = len(key or b"") + len(value or b"")
    if size > limit:
        raise too_large(topic, size, limit)
    if partition is not None:
        if not 0 <= partition < count:
            raise no_partition(topic, partition, count)
        return partition
    return None if key is None else partition_for(key, count)
