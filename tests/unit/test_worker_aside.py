"""Putting records aside, and its bounds: what is written, kept, lost or too much."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import pytest
from tenants_rig import TOPIC, Worker, crowded, job, send
from worker_twin import Clock, record

from schemas.errors import UnavailableError
from wire.follow import MemoryFollower
from wire.publish import MemoryPublisher
from wire.share import AckType, MemoryLog
from workers.aside import Aside
from workers.fair import Shares
from workers.lease import ASIDE_LIMIT
from workers.scout import Scout
from workers.tenants import AGAIN_S, OTHERS, REST_S, Moved, Tenants
from workers.tenants import NAMES as MOST


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> MemoryLog:
    made = MemoryLog(partitions=4, clock=clock)
    made.create(TOPIC)
    return made


class Pending:
    """A publisher whose futures are answered when a test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.headers: list[Any] = []

    def publish(self, *_: Any, headers: Any, **__: Any) -> Future[Any]:
        self.headers.append(dict(headers))
        self.futures.append(Future())
        return self.futures[-1]


def test_a_record_is_accepted_only_once_its_copy_is_there() -> None:
    pending, acks, kept = Pending(), [], []
    aside = Aside(pending, lambda *told: acks.append(told), kept.append)  # type: ignore[arg-type]
    for number in range(3):
        aside.write(Moved(record(f"j{number}"), None))
    assert (acks, kept) == ([], [])
    pending.futures[0].set_result(None)
    assert [ack for _, ack in acks] == [AckType.ACCEPT]
    pending.futures[1].set_exception(UnavailableError("no", code="TAPE-5003"))
    pending.futures[2].cancel()
    assert [job(found) for found in kept] == ["j1", "j2"]
    assert len(acks) == 1


def test_whatever_a_publisher_raises_costs_one_record_only() -> None:
    class Odd(Pending):
        def publish(self, *_: Any, **__: Any) -> Future[Any]:
            raise RuntimeError("a defect")

    kept: list[Any] = []
    told = threading.Event()
    aside = Aside(Odd(), lambda *_: None, lambda found: (kept.append(found), told.set()))  # type: ignore[arg-type, func-returns-value]
    aside.start()
    aside(Moved(record("a"), None))
    assert told.wait(10)
    told.clear()
    aside(Moved(record("b"), None))
    assert told.wait(10), "the thread lives on"
    aside.stop(10)
    assert [job(found) for found in kept] == ["a", "b"]


def test_a_copy_tells_that_its_first_lease_is_over() -> None:
    pending = Pending()
    aside = Aside(pending, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    fresh, again = record("a", offset=4), record("b", offset=5, count=2)
    for found in (fresh, again, again._replace(headers=(("tape-line", b""),))):
        aside.write(Moved(found, None))
    line = f"{TOPIC}/0/".encode()
    assert [told.get("tape-former") for told in pending.headers] == [None, line + b"5", line + b"5"]
    assert [told["tape-line"] for told in pending.headers] == [line + b"4", line + b"5", line + b"5"]


def test_leases_that_are_lost_on_their_way_aside_are_forgotten(log: MemoryLog, clock: Clock) -> None:
    for number in range(2 * ASIDE_LIMIT + 200):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    running = [crowded(worker)]
    on_their_way: list[Moved] = []
    worker.loop._aside = on_their_way.append
    for _ in range(30):
        worker.turn()
    assert worker.loop._asides == len(on_their_way) > ASIDE_LIMIT
    worker.loop.lost([found.record[:3] for found in on_their_way])
    worker.turn()
    for moved in on_their_way:
        worker.loop.keep(moved.record)
    worker.turn()
    assert (worker.loop._asides, worker.loop._adrift) == (0, {})
    assert not worker.pool.queue, "another worker has them"
    for _ in range(5):
        while running:
            worker.end(running.pop())
        running += worker.turn()
    assert len(worker.ran) > 1, "the worker is not idle"


def test_while_too_many_are_on_their_way_jobs_are_taken_as_they_come(log: MemoryLog, clock: Clock) -> None:
    for number in range(3 * ASIDE_LIMIT):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    running = [crowded(worker)]
    worker.loop._aside = lambda _: None  # a publisher that does not answer
    for _ in range(30):
        worker.turn()
    worker.end(running.pop())
    started = [worker.turn() for _ in range(6)]
    assert sum(map(len, started)) == 1


def test_after_a_failure_one_is_tried_and_then_twice_as_many(log: MemoryLog, clock: Clock) -> None:
    for number in range(2000):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    crowded(worker)
    worker.tenants.rest()
    before = worker.loop.held
    for _ in range(int(REST_S)):
        worker.turn(1.0)
    assert worker.loop.held <= before
    sizes = []
    worker.loop._aside = worker.put.append
    take = worker.aside.write
    worker.aside.write = lambda moved: (sizes.append(0), take(moved))  # type: ignore[method-assign, assignment, func-returns-value]
    counts = []
    for _ in range(24):
        worker.turn()
        if sizes:
            counts.append(len(sizes))
            sizes.clear()
    assert [count for count in counts if count > 1][:5] == [4, 8, 16, 32, 64], (
        "a record that only tells where the queue begins counts, too"
    )


def test_a_shut_gate_is_not_dug_behind(log: MemoryLog, clock: Clock) -> None:
    for number in range(50):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    crowded(worker)
    worker.loop._gate = lambda _: 0
    held = worker.loop.held
    end = [log.end(TOPIC, part) for part in range(4)]
    for _ in range(20):
        worker.turn()
    assert worker.loop.held <= held
    assert sum(log.end(TOPIC, part) for part in range(4)) - sum(end) <= 1


def test_tenants_beyond_a_thousand_are_taken_for_one() -> None:
    tenants = Tenants(Shares(), clock=Clock())
    tenants.wanted.set()
    tenants.see([record(str(at), tenant=f"t{at}", offset=at) for at in range(MOST + 500)])
    tenants.plan(1)
    assert len(tenants.waiting) == MOST + 1
    assert OTHERS in tenants.waiting
    assert "t0" in tenants.waiting


def test_what_is_written_anew_has_a_budget(monkeypatch: pytest.MonkeyPatch, log: MemoryLog, clock: Clock) -> None:
    monkeypatch.setattr("workers.tenants.BURST", 100)
    monkeypatch.setattr("workers.tenants.PER_S", 20)
    monkeypatch.setattr("workers.tenants.EACH", 1)
    for number in range(600):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    running = [crowded(worker)]
    for turns in (4, 4, 4):
        began = clock()
        before = sum(log.end(TOPIC, part) for part in range(4))
        for _ in range(turns):
            worker.turn(1.0)
        moved = sum(log.end(TOPIC, part) for part in range(4)) - before
        assert 0 < moved <= 100 + 20 * (clock() - began), "600 are more than may be moved at once"
    assert moved <= 20 * (clock() - began) + 50, "what was saved up is used"
    order = []
    while "desk-0" not in order:
        worker.end(running.pop())
        running.append(worker.until_started())
        order.append(job(running[0]))
        for _ in range(6):
            worker.turn(0.1)
    assert 10 < len(order) < 80, "other jobs run meanwhile"


def test_the_scout_stops_where_enough_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.tenants.UNREAD", 3)
    tenants = Tenants(Shares(), clock=Clock())
    tenants.see([record("a", tenant="a", offset=0), record("b", tenant="b", offset=1)])
    assert not tenants.enough
    tenants.see([record("c", tenant="a", offset=2)])
    assert tenants.enough


def test_what_is_not_remembered_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.fair.RUNS", 2)
    clock = Clock()
    tenants = Tenants(Shares(), clock=clock)
    tenants.wanted.set()
    tenants.see([record(str(at), tenant="ab"[at % 2], offset=at) for at in range(5)])
    tenants.see([record("z", tenant="z", offset=0)._replace(partition=1)])
    tenants.plan(1)
    assert tenants.waiting == {"a", "b", "z"}, "a full partition hides no other"
    assert tenants.anew(clock() - AGAIN_S)


def test_the_writer_is_a_thread_that_ends(log: MemoryLog) -> None:
    told = threading.Event()
    done: deque[Any] = deque()

    def heard(*args: Any) -> None:
        done.append(args)
        told.set()

    aside = Aside(MemoryPublisher(log), heard, heard)
    aside.start()
    aside(Moved(record("j"), None))
    assert told.wait(10)
    aside.stop(10)
    assert not aside._thread.is_alive()
    assert [ack for _, ack in done] == [AckType.ACCEPT]
    unstarted = Aside(MemoryPublisher(log), heard, heard)
    unstarted.stop(0.1)


def test_the_scout_reads_on_while_it_is_wanted(log: MemoryLog) -> None:
    send(log, "flood", "flood-0", 0)
    opened: list[Any] = []
    told = threading.Event()

    class Wanted(Tenants):
        def see(self, records: Any) -> None:
            super().see(records)
            if records:
                told.set()

    def look() -> Any:
        opened.append(None)
        if len(opened) == 1:
            raise UnavailableError("no broker", code="TAPE-5001")
        return MemoryFollower(log).follow(TOPIC, since="start")

    tenants = Wanted(Shares())
    scout = Scout("q", tenants, look, pause_s=0.0)
    scout.start()
    assert not opened, "nobody wants to know"
    tenants.wanted.set()
    assert told.wait(10), "a failure costs a pause, not the scout"
    told.clear()
    send(log, "desk", "desk-0", 1)
    assert told.wait(10)
    tenants.plan(1)
    assert tenants.waiting == {"flood", "desk"}
    tenants.wanted.clear()
    scout.stop(10)
    assert not scout._thread.is_alive()
    assert len(opened) == 2


def test_a_scout_that_is_not_wanted_ends() -> None:
    scout = Scout("q", Tenants(Shares()), lambda: pytest.fail("opened"))
    scout.start()
    scout.stop(10)
    assert not scout._thread.is_alive()
