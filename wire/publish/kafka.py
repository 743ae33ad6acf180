"""The publisher on Kafka: idempotent, acks=all, as little work per record as can be.

The caller's thread only leaves a record in the inbox. The link's thread takes it from there (see `sender`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from wire.kafka import Link
from wire.publish.inbox import Inbox, Item
from wire.publish.lane import Record
from wire.publish.port import Headers, Sent, closed
from wire.publish.sender import Sender
from wire.settings import Settings


class KafkaPublisher:
    """A `Publisher` on Kafka; see the port for what its futures mean.

    `delivery_s` is how long a record may take until its future fails, `buffer_bytes` how much may wait, `max_block_s`
    how long `publish` waits for room. One link (a thread, a connection per broker) carries it all.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        linger_ms: float = 2.0,
        buffer_bytes: int = 32 << 20,
        max_block_s: float = 10.0,
        delivery_s: float = 30.0,
        name: str = "tape-publisher",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Connect. Raises `AuthError` (TAPE-4001) or `UnavailableError` (TAPE-5001)."""
        self._link = Link(settings, name=name)
        self._inbox = Inbox(buffer_bytes, max_block_s=max_block_s, wake=self._wake)
        self._clock = clock
        self._inbox.owner = self._link.thread
        self._sender = Sender(self._link, self._inbox, linger_s=linger_ms / 1000, delivery_s=delivery_s)
        self._wake()

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
        listed = headers if type(headers) is list else list(headers)
        size = (len(key) if key else 0) + (len(value) if value else 0) + 48 * len(listed) + 32
        moment = int(self._clock() * 1000) if timestamp_ms is None else timestamp_ms
        self._inbox.put(Item(topic, partition, Record(key, value, listed, moment, time.monotonic(), size, future)))
        return future

    def flush(self, timeout: float | None = None) -> None:
        """Wait until nothing is under way; see `Publisher.flush`."""
        self._inbox.drain(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Flush and end the thread; see `Publisher.close`."""
        if not self._inbox.close():
            return
        try:
            self._inbox.drain(timeout)
        finally:
            self._link.close()
            self._sender.drop(closed())

    def _wake(self) -> None:
        self._link.net.call_soon_threadsafe(self._sender.look)
