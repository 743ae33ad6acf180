"""The sender and the fetcher against a cluster that answers on order: every answer a broker may give."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import errors as kafka_errors
from kafka.future import Future as KafkaFuture

from schemas.errors import AuthError, InvalidError, NotFoundError, TapeError, UnavailableError
from wire.follow.feed import Handover
from wire.follow.fetch import Fetcher, Piece
from wire.publish.inbox import Inbox, Item
from wire.publish.lane import Identity, Record
from wire.publish.port import Sent
from wire.publish.route import Route
from wire.publish.sender import Sender


class Cluster:
    def __init__(self) -> None:
        self.leaders: dict[int, int | None] = {0: 1, 1: 1, 2: 2}
        self.updates = 0

    def leader_for_partition(self, place: Any) -> int | None:
        return self.leaders[place.partition]

    def request_update(self) -> None:
        self.updates += 1


class Net:
    """Keeps timers and tasks instead of running them."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.tasks: list[Any] = []

    def call_at(self, _: float, task: Callable[[], None]) -> None:
        self.timers.append(task)

    def call_later(self, _: float, task: Callable[[], None]) -> None:
        self.timers.append(task)

    def call_soon(self, task: Any) -> None:
        self.tasks.append(task)
        if hasattr(task, "close"):
            task.close()

    def call_soon_threadsafe(self, task: Any) -> None:
        task()


class Manager:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.sent: list[tuple[int, Any, KafkaFuture]] = []
        self.trouble: Exception | None = None

    def send(self, request: Any, node_id: int, request_timeout_ms: float | None = None) -> KafkaFuture:
        if self.trouble is not None:
            raise self.trouble
        future = KafkaFuture()
        self.sent.append((node_id, request, future))
        return future


class Link:
    def __init__(self) -> None:
        self.net, self.manager = Net(), Manager()

    def fire(self) -> None:
        timers, self.net.timers = self.net.timers, []
        for timer in timers:
            timer()


class Bench:
    """A sender with one topic of three partitions, two led by node 1."""

    def __init__(self, delivery_s: float = 60.0) -> None:
        self.link = Link()
        self.inbox = Inbox(1 << 20, max_block_s=0, wake=lambda: None)
        self.sender = Sender(self.link, self.inbox, linger_s=0.0, delivery_s=delivery_s)  # type: ignore[arg-type]
        self.route = Route("t", 3, limit=10_000)
        self.sender._routes["t"] = self.route
        self.sender._identity = Identity(1, 0)

    def publish(self, partition: int = 0, value: bytes = b"v", born: float | None = None) -> Future[Sent]:
        future: Future[Sent] = Future()
        moment = time.monotonic() if born is None else born
        self.inbox.put(Item("t", partition, Record(None, value, [], 0, moment, 10, future)))
        self.sender.look()
        return future

    def answer(self, *parts: tuple[int, int, int], dated_ms: int = -1) -> None:
        _, _, future = self.link.manager.sent.pop(0)
        told = {"error_message": "because", "log_append_time_ms": dated_ms}
        found = [SimpleNamespace(index=part, error_code=code, base_offset=base, **told) for part, code, base in parts]
        future.success(SimpleNamespace(responses=[SimpleNamespace(name="t", partition_responses=found)]))

    def lose(self, error: Exception) -> None:
        self.link.manager.sent.pop(0)[2].failure(error)

    def again(self) -> None:
        for lane in self.route.lanes:
            lane.not_before = 0.0
        self.sender.look()

    def records(self, at: int = 0) -> dict[int, bytes]:
        [topic] = self.link.manager.sent[at][1].topic_data
        return {part.index: part.records for part in topic.partition_data}


def failure(future: Future[Sent]) -> TapeError:
    error = future.exception(0)
    assert isinstance(error, TapeError)
    return error


def test_one_request_a_broker_and_the_rest_travels_with_the_next() -> None:
    bench = Bench()
    first, second, third = bench.publish(0), bench.publish(0), bench.publish(1)
    other = bench.publish(2)
    assert [node for node, _, _ in bench.link.manager.sent] == [1, 2]
    bench.answer((0, 0, 40))
    assert first.result(0) == Sent("t", 0, 40)
    assert not second.done()
    assert set(bench.records(1)) == {0, 1}
    bench.answer((2, 0, 7))
    assert other.result(0).offset == 7
    bench.answer((0, 0, 41), (1, 0, 0))
    assert (second.result(0), third.result(0)) == (Sent("t", 0, 41), Sent("t", 1, 0))


def test_the_broker_s_time_comes_with_the_place() -> None:
    bench = Bench()
    future = bench.publish()
    bench.answer((0, 0, 5), dated_ms=1_700_000_000_123)
    assert future.result(0) == Sent("t", 0, 5, 1_700_000_000_123)


def test_the_very_same_batch_is_sent_again_after_a_lost_answer() -> None:
    bench = Bench()
    future = bench.publish()
    sent = bench.records()
    bench.lose(kafka_errors.KafkaConnectionError("gone"))
    assert bench.link.manager.sent == []
    assert bench.link.manager.cluster.updates
    later = bench.publish()
    bench.again()
    assert bench.records() == sent
    bench.answer((0, 46, -1))
    assert future.result(0) == Sent("t", 0, -1), "a copy the broker knows is a success"
    bench.answer((0, 0, 1))
    assert later.result(0).offset == 1


def test_a_partition_without_an_answer_counts_as_lost() -> None:
    bench = Bench()
    bench.publish(0)
    bench.answer()
    bench.again()
    assert set(bench.records()) == {0}


def test_a_leader_that_moved_is_asked_for() -> None:
    bench = Bench()
    future = bench.publish()
    bench.answer((0, kafka_errors.NotLeaderForPartitionError.errno, -1))
    bench.link.manager.cluster.leaders[0] = None
    bench.again()
    assert bench.link.manager.sent == []
    bench.link.manager.cluster.leaders[0] = 2
    bench.again()
    assert bench.link.manager.sent[0][0] == 2
    bench.answer((0, 0, 3))
    assert future.result(0).offset == 3


def test_a_broker_that_lost_count_gets_a_new_identity() -> None:
    bench = Bench()
    future = bench.publish()
    before = bench.records()
    bench.answer((0, kafka_errors.OutOfOrderSequenceNumberError.errno, -1))
    assert bench.sender._identity is None
    assert len(bench.link.net.tasks) == 1, "an identity is asked for once"
    bench.sender.look()
    assert len(bench.link.net.tasks) == 1
    bench.sender._identity = Identity(2, 0)
    bench.sender.look()
    assert bench.records() != before
    bench.answer((0, 0, 9))
    assert future.result(0).offset == 9


def test_a_batch_too_large_is_sent_in_smaller_ones_until_one_record_is_to_blame() -> None:
    bench = Bench()
    bench.publish(1)
    futures = [bench.publish(0, b"x" * size) for size in (10, 2_000, 10)]
    bench.answer((1, 0, 0))
    too_large = kafka_errors.MessageSizeTooLargeError.errno
    while not all(future.done() for future in futures):
        size = len(bench.records()[0])
        bench.answer((0, too_large if size > 1_000 else 0, 5))
    assert futures[0].result(0).offset == 5
    assert isinstance(failure(futures[1]), InvalidError)
    assert failure(futures[1]).code == "TAPE-1006"
    assert futures[2].result(0).offset == 5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (kafka_errors.TopicAuthorizationFailedError, "TAPE-4003"),
        (kafka_errors.InvalidRecordError, "TAPE-5003"),
        (kafka_errors.UnknownError, "TAPE-5003"),
    ],
)
def test_a_refusal_fails_its_records_and_frees_their_numbers(error: Any, code: str) -> None:
    bench = Bench()
    future = bench.publish()
    bench.answer((0, error.errno, -1))
    assert failure(future).code == code
    bench.publish()
    assert bench.sender._identity == Identity(1, 0)
    assert bench.route.lanes[0].batch is not None
    assert bench.route.lanes[0].batch.sequence == 0


def test_refused_credentials_fail_at_once() -> None:
    bench = Bench()
    bench.link.manager.trouble = kafka_errors.SaslAuthenticationFailedError("no")
    future = bench.publish()
    assert isinstance(failure(future), AuthError)


def test_what_is_too_old_fails_and_a_doubtful_batch_costs_the_identity() -> None:
    bench = Bench(delivery_s=1.0)
    sent = bench.publish(born=time.monotonic() - 0.9)
    waiting = bench.publish(born=time.monotonic() - 5)
    bench.lose(kafka_errors.KafkaConnectionError("gone"))
    bench.sender._expiry = 0.0
    bench.sender._expire(time.monotonic())
    for future in (sent, waiting):
        error = failure(future)
        assert (type(error), error.code) == (UnavailableError, "TAPE-5003")
        assert "gone" in error.message
    assert bench.sender._identity is None


def test_a_topic_that_vanished_is_named() -> None:
    bench = Bench(delivery_s=1.0)
    future = bench.publish()
    bench.answer((0, kafka_errors.UnknownTopicOrPartitionError.errno, -1))
    bench.sender._expire(time.monotonic())
    assert isinstance(failure(future), NotFoundError)
    assert bench.sender._identity == Identity(1, 0), "the batch is certainly not in the log"


def test_a_node_that_is_not_ready_casts_no_doubt() -> None:
    bench = Bench()
    bench.publish()
    bench.lose(kafka_errors.NodeNotReadyError("backing off"))
    assert bench.route.lanes[0].batch is not None
    assert not bench.route.lanes[0].batch.doubtful


def test_dropping_fails_what_is_parked_queued_and_under_way() -> None:
    bench = Bench()
    futures = [bench.publish(), bench.publish()]
    parked: Future[Sent] = Future()
    bench.inbox.put(Item("new", None, Record(None, b"", [], 0, time.monotonic(), 10, parked)))
    bench.sender.look()
    bench.sender.drop(UnavailableError("closed", code="TAPE-5003"))
    assert {failure(future).code for future in (*futures, parked)} == {"TAPE-5003"}
    bench.inbox.drain(0)


class Reader:
    """A fetcher of partitions 0 and 2, led by nodes 1 and 2."""

    def __init__(self, ends: dict[int, int] | None = None) -> None:
        self.link = Link()
        self.out: Handover[Piece] = Handover()
        self.fetcher = Fetcher(
            self.link,  # type: ignore[arg-type]
            "t",
            {0: 10, 2: 20},
            ends=ends,
            out=self.out,
            patience_s=60.0,
        )
        self.fetcher.look()

    def asked(self) -> dict[int, int]:
        return {
            part.partition: part.fetch_offset
            for _, request, _ in self.link.manager.sent
            for part in request.topics[0].partitions
        }

    def answer(self, part: int, code: int = 0, *, top: int = 0, low: int = 0, high: int = 0) -> None:
        found = SimpleNamespace(
            partition_index=part,
            error_code=code,
            records=b"",
            log_start_offset=low,
            high_watermark=high,
            aborted_transactions=None,
        )
        _, _, future = self.link.manager.sent.pop(0)
        future.success(SimpleNamespace(error_code=top, responses=[SimpleNamespace(partitions=[found])]))


def test_every_leader_has_one_request() -> None:
    reader = Reader()
    assert reader.asked() == {0: 10, 2: 20}
    reader.fetcher.look()
    assert len(reader.link.manager.sent) == 2
    reader.answer(0)
    assert len(reader.link.manager.sent) == 2


def test_deleted_offsets_are_passed_over_and_a_log_cut_off_is_joined_at_its_end() -> None:
    reader = Reader()
    code = kafka_errors.OffsetOutOfRangeError.errno
    reader.answer(0, code, low=50, high=90)
    reader.answer(2, code, low=0, high=5)
    reader.link.fire()
    assert reader.asked() == {0: 50, 2: 5}


def test_a_moved_leader_is_looked_for() -> None:
    reader = Reader()
    reader.answer(0, kafka_errors.NotLeaderForPartitionError.errno)
    assert reader.link.manager.cluster.updates == 1
    reader.link.manager.cluster.leaders[0] = None
    reader.link.fire()
    assert reader.asked() == {2: 20}
    reader.link.manager.cluster.leaders[0] = 3
    reader.link.fire()
    assert reader.asked() == {0: 10, 2: 20}


def test_a_refusal_ends_the_feed() -> None:
    reader = Reader()
    reader.answer(0, kafka_errors.TopicAuthorizationFailedError.errno)
    with pytest.raises(AuthError):
        reader.out.take(0)
    other = Reader()
    other.answer(0, top=kafka_errors.ClusterAuthorizationFailedError.errno)
    with pytest.raises(AuthError):
        other.out.take(0)
    third = Reader()
    third.link.manager.sent.pop(0)[2].failure(kafka_errors.SaslAuthenticationFailedError("no"))
    with pytest.raises(AuthError):
        third.out.take(0)


def test_a_lost_connection_is_tried_again_until_patience_ends() -> None:
    reader = Reader()
    reader.fetcher._patience_s = 0.0
    reader.link.manager.trouble = kafka_errors.NodeNotReadyError("backing off")
    reader.link.manager.sent.pop(0)[2].failure(kafka_errors.KafkaConnectionError("gone"))
    reader.link.fire()
    with pytest.raises(UnavailableError, match="gone"):
        reader.out.take(0)


def test_a_send_that_cannot_be_made_is_tried_later() -> None:
    reader = Reader()
    reader.link.manager.trouble = kafka_errors.NodeNotReadyError("backing off")
    reader.answer(0)
    assert reader.asked() == {2: 20}
    reader.link.manager.trouble = None
    reader.link.fire()
    assert reader.asked() == {0: 10, 2: 20}


def test_a_slow_reader_is_waited_for() -> None:
    reader = Reader()
    reader.fetcher._ahead = 1 << 30
    reader.answer(0)
    assert reader.asked() == {2: 20}
    reader.fetcher.taken(1 << 30)
    assert reader.asked() == {0: 10, 2: 20}


def test_a_bounded_read_ends_at_its_ends() -> None:
    reader = Reader(ends={0: 10, 2: 21})
    assert reader.asked() == {2: 20}
    reader.fetcher._positions[2] = 21
    reader.answer(2)
    assert reader.out.over
    closed = Reader()
    closed.out.close()
    closed.link.manager.sent.clear()
    closed.fetcher.look()
    assert closed.asked() == {}
