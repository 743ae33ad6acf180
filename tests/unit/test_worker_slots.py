"""Slots: alone, and under a lease loop to which everything happens in any order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lease_rig import Rig
from worker_twin import NAMES, waiting

from wire.share import AckType, Record
from wire.share.errors import SessionLostError
from workers.round import WEIGHTS
from workers.slots import ADAPT_S, Pool


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


class Cpu:
    """A process whose use of a core is told by the test."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self) -> float:
        return self.spent


def crowd(size: int = 16) -> tuple[Pool, Callable[[float], bool]]:
    cpu, now = Cpu(), [100.0]
    slots = Pool(size, Echoes, lambda *_: None, name="test", light=True, cpu=cpu)  # type: ignore[arg-type]

    def use(share: float) -> bool:
        now[0] += ADAPT_S
        cpu.spent += share * ADAPT_S
        return slots.adapt(now[0])

    use(0.0)
    return slots, use


def test_jobs_that_compute_are_run_by_few_slots_and_those_that_wait_by_all() -> None:
    slots, use = crowd()
    slots.give(some())
    for room in (8, 4, 2, 2):
        assert use(0.95), "a backlog is looked at again"
        assert slots.room == room
    use(0.7)
    assert slots.room == 2, "neither idle nor full: left as it is"
    for room in (4, 8, 16, 16):
        use(0.3)
        assert slots.room == room
    for _ in range(5):
        use(0.95)
    use(1.9)
    assert slots.room == 4, "jobs that compute outside the interpreter's lock on two cores"
    slots.drop()
    assert not use(0.1)
    assert slots.room == 16, "an idle pool is ready for anything"


def test_a_pool_of_one_slot_stays_so_and_a_heavy_pool_is_left_alone() -> None:
    slots, use = crowd(1)
    slots.give(some())
    use(0.95)
    assert slots.room == 1
    heavy = Pool(4, Echoes, lambda *_: None, name="test", light=False, cpu=Cpu())  # type: ignore[arg-type]
    assert not heavy.adapt(1.0)
    assert heavy.room == 4


def test_squeezed_slots_leave_their_work_to_others_and_come_back() -> None:
    together, cpu = threading.Barrier(4), Cpu()
    seen: list[int] = []

    def work(record: Record, _: object) -> None:
        together.wait(20)
        seen.append(record.offset)

    slots = Pool(4, Echoes, work, name="test", light=True, cpu=cpu)  # type: ignore[arg-type]
    slots.adapt(1.0)
    for offset in range(8):
        slots.give(some(offset))
    cpu.spent += 0.95 * ADAPT_S
    slots.adapt(1.0 + ADAPT_S)
    assert slots.room == 2
    slots.start()
    slots.adapt(1.0 + 2 * ADAPT_S)  # nothing moves, no CPU is used: the two wait for something, so four are let in
    assert slots.room == 4
    assert slots.stop(timeout=40)
    assert sorted(seen) == list(range(8))
