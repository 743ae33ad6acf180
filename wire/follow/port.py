"""What a follower is: a topic read from a point on, without a group, by anybody who wants to know."""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from schemas.errors import InvalidError, NotFoundError

Since = Literal["start", "end"] | datetime | Mapping[int, int]
"""Where to begin: the oldest record, the next one, the first at a moment (with its time zone) or after, or an offset
per partition (a partition that is not named begins at its start)."""


class Received(NamedTuple):
    """One record as it lies in the log."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class Feed(Protocol):
    """Batches of records as they come, in order within a partition; an iterator that may be closed from any thread."""

    def poll(self, timeout: float | None = None) -> list[Received]:
        """Return the next batch; empty after `timeout` seconds, or once the feed is over."""
        ...

    def close(self) -> None:
        """End the feed at once, also for a thread that waits in it."""
        ...

    def __iter__(self) -> Iterator[list[Received]]: ...

    def __next__(self) -> list[Received]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Follower(Protocol):
    """Reads topics. With a `key`, only its partition is read and only its records are given; with `keys`, only records
    with one of these, wherever they lie: what nobody wants costs little then.

    Both methods know where they begin when they return, so what is published after that is never missed. They raise
    `NotFoundError` (TAPE-2004) for an unknown topic; they and their feeds raise `AuthError` and, when no broker
    answers for long, `UnavailableError` (TAPE-5001).
    """

    def follow(
        self, topic: str, *, since: Since = "end", key: bytes | None = None, stop: threading.Event | None = None
    ) -> Feed:
        """Return the records from a point on, and those to come, until the feed is closed or `stop` is set."""
        ...

    def read(
        self, topic: str, *, since: Since = "start", key: bytes | None = None, keys: Container[bytes] | None = None
    ) -> Feed:
        """Return the records from a point up to what was there when this was called."""
        ...


def milliseconds(moment: datetime) -> int:
    """Return Unix milliseconds. Raises `InvalidError` (TAPE-1002) for a moment without a time zone."""
    if moment.tzinfo is None:
        raise InvalidError("the moment has no time zone", field="since", hint="use datetime.now(UTC)")
    return int(moment.timestamp() * 1000)


def unknown(topic: str) -> NotFoundError:
    """Return the error for a topic that is not there."""
    return NotFoundError("the topic does not exist", code="TAPE-2004", topic=topic)
