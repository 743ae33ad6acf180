"""One suite for every publisher and follower: in memory and on the real broker."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from schemas.errors import InvalidError, NotFoundError, UnavailableError
from schemas.topics import Topic
from wire.follow import Feed, Follower, KafkaFollower, MemoryFollower, Received
from wire.partition import partition_for
from wire.publish import KafkaPublisher, MemoryPublisher, Publisher, Sent
from wire.settings import Settings
from wire.share.memory import MemoryLog
from wire.topics import ensure

LIMIT = 20_000
WAIT_S = 20


@dataclass
class World:
    """A place to publish to and follow from; `topic` has four partitions and takes 20 kB."""

    topic: str
    publisher: Publisher
    follower: Follower
    other: Callable[[], str]


def _memory() -> World:
    log = MemoryLog(partitions=4)
    names = iter(range(100))

    def topic() -> str:
        name = f"topic-{next(names)}"
        log.create(name)
        return name

    first = topic()
    return World(first, MemoryPublisher(log, limits={first: LIMIT}), MemoryFollower(log), topic)


def _kafka(settings: Settings) -> World:
    def topic() -> str:
        name = f"{settings.prefix}{uuid.uuid4().hex[:6]}"
        ensure(settings, [Topic(name, 4, {"max.message.bytes": str(LIMIT)})])
        return name

    return World(topic(), KafkaPublisher(settings), KafkaFollower(settings), topic)


@pytest.fixture
def world(cluster: Settings | None) -> Iterator[World]:
    made = _memory() if cluster is None else _kafka(cluster)
    try:
        yield made
    finally:
        made.publisher.close(WAIT_S)


def send(world: World, count: int = 1, key: bytes | None = None, topic: str | None = None) -> list[Future[Sent]]:
    return [
        world.publisher.publish(
            topic or world.topic, key=key, value=b"%d" % number, headers=[("n", b"%d" % number), ("empty", None)]
        )
        for number in range(count)
    ]


def collect(feed: Feed, count: int) -> list[Received]:
    found: list[Received] = []
    while len(found) < count:
        batch = feed.poll(WAIT_S)
        assert batch, f"only {len(found)} of {count} came"
        found += batch
    return found


def test_a_record_arrives_as_it_was_sent(world: World) -> None:
    headers = [("ce_id", b"1"), ("empty", None), ("ce_id", b"again")]
    sent = world.publisher.publish(world.topic, key=b"job", value=b'{"a":1}', headers=headers).result(WAIT_S)
    assert sent == Sent(world.topic, partition_for(b"job", 4), 0)
    [record] = [record for batch in world.follower.read(world.topic) for record in batch]
    assert (record.topic, record.partition, record.offset) == sent[:3]
    assert (record.key, record.value, record.headers) == (b"job", b'{"a":1}', tuple(headers))
    assert abs(record.timestamp_ms / 1000 - datetime.now(UTC).timestamp()) < 60


def test_a_key_may_be_missing_and_a_value_may_be_a_tombstone(world: World) -> None:
    world.publisher.publish(world.topic, key=None, value=b"v").result(WAIT_S)
    world.publisher.publish(world.topic, key=b"k", value=None).result(WAIT_S)
    found = {(record.key, record.value) for batch in world.follower.read(world.topic) for record in batch}
    assert found == {(None, b"v"), (b"k", None)}


def test_records_of_a_key_keep_their_order(world: World) -> None:
    keys = [b"a", b"b", b"c", b"d", b"e"]
    futures = {key: send(world, 200, key) for key in keys}
    for key, made in futures.items():
        places = [future.result(WAIT_S) for future in made]
        assert {place.partition for place in places} == {partition_for(key, 4)}
        offsets = [place.offset for place in places]
        assert offsets == sorted(set(offsets))
    for key in keys:
        found = [record for batch in world.follower.read(world.topic, key=key) for record in batch]
        assert [record.value for record in found] == [b"%d" % number for number in range(200)]
        assert {record.key for record in found} == {key}
    some = [record for batch in world.follower.read(world.topic, keys=set(keys[:2])) for record in batch]
    assert sorted(record.key or b"" for record in some) == [b"a"] * 200 + [b"b"] * 200


def test_a_chosen_partition_is_used(world: World) -> None:
    sent = [world.publisher.publish(world.topic, key=b"k", value=b"v", partition=part) for part in range(4)]
    assert [future.result(WAIT_S).partition for future in sent] == [0, 1, 2, 3]


def test_a_partition_that_is_not_there_is_refused(world: World) -> None:
    with pytest.raises(InvalidError, match="no partition 4") as caught:
        world.publisher.publish(world.topic, key=b"k", value=b"v", partition=4).result(WAIT_S)
    assert caught.value.code == "TAPE-1002"


def test_records_without_a_key_are_spread(world: World) -> None:
    places = {future.result(WAIT_S).partition for future in send(world, 40)}
    assert places == {0, 1, 2, 3}


def test_an_unknown_topic_is_said_to_be_one(world: World) -> None:
    with pytest.raises(NotFoundError) as caught:
        world.publisher.publish("nowhere", key=b"k", value=b"v").result(WAIT_S)
    assert (caught.value.code, caught.value.place) == ("TAPE-2004", {"topic": "nowhere"})
    with pytest.raises(NotFoundError) as caught:
        world.follower.follow("nowhere")
    assert caught.value.code == "TAPE-2004"


def test_a_record_too_large_is_refused_with_the_way_out_and_harms_no_other(world: World) -> None:
    before = send(world, 3, b"k")
    with pytest.raises(InvalidError, match=f"the topic takes {LIMIT}") as caught:
        world.publisher.publish(world.topic, key=b"k", value=b"x" * (LIMIT + 1)).result(WAIT_S)
    error = caught.value
    assert error.code == "TAPE-1006"
    assert error.place["topic"] == world.topic
    assert error.place["limit"] == LIMIT
    assert error.place["size"] > LIMIT
    assert "store" in error.hint
    assert [future.result(WAIT_S).offset for future in before + send(world, 1, b"k")] == [0, 1, 2, 3]


def test_a_record_just_small_enough_is_taken(world: World) -> None:
    assert world.publisher.publish(world.topic, key=None, value=b"x" * (LIMIT - 80)).result(WAIT_S).offset == 0


def test_flush_waits_for_everything(world: World) -> None:
    futures = send(world, 500)
    world.publisher.flush(WAIT_S)
    assert all(future.done() for future in futures)


def test_close_confirms_what_was_taken_and_takes_no_more(world: World) -> None:
    futures = send(world, 500)
    world.publisher.close(WAIT_S)
    assert all(future.result(0).offset >= 0 for future in futures)
    with pytest.raises(UnavailableError, match="closed") as caught:
        world.publisher.publish(world.topic, key=None, value=b"late")
    assert caught.value.code == "TAPE-5003"
    world.publisher.close()


def test_threads_may_publish_at_once(world: World) -> None:
    futures: list[Future[Sent]] = []

    def work(name: bytes) -> None:
        futures.extend(send(world, 300, name))

    threads = [threading.Thread(target=work, args=(b"%d" % number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    places = [future.result(WAIT_S) for future in futures]
    assert len(set(places)) == len(places) == 1200
    for number in range(4):
        found = [record.value for batch in world.follower.read(world.topic, key=b"%d" % number) for record in batch]
        assert found == [b"%d" % value for value in range(300)]


def test_a_callback_may_publish(world: World) -> None:
    answers: list[Future[Sent]] = []
    done = threading.Event()

    def answer(_: Future[Sent]) -> None:
        answers.append(world.publisher.publish(world.topic, key=b"answer", value=b"2"))
        done.set()

    world.publisher.publish(world.topic, key=b"question", value=b"1").add_done_callback(answer)
    assert done.wait(WAIT_S)
    assert answers[0].result(WAIT_S).partition == partition_for(b"answer", 4)


def test_a_cancelled_future_harms_nobody(world: World) -> None:
    first, second = send(world, 2, b"k")
    first.cancel()
    assert second.result(WAIT_S).offset == 1


def test_a_feed_from_the_end_gives_what_comes(world: World) -> None:
    for future in send(world, 10):
        future.result(WAIT_S)
    with world.follower.follow(world.topic) as feed:
        assert feed.poll(0.05) == []
        send(world, 20, b"new")
        found = collect(feed, 20)
    assert [record.value for record in found] == [b"%d" % number for number in range(20)]


def test_a_feed_from_the_start_gives_what_was_and_what_comes(world: World) -> None:
    for future in send(world, 10, b"k"):
        future.result(WAIT_S)
    with world.follower.follow(world.topic, since="start") as feed:
        assert len(collect(feed, 10)) == 10
        send(world, 1, b"k")
        assert collect(feed, 1)[0].offset == 10


def test_a_feed_from_offsets_begins_there(world: World) -> None:
    part = partition_for(b"k", 4)
    for future in send(world, 10, b"k"):
        future.result(WAIT_S)
    found = [record for batch in world.follower.read(world.topic, since={part: 7}) for record in batch]
    assert [record.offset for record in found] == [7, 8, 9]


def test_a_feed_from_a_moment_begins_there(world: World) -> None:
    hour = timedelta(hours=1)
    for future in send(world, 5, b"k"):
        future.result(WAIT_S)
    now = datetime.now(UTC)
    assert len([record for batch in world.follower.read(world.topic, since=now - hour) for record in batch]) == 5
    assert list(world.follower.read(world.topic, since=now + hour)) == []
    with pytest.raises(InvalidError, match="time zone"):
        world.follower.read(world.topic, since=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the mistake


def test_reading_ends_with_what_was_there(world: World) -> None:
    for future in send(world, 30):
        future.result(WAIT_S)
    feed = world.follower.read(world.topic)
    for future in send(world, 30):
        future.result(WAIT_S)
    assert sum(len(batch) for batch in feed) == 30
    assert feed.poll(0) == []
    assert list(world.follower.read(world.other())) == []


def test_closing_wakes_a_reader_that_waits(world: World) -> None:
    feed = world.follower.follow(world.topic)
    found: list[list[Received]] = [[]]
    reader = threading.Thread(target=lambda: found.append([record for batch in feed for record in batch]))
    reader.start()
    feed.close()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    assert found == [[], []]
    feed.close()


def test_an_event_ends_a_feed(world: World) -> None:
    stop = threading.Event()
    feed = world.follower.follow(world.topic, stop=stop)
    send(world, 1)
    assert collect(feed, 1)
    stop.set()
    assert list(feed) == []


def test_two_feeds_see_the_same(world: World) -> None:
    with world.follower.follow(world.topic) as one, world.follower.follow(world.topic) as two:
        send(world, 25)
        assert sorted(collect(one, 25)) == sorted(collect(two, 25))
