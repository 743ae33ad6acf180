"""The lease loop on twins: what it acquires, renews, gives back, and whom it serves."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from worker_twin import NAMES, Clock, request, waiting

from wire.share import AckType, Listener, MemoryLog, MemoryShareConsumer, OffsetRange, Record, ShareError
from wire.share.errors import AuthenticationError, LeaseLostError, SessionLostError
from wire.share.locks import GroupConfig
from workers.lease import ROTATE_S, TICK_S, WEIGHTS, LeaseLoop, Rate, Source
from workers.slots import Pool

LOCK_S = 30.0


class Slots:
    """A pool whose jobs start and end when a test says so."""

    def __init__(self, size: int, *, light: bool = False) -> None:
        self.size, self.light = size, light
        self.queue: deque[Record] = deque()
        self.running: list[Record] = []

    def give(self, record: Record) -> None:
        self.queue.append(record)

    def drop(self) -> list[Record]:
        dropped, self.queue = list(self.queue), deque()
        return dropped

    def start(self) -> list[Record]:
        """Free slots take what waits; returns what they took."""
        taken = []
        while self.queue and len(self.running) < self.size:
            taken.append(self.queue.popleft())
            self.running.append(taken[-1])
        return taken

    def end(self, loop: LeaseLoop, record: Record, ack: AckType = AckType.ACCEPT) -> None:
        self.running.remove(record)
        loop.done(record, ack)


class Slow(MemoryShareConsumer):
    """A consumer whose fetches take a turn: what was asked for comes with the next poll, as from a broker."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked = 0
        self.arrived: deque[Record] = deque()
        self.most = 0

    @property
    def promised(self) -> int:
        return self.asked + len(self.arrived)

    def fetch(self) -> None:
        """The broker answers what was asked."""
        found = super().poll(self.asked, 0.0)
        self.asked -= len(found)
        self.arrived.extend(found)

    def poll(self, max_records: int, timeout: float = 0.0) -> list[Record]:
        found = [self.arrived.popleft() for _ in range(min(max_records, len(self.arrived)))]
        self.asked = max_records - len(found)
        self.most = max(self.most, self.asked)
        return found


class Rig:
    """A loop over the two lanes of some kinds, one pool, a clock."""

    def __init__(
        self, slots: int = 1, kinds: tuple[str, ...] = ("say",), *, light: bool = False, log: MemoryLog | None = None,
        lanes: tuple[str, ...] = ("interactive", "bulk"), **options: Any,
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.log = log or MemoryLog()
        self.pool = Slots(slots, light=light)
        self.forgotten: list[Record] = []
        config = GroupConfig(lock_duration=LOCK_S, delivery_limit=10)
        rig = self

        class Losses(Listener):
            def on_lost(self, ranges: Any, error: ShareError) -> None:
                rig.loop.lost([(r.topic, r.partition, offset) for r in ranges for offset in range(r.first, r.last + 1)])

        self.consumers: dict[tuple[str, str], Slow] = {}
        for kind in kinds:
            for lane in lanes:
                topic = NAMES.jobs(kind, lane)
                self.log.create(topic)
                self.consumers[kind, lane] = Slow(
                    [topic], NAMES.group(kind), self.log, clock=self.clock, config=config, listener=Losses()
                )
        sources = [Source(kind, lane, one, self.pool) for (kind, lane), one in self.consumers.items()]  # type: ignore[arg-type]
        self.loop = LeaseLoop(sources, clock=self.clock, forget=self.forgotten.append, **options)

    def send(self, lane: str = "bulk", times: int = 1, kind: str = "say") -> None:
        for number in range(times):
            key, value, headers = request(f"{lane}-{number}")
            self.log.append(NAMES.jobs(kind, lane), key, value, headers)

    def turn(self, seconds: float = 0.0) -> list[Record]:
        """One turn of the loop, after which the broker answers and slots start; returns what started."""
        self.clock.advance(seconds)
        self.loop.step()
        for consumer in self.consumers.values():
            consumer.fetch()
        return self.pool.start()

    def until_started(self, turns: int = 60) -> Record:
        for _ in range(turns):
            if started := self.turn(TICK_S):
                return started[0]
        raise AssertionError("nothing was started")

    def state(self, lane: str = "bulk", kind: str = "say") -> tuple[int, int]:
        """Start offset and lag of a lane's only partition."""
        return self.log.group(NAMES.group(kind)).describe(NAMES.jobs(kind, lane), 0)


@pytest.fixture
def rig() -> Rig:
    return Rig(lanes=("bulk",))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_no_more_is_acquired_than_can_run(slots: int) -> None:
    rig = Rig(slots)
    rig.send("bulk", 20)
    rig.send("interactive", 20)
    done = 0
    while done < 40:
        rig.turn(0.05)
        group = rig.log.group(NAMES.group("say"))
        locked = sum(group.state(NAMES.jobs("say", lane), 0).locked() for lane in WEIGHTS)
        assert locked <= slots, "more is leased than there are slots"
        assert not rig.pool.queue
        for record in list(rig.pool.running):
            rig.pool.end(rig.loop, record)
            done += 1
    rig.turn()
    assert rig.state("bulk") == (20, 0)
    assert rig.state("interactive") == (20, 0)
    assert rig.loop.held == 0
    assert len(rig.forgotten) == 40


@pytest.mark.parametrize(("slots", "kinds"), [(1, ("say",)), (1, ("say", "shout", "sing")), (3, ("say", "shout"))])
def test_every_lane_is_served_by_its_weight_when_all_are_full(slots: int, kinds: tuple[str, ...]) -> None:
    rig = Rig(slots, kinds)
    for kind in kinds:
        rig.send("bulk", 100, kind)
        rig.send("interactive", 100, kind)
    served: Counter[tuple[str, str]] = Counter()
    while served.total() < 60:
        for record in rig.turn(0.01):
            served[NAMES.parse_jobs(record.topic)] += 1
        for record in list(rig.pool.running):
            rig.pool.end(rig.loop, record)
    for kind in kinds:
        assert served[kind, "bulk"] >= 60 // len(kinds) // 5 - 3, f"bulk starves: {served}"
        assert served[kind, "interactive"] >= served[kind, "bulk"]


def test_bulk_is_served_beside_an_interactive_lane_that_never_ends() -> None:
    rig = Rig(1)
    rig.send("bulk", 3)
    served = []
    for _ in range(40):
        rig.send("interactive", 1)
        served += [NAMES.parse_jobs(record.topic)[1] for record in rig.turn(1.0)]
        for record in list(rig.pool.running):
            rig.pool.end(rig.loop, record)
    assert served.count("bulk") == 3


@pytest.mark.parametrize("kind", ["say", "shout", "sing"])
@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_one_slot_finds_the_only_job_among_many_sources(kind: str, lane: str) -> None:
    rig = Rig(1, ("say", "shout", "sing"))
    rig.turn()
    rig.send(lane, 1, kind)
    started = rig.clock()
    assert rig.until_started().topic == NAMES.jobs(kind, lane)
    assert rig.clock() - started <= 6 * (TICK_S + ROTATE_S)
    assert all(one.most <= 1 for one in rig.consumers.values())


def test_a_source_is_not_left_before_it_could_answer() -> None:
    rig = Rig(1)
    rig.loop.step()
    first = [lane for (_, lane), one in rig.consumers.items() if one.asked]
    assert first == ["interactive"]
    rig.clock.advance(ROTATE_S / 2)
    rig.loop.step()
    assert [lane for (_, lane), one in rig.consumers.items() if one.asked] == first
    rig.clock.advance(ROTATE_S)
    rig.loop.step()
    rig.loop.step()
    assert [lane for (_, lane), one in rig.consumers.items() if one.asked] == ["bulk"]


def test_leases_are_renewed_at_a_third_of_the_lock_and_run_once(rig: Rig) -> None:
    rig.send()
    rig.turn()
    (job,) = rig.turn()
    renewed: list[float] = []
    consumer = rig.consumers["say", "bulk"]
    original = consumer.acknowledge

    def watch(record: Record, kind: AckType = AckType.ACCEPT) -> None:
        if kind is AckType.RENEW:
            renewed.append(rig.clock())
        original(record, kind)

    consumer.acknowledge = watch  # type: ignore[method-assign]
    for _ in range(400):  # ten minutes: twenty times the lock
        assert rig.turn(1.5) == []
    gaps = {round(after - before, 3) for before, after in pairwise(renewed)}
    assert gaps <= {LOCK_S / 3, LOCK_S / 3 + 0.5}
    rig.pool.end(rig.loop, job)
    rig.turn()
    assert rig.state() == (1, 0)


def test_a_lost_lease_keeps_its_slot_and_takes_no_other_down(rig: Rig) -> None:
    rig.send(times=2)
    rig.turn()
    (job,) = rig.turn()
    rig.log.group(NAMES.group("say")).restart()
    assert rig.turn() == []
    assert rig.loop.held == 0
    for _ in range(5):
        assert rig.turn(1.0) == [], "the slot was given away while its job still runs"
    rig.pool.end(rig.loop, job)
    rig.turn()
    (again,) = rig.turn()
    assert again.offset == job.offset
    assert again is not job
    rig.pool.end(rig.loop, again)
    rig.turn()
    (second,) = rig.turn()
    assert second.offset == 1


def test_a_job_that_lost_its_lease_cannot_settle_the_next_holders() -> None:
    rig = Rig(2, lanes=("bulk",))
    rig.send()
    rig.turn()
    (zombie,) = rig.turn()
    rig.log.group(NAMES.group("say")).restart()
    rig.turn()
    (fresh,) = rig.turn()
    assert (fresh.offset, fresh is zombie) == (zombie.offset, False)
    rig.pool.end(rig.loop, zombie, AckType.RELEASE)
    rig.turn()
    assert rig.loop.held == 1
    assert rig.log.group(NAMES.group("say")).state(fresh.topic, 0).locked() == 1
    rig.pool.end(rig.loop, fresh)
    rig.turn()
    assert rig.state() == (1, 0)


def test_losing_and_getting_the_same_record_again_at_once_is_one_lease(rig: Rig) -> None:
    rig.send()
    rig.turn()
    (job,) = rig.turn()
    consumer = rig.consumers["say", "bulk"]
    consumer.lose(SessionLostError("gone"))
    rig.log.group(NAMES.group("say")).state(job.topic, 0).release(consumer.member_id)
    consumer.asked = 1
    consumer.fetch()  # redelivered before the loop has heard of the loss
    rig.turn()
    assert rig.loop.held == 1
    rig.pool.end(rig.loop, job)
    (again,) = rig.turn()
    rig.pool.end(rig.loop, again)
    rig.turn()
    rig.turn()
    assert rig.state() == (1, 0)
    rig.send()
    rig.turn()
    assert len(rig.turn()) == 1, "the slot was lost with the lease"


@pytest.mark.parametrize("moment", [AckType.ACCEPT, AckType.RENEW])
def test_a_refused_acknowledgement_does_not_end_the_loop(rig: Rig, moment: AckType) -> None:
    rig.send(times=2)
    rig.turn()
    (job,) = rig.turn()
    consumer = rig.consumers["say", "bulk"]
    original = consumer.acknowledge

    def refuse(record: Record, kind: AckType = AckType.ACCEPT) -> None:
        if kind is moment:
            raise LeaseLostError("not held", [OffsetRange(record.topic, 0, record.offset, record.offset)])
        original(record, kind)

    consumer.acknowledge = refuse  # type: ignore[method-assign]
    rig.turn(LOCK_S / 3)
    rig.pool.end(rig.loop, job)
    rig.turn()
    assert rig.loop.held == 0
    consumer.acknowledge = original  # type: ignore[method-assign]
    assert [record.offset for record in rig.turn()] == [1]


def test_a_fatal_error_ends_the_loop(rig: Rig) -> None:
    def refuse(*_: object) -> list[Record]:
        raise AuthenticationError("no")

    rig.consumers["say", "bulk"].poll = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(AuthenticationError):
        rig.loop.run(until=lambda: False)


def test_a_drain_gives_back_what_no_slot_has_started_and_takes_nothing_more() -> None:
    rig = Rig(1, light=True, lanes=("bulk",))
    rig.send(times=30)
    rig.turn()
    (running,) = rig.turn()
    assert len(rig.pool.queue) >= 1
    rig.loop.drain()
    assert rig.loop.draining
    rig.turn()
    assert list(rig.pool.queue) == []
    assert rig.loop.held == 1
    rig.turn()
    state = rig.log.group(NAMES.group("say")).state(running.topic, 0)
    assert state.locked() == 1
    rig.pool.end(rig.loop, running)
    rig.loop.run(until=lambda: False)
    assert (rig.loop.held, state.locked()) == (0, 0)
    assert rig.state()[1] == 29


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_is_kept_over_all_lanes_and_slots(light: bool, limit: int) -> None:
    rig = Rig(4, ("say", "shout"), light=light, limit=limit)
    for kind in ("say", "shout"):
        for lane in WEIGHTS:
            rig.send(lane, 10, kind)
    started = []
    for _ in range(20):
        started += rig.turn(0.1)
    assert len(started) == limit
    for record in started:
        rig.pool.end(rig.loop, record)
    rig.loop.run(until=lambda: False)
    assert rig.loop.held == 0


def test_what_came_beyond_the_limit_is_released_at_once() -> None:
    rig = Rig(2, limit=1, lanes=("bulk",))
    rig.send(times=5)
    consumer = rig.consumers["say", "bulk"]
    rig.loop.step()
    consumer.asked = 5  # a whole batch, as brokers may send in batch mode
    consumer.fetch()
    rig.loop.step()
    assert len(rig.pool.start()) == 1
    assert rig.log.group(NAMES.group("say")).state(NAMES.jobs("say", "bulk"), 0).locked() == 1


def test_the_one_job_of_once_is_not_given_back_before_a_slot_took_it() -> None:
    rig = Rig(1, limit=1, lanes=("bulk",))
    rig.send()
    for _ in range(4):  # no slot has started anything yet
        rig.loop.step()
        for consumer in rig.consumers.values():
            consumer.fetch()
    (job,) = rig.pool.start()
    rig.pool.end(rig.loop, job)
    rig.loop.run(until=lambda: False)
    assert rig.state() == (1, 0)


def test_an_idle_worker_ends_only_when_it_had_nothing_for_long() -> None:
    rig = Rig(1, lanes=("bulk",), idle_s=10.0)
    rig.turn(9.0)
    rig.send()
    rig.turn()
    (job,) = rig.turn()
    for _ in range(10):
        rig.turn(5.0)
    assert not rig.loop.draining
    rig.pool.end(rig.loop, job)
    rig.turn()
    rig.turn(9.0)
    assert not rig.loop.draining
    rig.turn(1.0)
    rig.loop.run(until=lambda: False)
    assert rig.loop.draining


def test_close_settles_releases_and_leaves_whatever_fails() -> None:
    rig = Rig(4)
    rig.send(times=2)
    rig.turn()
    first, second = rig.turn()
    rig.pool.end(rig.loop, first)
    original = rig.consumers["say", "interactive"].close

    def trouble(timeout: float = 5.0) -> None:
        original(timeout)
        raise LeaseLostError("late")

    rig.consumers["say", "interactive"].close = trouble  # type: ignore[method-assign]
    rig.loop.close(1.0)
    assert rig.log.group(NAMES.group("say")).members == []
    state = rig.log.group(NAMES.group("say")).state(second.topic, 0)
    assert (state.locked(), state.start) == (0, 1)


def test_the_age_is_the_time_since_the_last_turn(rig: Rig) -> None:
    rig.turn()
    rig.clock.advance(3.0)
    assert rig.loop.age == 3.0


def test_the_rate_follows_what_is_settled() -> None:
    clock = Clock()
    rate = Rate(clock)
    for _ in range(100):
        clock.advance(0.1)
        rate.add(50)
    assert rate.value == pytest.approx(500, rel=0.01)


def test_light_pools_keep_a_buffer_that_grows_with_the_rate() -> None:
    rig = Rig(2, light=True, lanes=("bulk",))
    rig.send(times=5000)
    most = 0
    for _ in range(200):
        rig.turn(0.05)
        most = max(most, len(rig.pool.queue) + len(rig.pool.running))
        for _ in range(len(rig.pool.queue) + len(rig.pool.running)):
            if rig.pool.running:
                rig.pool.end(rig.loop, rig.pool.running[0])
                rig.pool.start()
    assert 10 < most < 2100
    assert rig.state()[1] < 4500


class Loop(RuleBasedStateMachine):
    """Whatever the order of arrivals, ends, losses and time: slots are never overfull, and all is served in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(2, ("say", "shout"))
        self.sent = 0

    @rule(lane=st.sampled_from(["bulk", "interactive"]), kind=st.sampled_from(["say", "shout"]))
    def send(self, lane: str, kind: str) -> None:
        self.rig.send(lane, 1, kind)
        self.sent += 1

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2, 5.0]))
    def turn(self, seconds: float) -> None:
        self.rig.turn(seconds)

    @precondition(lambda self: self.rig.pool.running)
    @rule(ack=st.sampled_from([AckType.ACCEPT, AckType.ACCEPT, AckType.REJECT, AckType.RELEASE]), data=st.data())
    def end(self, ack: AckType, data: st.DataObject) -> None:
        self.rig.pool.end(self.rig.loop, data.draw(st.sampled_from(self.rig.pool.running)), ack)

    @rule()
    def restart(self) -> None:
        for kind in ("say", "shout"):
            self.rig.log.group(NAMES.group(kind)).restart()

    @rule(kind=st.sampled_from(["say", "shout"]), lane=st.sampled_from(["bulk", "interactive"]))
    def lose(self, kind: str, lane: str) -> None:
        self.rig.consumers[kind, lane].lose(SessionLostError("gone"))

    @invariant()
    def never_overfull(self) -> None:
        assert len(self.rig.pool.running) + len(self.rig.pool.queue) <= 2

    def teardown(self) -> None:
        for _ in range(3000):
            self.rig.turn(1.0)
            for record in list(self.rig.pool.running):
                self.rig.pool.end(self.rig.loop, record)
            lags = [self.rig.state(lane, kind)[1] for kind in ("say", "shout") for lane in WEIGHTS]
            if not any(lags) and not self.rig.loop.held:
                return
        raise AssertionError(f"a slot was lost: {lags} left")


TestLoop = Loop.TestCase
TestLoop.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


class Echoes:
    """A runner that does nothing."""

    def warm(self) -> None: ...

    def close(self) -> None: ...


def pool(work: Callable[[Any, Any], None], size: int = 2) -> Pool:
    return Pool(size, Echoes, work, name="test", light=True)  # type: ignore[arg-type]


def some(offset: int = 0) -> Record:
    return Record("t", 0, offset, None, None, (), 0, 1)


def test_slots_run_side_by_side_and_stop_when_their_jobs_end() -> None:
    meet = threading.Barrier(2)
    seen: list[int] = []

    def work(record: Record, _: object) -> None:
        meet.wait(20)
        seen.append(record.offset)

    slots = pool(work)
    slots.start()
    for offset in (1, 2):
        slots.give(some(offset))
    assert slots.stop(timeout=40)
    assert sorted(seen) == [1, 2]


def test_what_no_slot_has_started_can_be_taken_back() -> None:
    going, free = threading.Event(), threading.Event()

    def work(*_: object) -> None:
        going.set()
        waiting(free, "the end of the test")

    slots = pool(work, 1)
    slots.start()
    slots.give(some(1))
    waiting(going, "the first job")
    slots.give(some(2))
    slots.give(some(3))
    assert slots.waiting == 2
    assert [record.offset for record in slots.drop()] == [2, 3]
    assert not slots.stop(timeout=0.01), "a job that still runs was not waited for"
    free.set()
    assert slots.stop(timeout=20)
