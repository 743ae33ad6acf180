"""Breakers: what opens them, that the fleet agrees, that one job probes, and who is to blame."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from datetime import timedelta

import pytest
from breaker_rig import CLOSED, HALF, NOW, OPEN, RULES, Fleet, Member, away
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.control import SILENT_S, Breaker
from schemas.errors import FailureClass
from schemas.outcome import Failure
from schemas.past import Past, Try
from workers.breaker import KNOWN, YOUNG_S, Allowed, Disposition, Paused, Probe
from workers.circuit import KEPT


def failed(kind: FailureClass, text: str = "odd") -> Failure:
    return Failure(failure=kind, code="TAPE-6001", message=text)


# What opens


def test_three_jobs_that_fail_alike_open_it_for_the_whole_fleet() -> None:
    fleet = Fleet()
    one = fleet.members[0].breakers
    one.report("j1", "store", away("GET /a/1 gave 503"))
    one.report("j2", "store", away("GET /b/2 gave 503"))
    assert fleet.log.records == []
    assert one.allowed(["store"]) == Allowed()
    one.report("j3", "store", away("GET /c/3 gave 504"))
    fleet.settle()
    assert fleet.states() == {OPEN}
    (message,) = fleet.log.records
    assert (message.epoch, message.opened, message.reason) == (1, 1, "3 jobs failed alike within 120 s")
    for member in fleet.members:
        answer = member.breakers.allowed(["models", "store"])
        assert isinstance(answer, Paused)
        assert (answer.dependency, answer.reason) == ("store", f"{message.reason} ({message.cause})")
        assert NOW < answer.until <= NOW + timedelta(seconds=RULES.cap_s)
        assert member.breakers.allowed(["models"]) == member.breakers.allowed([]) == Allowed()


def test_one_job_that_fails_again_and_again_opens_nothing() -> None:
    fleet = Fleet(1)
    for _ in range(5 * RULES.streak):
        fleet.members[0].breakers.report("poison", "store", away())
    assert fleet.log.records == []


def test_different_failures_in_a_row_open_it() -> None:
    fleet = Fleet(1)
    for number in range(RULES.streak):
        fleet.members[0].breakers.report(f"j{number % 2}", "store", away("abcdefgh"[number]))
    assert [message.reason for message in fleet.log.records] == ["5 failures in a row, of 2 jobs or more"]


def test_the_cause_stays_told_until_it_closes() -> None:
    fleet = Fleet()
    for number in range(RULES.jobs):
        fleet.members[0].breakers.report(f"j{number}", "store", away("GET http://u:pw@s3:9000/b?sig=x1 gave 503"))
    fleet.settle()
    holder, probe = fleet.half_open()
    assert holder.breakers.take(probe, "p")
    holder.breakers.report("p", "store", away("the disk is full"))
    fleet.settle()
    waits = fleet.members[0].breakers.allowed(["store"])
    assert isinstance(waits, Paused) and waits.reason == "the probe failed (TAPE-5002 the disk is full)"
    holder, probe = fleet.half_open()
    assert holder.breakers.take(probe, "q")
    holder.breakers.report("q", "store", away(**REFUSED))  # its own trouble: the fleet's is what it was
    fleet.settle()
    holder, probe = fleet.half_open()
    assert holder.breakers.take(probe, "r")
    holder.breakers.report("r", "store", None)
    fleet.settle()
    steps = [(message.state, message.cause) for message in fleet.log.records if message.dependency == "store"]
    told = list(dict.fromkeys(steps))
    first, then = "TAPE-5002 GET http://s3:9000 gave 503", "TAPE-5002 the disk is full"
    assert told == [(OPEN, first), (HALF, first), (OPEN, then), (HALF, then), (CLOSED, "")]


def test_a_worker_that_is_refused_says_by_what() -> None:
    fleet = Fleet()
    one = fleet.members[0].breakers
    for number in range(RULES.jobs):
        one.report(f"j{number}", "store", away(**REFUSED))
    fleet.settle()
    fleet.time += RULES.cap_s + RULES.spread_s
    one.allowed(["store"])
    fleet.settle()
    assert isinstance(probe := one.allowed(["store"]), Probe) and one.take(probe, "next")
    one.report("next", "store", away(**REFUSED))
    assert [(message.dependency, message.reason, message.cause) for message in fleet.log.records[-1:]] == [
        ("store@w0", "the probe failed", "TAPE-4002 the store refused the credentials")
    ]


REFUSED = {"text": "the store refused the credentials", "code": "TAPE-4002"}


def test_refused_credentials_stop_the_worker_that_has_them_and_no_other() -> None:
    fleet = Fleet()
    one, other = (member.breakers for member in fleet.members)
    for number in range(RULES.jobs):
        one.report(f"j{number}", "store", away(**REFUSED))
    fleet.settle()
    (message,) = fleet.log.records
    assert (message.dependency, message.state) == ("store@w0", OPEN)
    assert isinstance(found := one.allowed(["store"]), Paused) and found.dependency == "store@w0"
    assert one.allowed(["judge"]) == other.allowed(["store"]) == Allowed()
    assert one.disposition(away(**REFUSED), Past()) is Disposition.OUTAGE
    assert other.disposition(away(**REFUSED), Past()) is Disposition.NONE


def test_who_is_refused_does_not_claim_the_probe_of_the_fleet() -> None:
    fleet = Fleet()
    one, other = fleet.members
    long = NOW + timedelta(seconds=RULES.cap_s)
    fleet.log.publish(
        Breaker(dependency="store@w0", state=OPEN, epoch=1, worker="w0", since=NOW, until=long, opened=9, reason="no")
    )
    fleet.outage("judge")
    fleet.outage("store")
    fleet.time += RULES.base_s
    for _ in range(9):
        assert isinstance(found := one.breakers.allowed(["judge", "store"]), Paused) and found.dependency == "store@w0"
        fleet.settle()
        if isinstance(answer := other.breakers.allowed(["judge", "store"]), Probe):
            assert other.breakers.take(answer, "p")
            for name in ("judge", "store"):
                other.breakers.report("p", name, None)
        fleet.settle()
        fleet.time += RULES.answer_s
    assert fleet.states("judge") == fleet.states("store") == {CLOSED}


def test_a_probe_that_is_refused_is_handed_on() -> None:
    fleet = Fleet()
    fleet.outage()
    holder, probe = fleet.half_open()
    (other,) = [member for member in fleet.members if member is not holder]
    assert holder.breakers.take(probe, "p")
    holder.breakers.report("p", "store", away(**REFUSED))
    fleet.settle()
    assert fleet.states() == {OPEN}
    fleet.time += RULES.next_s + RULES.spread_s
    assert isinstance(other.breakers.allowed(["store"]), Paused), "its claim is on the way"
    fleet.settle()
    assert other.breakers.allowed(["store"]) == Probe(("store",))


@pytest.mark.parametrize("seed", range(6))
def test_whose_jobs_need_something_else_that_is_away_keeps_nobody_from_the_probe(seed: int) -> None:
    """One worker's jobs need a judge besides the store, the other's the store alone; the judge stays away."""
    fleet = Fleet()
    dice = random.Random(seed)
    both, plain = dice.sample(fleet.members, 2)
    for name in dice.sample(["judge", "store"], 2):
        fleet.outage(name)
    waited = 0.0
    while fleet.states() != {CLOSED}:
        for member, needs in ((both, ["judge", "store"]), (plain, ["store"])):
            if isinstance(answer := member.breakers.allowed(needs), Probe) and member.breakers.take(answer, "p"):
                if "judge" in needs:
                    member.breakers.report("p", "judge", away())
                else:
                    member.breakers.report("p", "store", None)
                member.breakers.ended("p")
        fleet.settle()
        fleet.time += 0.5
        waited += 0.5
        assert waited < 60, "the claim of whom cannot use it runs out after two minutes"


def test_a_claim_for_some_jobs_is_not_given_up_for_others_of_the_same_worker() -> None:
    fleet = Fleet()
    one = fleet.members[0]
    fleet.outage("store")
    fleet.time += RULES.base_s + RULES.spread_s
    one.breakers.allowed(["store"])
    fleet.settle()
    fleet.outage("judge")
    fleet.time += RULES.answer_s
    assert isinstance(one.breakers.allowed(["judge", "store"]), Paused)
    assert one.breakers.allowed(["store"]) == Probe(("store",))


def test_it_tries_its_credentials_again_with_one_job() -> None:
    fleet = Fleet()
    one = fleet.members[0].breakers
    for number in range(RULES.jobs):
        one.report(f"j{number}", "store", away(**REFUSED))
    fleet.settle()
    fleet.time += RULES.cap_s + RULES.spread_s
    assert isinstance(one.allowed(["store"]), Paused), "its claim is on the way"
    fleet.settle()
    assert (probe := one.allowed(["store"])) == Probe(("store@w0",))
    assert one.take(probe, "next")
    one.report("next", "store", None)
    fleet.settle()
    fleet.time += RULES.answer_s
    assert one.allowed(["store"]) == Allowed() and fleet.states("store@w0") == {CLOSED}


def test_jobs_that_kill_their_processes_in_different_ways_stop_no_neighbour() -> None:
    """Three attempts each, and a quiet fleet: six failures in a row of two jobs; three that die alike are an outage."""
    fleet = Fleet(1)
    one = fleet.members[0].breakers
    for _ in range(3):
        one.report("j1", "kind:heavy", failed(FailureClass.CRASHED, "killed by signal 11"))
        one.report("j2", "kind:heavy", failed(FailureClass.CRASHED, "ended with status three"))
    assert fleet.log.records == []
    for job in ("j3", "j4"):
        one.report(job, "kind:heavy", failed(FailureClass.CRASHED, "killed by signal 11"))
    assert [message.reason for message in fleet.log.records] == ["3 jobs failed alike within 120 s"]


def test_rare_failures_among_many_successes_open_nothing() -> None:
    fleet = Fleet(1)
    one = fleet.members[0].breakers
    for number in range(200):
        one.report(f"j{number}", "store", away() if number % 20 == 0 else None)
        fleet.time += 0.1
    assert fleet.log.records == []
    assert len(one.states()["store"].seen) <= KEPT


def test_failures_far_apart_open_nothing() -> None:
    fleet = Fleet(1)
    for number in range(4):
        fleet.members[0].breakers.report(f"j{number}", "store", away())
        fleet.time += RULES.window_s
    assert fleet.log.records == []


@pytest.mark.parametrize("kind", [FailureClass.INVALID, FailureClass.PERMANENT])
def test_a_job_that_is_itself_at_fault_says_nothing(kind: FailureClass) -> None:
    fleet = Fleet(1)
    for number in range(50):
        fleet.members[0].breakers.report(f"j{number}", "store", failed(kind))
    assert fleet.log.records == []
    assert fleet.members[0].breakers.states() == {}


def test_a_kind_whose_every_job_fails_can_have_a_breaker_of_its_own() -> None:
    fleet = Fleet(1)
    for number in range(RULES.jobs):
        fleet.members[0].breakers.report(f"j{number}", "kind:inference", failed(FailureClass.CRASHED))
    fleet.settle()
    assert fleet.states("kind:inference") == {OPEN}


def test_it_waits_from_its_own_message_on_and_says_it_again_if_that_was_lost() -> None:
    fleet = Fleet(1)
    one = fleet.members[0].breakers
    fleet.log.lost = True
    fleet.outage()
    assert isinstance(one.allowed(["store"]), Paused)
    fleet.log.lost = False
    one.report("j4", "store", away())
    assert fleet.log.records == []
    fleet.time += RULES.answer_s
    assert one.allowed(["store"]) == Allowed()
    one.report("j5", "store", away())
    assert len(fleet.log.records) == 1


# Half open


def test_one_worker_probes_and_its_success_closes_it_for_all() -> None:
    fleet = Fleet(3)
    fleet.outage()
    holder, probe = fleet.half_open()
    assert probe == Probe(("store",))
    assert holder.breakers.take(probe, "probe")
    assert not holder.breakers.take(probe, "second")
    assert all(isinstance(member.breakers.allowed(["store"]), Paused) for member in fleet.members)
    holder.breakers.report("an old job", "store", None)
    assert fleet.states() == {HALF}
    holder.breakers.report("probe", "store", None)
    fleet.settle()
    assert fleet.states() == {CLOSED}
    assert all(member.breakers.allowed(["store"]) == Allowed() for member in fleet.members)


def test_a_failed_probe_opens_it_for_longer_each_time() -> None:
    fleet = Fleet(2)
    fleet.outage()
    for _ in range(8):
        holder, probe = fleet.half_open()
        assert holder.breakers.take(probe, "probe")
        holder.breakers.report("probe", "store", away())
        fleet.settle()
        assert fleet.states() == {OPEN}
    opened = [message for message in fleet.log.records if message.state is OPEN]
    pauses = [(one.until - one.since).total_seconds() for one in opened if one.until]
    assert pauses == [3.75, 7.5, 15, 30, 60, 120, 225, 225, 225]
    assert [one.opened for one in opened] == list(range(1, 10))


def test_a_probe_without_a_verdict_is_given_back() -> None:
    fleet = Fleet(1)
    fleet.outage()
    holder, probe = fleet.half_open()
    for number, end in enumerate(
        (holder.breakers.ended, lambda job: holder.breakers.report(job, "store", failed(FailureClass.INVALID)))
    ):
        assert holder.breakers.take(probe, f"p{number}")
        end(f"p{number}")
        assert holder.breakers.allowed(["store"]) == probe
    assert holder.breakers.take(probe, "last")


def test_a_claim_whose_holder_died_is_taken_over() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, _ = fleet.half_open()
    fleet.members.remove(holder)
    fleet.time += RULES.probe_s - 1
    (other,) = fleet.members
    said = len(fleet.log.records)
    assert isinstance(other.breakers.allowed(["store"]), Paused)
    assert len(fleet.log.records) == said
    fleet.time += 1 + RULES.spread_s
    assert isinstance(other.breakers.allowed(["store"]), Paused)
    assert len(fleet.log.records) == said + 1
    fleet.settle()
    assert isinstance(other.breakers.allowed(["store"]), Probe)


def hear(fleet: Fleet, *names: str, there: bool = True) -> None:
    """Let every worker read that these are there, or have gone."""
    for member in fleet.members:
        for name in names:
            member.breakers.heard(name, there=there)


def taken_over(fleet: Fleet, other: Member) -> float:
    """Let the time pass until another worker holds the probe; return how long that took. The others are heard."""
    began = fleet.time
    while not isinstance(other.breakers.allowed(["store"]), Probe):
        fleet.settle()
        fleet.time += 0.5
        hear(fleet, *(member.name for member in fleet.members))
        assert fleet.time - began < 2 * RULES.probe_s
    return fleet.time - began


def test_the_claim_of_a_worker_that_fell_silent_ends_then() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, _ = fleet.half_open()
    hear(fleet, *(member.name for member in fleet.members))
    fleet.members.remove(holder)
    (other,) = fleet.members
    took = taken_over(fleet, other)
    assert SILENT_S <= took <= SILENT_S + RULES.spread_s + RULES.answer_s + 1
    assert fleet.log.records[-1].worker == other.name


def test_the_claim_of_a_worker_that_went_ends_at_once() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, _ = fleet.half_open()
    hear(fleet, *(member.name for member in fleet.members))
    fleet.members.remove(holder)
    hear(fleet, holder.name, there=False)
    assert taken_over(fleet, fleet.members[0]) <= RULES.spread_s + RULES.answer_s + 1


def test_the_claim_of_a_worker_that_is_heard_or_never_was_lasts_its_time() -> None:
    for known in (True, False):
        fleet = Fleet(2)
        fleet.outage()
        holder, _ = fleet.half_open()
        (other,) = [member for member in fleet.members if member is not holder]
        if not known:
            fleet.members.remove(holder)
        assert taken_over(fleet, other) >= RULES.probe_s


def test_who_does_not_hear_himself_takes_nobody_for_dead() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, _ = fleet.half_open()
    (other,) = [member for member in fleet.members if member is not holder]
    hear(fleet, holder.name, other.name)
    said = len(fleet.log.records)
    fleet.time += RULES.probe_s - 1
    assert isinstance(other.breakers.allowed(["store"]), Paused)
    assert len(fleet.log.records) == said


def test_a_worker_that_was_only_slow_to_say_so_loses_its_claim_and_no_more() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, probe = fleet.half_open()
    (other,) = [member for member in fleet.members if member is not holder]
    hear(fleet, holder.name, other.name)
    assert holder.breakers.take(probe, "slow")
    fleet.time += SILENT_S + RULES.spread_s
    hear(fleet, other.name)
    other.breakers.allowed(["store"])
    holder.breakers.report("slow", "store", None)  # its word came later than the other's claim
    fleet.settle()
    fleet.time += RULES.answer_s
    assert fleet.states() == {HALF} and isinstance(other.breakers.allowed(["store"]), Probe)


def test_only_workers_of_late_are_remembered() -> None:
    one = Fleet(1).members[0].breakers
    for number in range(2 * KNOWN):
        one.heard(f"w{number}", there=number % 2 == 0)
    assert len(one._heard) <= KNOWN + 1


def test_the_result_of_a_claim_that_ran_out_counts_for_nothing() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, probe = fleet.half_open()
    assert holder.breakers.take(probe, "slow")
    fleet.time += RULES.probe_s + RULES.spread_s
    (other,) = [member for member in fleet.members if member is not holder]
    other.breakers.allowed(["store"])
    fleet.settle()
    assert isinstance(other.breakers.allowed(["store"]), Probe)
    holder.breakers.report("slow", "store", None)
    fleet.settle()
    assert fleet.states() == {HALF}


def test_two_dependencies_are_claimed_one_after_the_other() -> None:
    fleet = Fleet(2)
    for name in ("models", "store"):
        fleet.outage(name)
    fleet.time += RULES.cap_s + RULES.spread_s
    for _ in range(3):
        for member in fleet.members:
            member.breakers.allowed(["store", "models"])
        fleet.settle()
    found = [member.breakers.allowed(["store", "models"]) for member in fleet.members]
    assert [answer for answer in found if isinstance(answer, Probe)] == [Probe(("models", "store"))]


@pytest.mark.parametrize("skew", [-7200.0, 7200.0])
def test_a_clock_that_is_hours_off_neither_keeps_it_open_nor_steals_a_claim(skew: float) -> None:
    fleet = Fleet(2, skews=(0.0, skew))
    fleet.time += YOUNG_S
    fleet.outage()
    right, wrong = fleet.members
    said = len(fleet.log.records)
    answer = wrong.breakers.allowed(["store"])
    assert isinstance(answer, Paused) and 0 < answer.seconds <= RULES.cap_s + RULES.spread_s
    fleet.time += RULES.base_s + RULES.spread_s
    right.breakers.allowed(["store"])
    fleet.settle()
    assert isinstance(right.breakers.allowed(["store"]), Probe)
    assert isinstance(wrong.breakers.allowed(["store"]), Paused)
    assert len(fleet.log.records) == said + 1  # the claim of the one whose clock is right, and none beside it
    fleet.time += RULES.probe_s + RULES.spread_s
    wrong.breakers.allowed(["store"])
    fleet.settle()
    assert isinstance(wrong.breakers.allowed(["store"]), Probe)


def test_a_claim_that_ran_out_cannot_be_used() -> None:
    fleet = Fleet(1)
    fleet.outage()
    holder, probe = fleet.half_open()
    fleet.time += RULES.probe_s
    assert not holder.breakers.take(probe, "late")


def test_a_new_worker_does_not_wait_for_what_is_long_over() -> None:
    fleet = Fleet(1)
    fleet.outage()
    fleet.time += 10_000
    late = Member("late", fleet.log, fleet.clock)
    late.catch_up()
    assert late.state() is OPEN
    fleet.time += RULES.spread_s
    late.breakers.allowed(["store"])
    assert (fleet.log.records[-1].state, fleet.log.records[-1].worker) == (HALF, "late")


def test_what_a_late_loser_left_behind_is_written_over_once() -> None:
    fleet = Fleet(2)
    fleet.outage()
    holder, _ = fleet.half_open()
    claims = [message.worker for message in fleet.log.records if message.state is HALF]
    assert (len(set(claims)), claims[0], claims[-1]) == (2, holder.name, holder.name)
    assert [message.worker for message in fleet.log.compact()] == [holder.name]
    said = len(fleet.log.records)
    holder.at = 0
    fleet.settle()  # all is read again, as after an outage of the broker
    assert len(fleet.log.records) == said
    assert isinstance(holder.breakers.allowed(["store"]), Probe)


# Any fleet, any order


class AnyFleet(RuleBasedStateMachine):
    """Workers with skewed clocks read late, die, come, probe; messages are lost and the log is compacted."""

    @initialize(skews=st.lists(st.sampled_from([0.0, -7200.0, 7200.0, 30.0]), min_size=2, max_size=4))
    def start(self, skews: list[float]) -> None:
        self.fleet = Fleet(len(skews), tuple(skews))
        self.fleet.time = YOUNG_S
        self.taken: dict[int, set[str]] = defaultdict(set)
        self.running: dict[str, Member] = {}
        self.born = len(skews)
        self.jobs = 0

    def member(self, number: int) -> Member:
        return self.fleet.members[number % len(self.fleet.members)]

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 6.0, 36.0, 65.0, 130.0, 310.0]))
    def wait(self, seconds: float) -> None:
        self.fleet.time += seconds

    @rule(number=st.integers(0, 9), there=st.booleans())
    def presence(self, number: int, there: bool) -> None:
        """One is heard, or is said to have gone although it may work on."""
        hear(self.fleet, self.member(number).name, there=there)

    @rule()
    def all_are_heard(self) -> None:
        hear(self.fleet, *(member.name for member in self.fleet.members))

    @rule(number=st.integers(0, 9), count=st.integers(1, 5))
    def listen(self, number: int, count: int) -> None:
        self.member(number).catch_up(count)

    @rule(number=st.integers(0, 9), ok=st.booleans(), jobs=st.integers(1, 6))
    def verdicts(self, number: int, ok: bool, jobs: int) -> None:
        for _ in range(jobs):
            self.jobs += 1
            self.member(number).breakers.report(f"j{self.jobs}", "store", None if ok else away())

    @rule(number=st.integers(0, 9))
    def acquire(self, number: int) -> None:
        member = self.member(number)
        answer = member.breakers.allowed(["store"])
        if not isinstance(answer, Probe):
            return
        epoch = member.breakers.states()["store"].epoch
        self.jobs += 1
        if member.breakers.take(answer, f"p{self.jobs}"):
            assert not [job for job, runner in self.running.items() if runner is member and job.endswith(f"@{epoch}")]
            self.taken[epoch].add(member.name)
            self.running[f"p{self.jobs}@{epoch}"] = member

    @precondition(lambda self: self.running)
    @rule(verdict=st.sampled_from(["well", "away", "refused", "nothing"]))
    def probe_ends(self, verdict: str) -> None:
        label, member = self.running.popitem()
        job = label.partition("@")[0]
        if verdict != "nothing":
            failure = {"well": None, "away": away(), "refused": away(**REFUSED)}[verdict]
            member.breakers.report(job, "store", failure)
        member.breakers.ended(job)

    @rule(lost=st.booleans())
    def network(self, lost: bool) -> None:
        self.fleet.log.lost = lost

    @rule(number=st.integers(0, 9))
    def replace_worker(self, number: int) -> None:
        gone = self.member(number)
        self.running = {job: member for job, member in self.running.items() if member is not gone}
        self.born += 1
        fresh = Member(f"w{self.born}", self.fleet.log, self.fleet.clock)
        self.fleet.members[self.fleet.members.index(gone)] = fresh

    @invariant()
    def each_claim_has_one_taker(self) -> None:
        for epoch, names in getattr(self, "taken", {}).items():
            assert len(names) <= 1, (epoch, names)

    @invariant()
    def those_who_have_read_all_agree(self) -> None:
        if not hasattr(self, "fleet"):
            return
        level = [member for member in self.fleet.members if member.at == len(self.fleet.log.records)]
        found = {
            (circuit.state, circuit.epoch, circuit.holder)
            for member in level
            for circuit in [member.breakers.states().get("store")]
            if circuit is not None and circuit.epoch
        }
        assert len(found) <= 1

    def teardown(self) -> None:
        """However it stands: once the dependency is back and messages arrive, the fleet takes jobs again."""
        if not hasattr(self, "fleet"):
            return
        self.fleet.log.lost = False
        for _ in range(12):
            self.fleet.settle()
            answers = [member.breakers.allowed(["store"]) for member in self.fleet.members]
            if set(answers) == {Allowed()}:
                return
            self.fleet.settle()  # claims were made
            for member in self.fleet.members:
                answer = member.breakers.allowed(["store"])
                if isinstance(answer, Probe) and member.breakers.take(answer, "final"):
                    member.breakers.report("final", "store", None)
            self.fleet.settle()
            self.fleet.time += RULES.cap_s + RULES.spread_s
        raise AssertionError("the fleet stays closed to work")


AnyFleet.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_fleet_agrees_probes_once_and_recovers = AnyFleet.TestCase


@given(st.integers(0, 2**32))
def test_an_uncompacted_and_a_compacted_log_lead_to_the_same_end(seed: int) -> None:
    dice, fleet = random.Random(seed), Fleet(3)
    for _ in range(4):
        fleet.outage()
        holder, probe = fleet.half_open()
        holder.breakers.take(probe, "p")
        holder.breakers.report("p", "store", None if dice.random() < 0.5 else away())
        fleet.settle()
    late = Member("late", fleet.log, fleet.clock)
    for message in fleet.log.compact():
        late.breakers.apply(message)
    assert late.state() is fleet.members[0].state()


def test_it_is_safe_for_threads() -> None:
    fleet = Fleet(1)
    one = fleet.members[0].breakers
    barrier = threading.Barrier(4)

    def work(name: int) -> None:
        barrier.wait()
        for number in range(200):
            one.report(f"{name}-{number}", "store", away() if number % 2 else None)
            one.allowed(["store", "models"])
            one.ended(f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fleet.log.records) == 1


# Who is to blame


def past_of(*tries: tuple[str, Failure]) -> Past:
    past = Past()
    for number, (worker, failure) in enumerate(tries, 1):
        past = past.after(Try.of(failure, attempt=number, ended_at=NOW, worker=worker))
    return past


def test_the_disposition_tells_outage_from_poison() -> None:
    fleet = Fleet(1)
    one = fleet.members[0].breakers
    odd = failed(FailureClass.TRANSIENT, "row 7 is odd")
    assert one.disposition(odd, Past()) is Disposition.NONE
    assert one.disposition(odd, past_of(("w0", odd))) is Disposition.NONE
    assert one.disposition(odd, past_of(("w9", failed(FailureClass.TRANSIENT, "row 8 is odd")))) is Disposition.POISON
    assert one.disposition(odd, past_of(("w9", away()))) is Disposition.NONE
    crash = failed(FailureClass.CRASHED, "signal 11")
    assert one.disposition(crash, past_of(("w0", failed(FailureClass.CRASHED, "signal 9")))) is Disposition.POISON
    fleet.outage()
    assert one.disposition(away(), past_of(("w9", away()))) is Disposition.OUTAGE
    assert one.disposition(odd, Past()) is Disposition.NONE
