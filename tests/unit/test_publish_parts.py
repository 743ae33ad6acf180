"""The publisher's parts: lanes and their numbering, the inbox and its room, keys and their partitions."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kafka.partitioner.default import murmur2 as kafka_murmur2

from schemas.errors import InvalidError, TimeoutExceeded, UnavailableError
from wire.partition import murmur2, partition_for
from wire.publish.inbox import Inbox, Item
from wire.publish.lane import SEQUENCES, Batch, Identity, Lane, Record
from wire.publish.port import Sent
from wire.publish.route import Route


def record(value: bytes = b"v", born: float = 0.0, size: int = 10) -> Record:
    return Record(b"k", value, [("h", b"1")], 1_700_000_000_000, born, size, Future())


@given(st.binary(max_size=64))
def test_keys_hash_as_in_kafka(key: bytes) -> None:
    assert murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF


def test_known_partitions() -> None:
    # Source: Apache Kafka, UtilsTest.testMurmur2.
    assert murmur2(b"21") == (-973932308) & 0xFFFFFFFF
    assert murmur2(b"foobar") == (-790332482) & 0xFFFFFFFF
    assert murmur2(b"a-little-bit-long-string") == (-985981536) & 0xFFFFFFFF
    assert 0 <= partition_for(b"foobar", 8) < 8


class Log:
    """A broker's partition: takes a batch if it is the next of its identity, and drops the copy of the last one."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.next: dict[Identity, int] = {}
        self.last: dict[Identity, int] = {}

    def append(self, batch: Batch) -> bool:
        if self.last.get(batch.identity) == batch.sequence:
            return True
        expected = self.next.get(batch.identity, 0)
        if batch.sequence != expected:
            return False
        self.last[batch.identity] = batch.sequence
        self.next[batch.identity] = expected + len(batch.records)
        self.values += [bytes(item.value) for item in DefaultRecordBatch(batch.data)]
        return True


class Lanes(RuleBasedStateMachine):
    """Any order of sending, losing requests or answers, refusing, giving up: order is kept and nothing is doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.lane, self.log = Lane("t", 0, 200), Log()
        self.identity = Identity(1, 0)
        self.number = 0
        self.confirmed: list[bytes] = []
        self.unsure: set[bytes] = set()

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.lane.add(record(b"%d" % self.number))
            self.number += 1

    @precondition(lambda self: not self.lane.sending and (self.lane.batch or self.lane.queue))
    @rule()
    def send(self) -> None:
        self.lane.next(self.identity)

    @precondition(lambda self: self.lane.sending)
    @rule()
    def confirm(self) -> None:
        assert self.lane.batch is not None
        assert self.log.append(self.lane.batch), "the broker refused a batch's number"
        self.confirmed += [bytes(item.value or b"") for item in self.lane.confirm().records]

    @precondition(lambda self: self.lane.sending)
    @rule(arrived=st.booleans())
    def lose(self, arrived: bool) -> None:
        assert self.lane.batch is not None
        self.lane.batch.doubtful = True
        if arrived:
            assert self.log.append(self.lane.batch)
        self.lane.later(0.0, ConnectionError())

    @precondition(lambda self: self.lane.sending and not self.lane.batch.doubtful)
    @rule()
    def refuse_and_send_in_other_sizes(self) -> None:
        batch = self.lane.refuse()
        self.lane.limit = max(1, len(batch.data) // 2)
        self.lane.restore(batch.records)

    @precondition(lambda self: self.lane.sending and self.lane.batch.doubtful)
    @rule()
    def give_up(self) -> None:
        self.unsure |= {bytes(item.value or b"") for item in self.lane.abandon().records}
        self.identity = Identity(self.identity.id + 1, 0)

    @rule()
    def another_lane_needs_a_new_identity(self) -> None:
        self.identity = Identity(self.identity.id + 1, 0)

    @invariant()
    def the_log_has_each_once_and_in_order(self) -> None:
        numbers = [int(value) for value in self.log.values]
        assert numbers == sorted(set(numbers))
        assert set(self.confirmed) <= set(self.log.values)
        assert self.lane.bytes == sum(item.size for item in self.lane.queue)


TestLanes = Lanes.TestCase


def test_numbers_wrap_as_the_broker_expects() -> None:
    lane = Lane("t", 0, 1 << 20)
    lane._identity, lane._sequence = Identity(1, 0), SEQUENCES - 1
    for _ in range(3):
        lane.add(record())
    assert lane.next(Identity(1, 0)).sequence == SEQUENCES - 1
    lane.confirm()
    lane.add(record())
    assert lane.next(Identity(1, 0)).sequence == 2


def test_old_records_are_taken_out() -> None:
    lane = Lane("t", 0, 1 << 20)
    for born in (1.0, 2.0, 3.0):
        lane.add(record(born=born))
    assert [old.born for old in lane.expired(2.5)] == [1.0, 2.0]
    assert lane.bytes == 10


def test_a_route_grows_and_knows_its_partitions() -> None:
    route = Route("t", 2, limit=1_000)
    assert {route.lane(None, None).place.partition for _ in range(4)} == {0, 1}
    route.grow(4)
    assert route.lane(3, None).place.partition == 3
    assert route.lane(None, b"foobar").place.partition == partition_for(b"foobar", 4)
    with pytest.raises(InvalidError):
        route.lane(4, None)


@given(st.integers(880, 1_000))
def test_a_record_is_refused_exactly_when_its_batch_is_too_large(size: int) -> None:
    route, lane = Route("t", 1, limit=1_000), Lane("t", 0, 1)
    one = record(b"x" * size)
    lane.add(one)
    length = len(lane.next(Identity(1, 0)).data)
    if length <= 1_000:
        route.check(one)
    else:
        with pytest.raises(InvalidError, match=f"the record has {length} bytes and the topic takes 1000"):
            route.check(one)


def inbox(limit: int = 100, block_s: float = 0.05) -> tuple[Inbox, list[None]]:
    wakes: list[None] = []
    return Inbox(limit, max_block_s=block_s, wake=lambda: wakes.append(None)), wakes


def test_the_sender_is_woken_once() -> None:
    box, wakes = inbox()
    assert box.sleep()
    for _ in range(3):
        box.put(Item("t", None, record()))
    assert len(wakes) == 1
    assert not box.sleep()
    assert len(box.take()) == 3
    assert len(box.take()) == 0
    assert box.sleep()


def test_room_is_waited_for_and_given_back() -> None:
    box, _ = inbox(block_s=10)
    for _ in range(10):
        box.put(Item("t", None, record()))
    waiting = threading.Thread(target=box.put, args=(Item("t", None, record()),))
    waiting.start()
    box.release(1, 10)
    waiting.join(10)
    assert len(box.take()) == 11


def test_a_full_inbox_says_so() -> None:
    box, _ = inbox()
    for _ in range(10):
        box.put(Item("t", None, record()))
    with pytest.raises(UnavailableError, match="100 bytes wait") as caught:
        box.put(Item("t", None, record()))
    assert caught.value.code == "TAPE-5004"
    with pytest.raises(TimeoutExceeded, match="10 records"):
        box.drain(0.01)


def test_a_record_larger_than_the_inbox_goes_when_it_is_alone() -> None:
    box, _ = inbox()
    box.put(Item("t", None, record(size=1_000)))
    assert len(box.take()) == 1


def test_the_senders_own_thread_never_waits_for_itself() -> None:
    box, _ = inbox(block_s=60)
    box.owner = threading.current_thread()
    box.put(Item("t", None, record(size=100)))
    with pytest.raises(UnavailableError):
        box.put(Item("t", None, record()))


def test_closing_frees_who_waits() -> None:
    box, _ = inbox(block_s=60)
    box.put(Item("t", None, record(size=100)))
    errors: list[Exception] = []

    def put() -> None:
        try:
            box.put(Item("t", None, record()))
        except UnavailableError as error:
            errors.append(error)

    waiting = threading.Thread(target=put)
    waiting.start()
    while not box._waiting:
        pass
    assert box.close()
    waiting.join(10)
    assert [str(error)[:9] for error in errors] == ["TAPE-5003"]
    assert not box.close()
    assert Sent("t", 0, 1).offset == 1
