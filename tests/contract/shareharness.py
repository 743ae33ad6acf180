"""Around the share contract: consumers and topics of either kind, and ways to gather what comes."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from wire.share import (
    AcquireMode,
    Listener,
    MemoryLog,
    MemoryShareConsumer,
    Record,
    ShareConfig,
    ShareConsumer,
    ShareError,
)
from wire.share.admin import ShareAdmin
from wire.share.locks import GroupConfig
from wire.share.model import OffsetRange

Headers = Sequence[tuple[str, bytes | None]]
LOCK = 1.5


class Harness(Protocol):
    """What a test needs around a consumer."""

    def topic(self, partitions: int = 1) -> str: ...
    def name(self) -> str: ...
    def create(self, topic: str, partitions: int = 1) -> None: ...
    def send(self, topic: str, *values: bytes, key: bytes | None = None, headers: Headers = ()) -> None: ...
    def group(self, *, limit: int = 5) -> str: ...
    def consumer(self, topic: str, group: str, **options: Any) -> Any: ...
    def advance(self, seconds: float) -> None: ...
    def lag(self, group: str, topic: str) -> int: ...


class MemoryHarness:
    """Twins on one log, with a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.log = MemoryLog(clock=lambda: self.now)
        self.consumers: list[MemoryShareConsumer] = []

    def name(self) -> str:
        return f"t{uuid.uuid4().hex[:8]}"

    def topic(self, partitions: int = 1) -> str:
        name = self.name()
        self.create(name, partitions)
        return name

    def create(self, topic: str, partitions: int = 1) -> None:
        self.log.create(topic, partitions)

    def send(self, topic: str, *values: bytes, key: bytes | None = None, headers: Headers = ()) -> None:
        for value in values:
            self.log.append(topic, key, value, headers)

    def group(self, *, limit: int = 5) -> str:
        name = self.name()
        self.log.group(name, GroupConfig(lock_duration=LOCK, delivery_limit=limit))
        return name

    def consumer(self, topic: str, group: str, **options: Any) -> MemoryShareConsumer:
        options.pop("mode", None)
        made = MemoryShareConsumer([topic], group, self.log, clock=lambda: self.now, **options)
        self.consumers.append(made)
        return made

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def lag(self, group: str, topic: str) -> int:
        start, lag = self.log.group(group).describe(topic, 0)
        assert start + lag <= self.log.end(topic, 0)
        return lag

    def close(self) -> None:
        for consumer in self.consumers:
            _close(consumer)


class KafkaHarness:
    """Consumers on the session's native broker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = KafkaAdminClient(bootstrap_servers=url)
        self.producer = KafkaProducer(bootstrap_servers=url, acks="all")
        self.admin = ShareAdmin(url)
        self.consumers: list[ShareConsumer] = []

    def name(self) -> str:
        return f"t{uuid.uuid4().hex[:8]}"

    def topic(self, partitions: int = 1) -> str:
        name = self.name()
        self.create(name, partitions)
        return name

    def create(self, topic: str, partitions: int = 1) -> None:
        self.client.create_topics([NewTopic(topic, partitions, 1)])

    def send(self, topic: str, *values: bytes, key: bytes | None = None, headers: Headers = ()) -> None:
        for value in values:
            self.producer.send(topic, value, key=key, headers=list(headers))
        self.producer.flush()

    def group(self, *, limit: int = 5) -> str:
        name = self.name()
        configs = {
            "share.auto.offset.reset": "earliest",
            "share.isolation.level": "read_committed",
            "share.record.lock.duration.ms": str(int(LOCK * 1000)),
            "share.delivery.count.limit": str(limit),
        }
        self.admin.configure_group(name, configs)
        return name

    def consumer(self, topic: str, group: str, **options: Any) -> ShareConsumer:
        config = ShareConfig(bootstrap_servers=self.url, mode=options.pop("mode", AcquireMode.RECORD_LIMIT))
        made = ShareConsumer([topic], group, config, **options)
        self.consumers.append(made)
        return made

    def advance(self, seconds: float) -> None:
        threading.Event().wait(seconds + 0.3)

    def lag(self, group: str, topic: str) -> int:
        (line,) = self.admin.describe_offsets(group, [topic])
        return line.lag

    def close(self) -> None:
        for consumer in self.consumers:
            _close(consumer)
        self.admin.close()
        self.producer.close()
        self.client.close()


def _close(consumer: Any) -> None:
    with suppress(ShareError):
        consumer.close()


class Log(Listener):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lost: list[tuple[list[OffsetRange], ShareError]] = []
        self.acks: list[tuple[int, int, ShareError | None]] = []
        self.fetched = 0

    def on_lost(self, ranges: Sequence[OffsetRange], error: ShareError) -> None:
        self.lost.append((list(ranges), error))

    def on_ack(self, records: int, kind: int, error: ShareError | None) -> None:
        self.acks.append((records, kind, error))

    def on_fetch(self, records: int, size: int, seconds: float) -> None:
        self.fetched += records


def gather(consumer: Any, count: int, limit: int = 100, seconds: float = 10.0) -> list[Record]:
    """Poll until so many records came."""
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += consumer.poll(min(limit, count - len(records)), 1.0)
    assert len(records) == count
    return records


def nothing(consumer: Any) -> bool:
    """Nothing comes for a while."""
    return not consumer.poll(10, 0.6)
