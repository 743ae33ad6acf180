"""Redrives under every crash: runners die at every step and race each other and those who discard.

The ledger is the log itself: what became of every dead record, in order, against the jobs that were sent back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from dead_rig import KINDS, Rig
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from producers.dead import Desk, Filter
from producers.redrive.decide import decide
from producers.redrive.pace import Pace
from producers.redrive.state import halt, load
from schemas.dead import Became, Fate
from schemas.errors import ConflictError, TapeError, UnavailableError
from schemas.event import EventType
from schemas.redrive import PHASES, Phase
from wire.blobs.memory import Memory
from wire.transact import MemoryTransactor

CODES = ("TAPE-6003", "TAPE-5002")
AFTER: dict[Became | None, set[Became]] = {
    None: {Became.REDRIVEN, Became.DISCARDED},
    Became.DISCARDED: {Became.RESTORED},
    Became.RESTORED: {Became.REDRIVEN, Became.DISCARDED},
    Became.REDRIVEN: set(),
}
"""What may become of a dead record after what: sent back once, and never while it is discarded."""


class Crash(BaseException):
    """SIGKILL: nothing of ours may handle it."""


@dataclass
class Fuse:
    """Burns with every step that changes the world outside; at `at` it blows, before or after that step."""

    at: int
    blow: Callable[[], None]
    after: bool = False
    steps: int = 0

    def around(self, step: Callable[[], Any]) -> Any:
        self.steps += 1
        if self.steps != self.at:
            return step()
        if self.after:
            step()
            self.blow()
            raise Crash
        self.blow()
        return step()


class FusedTransactor(MemoryTransactor):
    def __init__(self, rig: Rig, name: str, fuse: Fuse) -> None:
        super().__init__(rig.log, name)
        self._fuse = fuse

    def commit(self, *given: Any, **more: Any) -> None:
        self._fuse.around(lambda: MemoryTransactor.commit(self, *given, **more))


class FusedStore(Memory):
    """The rig's store, seen through a fuse."""

    def __init__(self, real: Memory, fuse: Fuse) -> None:
        self.__dict__ |= real.__dict__
        self._fuse = fuse

    def put(self, *given: Any, **more: Any) -> Any:
        return self._fuse.around(lambda: Memory.put(self, *given, **more))


def fused(rig: Rig, fuse: Fuse) -> Desk:
    desk = rig.fresh()
    desk.transactor = lambda name: FusedTransactor(rig, name, fuse)
    desk.store = lambda: FusedStore(rig.blobs, fuse)
    return desk


def crash() -> None:
    raise Crash


def ledger(rig: Rig) -> tuple[Counter[str], Counter[str]]:
    """Check the order of every record's fates; return how often each job was moved by fates, and by records."""
    last: dict[str, Became] = {}
    told: Counter[str] = Counter()
    for entry in rig.entries(rig.names.letters):
        if (entry.key or b"").startswith(b"pen "):
            continue
        fate = Fate.model_validate_json(entry.value or b"")
        name = fate.origin or fate.letter
        assert fate.became in AFTER[last.get(name)], f"{name}: {last.get(name)} → {fate.became}"
        last[name] = fate.became
        told[fate.job] += fate.became is Became.REDRIVEN
    return +told, rig.moved()


class Redrives(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.rig = Rig()
        self.plans: list[str] = []
        self.born = 0

    @rule(count=st.integers(1, 6), code=st.sampled_from(CODES), kind=st.sampled_from(KINDS), twin=st.booleans())
    def bury(self, count: int, code: str, kind: str, twin: bool) -> None:
        for _ in range(count):
            self.born += 1
            self.rig.bury(f"job-{self.born}", kind, code)
            if twin:  # its worker died before it could say that it was dead
                self.rig.bury(
                    f"job-{self.born}", kind, code, offset=self.rig.offsets[self.rig.names.jobs(kind, "bulk")] - 1
                )

    @rule(code=st.sampled_from([*CODES, None]), kind=st.sampled_from([*KINDS, None]))
    def plan(self, code: str | None, kind: str | None) -> None:
        chosen = Filter(codes=(code,) if code else (), kinds=(kind,) if kind else ())
        self.plans.append(self.rig.plan(chosen).redrive.plan.id)

    @precondition(lambda self: self.plans)
    @rule(
        data=st.data(), at=st.integers(1, 12), after=st.booleans(), canary=st.integers(0, 3),
        fate=st.sampled_from(["crash", "fence", "rival", "discard", "halt", "lost"]),
    )  # fmt: skip
    def run(self, data: st.DataObject, at: int, after: bool, canary: int, fate: str) -> None:
        identity = data.draw(st.sampled_from(self.plans))
        other = data.draw(st.sampled_from(self.plans))

        def lost() -> None:
            raise UnavailableError("the answer is missing", code="TAPE-5003")

        deeds: dict[str, Callable[[], None]] = {
            "crash": crash,
            "fence": lambda: self.finish(identity),
            "rival": lambda: self.finish(other),
            "discard": self.discard,
            "halt": lambda: self.halt(identity),
            "lost": lost,
        }
        desk = fused(self.rig, Fuse(at, deeds[fate], after and fate in {"crash", "lost"}))
        sleep = self.rig.play(lambda job: EventType.SUCCEEDED)
        with suppress(Crash, TapeError):
            self.rig.runner(identity, Pace(canary=canary), desk=desk, sleep=sleep).run()

    def finish(self, identity: str) -> None:
        with suppress(ConflictError):
            self.rig.runner(identity, Pace(canary=0), sleep=self.rig.play(lambda job: EventType.SUCCEEDED)).run()

    def halt(self, identity: str) -> None:
        with suppress(ConflictError):
            halt(self.rig.blobs, identity, by="ops", now=self.rig.time, reason="")

    @rule()
    def discard(self) -> None:
        letters = list(self.rig.desk.letters(self.rig.desk.dead()))[::3]
        decide(self.rig.fresh(), letters, Became.DISCARDED, "no")

    @rule()
    def restore(self) -> None:
        letters = list(self.rig.desk.letters(self.rig.desk.dead()))[::6]
        decide(self.rig.fresh(), letters, Became.RESTORED, "yes")

    @invariant()
    def nothing_goes_twice(self) -> None:
        if hasattr(self, "rig"):
            told, moved = ledger(self.rig)
            assert told == moved
            assert all(count == 1 for count in moved.values())
            queued = Counter((entry.key or b"").decode() for entry in self.rig.entries(self.rig.names.events)
                             if b'"type":"queued"' in (entry.value or b""))  # fmt: skip
            assert queued == moved

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        for identity in self.plans:
            self.finish(identity)
            kept = load(self.rig.blobs, identity)
            assert kept.redrive.phase is Phase.DONE
            fates = self.rig.desk.fates()
            for line in kept.lines():
                if line.skip is None:
                    letter = self.rig.desk.find(line.letter)
                    # One that was discarded when its turn came, and restored after that, waits for another plan.
                    restored = letter.fate is not None and letter.fate.became is Became.RESTORED
                    assert letter.status != "waiting" or restored, "every planned letter has its fate in the end"
                    assert fates
        self.nothing_goes_twice()


Redrives.TestCase.settings = limits(max_examples=80, stateful_step_count=12, deadline=None)
TestRedrives = Redrives.TestCase


def test_every_phase_is_in_the_table_and_a_done_redrive_stays_done() -> None:
    assert PHASES.keys() == set(Phase)
    assert PHASES[Phase.DONE] == {Phase.DONE}
    assert all(Phase.PLANNED not in after for after in PHASES.values())


@pytest.mark.parametrize("after", [False, True])
def test_a_runner_that_dies_at_any_step_is_followed_by_one_that_does_the_rest(after: bool) -> None:
    steps = 0
    while True:
        steps += 1
        rig = Rig()
        for number in range(8):
            rig.bury(f"job-{number}", KINDS[number % 2], CODES[number % 2])
        identity = rig.plan().redrive.plan.id
        fuse = Fuse(steps, crash, after)
        play = rig.play(lambda job: EventType.SUCCEEDED)
        with suppress(Crash):
            rig.runner(identity, Pace(canary=3), desk=fused(rig, fuse), sleep=play).run()
        assert load(rig.blobs, identity).redrive.phase in {Phase.PLANNED, Phase.CANARY, Phase.RAMPING, Phase.DONE}
        done = rig.runner(identity, sleep=play).run()
        assert done.phase is Phase.DONE
        assert rig.moved() == dict.fromkeys([f"job-{number}" for number in range(8)], 1)
        told, moved = ledger(rig)
        assert told == moved
        if fuse.steps < steps:
            break
    assert steps > 6, "it had no step to die at"


@pytest.mark.parametrize("end", [EventType.SUCCEEDED, EventType.DEAD])
def test_two_letters_of_one_job_are_followed_to_their_end_after_any_crash(end: EventType) -> None:
    steps = 0
    while True:
        steps += 1
        rig = Rig()
        for _ in range(2):
            rig.bury("job")
        identity = rig.plan().redrive.plan.id
        fuse, told = Fuse(steps, crash), [0]

        def work(seconds: float, rig: Rig = rig, told: list[int] = told) -> None:
            rig.sleep(seconds)
            for _ in rig.jobs()[told[0] :]:
                rig.tell("job", end)
            told[0] = len(rig.jobs())

        pace = Pace(canary=1, halt_above=100, wait=True)
        with suppress(Crash):
            rig.runner(identity, pace, desk=fused(rig, fuse), sleep=work).run()
        done = rig.runner(identity, pace, sleep=work).run()
        assert (done.phase, done.moved, done.settled) == (Phase.DONE, 2, 2)
        assert done.failed == (2 if end is EventType.DEAD else 0)
        if fuse.steps < steps:
            break
    assert steps > 6, "it had no step to die at"
