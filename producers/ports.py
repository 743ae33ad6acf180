"""The client's ways to the outside, each opened at its first use and closed with the client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime
from typing import TYPE_CHECKING, Any

from producers.feed import Record
from producers.request import Message
from wire.settings import Settings

if TYPE_CHECKING:
    from wire.blobs import Blobs
    from wire.publish import Publisher


class Ports:
    """Publisher, follower, topics and store of one client; a test gives its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.publish_timeout_s = max(30.0, settings.kafka_timeout_s)
        self._lock = threading.Lock()
        self._publisher: Publisher | None = None
        self._blobs: Blobs | None = None

    def publish(self, message: Message) -> Future[Any]:
        """Hand one record to the broker; the future is done when it is on disk (acks=all)."""
        return self._open().publish(
            message.topic, key=message.key.encode(), value=message.value, headers=message.headers
        )

    def erase(self, topic: str, key: str) -> Future[Any]:
        """Write a key's tombstone into a compacted topic."""
        return self._open().publish(topic, key=key.encode(), value=None)

    def _open(self) -> Publisher:
        with self._lock:
            if self._publisher is None:
                from wire.publish import KafkaPublisher

                self._publisher = KafkaPublisher(self.settings, name="tape-client")
            return self._publisher

    def follow(self, topic: str, since: datetime, stop: threading.Event) -> Iterator[Record]:
        """Yield a topic's records from a moment on, those to come too, until `stop` is set."""
        from wire.follow import KafkaFollower

        with KafkaFollower(self.settings, name="tape-client-feed").follow(topic, since=since, stop=stop) as feed:
            for batch in feed:
                yield from batch

    def scan(self, topic: str, since: datetime, key: bytes | None = None) -> Iterator[Record]:
        """Yield a topic's records from a moment until now; with `key`, only that key's."""
        from wire.follow import KafkaFollower

        with KafkaFollower(self.settings, name="tape-client-scan").read(topic, since=since, key=key) as feed:
            for batch in feed:
                yield from batch

    def topics(self) -> set[str]:
        """Return the names of all topics."""
        from kafka.protocol.metadata import MetadataRequest

        from wire.kafka import Link

        with Link(self.settings, name="tape-client-topics") as link:
            answer = link.call(MetadataRequest(topics=None, allow_auto_topic_creation=False))
        return {str(topic.name) for topic in answer.topics}

    @property
    def blobs(self) -> Blobs:
        """The store."""
        with self._lock:
            if self._blobs is None:
                from wire.blobs import open_store

                self._blobs = open_store(self.settings)
            return self._blobs

    def close(self) -> None:
        """Send what is buffered and close every connection."""
        with self._lock:
            if self._publisher is not None:
                self._publisher.close(self.publish_timeout_s)
                self._publisher = None
