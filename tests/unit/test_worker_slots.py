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
from workers.lease import WEIGHTS
from workers.slots import Pool


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
