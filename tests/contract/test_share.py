"""One suite for the share consumer and its twin: what is promised must hold on a real broker and in memory."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from wire.broker import NativeBroker
from wire.share import (
    AckType,
    AcquireMode,
    Listener,
    MemoryLog,
    MemoryShareConsumer,
    Record,
    ShareConfig,
    ShareConsumer,
)
from wire.share.admin import ShareAdmin
from wire.share.errors import AcknowledgeError, ClosedError, LeaseLostError, RequestError, ShareError
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


@pytest.fixture(params=["memory", pytest.param("kafka", marks=[pytest.mark.slow, pytest.mark.kafka])])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    made: MemoryHarness | KafkaHarness
    if request.param == "memory":
        made = MemoryHarness()
    else:
        made = KafkaHarness(request.getfixturevalue("broker").status().url)
    yield made
    made.close()


@pytest.fixture
def kafka(broker: NativeBroker) -> Iterator[KafkaHarness]:
    made = KafkaHarness(broker.status().url)
    yield made
    made.close()


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
    return not consumer.poll(10, 0.6)


def test_record_arrives_whole(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"value", key=b"key", headers=[("a", b"1"), ("a", b"2"), ("empty", b"")])
    (record,) = gather(harness.consumer(topic, group), 1)
    assert record[:5] == (topic, 0, 0, b"key", b"value")
    assert record.headers == (("a", b"1"), ("a", b"2"), ("empty", b""))
    assert record.delivery_count == 1
    assert record.timestamp_ms > 0


def test_accepted_is_gone_and_counted(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"1", b"2", b"3")
    consumer = harness.consumer(topic, group)
    records = gather(consumer, 3)
    assert consumer.outstanding == 3
    for record in records:
        consumer.acknowledge(record)
    consumer.flush(5)
    assert consumer.outstanding == 0
    assert nothing(consumer)
    assert harness.lag(group, topic) == 0


def test_released_comes_back_with_its_count(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"1")
    consumer = harness.consumer(topic, group)
    for count in (1, 2, 3):
        (record,) = gather(consumer, 1)
        assert record.delivery_count == count
        consumer.acknowledge(record, AckType.RELEASE)


def test_rejected_is_gone(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"1", b"2")
    consumer = harness.consumer(topic, group)
    bad, good = gather(consumer, 2)
    consumer.acknowledge(bad, AckType.REJECT)
    consumer.acknowledge(good)
    consumer.flush(5)
    assert nothing(consumer)
    assert harness.lag(group, topic) == 0


def test_delivery_limit_archives(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group(limit=2)
    harness.send(topic, b"poison", b"good")
    consumer = harness.consumer(topic, group)
    poison, good = gather(consumer, 2)
    consumer.acknowledge(good)
    consumer.acknowledge(poison, AckType.RELEASE)
    (poison,) = gather(consumer, 1)
    consumer.acknowledge(poison, AckType.RELEASE)
    consumer.flush(5)
    assert nothing(consumer)
    assert harness.lag(group, topic) == 0


def test_expired_lock_goes_to_another(harness: Harness) -> None:
    topic, group, log = harness.topic(), harness.group(), Log()
    harness.send(topic, b"1")
    slow = harness.consumer(topic, group, listener=log)
    (stale,) = gather(slow, 1)
    assert slow.lock_timeout == LOCK
    harness.advance(LOCK)
    (record,) = gather(harness.consumer(topic, group), 1)
    assert record.delivery_count == 2
    slow.acknowledge(stale)
    with pytest.raises(AcknowledgeError) as caught:
        slow.flush(5)
    ((span, error),) = caught.value.failures
    assert span == (topic, 0, 0, 0)
    assert isinstance(error, LeaseLostError)
    assert [ranges for ranges, _ in log.lost] == [[span]]
    slow.flush(5)


def test_expired_lock_that_comes_again_is_told_before(harness: Harness) -> None:
    topic, group, log = harness.topic(), harness.group(), Log()
    harness.send(topic, b"1")
    consumer = harness.consumer(topic, group, listener=log)
    (stale,) = gather(consumer, 1)
    harness.advance(LOCK)
    (record,) = gather(consumer, 1)
    assert [ranges for ranges, _ in log.lost] == [[(topic, 0, 0, 0)]]
    with pytest.raises(LeaseLostError):
        consumer.acknowledge(stale)
    consumer.acknowledge(record)
    consumer.flush(5)
    assert consumer.outstanding == 0


def test_renewed_lock_holds(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"1")
    consumer = harness.consumer(topic, group)
    (record,) = gather(consumer, 1)
    for _ in range(3):
        harness.advance(LOCK / 2)
        consumer.acknowledge(record, AckType.RENEW)
        consumer.flush(5)
    assert nothing(harness.consumer(topic, group))
    consumer.acknowledge(record)
    consumer.flush(5)
    assert harness.lag(group, topic) == 0


def test_only_the_stale_ones_of_a_flush_are_refused(harness: Harness) -> None:
    topic, group, log = harness.topic(), harness.group(), Log()
    harness.send(topic, *[b"%d" % index for index in range(8)])
    consumer = harness.consumer(topic, group, listener=log)
    records = gather(consumer, 8)
    kept = [record for record in records if record.offset != 5]
    for _ in range(2):
        harness.advance(LOCK * 0.6)
        for record in kept:
            consumer.acknowledge(record, AckType.RENEW)
        consumer.flush(5)
    for record in records:
        consumer.acknowledge(record)
    with pytest.raises(AcknowledgeError) as caught:
        consumer.flush(10)
    assert [span for span, _ in caught.value.failures] == [(topic, 0, 5, 5)]
    (again,) = gather(consumer, 1)
    assert (again.offset, again.delivery_count) == (5, 2)


def test_limit_is_strict(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, *[b"%d" % index for index in range(20)])
    consumer = harness.consumer(topic, group)
    first = gather(consumer, 3, limit=3)
    assert consumer.poll(0, 0.0) == []
    assert consumer.outstanding == 3
    assert [record.offset for record in first] == [0, 1, 2]
    other = gather(harness.consumer(topic, group), 4, limit=4)
    assert [record.offset for record in other] == [3, 4, 5, 6]


def test_two_share_one_partition(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, *[b"%d" % index for index in range(40)])
    consumers = [harness.consumer(topic, group) for _ in range(2)]
    seen: list[int] = []
    deadline = time.monotonic() + 20
    while len(seen) < 40 and time.monotonic() < deadline:
        for consumer in consumers:
            for record in consumer.poll(5, 0.5):
                seen.append(record.offset)
                consumer.acknowledge(record)
    assert sorted(seen) == list(range(40))


def test_close_releases_at_once(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"1", b"2")
    first = harness.consumer(topic, group)
    done, _ = gather(first, 2)
    first.acknowledge(done)
    first.close()
    began = time.monotonic()
    (record,) = gather(harness.consumer(topic, group), 1)
    assert time.monotonic() - began < LOCK
    assert (record.offset, record.delivery_count) == (1, 2)
    with pytest.raises(ClosedError):
        first.poll(1)
    with pytest.raises(ClosedError):
        first.acknowledge(record)
    first.close()


def test_a_lease_is_settled_once_by_its_record(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, b"1")
    consumer = harness.consumer(topic, group)
    (record,) = gather(consumer, 1)
    with pytest.raises(LeaseLostError):
        consumer.acknowledge(Record(*record))
    consumer.acknowledge(record)
    with pytest.raises(LeaseLostError) as caught:
        consumer.acknowledge(record)
    assert caught.value.ranges == ((topic, 0, 0, 0),)
    consumer.flush(5)


def test_wakeup_ends_a_wait(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    consumer = harness.consumer(topic, group)
    consumer.poll(1, 0.1)
    timer = threading.Timer(0.2, consumer.wakeup)
    timer.start()
    began = time.monotonic()
    assert consumer.poll(1, 30.0) == []
    assert time.monotonic() - began < 10
    timer.join()


def test_on_ready_tells_of_arrivals(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    ready = threading.Event()
    consumer = harness.consumer(topic, group, on_ready=ready.set)
    consumer.poll(5, 0.5)
    ready.clear()
    consumer.poll(5)
    harness.send(topic, b"1")
    assert ready.wait(10)
    assert len(gather(consumer, 1)) == 1


def test_topic_may_come_later(harness: Harness) -> None:
    topic, group = harness.name(), harness.group()
    consumer = harness.consumer(topic, group)
    assert nothing(consumer)
    assert consumer.assignment == []
    harness.create(topic)
    harness.send(topic, b"1")
    assert gather(consumer, 1, seconds=20)[0].value == b"1"
    assert consumer.assignment == [(topic, 0)]


def test_window_grows_behind_the_oldest(harness: Harness) -> None:
    topic, group = harness.topic(), harness.group()
    harness.send(topic, *[b"%d" % index for index in range(100)])
    consumer = harness.consumer(topic, group)
    first, *rest = gather(consumer, 100)
    for record in rest:
        consumer.acknowledge(record)
    consumer.flush(5)
    assert consumer.window() == {(topic, 0): 100 / 2000}
    consumer.acknowledge(first)
    consumer.flush(5)
    assert consumer.window() == {(topic, 0): 0.0}


def test_hooks_count(harness: Harness) -> None:
    topic, group, log = harness.topic(), harness.group(), Log()
    harness.send(topic, b"1", b"2", b"3")
    consumer = harness.consumer(topic, group, listener=log)
    one, two, three = gather(consumer, 3)
    consumer.acknowledge(one)
    consumer.acknowledge(two, AckType.REJECT)
    consumer.acknowledge(three, AckType.RENEW)
    consumer.flush(5)
    consumer.acknowledge(three)
    consumer.flush(5)
    totals = {kind: sum(n for n, k, _ in log.acks if k == kind) for kind in AckType}
    assert totals == {AckType.ACCEPT: 2, AckType.REJECT: 1, AckType.RENEW: 1, AckType.RELEASE: 0}
    assert log.fetched == 3
    assert log.lost == []


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("codec", [None, "gzip", "lz4", "zstd"])
@pytest.mark.parametrize("mode", list(AcquireMode))
def test_every_codec(kafka: KafkaHarness, codec: str | None, mode: AcquireMode) -> None:
    topic, group = kafka.topic(), kafka.group()
    producer = KafkaProducer(bootstrap_servers=kafka.url, compression_type=codec, linger_ms=50)
    values = [b"%d" % index * 20 for index in range(50)]
    for value in values:
        producer.send(topic, value, key=b"k", headers=[("h", b"v")])
    producer.close()
    consumer = kafka.consumer(topic, group, mode=mode)
    records: list[Record] = []
    while len(records) < 50:
        got = consumer.poll(7, 5.0)
        assert got
        assert len(got) <= 7
        for record in got:
            consumer.acknowledge(record)
        records += got
    assert [record.value for record in records] == values
    assert all(record.headers == (("h", b"v"),) for record in records)


@pytest.mark.slow
@pytest.mark.kafka
def test_transactions_read_committed(kafka: KafkaHarness) -> None:
    topic, group = kafka.topic(), kafka.group()
    producer = KafkaProducer(bootstrap_servers=kafka.url, transactional_id=topic, linger_ms=5)
    producer.init_transactions()
    for finish, value in ((producer.commit_transaction, b"yes"), (producer.abort_transaction, b"no")) * 2:
        producer.begin_transaction()
        for _ in range(3):
            producer.send(topic, value)
        producer.flush()
        finish()
    producer.close()
    consumer = kafka.consumer(topic, group)
    records = gather(consumer, 6)
    assert {record.value for record in records} == {b"yes"}
    for record in records:
        consumer.acknowledge(record)
    consumer.flush(5)
    assert nothing(consumer)
    consumer.flush(5)
    assert kafka.lag(group, topic) == 0  # the markers too: gaps are acknowledged


@pytest.mark.slow
@pytest.mark.kafka
def test_admin_describes_and_moves(kafka: KafkaHarness) -> None:
    topic, group = kafka.topic(2), kafka.group()
    kafka.send(topic, *[b"%d" % index for index in range(10)], key=b"same")
    consumer = kafka.consumer(topic, group)
    records = gather(consumer, 10)
    described = kafka.admin.describe_group(group)
    assert (described.name, described.state) == (group, "Stable")
    (member,) = described.members
    assert member.member_id == consumer.member_id
    assert member.topics == (topic,)
    assert set(member.assignment) == {(topic, 0), (topic, 1)} == set(consumer.assignment)
    for record in records[:4]:
        consumer.acknowledge(record)
    consumer.close()
    lines = {line.partition: line for line in kafka.admin.describe_offsets(group)}
    used = records[0].partition
    assert lines[used].lag == 6
    assert lines[used].start_offset <= 4  # it may be one write behind
    kafka.admin.alter_offsets(group, {(topic, used): 8})
    assert len(gather(kafka.consumer(topic, group), 2)) == 2
    with pytest.raises(RequestError) as caught:
        kafka.admin.describe_group("nobody-made-this")
    assert caught.value.errno == 69


@pytest.mark.slow
@pytest.mark.kafka
def test_several_consumers_on_one_net_and_one_thread(kafka: KafkaHarness) -> None:
    from kafka.net.selector import NetworkSelector

    net = NetworkSelector()
    ready = threading.Event()
    topics = [kafka.topic() for _ in range(4)]
    group = kafka.group()
    consumers: list[Any] = [kafka.consumer(topic, group, net=net, on_ready=ready.set) for topic in topics]
    for index, topic in enumerate(topics):
        kafka.send(topic, *[b"%d" % index] * 5)
    seen: list[bytes | None] = []
    deadline = time.monotonic() + 20
    while len(seen) < 20 and time.monotonic() < deadline:
        for consumer in consumers:
            for record in consumer.poll(2, 0):
                seen.append(record.value)
                consumer.acknowledge(record)
        ready.wait(0.5)
        ready.clear()
    assert sorted(seen, key=str) == sorted([b"0", b"1", b"2", b"3"] * 5)
    for consumer in consumers:
        consumer.close()
    net.close()
