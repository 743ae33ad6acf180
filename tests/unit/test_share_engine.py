"""The consumer against a broker in memory that fails on order: sessions, members, leaders, acknowledgements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import sharebroker
from kafka.net.selector import NetworkSelector
from sharebroker import FakeChannel, FakeCluster

from wire.share import AckType, AcquireMode, Listener, Record, ShareConfig, ShareConsumer, engine
from wire.share import errors as e
from wire.share.locks import GroupConfig
from wire.share.model import OffsetRange

CONFIG = ShareConfig(bootstrap_servers="fake", backoff=0.001, backoff_max=0.002, ack_linger=0.0)


class Log(Listener):
    def __init__(self) -> None:
        self.lost: list[OffsetRange] = []
        self.errors: list[e.ShareError] = []
        self.assigned: list[list[tuple[str, int]]] = []
        self.acks: list[tuple[int, int, e.ShareError | None]] = []
        self.news = threading.Condition()

    def _add(self, where: list[Any], what: Any) -> None:
        with self.news:
            where.append(what)
            self.news.notify_all()

    def on_lost(self, ranges: Sequence[OffsetRange], error: e.ShareError) -> None:
        for span in ranges:
            self._add(self.lost, span)

    def on_error(self, error: e.ShareError) -> None:
        self._add(self.errors, error)

    def on_assigned(self, partitions: Sequence[tuple[str, int]]) -> None:
        self._add(self.assigned, list(partitions))

    def on_ack(self, records: int, kind: int, error: e.ShareError | None) -> None:
        self._add(self.acks, (records, kind, error))

    def until(self, true: Callable[[], Any], seconds: float = 5.0) -> None:
        with self.news:
            assert self.news.wait_for(true, seconds)


class Bench:
    """Consumers on one fake cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = FakeCluster()
        self.log = Log()
        self.made: list[ShareConsumer] = []
        monkeypatch.setattr(engine, "Channel", lambda net, config: FakeChannel(net, self.cluster))

    def consumer(self, **options: Any) -> ShareConsumer:
        config = options.pop("config", CONFIG)
        made = ShareConsumer(["jobs"], "group", config, listener=self.log, **options)
        self.made.append(made)
        return made

    def gather(self, consumer: ShareConsumer, count: int) -> list[Record]:
        records: list[Record] = []
        deadline = time.monotonic() + 5
        while len(records) < count and time.monotonic() < deadline:
            records += consumer.poll(count - len(records), 0.5)
        assert len(records) == count
        return records


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    for consumer in made.made:
        with suppress(e.ShareError):
            consumer.close()


def fill(cluster: FakeCluster, count: int, partition: int = 0) -> None:
    cluster.logs[partition] += [b"%d" % index for index in range(count)]


def kinds(cluster: FakeCluster) -> list[str]:
    return [kind for kind, _ in cluster.requests]


def test_accepts_what_it_acquires(bench: Bench) -> None:
    fill(bench.cluster, 5)
    consumer = bench.consumer()
    for record in bench.gather(consumer, 5):
        consumer.acknowledge(record)
    consumer.flush(5)
    assert bench.cluster.states[0].start == 5
    assert consumer.assignment == [("jobs", 0)]
    assert (5, 1, None) in bench.log.acks or sum(n for n, _, _ in bench.log.acks) == 5


def test_close_ends_session_and_leaves(bench: Bench) -> None:
    fill(bench.cluster, 2)
    consumer = bench.consumer()
    bench.gather(consumer, 2)
    consumer.close()
    assert bench.cluster.states[0].locked() == 0
    assert bench.cluster.sessions == {}
    assert bench.cluster.epochs == {}
    assert kinds(bench.cluster)[-2:] == ["acknowledge", "heartbeat"]


@pytest.mark.parametrize("code", [e.UNKNOWN_MEMBER_ID, e.FENCED_MEMBER_EPOCH])
def test_fenced_member_rejoins_with_its_id(bench: Bench, code: int) -> None:
    fill(bench.cluster, 1)
    bench.cluster.order("heartbeat", 0, code)
    bench.cluster.exists = False
    consumer = bench.consumer()
    member = consumer.member_id
    deadline = time.monotonic() + 5
    while bench.cluster.fail["heartbeat"] and time.monotonic() < deadline:
        consumer.poll(1, 0.05)
    bench.cluster.exists = True
    assert bench.gather(consumer, 1)
    joins = [r for kind, r in bench.cluster.requests if kind == "heartbeat" and r.member_epoch == 0]
    assert [r.member_id for r in joins] == [member, member]


def test_coordinator_trouble_passes(bench: Bench) -> None:
    fill(bench.cluster, 1)
    bench.cluster.order("bootstrap", e.UnavailableError("down"))
    bench.cluster.order("coordinator", e.COORDINATOR_NOT_AVAILABLE, e.COORDINATOR_LOADING)
    bench.cluster.order("heartbeat", e.NOT_COORDINATOR, e.UnavailableError("cut"), e.GROUP_MAX_SIZE_REACHED)
    assert bench.gather(bench.consumer(), 1)
    assert [type(error) for error in bench.log.errors] == [e.UnavailableError] * 5 + [e.RequestError]


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        ("bootstrap", e.AuthenticationError("no"), e.AuthenticationError),
        ("heartbeat", e.GROUP_AUTHORIZATION_FAILED, e.AuthorizationError),
        ("heartbeat", e.UNSUPPORTED_VERSION, e.UnsupportedError),
        ("heartbeat", e.GROUP_ID_NOT_FOUND, e.FatalError),
        ("metadata", e.TOPIC_AUTHORIZATION_FAILED, e.AuthorizationError),
        ("fetch", e.GROUP_AUTHORIZATION_FAILED, e.AuthorizationError),
        ("fetch", e.UnsupportedError("old"), e.UnsupportedError),
        ("partition", e.TOPIC_AUTHORIZATION_FAILED, e.AuthorizationError),
    ],
)
def test_fatal_errors_reach_the_owner(bench: Bench, kind: str, code: Any, error: type[e.ShareError]) -> None:
    bench.cluster.order(kind, code)
    consumer = bench.consumer()
    with pytest.raises(error):
        for _ in range(100):
            consumer.poll(1, 0.2)
    with pytest.raises(error):
        consumer.flush(1)
    assert any(isinstance(seen, error) for seen in bench.log.errors)


@pytest.mark.parametrize(
    "code",
    [
        e.SHARE_SESSION_NOT_FOUND,
        e.INVALID_SHARE_SESSION_EPOCH,
        e.SHARE_SESSION_LIMIT_REACHED,
        e.UnavailableError("connection lost"),
    ],
)
def test_lost_session_reopens_and_reports_leases(bench: Bench, code: Any) -> None:
    fill(bench.cluster, 3)
    consumer = bench.consumer()
    held = bench.gather(consumer, 3)
    bench.cluster.order("fetch", code)
    again = bench.gather(consumer, 3)
    assert [record.offset for record in again] == [0, 1, 2]
    assert [record.delivery_count for record in again] == [2, 2, 2]
    assert bench.log.lost == [("jobs", 0, 0, 2)]
    with pytest.raises(e.LeaseLostError):
        consumer.acknowledge(held[0])
    for record in again:
        consumer.acknowledge(record)
    consumer.flush(5)
    assert bench.cluster.states[0].start == 3


def test_unconfirmed_acknowledgement_fails_the_flush(bench: Bench) -> None:
    fill(bench.cluster, 2)
    consumer = bench.consumer()
    accepted, held = bench.gather(consumer, 2)
    bench.cluster.order("fetch", e.UnavailableError("cut"))
    bench.cluster.order("acknowledge", e.UnavailableError("cut"))
    consumer.acknowledge(accepted)
    with pytest.raises(e.AcknowledgeError) as caught:
        consumer.flush(5)
    assert [span for span, _ in caught.value.failures] == [("jobs", 0, 0, 0)]
    assert bench.log.lost == [("jobs", 0, 0, 1)]
    assert held.offset == 1


def test_leader_change_moves_the_session(bench: Bench) -> None:
    bench.cluster = FakeCluster(nodes=2)
    fill(bench.cluster, 4)
    consumer = bench.consumer()
    bench.gather(consumer, 2)
    bench.cluster.states[0].restart()
    bench.cluster.leaders[0] = (1, 5)
    again = bench.gather(consumer, 4)
    assert [record.offset for record in again] == [0, 1, 2, 3]
    assert bench.log.lost == [("jobs", 0, 0, 1)]
    for record in again:
        consumer.acknowledge(record)
    consumer.flush(5)
    assert bench.cluster.states[0].start == 4


def test_acknowledgement_to_a_former_leader_is_lost(bench: Bench) -> None:
    bench.cluster = FakeCluster(nodes=2)
    fill(bench.cluster, 1)
    consumer = bench.consumer()
    (record,) = bench.gather(consumer, 1)
    bench.cluster.states[0].restart()
    bench.cluster.leaders[0] = (1, 5)
    consumer.acknowledge(record)
    with pytest.raises(e.AcknowledgeError) as caught:
        consumer.flush(5)
    assert isinstance(caught.value.failures[0][1], e.SessionLostError)


def test_several_leaders_share_a_small_demand(bench: Bench) -> None:
    bench.cluster = FakeCluster(nodes=3, partitions=6)
    for index in range(6):
        fill(bench.cluster, 4, index)
    consumer = bench.consumer()
    seen = set()
    deadline = time.monotonic() + 10
    while len(seen) < 24 and time.monotonic() < deadline:
        for record in consumer.poll(2, 0.5):
            assert consumer.outstanding <= 2
            seen.add((record.partition, record.offset))
            consumer.acknowledge(record)
    assert len(seen) == 24
    asked = [request.max_records for kind, request in bench.cluster.requests if kind == "fetch"]
    assert max(asked) <= 2


def test_demand_is_never_exceeded(bench: Bench) -> None:
    bench.cluster = FakeCluster(nodes=3, partitions=3)
    for index in range(3):
        fill(bench.cluster, 50, index)
    consumer = bench.consumer()
    held = bench.gather(consumer, 4)
    for _ in range(20):
        assert consumer.poll(0, 0.005) == []
    assert consumer.outstanding == 4
    assert sum(state.locked() for state in bench.cluster.states.values()) == 4
    assert len(held) == 4


def test_fetches_in_flight_never_ask_for_more_than_is_wanted(bench: Bench) -> None:
    bench.cluster = FakeCluster(nodes=3, partitions=3)
    consumer = bench.consumer()
    for _ in range(10):
        assert consumer.poll(4, 0.02) == []
    fill(bench.cluster, 9, 1)
    for _ in range(3):
        for record in bench.gather(consumer, 3):
            consumer.acknowledge(record)
    assert 3 <= bench.cluster.most_asked <= 4


def test_stale_record_does_not_refuse_its_neighbours(bench: Bench) -> None:
    bench.cluster = FakeCluster(config=GroupConfig(lock_duration=10))
    fill(bench.cluster, 8)
    consumer = bench.consumer()
    records = bench.gather(consumer, 8)
    state = bench.cluster.states[0]
    state.acknowledge(consumer.member_id, {5: AckType.RELEASE}, 0.0)
    for record in records:
        consumer.acknowledge(record)
    with pytest.raises(e.AcknowledgeError) as caught:
        consumer.flush(5)
    assert [span for span, _ in caught.value.failures] == [("jobs", 0, 5, 5)]
    assert state.start == 5
    assert state.lag(8) == 1


def test_state_that_cannot_be_written_is_tried_again(bench: Bench) -> None:
    fill(bench.cluster, 1)
    consumer = bench.consumer()
    (record,) = bench.gather(consumer, 1)
    bench.cluster.order("settle", 14, 15, -1)
    consumer.acknowledge(record)
    consumer.flush(5)
    assert bench.cluster.states[0].start == 1


def test_renewals_go_alone_and_are_marked(bench: Bench) -> None:
    fill(bench.cluster, 2)
    consumer = bench.consumer()
    renewed, accepted = bench.gather(consumer, 2)
    consumer.acknowledge(renewed, AckType.RENEW)
    consumer.acknowledge(accepted)
    consumer.flush(5)
    said = [r for kind, r in bench.cluster.requests if kind == "acknowledge"]
    assert said[0].is_renew_ack
    assert all(not r.is_renew_ack for kind, r in bench.cluster.requests if kind == "fetch")
    assert bench.cluster.states[0].locked() == 1
    assert consumer.outstanding == 1


def test_lost_renewal_is_a_lost_lease(bench: Bench) -> None:
    fill(bench.cluster, 1)
    consumer = bench.consumer()
    (record,) = bench.gather(consumer, 1)
    bench.cluster.states[0].restart()
    consumer.acknowledge(record, AckType.RENEW)
    bench.log.until(lambda: bench.log.lost)
    assert bench.log.lost == [("jobs", 0, 0, 0)]
    assert consumer.outstanding == 0


def test_unread_records_are_released_after_half_a_lock(bench: Bench) -> None:
    bench.cluster = FakeCluster(config=GroupConfig(lock_duration=0.2))
    fill(bench.cluster, 3)
    consumer = bench.consumer()
    consumer.poll(3, 0.0)
    bench.log.until(lambda: any(kind == AckType.RELEASE for _, kind, _ in bench.log.acks))
    assert bench.cluster.states[0].locked() == 0


def test_no_demand_no_fetch(bench: Bench) -> None:
    fill(bench.cluster, 3)
    consumer = bench.consumer()
    assert consumer.poll(0, 0.0) == []
    bench.log.until(lambda: bench.log.assigned)
    assert consumer.poll(0, 0.02) == []
    assert "fetch" not in kinds(bench.cluster)


def test_shared_net_stays_open(bench: Bench) -> None:
    fill(bench.cluster, 2)
    net = NetworkSelector()
    first, second = bench.consumer(net=net), bench.consumer(net=net)
    bench.gather(first, 1)
    first.close()
    assert bench.gather(second, 2)
    second.close()
    net.close()


@pytest.mark.parametrize(("batches", "mode"), [(True, AcquireMode.BATCH), (False, AcquireMode.RECORD_LIMIT)])
def test_batch_mode_is_asked_for_unless_nobody_wants_batches(bench: Bench, batches: bool, mode: AcquireMode) -> None:
    fill(bench.cluster, 2)
    config = ShareConfig(bootstrap_servers="fake", mode=AcquireMode.BATCH, backoff=0.001)
    consumer = bench.consumer(config=config)
    consumer.focus(None, batches=batches)
    bench.gather(consumer, 2)
    assert {r.share_acquire_mode for kind, r in bench.cluster.requests if kind == "fetch"} == {mode}


def test_a_chosen_partition_is_read_by_the_record(bench: Bench) -> None:
    fill(bench.cluster, 64)
    consumer = bench.consumer(config=ShareConfig(bootstrap_servers="fake", mode=AcquireMode.BATCH, backoff=0.001))
    consumer.focus([0])
    bench.gather(consumer, 64)
    assert {r.share_acquire_mode for kind, r in bench.cluster.requests if kind == "fetch"} == {AcquireMode.RECORD_LIMIT}


def test_gaps_are_acknowledged_though_nobody_asks_for_more(bench: Bench) -> None:
    bench.cluster.logs[0] = [b"0", None, b"2"]
    config = ShareConfig(bootstrap_servers="fake", mode=AcquireMode.BATCH, backoff=0.001)
    consumer = bench.consumer(config=config)
    first, second = bench.gather(consumer, 2)
    assert (first.offset, second.offset) == (0, 2)
    consumer.poll(0, 0.0)
    bench.log.until(lambda: (1, 0, None) in bench.log.acks)
    consumer.acknowledge(first)
    consumer.acknowledge(second)
    bench.log.until(lambda: bench.cluster.states[0].start == 3)


def test_unreadable_records_are_told_and_left_to_their_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench.cluster, 1)
    whole = sharebroker.records
    monkeypatch.setattr(sharebroker, "records", lambda values, base: whole(values, base)[:-1] + b"?")
    consumer = bench.consumer()
    assert consumer.poll(1, 0.2) == []
    bench.log.until(lambda: bench.log.errors)
    assert [type(error) for error in bench.log.errors] == [e.CorruptError]
    assert bench.log.acks == []  # a release would come again at once, until the delivery limit gives it up
    monkeypatch.setattr(sharebroker, "records", whole)
    bench.cluster.now += 31.0
    (record,) = bench.gather(consumer, 1)
    assert record.delivery_count == 2


def test_buffer_goes_with_its_session(bench: Bench) -> None:
    fill(bench.cluster, 4)
    config = ShareConfig(bootstrap_servers="fake", mode=AcquireMode.BATCH, backoff=0.001, ack_linger=0.0)
    consumer = bench.consumer(config=config)
    (first,) = bench.gather(consumer, 1)
    assert consumer.outstanding == 4
    assert consumer.promised == 3
    bench.cluster.order("acknowledge", e.UnavailableError("cut"))
    consumer.acknowledge(first)
    bench.log.until(lambda: bench.log.lost)
    assert {(r.offset, r.delivery_count) for r in bench.gather(consumer, 4)} == {(0, 2), (1, 2), (2, 2), (3, 2)}


def test_session_without_partitions_ends(bench: Bench) -> None:
    bench.cluster = FakeCluster(nodes=2)
    fill(bench.cluster, 1)
    consumer = bench.consumer()
    for record in bench.gather(consumer, 1):
        consumer.acknowledge(record)
    consumer.flush(5)
    bench.cluster.leaders[0] = (1, 5)
    fill(bench.cluster, 1)
    assert bench.gather(consumer, 1)
    deadline = time.monotonic() + 5
    while (consumer.member_id, 0) in bench.cluster.sessions and time.monotonic() < deadline:
        consumer.poll(0, 0.0)
    assert list(bench.cluster.sessions) == [(consumer.member_id, 1)]


def test_hooks_that_fail_do_not_stop_it(bench: Bench) -> None:
    fill(bench.cluster, 1)

    def broken() -> None:
        raise ValueError("mine")

    bench.log.on_assigned = None  # type: ignore[method-assign,assignment]
    consumer = bench.consumer(on_ready=broken)
    assert bench.gather(consumer, 1)


def test_flush_gives_up_at_its_deadline(bench: Bench) -> None:
    fill(bench.cluster, 1)
    consumer = bench.consumer()
    (record,) = bench.gather(consumer, 1)
    bench.cluster.order("settle", *[-1] * 4)
    config_pause = consumer._engine.fetcher._lines[0].backoff
    config_pause._base = config_pause._top = 1000.0
    consumer.acknowledge(record)
    with pytest.raises(e.DeadlineError):
        consumer.flush(0.05)
    with pytest.raises(e.AcknowledgeError):
        consumer.close(0.2)


def test_wrong_arguments_are_refused() -> None:
    for topics, group in (("jobs", "g"), ([], "g"), (["jobs"], "")):
        with pytest.raises(e.ConfigError):
            ShareConsumer(topics, group, CONFIG)
