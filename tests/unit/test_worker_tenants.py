"""Tenants in a queue: whose record is asked for, what goes aside, and that nothing is lost or doubled on the way."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lease_rig import LOCK_S
from tenants_rig import TOPIC, Worker, crowded, job, send
from worker_twin import NAMES, Clock, record

from schemas.codec import tenant_of
from schemas.errors import InvalidError, UnavailableError
from schemas.topics import LOCKS
from wire.publish import MemoryPublisher
from wire.share import AckType, MemoryLog, MemoryShareConsumer, Record
from wire.share.locks import GroupConfig
from workers.aside import Aside
from workers.attempt import line_of
from workers.fair import Shares
from workers.lease import ASIDE_LIMIT
from workers.tenants import AGAIN_S, CALM_S, CROWDED_S, DIG, PAUSES_S, REST_S, VAIN, Moved, Plan, Tenants


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> MemoryLog:
    made = MemoryLog(partitions=4, clock=clock)
    made.create(TOPIC)
    return made


@pytest.mark.parametrize("spread", [True, False])
def test_who_came_last_of_all_is_next(log: MemoryLog, clock: Clock, spread: bool) -> None:
    for number in range(3000):
        send(log, "flood", f"flood-{number}", None if spread else 1)
    send(log, "desk", "desk-0", 1)
    worker = Worker(log, clock)
    first = crowded(worker)
    for _ in range(30):
        assert worker.turn() == []
    worker.end(first)
    started = [worker.turn() for _ in range(4)]
    assert [[job(found) for found in some] for some in started if some] == [["desk-0"]]


def test_nothing_is_put_aside_for_one_tenant(log: MemoryLog, clock: Clock) -> None:
    for number in range(200):
        send(log, "flood", f"flood-{number}")
    worker = Worker(log, clock)
    running = [crowded(worker)]
    for _ in range(900):
        while running:
            worker.end(running.pop())
        running += worker.turn()
    assert {job(found) for found in worker.ran} == {f"flood-{number}" for number in range(200)}
    assert sum(log.end(TOPIC, part) for part in range(4)) == 200


def test_what_goes_aside_is_the_same_record_on_the_same_line(log: MemoryLog, clock: Clock) -> None:
    for number in range(5):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "flood", "flood-5", 2)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    crowded(worker)
    for _ in range(6):
        worker.turn()
    # Where more of the tenant wait, that they need not be moved again.
    moved = log.read(TOPIC, 2, 1)
    assert 3 <= len(moved) <= 5
    for entry in moved:
        (old,) = [one for one in log.read(TOPIC, 0) if one.key == entry.key]
        assert entry.value == old.value
        assert [pair for pair in entry.headers if pair[0] != "tape-line"] == list(old.headers)
        assert dict(entry.headers)["tape-line"] == f"{TOPIC}/0/{old.offset}".encode()


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # threads of others use `random`
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_job_runs_once_whoever_it_belongs_to(data: st.DataObject) -> None:
    clock = Clock()
    log = MemoryLog(partitions=3, clock=clock)
    log.create(TOPIC)
    light = data.draw(st.booleans())
    workers = [
        Worker(log, clock, slots=data.draw(st.integers(1, 3)), light=light) for _ in range(data.draw(st.integers(1, 2)))
    ]
    sent = 0
    ran: Counter[str] = Counter()
    for _step in range(data.draw(st.integers(5, 60))):
        if data.draw(st.booleans()):
            tenant = data.draw(st.sampled_from(["flood", "flood", "desk", "night"]))
            for _ in range(data.draw(st.integers(1, 25))):
                send(log, tenant, f"j{sent}")
                sent += 1
        worker = data.draw(st.sampled_from(workers))
        for found in worker.turn(data.draw(st.sampled_from([0.01, 0.3, 1.0]))):
            ran[job(found)] += 1
        if worker.pool.running and data.draw(st.booleans()):
            worker.end(data.draw(st.sampled_from(worker.pool.running)))
    for _ in range(40 * sent + 200):
        if len(ran) == sent and not any(worker.loop.held for worker in workers):
            break
        for worker in workers:
            for found in list(worker.pool.running):
                worker.end(found)
            for found in worker.turn(0.05):
                ran[job(found)] += 1
    assert ran == {f"j{number}": 1 for number in range(sent)}
    group = log.group(NAMES.group("say"))
    assert [group.describe(TOPIC, part)[1] for part in range(3)] == [0, 0, 0]


def test_a_copy_of_a_dead_worker_is_known_by_its_line(log: MemoryLog, clock: Clock) -> None:
    """The worker dies after it wrote the record anew, before the old one was accepted: both are one line."""
    send(log, "flood", "flood-0", 0)
    send(log, "desk", "desk-0", 0)
    (old, _) = [Record(TOPIC, *entry, 1) for entry in log.read(TOPIC, 0)]
    acks: list[Any] = []
    Aside(MemoryPublisher(log), lambda *told: acks.append(told), acks.append).write(Moved(old, 3))
    assert acks == [(old, AckType.ACCEPT)]
    (copy,) = [Record(TOPIC, *entry, 1) for entry in log.read(TOPIC, 3)]
    assert line_of(copy) == line_of(old)
    Aside(MemoryPublisher(log), lambda *told: acks.append(told), acks.append).write(Moved(copy, 2))
    (third,) = [Record(TOPIC, *entry, 1) for entry in log.read(TOPIC, 2)]
    assert line_of(third) == line_of(old)
    assert len(third.headers) == len(copy.headers)


class Broken:
    """A publisher that refuses, at once or later."""

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once

    def publish(self, *_: Any, **__: Any) -> Future[Any]:
        error = InvalidError("too large", code="TAPE-1006")
        if self.at_once:
            raise error
        refused: Future[Any] = Future()
        refused.set_exception(UnavailableError("not confirmed", code="TAPE-5003"))
        return refused


@pytest.mark.parametrize("at_once", [True, False])
def test_what_cannot_go_aside_runs_here_and_spends_no_delivery(log: MemoryLog, clock: Clock, at_once: bool) -> None:
    for number in range(20):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock, publisher=Broken(at_once=at_once))
    running = [crowded(worker)]
    for _ in range(200):
        worker.turn()
    assert worker.pool.queue, "it waits for a slot"
    held = worker.loop.held
    clock.advance(REST_S / 2)
    worker.turn()
    assert worker.loop.held == held, "nothing is tried for a while"
    for _ in range(100):
        while running:
            worker.end(running.pop())
        running += worker.turn()
    assert [found.delivery_count for found in worker.ran] == [1] * 21
    assert len({job(found) for found in worker.ran}) == 21


def test_a_light_record_that_was_delivered_before_stays(log: MemoryLog, clock: Clock) -> None:
    """A new record would forget how many workers died of it."""
    for number in range(3):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    other = MemoryShareConsumer(
        [TOPIC], NAMES.group("say"), log, clock=clock, config=GroupConfig(lock_duration=LOCK_S, delivery_limit=10)
    )
    for found in other.poll(3):
        other.acknowledge(found, AckType.RELEASE)
    other.close()
    worker = Worker(log, clock, movable=lambda found: found.delivery_count == 1)
    running = [crowded(worker)]
    for _ in range(30):
        while running:
            worker.end(running.pop())
        running += worker.turn()
    assert len(worker.ran) == 4
    assert log.end(TOPIC, 0) == 4, "nothing was written anew"


def test_no_more_goes_aside_than_is_confirmed(log: MemoryLog, clock: Clock) -> None:
    for number in range(4 * ASIDE_LIMIT):
        send(log, "flood", f"flood-{number}", 0)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock)
    crowded(worker)
    written: list[Moved] = []
    worker.loop._aside = written.append  # a publisher that does not answer
    for _ in range(50):
        worker.turn()
    assert ASIDE_LIMIT < len(written) <= ASIDE_LIMIT + DIG
    assert worker.loop.leases() == [(worker.pool.running[0], "say")], "what goes aside is not work in progress"
    for moved in written:
        worker.aside.write(moved)
    for _ in range(50):
        worker.turn()
    assert len(written) > ASIDE_LIMIT + DIG


def test_what_the_broker_does_not_lock_behind_a_running_job_waits_for_its_end(log: MemoryLog, clock: Clock) -> None:
    """A broker locks so many records of a partition from the first unfinished one on: nobody is forgotten for that."""
    for number in range(LOCKS + 500):
        send(log, "flood", f"flood-{number}", 0)
    for number in range(50):
        send(log, "flood", f"more-{number}", 1)
    send(log, "desk", "desk-0", 0)
    worker = Worker(log, clock, slots=2)
    crowded(worker)
    head, other = worker.pool.running
    assert (job(head), head.partition) == ("flood-0", 0)
    for _ in range(200):
        worker.turn(0.05)
    assert "desk" in worker.tenants.waiting
    worker.end(other)
    assert worker.until_started(VAIN + 4).partition == 1, "nobody waits for what cannot come"
    worker.end(head)
    assert job(worker.until_started()) == "desk-0"


def test_what_another_worker_took_is_looked_for_in_vain_and_then_no_more(log: MemoryLog, clock: Clock) -> None:
    """The desk's only job runs elsewhere, and was seen all the same."""
    send(log, "desk", "desk-0", 1)
    for number in range(8):
        send(log, "flood", f"flood-{number}", 0)
    other = MemoryShareConsumer(
        [TOPIC], NAMES.group("say"), log, clock=clock, config=GroupConfig(lock_duration=1e6, delivery_limit=10)
    )
    while True:
        (taken,) = other.poll(1)
        if job(taken) == "desk-0":
            break
        other.acknowledge(taken, AckType.RELEASE)
    worker = Worker(log, clock)
    running = [crowded(worker)]
    assert worker.tenants.waiting == {"desk", "flood"}
    began = clock()
    for pause in (*PAUSES_S, 0.0):
        assert worker.tenants.waiting == {"desk", "flood"}, "a slow broker gives nothing either"
        for turns in (VAIN + 4, 2):  # the second one comes at once
            worker.end(running.pop())
            running = [worker.until_started(turns)]
            assert job(running[0]).startswith("flood")
        clock.advance(pause)
    assert worker.tenants.waiting == {"flood"}
    assert not worker.tenants.anew(clock())
    clock.advance(AGAIN_S)
    assert worker.tenants.anew(began), "what was seen may be wrong: the scout looks again"
    worker.tenants.begin()
    assert not worker.tenants.anew(began)


def test_nobody_looks_ahead_while_there_is_room(log: MemoryLog, clock: Clock) -> None:
    worker = Worker(log, clock, slots=4)
    for number in range(3):
        send(log, "flood", f"flood-{number}")
    for _ in range(10):
        worker.turn(1.0)
    assert not worker.tenants.wanted.is_set()
    for number in range(3):
        send(log, "flood", f"more-{number}")
    for _ in range(10):
        worker.turn(1.0)
    assert worker.tenants.wanted.is_set()
    for found in list(worker.pool.running):
        worker.end(found)
    while worker.loop.held:
        for found in worker.turn(0.1):
            worker.end(found)
    worker.turn(CALM_S)
    assert not worker.tenants.wanted.is_set()
    assert worker.tenants.waiting == set()


def test_a_calm_that_comes_while_records_are_asked_for_forgets_nothing() -> None:
    """Their goal forgotten, nobody would notice that they do not come, and the queue would wait for ever."""
    clock = Clock()
    tenants = Tenants(Shares(), running=lambda: [(record("r", tenant="a"), 0.0)], clock=clock)
    tenants.crowd(full=True)
    clock.advance(CROWDED_S)
    tenants.crowd(full=True)
    tenants.see([record("x", tenant="a", offset=5), record("y", tenant="b")._replace(partition=1)])
    tenants.plan(1)
    clock.advance(CALM_S)
    assert tenants.plan(1) == Plan(1, frozenset({1}))
    tenants.crowd(full=False)
    for _ in range(VAIN):
        assert not tenants.vain()
        tenants.fetched(0)
    assert tenants.vain(), "whoever asked may ask for something else"
    assert tenants.plan(1) == Plan(1), "nothing waits there, so anybody's do"
    tenants.crowd(full=False)
    assert not tenants.wanted.is_set()


def test_a_record_that_waited_long_came_out_of_a_crowd() -> None:
    tenants = Tenants(Shares(), clock=lambda: 50.0, wall=lambda: 100.0)
    young = Record(TOPIC, 0, 1, b"k", b"{}", (), 99_500, 1)
    assert tenants.sort([young], 1) == ([young], ())
    tenants.crowd(full=False)
    assert not tenants.wanted.is_set()
    tenants.sort([young._replace(timestamp_ms=98_000)], 1)
    tenants.crowd(full=False)
    assert tenants.wanted.is_set()


def test_the_tenants_of_a_lane_share_one_account() -> None:
    shares, clock = Shares(), Clock()
    one, two = Tenants(shares, clock=clock), Tenants(shares, clock=clock)
    one.peers = two.peers = [one, two]
    for tenants, names in ((one, ["a", "b"]), (two, ["a"])):
        tenants.wanted.set()
        tenants.see([record(name, tenant=name, offset=at) for at, name in enumerate(names)])
    assert one.plan(1) is not None
    assert two.plan(3) is not None
    # In the second queue nobody but `a` waits, and what it uses there counts in the first one.
    used = record("x", tenant="a", offset=0)
    assert two.sort([used], 3) == ([used], [])
    clock.advance(60.0)
    two.spent(used, 60.0)
    assert shares.used("a") == 60.0
    plan = one.dig()
    assert plan is not None, "b lies behind a, and is next"


def test_an_end_that_is_not_durable_yet_is_charged_once(log: MemoryLog, clock: Clock) -> None:
    """The job has left its slot, its event is not confirmed, and only then does another tenant come."""
    send(log, "flood", "flood-0", 0)
    worker = Worker(log, clock)
    first = crowded(worker)
    worker.loop.spent(first, 1.0)
    worker.pool.running.remove(first)
    for number in range(1, 3):
        send(log, "flood", f"flood-{number}", 0)
        send(log, "desk", f"desk-{number}", 1)
    worker.turn()
    assert worker.tenants.shared
    clock.advance(CALM_S / 2)
    worker.loop.done(first, AckType.ACCEPT)
    order = []
    for _ in range(40):
        for found in worker.turn():
            order.append(job(found).split("-")[0])
            clock.advance(1.0)
            worker.end(found)
    assert sorted(order) == ["desk", "desk", "flood", "flood"]
    assert order[:2] in (["desk", "flood"], ["flood", "desk"]), "nobody is charged for what a lease was held"


def test_what_no_longer_runs_is_not_charged_for_ever() -> None:
    clock, running = Clock(), [(record("gone", tenant="a", offset=1), 0.0)]
    shares = Shares()
    tenants = Tenants(shares, running=lambda: running, clock=clock)
    tenants.wanted.set()
    tenants.see([record("x", tenant="a", offset=5), record("y", tenant="b", offset=6)])
    tenants.plan(1)
    assert shares.behind("b", ["a"], clock()) == pytest.approx(1.0), "who was alone did nobody wrong"
    running.clear()  # its lease was lost, and its slot never told
    clock.advance(1000.0)
    tenants.plan(1)
    assert shares.behind("b", ["a"], clock()) == 0.0


def test_tiny_jobs_are_taken_as_they_come_while_nobody_falls_behind(log: MemoryLog, clock: Clock) -> None:
    for number in range(2000):
        send(log, "ab"[number % 2], f"j-{number}", number % 4)
    worker = Worker(log, clock, slots=8, light=True)
    crowded(worker)
    shared = 0
    for _ in range(600):
        for found in list(worker.pool.running):
            worker.end(found)
        worker.turn(0.001)
        shared += worker.tenants.shared
    assert len({job(found) for found in worker.ran}) > 1000
    assert shared > 50
    moved = sum(log.end(TOPIC, part) for part in range(4)) - 2000
    assert moved < 100, f"{moved} were put aside"


@pytest.mark.parametrize(
    ("value", "tenant"),
    [
        (b'{"tenant":"desk","params":{}}', "desk"),
        (b'{"params":{}, "tenant" : "desk"}', "desk"),
        (json.dumps({"tenant": "Zürich"}).encode(), "Zürich"),
        (json.dumps({"tenant": "Zürich"}, ensure_ascii=False).encode(), "Zürich"),
        (b'{"params":{"tenant":"inner"},"tenant":"outer"}', "outer"),
        (b'{"tenant":"outer","params":{"tenant":"inner"}}', "outer"),
        (b'{"specversion":"1.0","tenant":"attribute","data":{"tenant":"desk"}}', "desk"),
        (b'{"tenant":"","x":"tenant"}', "default"),
        (b'{"tenant":7}', "default"),
        (b'{"params":{}}', "default"),
        (b'["tenant"]', "default"),
        (b'{"tenant": broken', "default"),
        (b"", "default"),
        (None, "default"),
        (b'{"tenant":"desk","big":"' + b"x" * (1 << 18) + b'"}', "desk"),
        (b'\xef\xbb\xbf{"\\u0074enant":"desk"}', "desk"),
        (b'{"params":{"tenant":"inner"}}', "default"),
        (b'{"tenant":"' + b"x" * 129 + b'"}', "default"),
    ],
)
def test_whose_job_it_is(value: bytes | None, tenant: str) -> None:
    assert tenant_of(value) == tenant
