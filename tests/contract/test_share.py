"""One suite for the share consumer and its twin: what is promised must hold on a real broker and in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from shareharness import LOCK, Harness, KafkaHarness, Log, MemoryHarness, gather, nothing

from wire.share import AckType, Record
from wire.share.errors import AcknowledgeError, ClosedError, LeaseLostError


@pytest.fixture(params=["memory", pytest.param("kafka", marks=[pytest.mark.slow, pytest.mark.kafka])])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    made: MemoryHarness | KafkaHarness
    if request.param == "memory":
        made = MemoryHarness()
    else:
        made = KafkaHarness(request.getfixturevalue("broker").status().url)
    yield made
    made.close()


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


def test_focus_reads_one_partition_and_keeps_leases_elsewhere(harness: Harness) -> None:
    topic, first, second = harness.topic(4), harness.group(), harness.group()
    for number in range(40):
        harness.send(topic, b"%d" % number, key=b"%d" % number)
    by_partition: dict[int, list[int]] = {}
    for record in gather(harness.consumer(topic, first), 40):
        by_partition.setdefault(record.partition, []).append(record.offset)
    one, other = sorted(by_partition)[:2]
    consumer = harness.consumer(topic, second)
    consumer.focus([one])
    held = gather(consumer, 1)
    assert (held[0].partition, held[0].offset) == (one, 0)
    consumer.focus([other])
    found = gather(consumer, len(by_partition[other]))
    assert [(r.partition, r.offset) for r in found] == [(other, offset) for offset in by_partition[other]]
    consumer.acknowledge(held[0], AckType.RENEW)
    for record in found:
        consumer.acknowledge(record)
    consumer.flush(5)
    consumer.acknowledge(held[0])
    # What was acknowledged there must not bring more of that partition along.
    assert nothing(consumer)
    consumer.flush(5)
    assert consumer.outstanding == 0
    consumer.focus(None)
    rest = gather(consumer, 40 - 1 - len(found))
    assert {r.partition for r in rest} == set(by_partition) - {other}


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
