"""Whatever fails, dies, freezes or comes twice: every job ends exactly once, and every delayed record moves once.

A schedule is everything that happens in a small world of workers, movers, clients, brokers and a store in memory; it
follows from one integer. At each step of each process that process may die, freeze, or be refused, and between the
steps clocks jump by two hours, brokers and store are cut off, brokers forget all locks and delivery counts, requests
are sent twice, jobs are cancelled and recur, workers are drained. Then all is left in peace, and the oracle of the
fault campaign judges: `tests/simulation/oracle.py`.

A failing seed names itself. To run it again, with all that went wrong in it: `SEED=17 python -m tests.simulation`, or
`SEED=17 pytest tests/simulation -k replay`. More of them: `python -m tests.simulation 0:100000 --processes 8`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from schemas.event import EventType
from schemas.outcome import Status
from tests.simulation.__main__ import ROOT, run, spread
from tests.simulation.fate import Fate, Violation
from tests.simulation.faults import FAULTS
from tests.simulation.hand import Hand
from tests.simulation.world import WAYS, World, replay, schedule

FAST, ALL = 300, 10_000
LIMIT_S = 180.0
STEPS = (
    "publish before", "publish after", "put before", "put after", "get", "run", "acknowledge before",
    "acknowledge after", "open before", "read before", "poll before", "poll after", "commit before", "commit after",
)  # fmt: skip
"""Where a process can die: around everything it does outside of itself."""


def told(bad: dict[int, str]) -> str:
    return "\n".join(f"SEED={seed} python -m tests.simulation  # {text}" for seed, text in sorted(bad.items()))


def test_three_hundred_schedules() -> None:
    bad = run(0, FAST)
    assert not bad, told(bad)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_schedules_in_three_minutes() -> None:
    processes = min(os.cpu_count() or 1, 4)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    bad = spread(FAST, FAST + ALL, processes)
    took, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{ALL} schedules in {took:.0f} s, {worked:.0f} s of {processes} cores")
    assert not bad, told(bad)
    assert worked / processes < LIMIT_S, "what others do on this machine at the same time does not count"


@pytest.mark.skipif("SEED" not in os.environ, reason="replays the schedule that SEED names")
def test_replay() -> None:
    error, trace = replay(int(os.environ["SEED"]))
    print(*trace, sep="\n")
    assert error is None


def test_a_schedule_follows_from_its_seed_alone() -> None:
    code = (
        "from tests.simulation.world import schedule; w = schedule(%d); import json;"
        "print(json.dumps([w.fate.trace, sorted(map(str, w.fate.passed.items())), w.time.seconds]))"
    )
    for seed in (11, 29):
        found = {
            subprocess.run(
                [sys.executable, "-c", code % seed],
                cwd=ROOT,
                env=os.environ | {"PYTHONHASHSEED": noise},
                capture_output=True,
                check=True,
            ).stdout.splitlines()[-1]
            for noise in ("1", "2")
        }
        world = schedule(seed)
        assert [json.loads(text)[0] for text in found] == [world.fate.trace]
        assert json.loads(found.pop())[2] == world.time.seconds


def test_the_schedules_come_by_every_step_and_every_fault() -> None:
    passed: Counter[str] = Counter()
    happened: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for seed in range(150):
        world = schedule(seed)
        passed.update(world.fate.passed)
        happened.update(line.split(" ", 1)[1].partition(":")[0] for line in world.fate.trace)
        ways.update(job.way for job in world.oracle.jobs.values())
    assert set(passed) == set(STEPS)
    assert set(happened) == set(FAULTS) | {"dies", "fails", "is frozen", "is thawed"}
    assert set(ways) == set(WAYS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_each_step_loses_and_doubles_nothing(way: str, step: str) -> None:
    for time_ in (1, 2, 3):
        fate = Fate(random.Random(0))
        fate.planned[step] = time_
        fate.calm = True
        world = World(fate)
        world.send(way)
        world.send("good", wait_s=3.0)
        world.finish()
        world.oracle.audit()
        died = [line for line in fate.trace if "dies" in line]
        assert len(died) <= 1
        if way == "good":
            assert world.oracle.jobs["good-0"].runs <= 2
            kept = world.oracle.outcome("good-0")
            assert kept is not None
            assert kept.status is Status.SUCCEEDED


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_each_step_starts_no_paused_job_and_loses_none(step: str, light: bool) -> None:
    for time_ in (1, 2, 3):
        fate = Fate(random.Random(0))
        fate.planned[step] = time_
        fate.calm = True
        world = World(fate, workers=2)
        before = [world.send("good", light=light), world.send("good", wait_s=40.0)]
        for name in before:
            world.pause(name)
        for _ in range(40):
            for hand in list(world.hands):
                world.hand_turn(hand, whole=True)
            for carrier in list(world.carriers):
                world.take(carrier, carrier.turn)
            world.passes(10.0)
        assert [world.oracle.jobs[name].runs for name in before] == [0, 0]
        assert {event.failure.code for event in world.oracle.events if event.failure} <= {"TAPE-3011"}
        looks = [event for event in world.oracle.events if event.job == before[0]]
        assert 5 < len(looks) < 20, "about once a minute in the end"
        world.finish()
        world.oracle.audit()
        assert all(world.oracle.jobs[name].ends == {"succeeded"} for name in before)


def test_a_job_that_is_paused_while_it_runs_begins_again_and_spends_nothing() -> None:
    world = World(Fate(random.Random(0)))
    world.fate.calm = True
    name = world.send("slow")
    hand: Hand = world.hands[0]
    rest = world.rest
    world.rest = lambda hand, seconds: (world.pause(name), rest(hand, seconds))[1]  # type: ignore[method-assign]
    while not world.oracle.jobs[name].runs:
        world.hand_turn(hand, whole=True)
    world.rest = rest  # type: ignore[method-assign]
    world.finish()
    world.oracle.audit()
    told = [(event.type.value, event.attempt) for event in world.oracle.events if event.job == name]
    assert told == [("running", 1), ("postponed", 1), ("running", 1), ("succeeded", 1)]
    assert world.oracle.jobs[name].runs == 2


def test_without_trouble_nothing_is_told_twice() -> None:
    world = World(Fate(random.Random(0)))
    for way in WAYS:
        world.send(way)
    world.finish()
    world.oracle.audit()
    types = Counter(event.type for event in world.oracle.events)
    runs = {way: job.runs for job in world.oracle.jobs.values() for way in [job.way]}
    assert runs == {
        "good": 1, "slow": 1, "flaky": 2, "broken": 1, "bad": 1, "hopeless": 3, "crash": 3, "short": 3, "wrong": 0,
    }  # fmt: skip
    assert types[EventType.RUNNING] == sum(runs.values())
    assert (types[EventType.SUCCEEDED], types[EventType.FAILED], types[EventType.DEAD]) == (3, 1, 5)
    assert len(world.oracle.letters) == 5
    assert world.fate.trace == []


class Machine(RuleBasedStateMachine):
    """The same world, led by hypothesis: what it finds it makes small."""

    @initialize(
        noise=st.integers(0, 9_999),
        trouble=st.sampled_from([0.0, 0.1, 0.3]),
        deaths=st.sampled_from([0.0, 0.05]),
        freezes=st.sampled_from([0.0, 0.05]),
        workers=st.integers(1, 3),
        movers=st.integers(1, 2),
    )
    def begin(self, noise: int, trouble: float, deaths: float, freezes: float, workers: int, movers: int) -> None:
        fate = Fate(random.Random(noise), trouble=trouble, deaths=deaths, freezes=freezes)
        self.world = World(fate, workers=workers, movers=movers)

    @precondition(lambda self: len(self.world.requests) < 4)
    @rule(way=st.sampled_from(WAYS), light=st.booleans(), wait=st.sampled_from([0.0, 2.0, 20.0]))
    def send(self, way: str, light: bool, wait: float) -> None:
        self.world.send(way, light=light, wait_s=wait)

    @rule(which=st.integers(0, 2), whole=st.booleans())
    def work(self, which: int, whole: bool) -> None:
        self.world.hand_turn(self.world.hands[which % len(self.world.hands)], whole=whole)

    @rule(which=st.integers(0, 1))
    def move(self, which: int) -> None:
        carrier = self.world.carriers[which % len(self.world.carriers)]
        self.world.take(carrier, carrier.turn)

    @rule(seconds=st.sampled_from([0.3, 3.0, 7.0, 13.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.world.passes(seconds)

    @precondition(lambda self: self.world.requests)
    @rule(fault=st.sampled_from(sorted(FAULTS)))
    def fault(self, fault: str) -> None:
        self.world.fate.trace.append(fault)
        FAULTS[fault](self.world, self.world.fate.choose)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            self.world.oracle.audit()


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestStateful(Machine.TestCase):  # type: ignore[misc,valid-type]
    """Runs the machine."""


def test_the_oracle_judges_what_is_wrong() -> None:
    world = World(Fate(random.Random(0)))
    world.send("good")
    with pytest.raises(Violation, match="absent"):
        world.oracle.audit()
    hand: Hand = world.hands[0]
    world.finish()
    world.oracle.audit()
    blob = next(name for name in world.store._objects if name.startswith("blobs/"))
    kept = world.store._objects[blob]
    world.store._objects[blob] = (kept[0], b"flipped")
    with pytest.raises(Violation, match="not there"):
        world.oracle.audit()
    world.store._objects[blob] = kept
    world.log.append("t.retry.5s", b"good-0", hand.desk.log.read("t.jobs.say.bulk", 0)[0].value, [("ce_id", b"1")], 0)
    with pytest.raises(Violation, match="moved on"):
        world.oracle.audit()
