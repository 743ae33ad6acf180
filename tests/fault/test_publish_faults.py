"""Publishing and following while brokers die: what was confirmed is in the log, once, and the rest says it failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future

import pytest

from schemas.errors import TapeError, UnavailableError
from schemas.topics import Topic
from wire.broker import NativeBroker
from wire.follow import KafkaFollower, Received
from wire.publish import KafkaPublisher, Sent
from wire.settings import Settings
from wire.topics import ensure

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(180)]


def publish_through(
    publisher: KafkaPublisher, topic: str, count: int, fault: threading.Thread, *, first: int = 0
) -> list[Future[Sent]]:
    futures = []
    for number in range(first, first + count):
        if number == first + count // 4:
            fault.start()
        futures.append(publisher.publish(topic, key=b"%d" % (number % 7), value=b"%d" % number))
        if number % 100 == 0:
            time.sleep(0.005)
    fault.join()
    return futures


def audit(settings: Settings, topic: str, futures: list[Future[Sent]], patience_s: float) -> tuple[int, int]:
    """Hold the ledger against the log; returns how many succeeded and failed."""
    sent: dict[int, Sent] = {}
    for number, future in enumerate(futures):
        try:
            sent[number] = future.result(patience_s)
        except TapeError as error:
            assert error.code == "TAPE-5003", error
    log = [record for batch in KafkaFollower(settings).read(topic) for record in batch]
    times = Counter(int(record.value or b"-1") for record in log)
    assert [number for number, count in times.items() if count > 1] == [], "written twice"
    assert [number for number in sent if number not in times] == [], "confirmed and lost"
    places = {(record.partition, record.offset): int(record.value or b"-1") for record in log}
    assert all(places[place.partition, place.offset] == number for number, place in sent.items())
    by_key: dict[bytes | None, list[int]] = {}
    for record in log:
        by_key.setdefault(record.key, []).append(int(record.value or b"-1"))
    assert all(numbers == sorted(numbers) for numbers in by_key.values()), "out of order"
    return len(sent), len(futures) - len(sent)


def test_a_killed_broker_that_comes_back_loses_and_doubles_nothing(single: NativeBroker) -> None:
    settings = Settings(kafka_url=single.status().url)
    ensure(settings, [Topic("t", 4)])
    publisher = KafkaPublisher(settings, delivery_s=60)

    def fault() -> None:
        single.kill_node(1)
        single.start_node(1, tie=False)

    futures = publish_through(publisher, "t", 20_000, threading.Thread(target=fault))
    publisher.close(90)
    assert audit(settings, "t", futures, 0) == (20_000, 0)


def test_a_broker_that_stays_away_fails_what_is_left_in_time(single: NativeBroker) -> None:
    settings = Settings(kafka_url=single.status().url)
    ensure(settings, [Topic("t", 4)])
    publisher = KafkaPublisher(settings, delivery_s=2)
    early = [publisher.publish("t", key=b"k", value=b"%d" % number) for number in range(100)]
    publisher.flush(30)
    fault = threading.Thread(target=lambda: single.kill_node(1))
    futures = early + publish_through(publisher, "t", 20_000, fault, first=100)
    began = time.monotonic()
    failed = [future.exception(30) for future in futures]
    assert time.monotonic() - began < 10
    assert any(isinstance(error, UnavailableError) for error in failed)
    # After the outage the same publisher goes on, under a new identity where the fate of a batch was not known.
    single.start_node(1, tie=False)
    again = [publisher.publish("t", key=b"0", value=b"%d" % (20_100 + number)) for number in range(100)]
    sent, lost = audit(settings, "t", futures + again, 30)
    publisher.close(30)
    assert sent >= 200
    assert lost > 0
    assert all(future.exception() is None for future in again)


def test_leaders_may_die_one_after_the_other(three: NativeBroker) -> None:
    settings = Settings(kafka_url=three.status().url, replication=3)
    ensure(settings, [Topic("t", 6)])
    publisher = KafkaPublisher(settings, delivery_s=90)

    def fault() -> None:
        for node in (1, 2, 3):
            three.kill_node(node)
            three.start_node(node, tie=False)

    futures = publish_through(publisher, "t", 20_000, threading.Thread(target=fault))
    publisher.close(120)
    assert audit(settings, "t", futures, 0) == (20_000, 0)


def test_a_feed_goes_on_after_its_broker_came_back(single: NativeBroker) -> None:
    settings = Settings(kafka_url=single.status().url)
    ensure(settings, [Topic("t", 2)])
    publisher = KafkaPublisher(settings, delivery_s=60)
    found: list[Received] = []
    with KafkaFollower(settings, patience_s=60).follow("t") as feed:
        publisher.publish("t", key=b"k", value=b"before").result(10)
        found += feed.poll(10)
        single.kill_node(1)
        single.start_node(1, tie=False)
        publisher.publish("t", key=b"k", value=b"after").result(60)
        found += feed.poll(60)
    publisher.close(10)
    assert [record.value for record in found] == [b"before", b"after"]


def test_a_feed_says_when_no_broker_answers_for_long(single: NativeBroker) -> None:
    settings = Settings(kafka_url=single.status().url)
    ensure(settings, [Topic("t", 2)])
    feed = KafkaFollower(settings, patience_s=1).follow("t")
    single.kill_node(1)
    with pytest.raises(UnavailableError, match="no broker answered for 1 s") as caught:
        next(feed)
    assert caught.value.code == "TAPE-5001"
    assert list(feed) == []


def test_a_full_buffer_holds_callers_back(single: NativeBroker) -> None:
    settings = Settings(kafka_url=single.status().url)
    ensure(settings, [Topic("t", 1)])
    publisher = KafkaPublisher(settings, buffer_bytes=10_000, max_block_s=0.3, delivery_s=20)
    for _ in range(200):  # more than fits: callers wait for room, and get it
        publisher.publish("t", key=None, value=b"x" * 1_000)
    publisher.flush(10)
    single.kill_node(1)
    with pytest.raises(UnavailableError, match="no room came") as caught:
        for _ in range(50):
            publisher.publish("t", key=None, value=b"x" * 1_000)
    assert caught.value.code == "TAPE-5004"
    with pytest.raises(TapeError) as late:
        publisher.close(0.2)
    assert late.value.code == "TAPE-7002"
