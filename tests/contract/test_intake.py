"""One suite for every intake: in memory and on the real broker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from schemas.errors import ConflictError
from schemas.topics import Topic
from wire.follow.port import Received
from wire.settings import Settings
from wire.share.memory import MemoryLog
from wire.topics import ensure
from wire.transact import (
    Intake,
    KafkaIntake,
    KafkaTransactor,
    MemoryIntake,
    MemoryTransactor,
    Outgoing,
    Transactor,
)
from wire.transact.port import Place

PARTS = 4
DEADLINE_S = 30.0


@dataclass
class World:
    """A topic of four partitions, a group that reads it, and how to open its members and their transactors.

    `named` tells the name that a transactor has for the cluster.
    """

    topic: str
    group: str
    make: Callable[[str], Intake]
    pen: Callable[[str], Transactor]
    named: Callable[[str], str]
    opened: list[Reader | Transactor] = field(default_factory=list)

    def reader(self, name: str = "one") -> Reader:
        made = Reader(self.make(name))
        self.opened.append(made)
        return made

    def transactor(self, name: str = "one") -> Transactor:
        made = self.pen(name)
        self.opened.append(made)
        return made

    def write(self, *values: bytes, partition: int = 0) -> None:
        pen = self.pen("writer")
        pen.commit([Outgoing(self.topic, partition, b"k", value, [("n", value), ("empty", None)]) for value in values])
        pen.close()

    @property
    def places(self) -> set[Place]:
        return {(self.topic, partition) for partition in range(PARTS)}


class Reader:
    """An intake, and what it has returned so far."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.records: list[Received] = []
        self.lost: list[set[Place]] = []
        self.gained: list[set[Place]] = []

    def poll(self, timeout_s: float = 0.1) -> None:
        records, lost, gained = self.intake.poll(timeout_s)
        self.records += records
        self.lost += [lost] if lost else []
        self.gained += [gained] if gained else []

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]

    def close(self) -> None:
        self.intake.close()


def until(told: Callable[[], bool], *readers: Reader, timeout_s: float = 0.1) -> None:
    """Poll in turn until it holds."""
    end = time.monotonic() + DEADLINE_S
    while not told():
        assert time.monotonic() < end, [(reader.values, reader.lost, reader.gained) for reader in readers]
        for reader in readers:
            reader.poll(timeout_s)


def _memory() -> World:
    log = MemoryLog(partitions=PARTS)
    log.create("topic")
    return World(
        "topic",
        "group",
        lambda name: MemoryIntake(log, "group", ["topic"], name=name),
        lambda name: MemoryTransactor(log, name),
        str,
    )


def _kafka(settings: Settings) -> World:
    topic, group, base = (f"{settings.prefix}{uuid.uuid4().hex[:6]}" for _ in range(3))
    ensure(settings, [Topic(topic, PARTS, {})])
    return World(
        topic,
        group,
        lambda name: KafkaIntake(settings, group, [topic], name=base + name, session_s=20.0),
        lambda name: KafkaTransactor(settings, base + name, timeout_s=10),
        lambda name: base + name,
    )


@pytest.fixture
def world(cluster: Settings | None) -> Iterator[World]:
    made = _memory() if cluster is None else _kafka(cluster)
    try:
        yield made
    finally:
        for each in made.opened:
            each.close()


def test_a_lone_member_gains_everything_and_reads_each_record_once(world: World) -> None:
    world.write(b"1", b"2", partition=1)
    reader = world.reader()
    assert reader.intake.owned() == set()
    until(lambda: b"2" in reader.values, reader)
    for _ in range(10):  # a broker may share out once more what it has just shared out, and nothing was committed yet
        reader.poll()
    assert all(places == world.places for places in (*reader.gained, *reader.lost))
    assert reader.intake.owned() == world.places
    assert reader.values == [b"1", b"2"] * (len(reader.values) // 2)
    first, second = reader.records[:2]
    assert (first.topic, first.partition, first.offset, first.key, first.value) == (world.topic, 1, 0, b"k", b"1")
    assert first.headers == (("n", b"1"), ("empty", None))
    assert abs(first.timestamp_ms / 1000 - time.time()) < 60
    assert second.offset == 1
    assert reader.intake.position((world.topic, 1)) >= 2
    assert reader.intake.position((world.topic, 0)) == 0
    world.write(b"3", partition=1)
    before, gained = len(reader.values), len(reader.gained)
    until(lambda: len(reader.values) > before, reader)
    assert reader.values[before:] == [b"3"]
    assert len(reader.gained) == gained


def test_who_comes_after_goes_on_from_what_was_committed(world: World) -> None:
    world.write(b"1", b"2", b"3")
    first, pen = world.reader(), world.transactor()
    until(lambda: len(first.values) == 3, first)
    pen.commit([], {(world.topic, 0): 2}, group=first.intake.member("note"))
    first.close()
    first.close()
    second = world.reader("two")
    until(lambda: len(second.values) == 1, second)
    assert second.values == [b"3"]
    assert second.intake.position((world.topic, 1)) == 0


def test_two_share_and_each_record_is_read_by_its_partitions_owner(world: World) -> None:
    one = world.reader()
    until(lambda: one.intake.owned() == world.places, one)
    two = world.reader("two")
    until(lambda: bool(two.intake.owned()) and len(one.gained) >= 2, one, two)
    assert one.lost == [world.places], "what is lost and gained again is in both"
    assert one.intake.owned() == one.gained[-1]
    assert one.intake.owned() | two.intake.owned() == world.places
    assert one.intake.owned() & two.intake.owned() == set()
    assert len(one.intake.owned()) == len(two.intake.owned()) == 2
    for partition in range(PARTS):
        world.write(b"%d" % partition, partition=partition)
    until(lambda: len(one.values) + len(two.values) == PARTS, one, two)
    for reader in (one, two):
        assert {(world.topic, record.partition) for record in reader.records} == reader.intake.owned()
    two.close()
    until(lambda: one.intake.owned() == world.places, one)
    assert one.gained[-1] == world.places


def test_a_partition_that_changes_hands_is_read_anew_from_what_was_committed(world: World) -> None:
    for partition in range(PARTS):
        world.write(b"a%d" % partition, b"b%d" % partition, partition=partition)
    one, pen = world.reader(), world.transactor()
    until(lambda: len(one.values) == 2 * PARTS, one)
    pen.commit([], {(world.topic, 0): 1, (world.topic, 1): 2}, group=one.intake.member("note"))
    two = world.reader("two")
    until(lambda: bool(two.gained) and len(one.gained) >= 2, one, two)
    until(lambda: len(one.values) + len(two.values) == 2 * PARTS + 5, one, two)
    again = sorted(str(value) for value in [*one.values[2 * PARTS :], *two.values])
    assert again == [str(value) for value in (b"a2", b"a3", b"b0", b"b2", b"b3")]


def test_the_noted_owner_of_what_is_gained_can_commit_nothing_any_more(world: World) -> None:
    name = world.named("old")
    first, old = world.reader("old"), world.transactor("old")
    until(lambda: first.intake.owned() == world.places, first)
    stale = first.intake.member(name)
    old.commit([], {(world.topic, 0): 0}, group=stale)
    first.close()
    second = world.reader("new")
    until(lambda: second.intake.owned() == world.places, second)
    with pytest.raises(ConflictError) as caught:
        old.commit([Outgoing(world.topic, 0, b"k", b"late", [])])
    assert caught.value.code == "TAPE-3006"
    with pytest.raises(ConflictError) as caught:
        world.transactor("other").commit(
            [Outgoing(world.topic, 0, b"k", b"late", [])], {(world.topic, 0): 1}, group=stale
        )
    assert caught.value.code == "TAPE-3002"
    second.poll()
    assert second.values == []


def test_who_keeps_its_partitions_is_not_fenced_by_itself(world: World) -> None:
    name = world.named("one")
    one, pen = world.reader(), world.transactor()
    until(lambda: one.intake.owned() == world.places, one)
    pen.commit([], dict.fromkeys(world.places, 0), group=one.intake.member(name))
    two = world.reader("two")
    until(lambda: bool(two.gained) and len(one.gained) >= 2, one, two)
    kept = next(iter(one.intake.owned()))
    third = world.transactor("three")
    third.commit([], {kept: 0}, group=one.intake.member(""))
    two.close()
    until(lambda: one.intake.owned() == world.places, one)
    third.commit([], {kept: 0}, group=one.intake.member(""))


def test_seek_and_rewind_read_again(world: World) -> None:
    world.write(b"1", b"2", b"3")
    reader, pen = world.reader(), world.transactor()
    until(lambda: len(reader.values) == 3, reader)
    place = (world.topic, 0)
    pen.commit([], {place: 1}, group=reader.intake.member(""))
    reader.intake.seek(place, 2)
    assert reader.intake.position(place) == 2
    until(lambda: len(reader.values) == 4, reader)
    assert reader.values[3:] == [b"3"]
    reader.intake.rewind({place, (world.topic, 1)})
    assert reader.intake.position(place) == 1
    until(lambda: len(reader.values) == 6, reader)
    assert reader.values[4:] == [b"2", b"3"]


def test_what_is_held_waits_and_all_else_goes_on(world: World) -> None:
    reader = world.reader()
    until(lambda: bool(reader.gained), reader)
    reader.intake.hold({(world.topic, 0), (world.topic, 1)})
    world.write(b"held", partition=0)
    world.write(b"free", partition=2)
    until(lambda: bool(reader.values), reader)
    reader.poll(0.5)
    assert reader.values == [b"free"]
    reader.intake.hold({(world.topic, 2)})
    until(lambda: len(reader.values) == 2, reader)
    assert reader.values == [b"free", b"held"]


def test_silence_of_a_member_in_memory_gives_its_partitions_to_the_others() -> None:
    log, now = MemoryLog(partitions=PARTS), [0.0]
    log.create("topic")
    one, two = (MemoryIntake(log, "g", ["topic"], name=name, clock=lambda: now[0]) for name in ("one", "two"))
    for intake in (one, two, one):
        intake.poll(0)
    assert len(one.owned()) == len(two.owned()) == 2
    now[0] = 6.5
    _, lost, gained = two.poll(0)
    assert (len(lost), len(gained)) == (2, PARTS)
    with pytest.raises(ConflictError, match="moved on"):
        MemoryTransactor(log, "one").commit([], {("topic", 0): 0}, group=one.member(""))
    _, lost, gained = one.poll(0)
    assert (len(lost), len(gained)) == (2, 2), "it joins again"


@pytest.mark.slow
@pytest.mark.kafka
def test_a_member_that_gives_up_its_partitions_joins_again_whatever_it_hears_meanwhile(settings: Settings) -> None:
    """The metadata changes for a moment, and is as before when the member looks again (KAFKA-9815)."""
    world = _kafka(settings)
    reader = world.reader()
    try:
        coordinator = reader.intake._consumer._coordinator  # type: ignore[attr-defined]
        known, prepare = {world.topic: set(range(PARTS))}, coordinator._on_join_prepare_async
        until(lambda: coordinator._assignment_snapshot == known and coordinator.stable(), reader)
        reader.lost.clear()
        reader.gained.clear()

        async def and_back(*args: object, **named: object) -> None:
            await prepare(*args, **named)
            coordinator._metadata_snapshot = known

        coordinator._on_join_prepare_async = and_back
        coordinator._metadata_snapshot = {world.topic: {0}}
        until(lambda: reader.lost == [world.places], reader, timeout_s=0)
        until(lambda: reader.gained == [world.places], reader)
        world.write(b"after", partition=3)
        until(lambda: reader.values == [b"after"], reader)
    finally:
        reader.close()
