"""A client's outside world in memory: for tests of code that submits jobs, and of the client itself.

ports = MemoryPorts()
client = Client(ports=ports)
job = client.submit("inference", {"model": "builtin:m", "prompt": "hi"})
ports.tell(Event(...))                     # play the worker
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from producers.ports import Ports
from producers.request import Header, Message, event_message
from schemas.errors import NotFoundError, TapeError
from schemas.event import Event
from schemas.topics import Names, topics
from wire.blobs import Blobs
from wire.blobs.memory import Memory
from wire.settings import Settings


@dataclass(frozen=True, slots=True)
class Kept:
    """One record as the log keeps it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    time: datetime


class MemoryPorts(Ports):
    """Topics as lists; every publish is confirmed at once unless `failure` is set."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings())
        self.names = Names(self.settings.prefix)
        self.records: list[Kept] = []
        self.known = {topic.name for topic in topics(self.names)}
        self.failure: TapeError | None = None
        self.followers = 0
        self.closed = False
        self._store = Memory()
        self._changed = threading.Condition()

    def publish(self, message: Message) -> Future[Any]:
        """Keep one record. Raises `NotFoundError` (TAPE-2004) through the future when there is no such topic."""
        future: Future[Any] = Future()
        if self.failure is not None:
            future.set_exception(self.failure)
        elif message.topic not in self.known:
            future.set_exception(NotFoundError(f"{message.topic} does not exist", code="TAPE-2004"))
        else:
            self._keep(Kept(message.topic, message.key.encode(), message.value, message.headers, datetime.now(UTC)))
            future.set_result(None)
        return future

    def tell(self, event: Event) -> None:
        """Publish a lifecycle event as a worker would; its record has the event's time."""
        message = event_message(event, self.names.events)
        self._keep(Kept(message.topic, message.key.encode(), message.value, message.headers, event.time))

    def follow(self, topic: str, since: datetime, stop: threading.Event) -> Iterator[Kept]:
        """Yield a topic's records from a moment on, until `stop` is set or `interrupt` is called with an error."""
        self.followers += 1
        index = 0
        while not stop.is_set():
            with self._changed:
                if self.failure is not None:
                    raise self.failure
                fresh = self.records[index:]
                if not fresh:
                    self._changed.wait(0.05)  # `stop` is somebody else's and does not notify
            index += len(fresh)
            yield from (record for record in fresh if record.topic == topic and record.time >= since)

    def scan(self, topic: str, since: datetime, key: bytes | None = None) -> Iterator[Kept]:
        """Yield a topic's records from a moment until now; with `key`, only that key's."""
        if self.failure is not None:
            raise self.failure
        with self._changed:
            kept = list(self.records)
        wanted = (record for record in kept if record.topic == topic and record.time >= since)
        return (record for record in wanted if key in (None, record.key))

    def topics(self) -> set[str]:
        """Return the names of the topics that exist."""
        return set(self.known)

    def of(self, topic: str) -> list[Kept]:
        """Return what was published to a topic."""
        return [record for record in self.records if record.topic == topic]

    @property
    def blobs(self) -> Blobs:
        """The store."""
        return self._store

    def close(self) -> None:
        """Remember that the client was closed."""
        self.closed = True

    def _keep(self, record: Kept) -> None:
        with self._changed:
            self.records.append(record)
            self._changed.notify_all()
