"""One tenant's quota under everything that may happen to its workers, in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from quota_rig import Crew, Hand, quota

from schemas.errors import UnavailableError
from schemas.past import Past
from workers.desk import SILENT_S
from workers.quota import BEAT_S, LONGEST_S, Wait

ENDURED_S = SILENT_S / 2
"""A worker may be frozen, or without the store, for so long and still holds what it holds."""


class Fleet(RuleBasedStateMachine):
    """Workers come, ask, run, die, freeze and lose the store; the limits hold at every moment."""

    waiting = Bundle("waiting")

    @initialize(
        in_flight=st.integers(1, 4), rate=st.none() | st.floats(0.05, 5), burst=st.integers(1, 4),
        clocks=st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=4),
    )  # fmt: skip
    def begin(self, in_flight: int, rate: float | None, burst: int, clocks: list[float]) -> None:
        self.limit, self.rate, self.burst = in_flight, rate, burst
        self.crew = Crew(quota(in_flight=in_flight, rate=rate, burst=burst if rate else None))
        for number, clock_s in enumerate(clocks):
            self.crew.hire(f"w{number}", clock_s=clock_s)
        self.ill: dict[str, float] = {}
        self.starts: list[float] = []
        self.origin = self.crew.time
        self.count = 0

    def hand(self, number: int) -> Hand:
        living = [hand for hand in self.crew.hands if hand.alive]
        return living[number % len(living)]

    def ask(self, hand: Hand, job: str, past: Past) -> Any:
        again = job in self.crew.running()  # redelivered, after its worker died: no start of another job
        found = hand.tried(job, past=past)
        if found is None and not again:
            self.starts.append(self.crew.tally().time)
            assert self.starts[-1] <= self.crew.time - self.origin + 1e-6, "the tenant's time is not ahead"
        return found

    def running(self) -> set[str]:
        return {job for hand in self.crew.hands if hand.alive for job in hand.jobs}

    @rule(target=waiting, number=st.integers(0, 9))
    def new(self, number: int) -> Any:
        hand = self.hand(number)
        if hand.frozen:
            return multiple()
        self.count += 1
        job = f"job-{self.count}"
        found = self.ask(hand, job, Past())
        return (job, found.past if isinstance(found, Wait) else Past())

    @rule(target=waiting, entry=waiting, number=st.integers(0, 9))
    def again(self, entry: tuple[str, Past], number: int) -> Any:
        """A record comes to some worker: it was put off, redelivered, or the job is tried again."""
        job, past = entry
        hand = self.hand(number)
        if hand.frozen or job in self.running():  # claims keep those apart
            return multiple()
        found = self.ask(hand, job, past)
        return (job, found.past) if isinstance(found, Wait) else multiple()

    @rule(number=st.integers(0, 9))
    def end(self, number: int) -> None:
        hand = self.hand(number)
        if hand.jobs and not hand.frozen:
            hand.leave(next(iter(hand.jobs)))

    @rule(number=st.integers(0, 9))
    def crash(self, number: int) -> None:
        self.hand(number).alive = False
        self.crew.hire(f"w{len(self.crew.hands)}", clock_s=float(number))

    @rule(number=st.integers(0, 9), frozen=st.booleans())
    def fall_ill(self, number: int, frozen: bool) -> None:
        hand = self.hand(number)
        if hand.name not in self.ill:
            self.ill[hand.name] = self.crew.time
            hand.frozen, hand.view.down = frozen, not frozen

    @rule(number=st.integers(0, 9), fail=st.sampled_from(["before", "after"]))
    def stumble(self, number: int, fail: str) -> None:
        self.hand(number).view.fail = fail

    @rule(seconds=st.floats(0.01, 60), chance=st.floats(0, 0.999))
    def time(self, seconds: float, chance: float) -> None:
        self.crew.chance = chance
        while seconds > 0:
            recover = min((since + ENDURED_S for since in self.ill.values()), default=float("inf"))
            part = min(seconds, max(0.0, recover - self.crew.time))
            self.crew.pass_(part)
            seconds -= part
            for name in [name for name, since in self.ill.items() if self.crew.time >= since + ENDURED_S - 1e-6]:
                self.recover(name)

    def recover(self, name: str) -> None:
        del self.ill[name]
        hand = next(hand for hand in self.crew.hands if hand.name == name)
        hand.frozen = hand.view.down = False

    @invariant()
    @precondition(lambda self: hasattr(self, "crew"))
    def never_more_in_flight(self) -> None:
        assert len(self.running()) <= self.limit

    @invariant()
    @precondition(lambda self: hasattr(self, "crew") and self.rate)
    def never_more_starts(self) -> None:
        """On the tenant's own time, which is never ahead of the true one; a worker that is new to it may be behind."""
        assert self.rate is not None
        for back in range(1, len(self.starts)):
            span = self.starts[-1] - self.starts[-1 - back]
            assert back + 1 <= self.burst + self.rate * span + 1e-3

    def teardown(self) -> None:
        """Once all are well and nothing new comes, everybody starts: the dead hold nothing for ever."""
        if not hasattr(self, "crew"):
            return
        for name in list(self.ill):
            self.recover(name)
        for hand in self.crew.hands:
            hand.view.fail = None
            for job in list(hand.jobs) if hand.alive else []:
                hand.leave(job)
        hand = self.hand(0)
        for number in range(self.limit + 1):
            past, waited = Past(), 0.0
            while (found := self.ask(hand, f"last-{number}", past)) is not None:
                assert not isinstance(found, UnavailableError)
                past, waited = found.past, waited + found.delay_s
                limit = SILENT_S + 2 * BEAT_S + 2 * LONGEST_S + (self.count + number + 2) / (self.rate or 1e9)
                assert waited <= 2 * limit, "it waits for ever"
                self.crew.pass_(found.delay_s, step=1)
            if number >= self.limit - 1:
                hand.leave(f"last-{number}")
        for name in list(hand.jobs):
            hand.leave(name)
        self.crew.pass_(2 * BEAT_S)
        assert self.crew.tally().running == frozenset()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
