"""What only a real broker can show of the share consumer: codecs, transactions, groups, shared network threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.net.selector import NetworkSelector
from shareharness import KafkaHarness, gather, nothing

from wire.broker import NativeBroker
from wire.share import AcquireMode, Record, ShareConfig, ShareConsumer
from wire.share.errors import RequestError

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@pytest.fixture
def kafka(broker: NativeBroker) -> Iterator[KafkaHarness]:
    made = KafkaHarness(broker.status().url)
    yield made
    made.close()


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


def test_several_consumers_on_one_net_and_one_thread(kafka: KafkaHarness) -> None:
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


def test_assigned_partitions_only_when_asked(kafka: KafkaHarness) -> None:
    topic, group = kafka.topic(2), kafka.group()
    config = ShareConfig(bootstrap_servers=kafka.url, every_partition=False)
    consumers = [ShareConsumer([topic], group, config) for _ in range(2)]
    kafka.consumers += consumers
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and [len(c.assignment) for c in consumers] != [1, 1]:
        for consumer in consumers:
            consumer.poll(1, 0.1)
    assert sorted(c.assignment[0][1] for c in consumers) == [0, 1]


def test_new_partitions_and_more_members_lose_nothing(kafka: KafkaHarness) -> None:
    topic, group = kafka.topic(1), kafka.group()
    first = kafka.consumer(topic, group)
    kafka.send(topic, b"0")
    records = gather(first, 1)
    second = kafka.consumer(topic, group)
    kafka.send(topic, *[b"%d" % index for index in range(1, 20)])
    deadline = time.monotonic() + 20
    while len(records) < 20 and time.monotonic() < deadline:
        for consumer in (first, second):
            got = consumer.poll(3, 0.2)
            for record in got:
                consumer.acknowledge(record)
            records += got
    assert sorted(int(record.value or b"") for record in records) == list(range(20))
    assert {record.delivery_count for record in records} == {1}
