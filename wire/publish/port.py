"""What a publisher is: records go in, futures come back, and a success means the record is in the log, once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple, Protocol

from schemas.errors import InvalidError, TapeError, TimeoutExceeded, UnavailableError

Headers = Sequence[tuple[str, bytes | None]]


class Sent(NamedTuple):
    """Where a record was written, and when by the broker's clock (milliseconds of the epoch), where it dates them."""

    topic: str
    partition: int
    offset: int
    at_ms: int | None = None


class Publisher(Protocol):
    """Puts records into topics; thread-safe. Records of one key keep their order.

    A future succeeds when every in-sync replica has the record, exactly once; it fails with one of our errors:
    `InvalidError` TAPE-1006 (larger than the topic takes), `NotFoundError` TAPE-2004 (no such topic), `AuthError`
    TAPE-4001 or TAPE-4003, `UnavailableError` TAPE-5003 (not confirmed in time: it may or may not be in the log).
    Callbacks on futures run on the publisher's own thread and must be quick.
    """

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
        """Take one record and return the future of its place.

        Waits while the buffer is full; raises `UnavailableError` (TAPE-5004) when that takes too long.
        """
        ...

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every record taken so far is confirmed or has failed. Raises `TimeoutExceeded` (TAPE-7002)."""
        ...

    def close(self, timeout: float | None = None) -> None:
        """Flush, then let go of everything; what is not confirmed by then fails with TAPE-5003."""
        ...


def succeed(future: Future[Sent], sent: Sent) -> None:
    """Resolve a future, unless its owner cancelled it: the record is in the log all the same."""
    with suppress(InvalidStateError):
        future.set_result(sent)


def fail(future: Future[Sent], error: TapeError) -> None:
    """Fail a future, unless its owner cancelled it."""
    with suppress(InvalidStateError):
        future.set_exception(error)


def too_large(topic: str, size: int, limit: int) -> InvalidError:
    """Return the error for a record that a topic does not take, with the claim check as the way out."""
    return InvalidError(
        f"the record has {size} bytes and the topic takes {limit}",
        code="TAPE-1006",
        topic=topic,
        size=size,
        limit=limit,
        hint="put the data in the store and send its URI instead",
    )


def no_partition(topic: str, partition: int, count: int) -> InvalidError:
    """Return the error for a partition that a topic does not have."""
    return InvalidError(
        f"the topic has no partition {partition}",
        code="TAPE-1002",
        topic=topic,
        field="partition",
        hint=f"choose 0 to {count - 1}, or none",
    )


def closed() -> UnavailableError:
    """Return the error for a publisher that is closed."""
    return UnavailableError("the publisher is closed", code="TAPE-5003", hint="open another one, then publish again")


def not_flushed(left: int, timeout: float | None) -> TimeoutExceeded:
    """Return the error for a flush that took too long."""
    return TimeoutExceeded(
        f"{left} records are not confirmed after {timeout or 0:g} s",
        code="TAPE-7002",
        hint="wait longer, or look at the broker",
    )
