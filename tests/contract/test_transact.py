"""One suite for every transactor: in memory and on the real broker."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from kafka import KafkaConsumer, TopicPartition

from schemas.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from schemas.topics import Topic
from wire.follow import Follower, KafkaFollower, MemoryFollower, Received
from wire.partition import partition_for
from wire.settings import Settings
from wire.share.memory import MemoryLog
from wire.topics import ensure
from wire.transact import KafkaTransactor, Member, MemoryTransactor, Outgoing, Transactor
from wire.transact.memory import ledger

LIMIT = 20_000


@dataclass
class World:
    """A topic of four partitions that takes 20 kB, another one, and how to open a transactor."""

    topic: str
    other: str
    group: str
    follower: Follower
    make: Callable[[str], Transactor]
    committed: Callable[[str], dict[int, tuple[int, str]]]
    opened: list[Transactor] = field(default_factory=list)

    def open(self, name: str = "one") -> Transactor:
        self.opened.append(self.make(name))
        return self.opened[-1]

    def read(self, topic: str | None = None) -> list[Received]:
        return [record for batch in self.follower.read(topic or self.topic) for record in batch]

    def values(self, topic: str | None = None) -> list[bytes | None]:
        return sorted((record.value for record in self.read(topic)), key=str)


def _memory() -> World:
    log = MemoryLog(partitions=4)
    for name in ("topic", "other"):
        log.create(name)

    def committed(group: str) -> dict[int, tuple[int, str]]:
        found = ledger(log).offsets.get(group, {})
        return {partition: value for (topic, partition), value in found.items() if topic == "topic"}

    def make(name: str) -> Transactor:
        return MemoryTransactor(log, name, limits={"topic": LIMIT})

    return World("topic", "other", "group", MemoryFollower(log), make, committed)


def _kafka(settings: Settings) -> World:
    names = [f"{settings.prefix}{uuid.uuid4().hex[:6]}" for _ in range(3)]
    ensure(settings, [Topic(name, 4, {"max.message.bytes": str(LIMIT)}) for name in names[:2]])

    def committed(group: str) -> dict[int, tuple[int, str]]:
        consumer = KafkaConsumer(
            bootstrap_servers=settings.kafka_url, group_id=group, isolation_level="read_committed",
            enable_auto_commit=False,
        )  # fmt: skip
        try:
            found = {part: consumer.committed(TopicPartition(names[0], part), metadata=True) for part in range(4)}
        finally:
            consumer.close()
        return {part: (entry.offset, entry.metadata) for part, entry in found.items() if entry is not None}

    def make(name: str) -> Transactor:
        return KafkaTransactor(settings, f"{settings.prefix}{name}", timeout_s=10)

    return World(names[0], names[1], names[2], KafkaFollower(settings), make, committed)


@pytest.fixture
def world(cluster: Settings | None) -> Iterator[World]:
    made = _memory() if cluster is None else _kafka(cluster)
    try:
        yield made
    finally:
        for transactor in made.opened:
            transactor.close()


def out(topic: str, value: bytes | None, key: bytes | None = b"k", partition: int | None = None) -> Outgoing:
    return Outgoing(topic, partition, key, value, [("n", value), ("empty", None), ("n", b"again")])


def test_records_of_a_transaction_arrive_as_they_were_sent(world: World) -> None:
    transactor = world.open()
    transactor.commit([out(world.topic, b"1"), out(world.other, None), out(world.topic, b"2", None, 3)])
    first, second = sorted(world.read(), key=lambda record: record.value or b"")
    assert (first.partition, first.key, first.value) == (partition_for(b"k", 4), b"k", b"1")
    assert first.headers == (("n", b"1"), ("empty", None), ("n", b"again"))
    assert (second.partition, second.key) == (3, None)
    [third] = world.read(world.other)
    assert (third.key, third.value, third.headers[0]) == (b"k", None, ("n", None))


def test_transactions_follow_each_other_and_records_keep_their_order(world: World) -> None:
    transactor = world.open()
    for number in range(20):
        transactor.commit([out(world.topic, b"%04d" % (number * 10 + step)) for step in range(10)])
    assert [record.value for record in world.read()] == [b"%04d" % number for number in range(200)]


def test_many_records_travel_in_several_batches(world: World) -> None:
    transactor = world.open()
    transactor.commit([out(world.topic, b"%06d" % number + b"x" * 5_000) for number in range(200)])
    found = [record.value[:6] for record in world.read() if record.value]
    assert found == [b"%06d" % number for number in range(200)]


def test_records_without_a_key_are_spread(world: World) -> None:
    world.open().commit([out(world.topic, b"%d" % number, None) for number in range(40)])
    assert {record.partition for record in world.read()} == {0, 1, 2, 3}


def test_offsets_are_committed_with_the_records(world: World) -> None:
    transactor = world.open()
    offsets = {(world.topic, 0): 7, (world.topic, 3): 9}
    transactor.commit([out(world.topic, b"1")], offsets, group=Member(world.group, note="me"))
    assert world.committed(world.group) == {0: (7, "me"), 3: (9, "me")}
    transactor.commit([], {(world.topic, 0): 8}, group=Member(world.group))
    assert world.committed(world.group) == {0: (8, ""), 3: (9, "me")}
    assert world.values() == [b"1"]


def test_offsets_need_a_group_and_nothing_is_nothing(world: World) -> None:
    transactor = world.open()
    transactor.commit([])
    with pytest.raises(ValueError, match="for a group"):
        transactor.commit([out(world.topic, b"1")], {(world.topic, 0): 1})
    assert world.values() == []


@pytest.mark.parametrize("wrong", ["absent", "large", "partition"])
def test_a_commit_that_fails_leaves_nothing_and_the_next_one_succeeds(world: World, wrong: str) -> None:
    transactor = world.open()
    transactor.commit([out(world.topic, b"before")])
    bad = {
        "absent": out("nowhere", b"1"),
        "large": out(world.topic, b"x" * (LIMIT + 1)),
        "partition": out(world.topic, b"1", partition=4),
    }[wrong]
    expected = {"absent": "TAPE-2004", "large": "TAPE-1006", "partition": "TAPE-1002"}[wrong]
    with pytest.raises((InvalidError, NotFoundError)) as caught:
        transactor.commit([out(world.topic, b"lost"), bad], {(world.topic, 0): 1}, group=Member(world.group))
    assert caught.value.code == expected
    assert caught.value.place["topic"] == bad.topic
    assert world.values() == [b"before"]
    assert world.committed(world.group) == {}
    transactor.commit([out(world.topic, b"after")], {(world.topic, 0): 2}, group=Member(world.group))
    assert world.values() == [b"after", b"before"]
    assert world.committed(world.group) == {0: (2, "")}


def test_a_member_that_the_group_does_not_know_commits_nothing(world: World) -> None:
    transactor = world.open()
    with pytest.raises(ConflictError) as caught:
        transactor.commit(
            [out(world.topic, b"lost")], {(world.topic, 0): 1}, group=Member(world.group, 5, "somebody-else")
        )
    assert (caught.value.code, caught.value.place["group"]) == ("TAPE-3002", world.group)
    assert world.values() == []
    transactor.commit([out(world.topic, b"kept")], {(world.topic, 0): 1}, group=Member(world.group))
    assert world.values() == [b"kept"]


def test_a_second_holder_of_a_name_fences_the_first(world: World) -> None:
    first, stranger = world.open(), world.open("another")
    first.commit([out(world.topic, b"1")])
    second = world.open()
    for _ in range(2):
        with pytest.raises(ConflictError) as caught:
            first.commit([out(world.topic, b"lost")], {(world.topic, 0): 1}, group=Member(world.group))
        assert caught.value.code == "TAPE-3006"
    second.commit([out(world.topic, b"2")])
    stranger.commit([out(world.topic, b"3")])
    assert world.values() == [b"1", b"2", b"3"]
    assert world.committed(world.group) == {}


def test_threads_take_turns(world: World) -> None:
    transactor = world.open()

    def work(name: int) -> None:
        for number in range(10):
            transactor.commit([out(world.topic, b"%d-%d" % (name, number), b"%d" % name)])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = world.values()
    assert len(found) == len(set(found)) == 30


def test_a_closed_transactor_says_so(world: World) -> None:
    transactor = world.open()
    transactor.close()
    transactor.close()
    with pytest.raises(UnavailableError, match="closed"):
        transactor.commit([out(world.topic, b"1")])
    assert world.values() == []


@pytest.mark.kafka
@pytest.mark.slow
def test_what_a_holder_left_open_is_aborted_by_the_next(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    world = _kafka(settings)
    first = KafkaTransactor(settings, f"{settings.prefix}one", timeout_s=10)
    stop = RuntimeError("the process dies before the end of its transaction")

    async def die(*_: object) -> None:
        raise stop

    monkeypatch.setattr(first._session, "_end", die)
    monkeypatch.setattr(first._session, "begin", die)
    with pytest.raises(UnavailableError):
        first.commit([out(world.topic, b"hanging")], {(world.topic, 0): 1}, group=Member(world.group))
    first.close()
    second = KafkaTransactor(settings, f"{settings.prefix}one", timeout_s=10)
    second.commit([out(world.topic, b"after")])
    assert world.values() == [b"after"]
    assert world.committed(world.group) == {}
    second.close()


@pytest.mark.kafka
@pytest.mark.slow
def test_without_a_broker_it_says_so(settings: Settings) -> None:
    away = settings.model_copy(update={"kafka_url": "127.0.0.1:1", "kafka_timeout_s": 0.5})
    with pytest.raises(UnavailableError) as caught:
        KafkaTransactor(away, "one")
    assert caught.value.code == "TAPE-5001"
