"""Claims in any order of events: workers that freeze, thaw and die, lost answers, clocks that disagree."""

from __future__ import annotations

from itertools import pairwise

from claim_rig import JOB, Fleet, Member, same
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.claim import Claim
from schemas.errors import UnavailableError


class Interleaved(RuleBasedStateMachine):
    """Three workers and one job, in any order of events, with lost answers; what the store sees is judged."""

    @initialize(skews=st.tuples(*[st.sampled_from([-2.0, 0.0, 2.0])] * 3))
    def hire(self, skews: tuple[float, ...]) -> None:
        self.fleet = Fleet()
        self.workers = [
            self.fleet.hire(f"w{number}", wall_h=skew, clock_s=number * 1e4) for number, skew in enumerate(skews)
        ]
        self.hired, self.records, self.seen = 3, 0, 0
        self.taking: set[str] = set()
        self.troubled: set[tuple[str, int]] = set()
        """Starts whose holder was frozen or died while it held them."""

    def _holder(self) -> Member | None:
        claim = self.fleet.claim()
        named = [one for one in self.workers if claim is not None and claim.held and one.name == claim.start.worker]
        return named[0] if named else None

    def _shaken(self, member: Member) -> None:
        claim = self.fleet.claim()
        if claim is not None and claim.held and claim.start.worker == member.name:
            self.troubled.add((claim.start.worker, claim.start.epoch))

    @rule(number=st.integers(0, 2), same_record=st.booleans(), fail=st.sampled_from([None, None, "before", "after"]))
    def take(self, number: int, same_record: bool, fail: str | None) -> None:
        member, holder, claim = self.workers[number], self._holder(), self.fleet.claim()
        if not member.working or member.name in self.taking:
            return
        if holder is not None and holder.working:
            # The broker ended the lease of one that lives: either that one hears of it, or it was never its record.
            same_record = same_record and holder.certain()
            holder.claims.doubt()
            holder.claims.beat()
        self.records += not same_record
        place = claim.start.place if same_record and claim is not None else f"t/0/{self.records}"
        self.taking.add(member.name)
        member.view.fail = fail
        try:
            found = member.take(redelivered=same_record, place=place)
        except UnavailableError:
            assert not member.certain()
        else:
            if isinstance(found, Claim):
                assert found.start.attempt == len(found.lost) + 1
        finally:
            member.view.fail = None
            self.taking.discard(member.name)

    @rule(seconds=st.sampled_from([0.1, 0.5, 0.9, 1.1, 4.0, 13.0]))
    def wait(self, seconds: float) -> None:
        self.fleet.wait(seconds)

    @rule(number=st.integers(0, 2), seconds=st.sampled_from([0.0, 0.3, 0.9, 6.0]))
    def freeze(self, number: int, seconds: float) -> None:
        def now(member: Member = self.workers[number]) -> None:
            if member.name not in self.taking:  # a take that is under way is not cut in two here
                self._shaken(member)
                member.frozen = True

        self.fleet.later(seconds, now)

    @rule(number=st.integers(0, 2), seconds=st.sampled_from([0.0, 0.7, 1.3]), first=st.sampled_from(["sure", "beat"]))
    def thaw(self, number: int, seconds: float, first: str) -> None:
        def now(member: Member = self.workers[number]) -> None:
            if member.alive and member.frozen:
                member.frozen = False
                if first == "sure":
                    self._asked(member)

        self.fleet.later(seconds, now)

    @rule(number=st.integers(0, 2))
    def ask(self, number: int) -> None:
        if self.workers[number].working:
            self._asked(self.workers[number])

    def _asked(self, member: Member) -> None:
        if member.claims.sure(JOB):
            claim = self.fleet.claim()
            assert claim is not None
            assert (claim.held, claim.start.worker) == (True, member.name)

    @rule(number=st.integers(0, 2), ended=st.booleans(), fail=st.sampled_from([None, None, "before", "after"]))
    def free(self, number: int, ended: bool, fail: str | None) -> None:
        member, before = self.workers[number], self.fleet.claim()
        if not member.working:
            return
        member.view.fail = fail
        try:
            freed = member.end() if ended else member.claims.free(JOB)
        except UnavailableError:
            member.claims.abandon(JOB)  # as the executor does when it cannot wait
            return
        finally:
            member.view.fail = None
        if freed:
            after = self.fleet.claim()
            assert before is not None
            assert after is not None
            assert same(after.start, before.start)
            assert not after.held
            assert after.lost == (() if ended else before.lost)

    @rule(number=st.integers(0, 2))
    def die(self, number: int) -> None:
        """Kill a worker; another takes its place."""
        member = self.workers[number]
        if member.name in self.taking:
            return
        self._shaken(member)
        member.alive = False
        self.workers[number] = self.fleet.hire(f"w{self.hired}")
        self.hired += 1

    @precondition(lambda self: hasattr(self, "fleet"))
    @invariant()
    def one_is_certain_at_most(self) -> None:
        certain = [member.name for member in self.workers if member.working and member.certain()]
        assert len(certain) <= 1, certain

    @precondition(lambda self: hasattr(self, "fleet"))
    @invariant()
    def what_was_written_follows_from_what_was_there(self) -> None:
        writes = self.fleet.writes
        for before, after in pairwise(writes[max(0, self.seen - 1) :]):
            if same(before.start, after.start):
                assert after.held <= before.held, "what was freed is not held again by the same start"
                assert after.lost in (before.lost, ())
                continue
            assert after.start.epoch == before.start.epoch + 1
            assert after.held
            died = before.held and before.start.worker != after.start.worker
            assert after.lost == ((*before.lost, before.start) if died else before.lost)[-10:]
            if died:
                assert (before.start.worker, before.start.epoch) in self.troubled, "a worker that lived was given up"
        self.seen = len(writes)

    @precondition(lambda self: hasattr(self, "fleet"))
    @invariant()
    def every_death_is_counted_once(self) -> None:
        claim = self.fleet.claim()
        places = [(start.worker, start.epoch) for start in claim.lost] if claim is not None else []
        assert len(set(places)) == len(places)
        assert set(places) <= self.troubled


Interleaved.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestInterleaved = Interleaved.TestCase
