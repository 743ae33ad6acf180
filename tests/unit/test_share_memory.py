"""The twin's own doings: log, locks on an injected clock, crashes, restarts, delivery limits."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.share import AckType, Listener, MemoryLog, MemoryShareConsumer
from wire.share.errors import AcknowledgeError, ClosedError, ConfigError, LeaseLostError, SessionLostError, ShareError
from wire.share.locks import GroupConfig, SharePartition
from wire.share.model import OffsetRange


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> MemoryLog:
    return MemoryLog(partitions=2, clock=clock)


def consumer(log: MemoryLog, clock: Clock, listener: Listener | None = None, **config: int) -> MemoryShareConsumer:
    settings = GroupConfig(lock_duration=10.0, **config)  # type: ignore[arg-type]
    return MemoryShareConsumer(["jobs"], "group", log, clock=clock, config=settings, listener=listener)


def test_log_keeps_what_it_is_given(log: MemoryLog) -> None:
    place = log.append("jobs", b"k", b"v", [("h", None)])
    assert place == (log.append("jobs", b"k", b"w")[0], 0)
    (entry, _) = log.read("jobs", place[0])
    assert entry == (place[0], 0, b"k", b"v", (("h", None),), 100_000)
    assert log.read("jobs", place[0], 1, 1)[0].value == b"w"
    assert log.read("nowhere", 0) == []
    assert log.read("jobs", 9) == []
    assert log.partitions("nowhere") == 0
    assert log.topics() == ["jobs"]
    assert log.end("jobs", place[0]) == 2


def test_keyless_records_take_turns(log: MemoryLog) -> None:
    assert [log.append("jobs", None, b"")[0] for _ in range(4)] == [0, 1, 0, 1]
    assert log.append("jobs", None, b"", partition=1) == (1, 2)


def test_subscribers_hear_of_changes_until_they_leave(log: MemoryLog) -> None:
    heard: list[int] = []
    leave = log.subscribe(lambda: heard.append(1))
    log.append("jobs", None, b"")
    leave()
    leave()
    log.append("jobs", None, b"")
    assert heard == [1]


@pytest.mark.parametrize("at_once", [True, False])
def test_crash_frees_at_once_or_when_the_lock_expires(log: MemoryLog, clock: Clock, at_once: bool) -> None:
    log.append("jobs", b"k", b"v")
    first, second = consumer(log, clock), consumer(log, clock)
    assert len(first.poll(1)) == 1
    first.crash(at_once=at_once)
    assert len(second.poll(1)) == (1 if at_once else 0)
    clock.now += 10.0
    assert second.outstanding + len(second.poll(1)) >= 1
    with pytest.raises(ClosedError):
        first.poll(1)


class Told(Listener):
    def __init__(self) -> None:
        self.lost: list[tuple[list[OffsetRange], ShareError]] = []

    def on_lost(self, ranges: Sequence[OffsetRange], error: ShareError) -> None:
        self.lost.append((list(ranges), error))


def test_restart_loses_locks_and_counts(log: MemoryLog, clock: Clock) -> None:
    log.append("jobs", b"k", b"v")
    told = Told()
    member = consumer(log, clock, told)
    (record,) = member.poll(1)
    member.acknowledge(record, AckType.RELEASE)
    (record,) = member.poll(1)
    assert record.delivery_count == 2
    log.group("group").restart()
    ((ranges, error),) = told.lost
    assert ranges == [(record.topic, record.partition, 0, 0)]
    assert isinstance(error, SessionLostError)
    with pytest.raises(LeaseLostError):
        member.acknowledge(record)
    (record,) = member.poll(1)
    assert record.delivery_count == 1
    member.flush(1)


def test_stale_release_is_no_failure_but_a_stale_accept_is(log: MemoryLog, clock: Clock) -> None:
    for _ in range(2):
        log.append("jobs", b"k", b"v")
    member = consumer(log, clock)
    one, two = member.poll(2)
    clock.now += 10.0
    member.acknowledge(one, AckType.RELEASE)
    member.flush()
    member.acknowledge(two, AckType.REJECT)
    with pytest.raises(AcknowledgeError):
        member.close()
    member.close()


def test_latest_starts_at_the_end(log: MemoryLog, clock: Clock) -> None:
    log.append("jobs", b"k", b"old")
    log.group("group", GroupConfig(earliest=False))
    member = consumer(log, clock)
    assert member.poll(5) == []
    log.append("jobs", b"k", b"new")
    assert [record.value for record in member.poll(5)] == [b"new"]


def test_window_stops_the_acquiring(log: MemoryLog, clock: Clock) -> None:
    for index in range(10):
        log.append("jobs", None, b"%d" % index, partition=0)
    member = consumer(log, clock, max_locks=4)
    first, *rest = member.poll(10)
    for record in rest:
        member.acknowledge(record)
    assert member.poll(10) == []
    assert member.window() == {("jobs", 0): 1.0}
    member.acknowledge(first)
    assert len(member.poll(10)) == 4
    assert member.promised == 0


def test_archived_are_named(log: MemoryLog, clock: Clock) -> None:
    _, offset = log.append("jobs", None, b"v", partition=0)
    member = consumer(log, clock, delivery_limit=1)
    (record,) = member.poll(1)
    member.acknowledge(record, AckType.RELEASE)
    assert log.group("group").archived("jobs", 0) == [offset]
    assert log.group("group").describe("jobs", 0) == (1, 0)


def test_waiting_poll_hears_the_append(log: MemoryLog, clock: Clock) -> None:
    member = consumer(log, clock)
    timer = threading.Timer(0.05, lambda: log.append("jobs", b"k", b"v"))
    timer.start()
    assert len(member.poll(1, 10.0)) == 1
    timer.join()


def test_closing_frees_and_leaves(log: MemoryLog, clock: Clock) -> None:
    log.append("jobs", b"k", b"v")
    with consumer(log, clock) as member:
        member.poll(1)
    assert log.group("group").members == []
    assert len(consumer(log, clock).poll(1)) == 1
    with pytest.raises(ValueError, match="mine"), consumer(log, clock):
        raise ValueError("mine")


def test_wrong_arguments_are_refused(log: MemoryLog) -> None:
    for topics, group in (("jobs", "g"), ([], "g"), (["jobs"], "")):
        with pytest.raises(ConfigError):
            MemoryShareConsumer(topics, group, log)


moves = st.lists(
    st.tuples(st.sampled_from(["take", "accept", "release", "reject", "renew", "wait", "crash"]), st.integers(0, 3))
)


@given(moves)
def test_every_record_is_in_one_place(steps: list[tuple[str, int]]) -> None:
    end, now = 12, 0.0
    state = SharePartition(GroupConfig(lock_duration=5.0, delivery_limit=3, max_locks=8))
    held: dict[str, list[int]] = {"a": [], "b": []}
    finished: set[int] = set()
    for what, number in steps:
        member = "ab"[number % 2]
        if what == "take":
            held[member] += [offset for offset, _ in state.acquire(member, number + 1, end, now)]
        elif what == "wait":
            now += 2.0
        elif what == "crash":
            state.release(member)
            held[member].clear()
        elif held[member]:
            offset = held[member].pop(0)
            kind = {"accept": 1, "release": 2, "reject": 3, "renew": 4}[what]
            try:
                state.acknowledge(member, {offset: kind}, now)
            except LeaseLostError:
                continue
            if what == "renew":
                held[member].append(offset)
            elif what in ("accept", "reject"):
                assert offset not in finished
                finished.add(offset)
    finished |= set(state.archived)
    assert state.lag(end) == end - len(finished)
    assert state.start == next((offset for offset in range(end) if offset not in finished), end)
    now += 100.0
    state.expire(now)
    left = [offset for offset in range(state.start, min(end, state.start + 8)) if offset not in finished]
    left = [offset for offset in left if offset not in state.archived]
    assert [offset for offset, _ in state.acquire("c", end, end, now)] == left
