"""The ledger: whatever fails or dies at whichever step, every job ends in exactly one outcome or dead letter."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_twin import NAMES, Bench, Clock, kind, request, waits

from schemas.claim import Claim
from schemas.codec import parse
from schemas.dead import DeadLetter
from schemas.errors import InvalidError, JobError, UnavailableError
from schemas.event import Event, EventType, State, follow
from schemas.outcome import Outcome, Status, Succeeded
from schemas.past import read as read_past
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher
from wire.share import AckType, Listener, MemoryLog, MemoryShareConsumer, Record
from wire.share.locks import GroupConfig
from workers.claim import claim_name
from workers.context import Context
from workers.lease import LeaseLoop, Source
from workers.settle import outcome_name

STEPS = ("publish before", "publish after", "create before", "create after", "read", "run", "acknowledge")
"""Where a worker can die: around each publish, around the outcome, in the handler, and before it acknowledges."""


class Died(BaseException):
    """The worker's process ended here."""


class Fate:
    """Decides what goes wrong at each step; after `calm`, nothing does."""

    def __init__(self, seed: int, trouble: float, deaths: float) -> None:
        self._random = random.Random(seed)
        self._trouble, self._deaths = trouble, deaths
        self.calm = False
        self.planned: dict[str, int] = {}
        self.passed: Counter[str] = Counter()

    def meet(self, step: str) -> bool:
        """Die here, or return whether this step fails."""
        self.passed[step] += 1
        if self.planned.get(step) == self.passed[step]:
            raise Died(step)
        if self.calm:
            return False
        if self._random.random() < self._deaths:
            raise Died(step)
        return self._random.random() < self._trouble


class Shaky(MemoryPublisher):
    """A publisher whose records may be lost, or written and not confirmed."""

    def __init__(self, log: MemoryLog, fate: Fate) -> None:
        super().__init__(log)
        self._fate = fate

    def publish(self, topic: str, **options: Any) -> Any:
        if self._fate.meet("publish before"):
            raise UnavailableError("lost", code="TAPE-5003")
        future = super().publish(topic, **options)
        if self._fate.meet("publish after"):
            raise UnavailableError("written, not confirmed", code="TAPE-5003")
        return future


class Cracked(Memory):
    """A store that fails before or after the deed."""

    def __init__(self) -> None:
        super().__init__()
        self.fate = Fate(0, 0, 0)

    def put(self, name: str, *args: Any, **options: Any) -> Any:
        if self.fate.meet("create before"):
            raise UnavailableError("down", code="TAPE-5002")
        blob = super().put(name, *args, **options)
        if self.fate.meet("create after"):
            raise UnavailableError("cut off", code="TAPE-5002")
        return blob

    def get(self, name: str, **options: Any) -> Any:
        if self.fate.meet("read"):
            raise UnavailableError("down", code="TAPE-5002")
        return super().get(name, **options)


class Inline:
    """One slot that runs what it is given when it is told to."""

    size, light = 1, False

    def __init__(self) -> None:
        self.queue: deque[Record] = deque()

    def give(self, record: Record) -> None:
        self.queue.append(record)

    def adapt(self, _: float) -> bool:
        return False

    def drop(self) -> list[Record]:
        return []


class Member(MemoryShareConsumer):
    """A consumer that may die before it acknowledges."""

    fate: Fate
    promised = 0
    lock_timeout = 30.0

    def acknowledge(self, record: Record, kind: AckType = AckType.ACCEPT) -> None:
        if kind is not AckType.RENEW:
            self.fate.meet("acknowledge")
        super().acknowledge(record, kind)


WAYS = ("good", "bad", "broken", "flaky", "hopeless", "wrong")
"""good succeeds; bad is refused by its handler; broken fails for good; flaky works at the second try; hopeless never
does; wrong cannot be read."""


class World:
    """A log, a store, jobs in it, and one worker after another."""

    def __init__(self, fate: Fate, jobs: list[str]) -> None:
        self.fate = fate
        self.clock = Clock()
        self.log = MemoryLog(clock=self.clock)
        self.topic = NAMES.jobs("say", "bulk")
        self.log.create(self.topic)
        self.store = Cracked()
        self.sent: dict[str, str] = {}
        self.ran: Counter[str] = Counter()
        self.moved: set[tuple[str, int, int]] = set()
        self.accepted_early: list[str] = []
        self.deaths: list[str] = []
        for number, way in enumerate(jobs):
            job = f"{way}-{number}"
            key, value, headers = request(job, params={"text": way})
            self.log.append(self.topic, key, b"{" if way == "wrong" else value, headers)
            self.sent[job] = way
        self.hire()

    def hire(self) -> None:
        """A new worker takes over."""
        self.member = Member(
            [self.topic], NAMES.group("say"), self.log, clock=self.clock,
            config=GroupConfig(lock_duration=30, delivery_limit=10_000), listener=Listener(),
        )  # fmt: skip
        self.member.fate = self.fate
        self.store.fate = self.fate
        self.pool = Inline()
        self.bench = Bench(
            kind(self._handler, max_attempts=3), log=self.log, store=self.store,
            publisher=Shaky(self.log, self.fate), worker=f"w{len(self.deaths)}", clock=self.clock,
        )  # fmt: skip
        self.bench.chance = 0.5
        source = Source("say", "bulk", self.member, self.pool)  # type: ignore[arg-type]
        self.loop = LeaseLoop([source], forget=self.bench.again.forget, clock=self.clock)

    def _handler(self, context: Context, params: Any) -> Succeeded:
        self.ran[context.job] += 1
        if self.fate.meet("run"):
            raise JobError("a passing trouble")
        if params.text == "bad":
            raise InvalidError("refused")
        if params.text == "broken":
            raise JobError("for good", code="TAPE-6009")
        if params.text == "hopeless" or (params.text == "flaky" and context.attempt == 1):
            raise JobError("try again")
        return Succeeded(result={"job": context.job})

    def turn(self) -> None:
        """One turn of the loop, the slot and the tries that are due; a death makes room for the next worker."""
        try:
            self.clock.advance(7.0)
            self.move()
            self.bench.claims.beat()
            self.bench.again.run()
            self._pass_on(self.bench.given, self.pool.queue.append)
            if self.pool.queue:
                self.bench.executor.execute(self.pool.queue.popleft(), self.bench.runner)
            self._pass_on(self.bench.acks, lambda pair: self.loop.done(*pair))
            self.loop.step()
        except Died as death:
            self.deaths.append(str(death))
            self.member.crash(at_once=len(self.deaths) % 2 == 0)
            self.hire()

    def move(self) -> None:
        """Move what is due on to its job topic, each record once: what a mover does in a transaction."""
        for waiting in waits(self.log, self.moved):
            if waiting.due <= self.clock.now():
                self.moved.add(waiting.place)
                self.log.append(waiting.record.topic, *waiting.record[3:6])

    def _pass_on(self, items: list[Any], to: Callable[[Any], object]) -> None:
        while items:
            item = items.pop(0)
            if to.__name__ == "<lambda>" and item[1] in (AckType.ACCEPT, AckType.REJECT):
                self._check_durable(item[0], item[1])
            to(item)

    def _check_durable(self, record: Record, ack: AckType) -> None:
        """At the moment of the acknowledgement what it stands for is in the log or the store, and its event too."""
        job = (record.key or b"").decode()
        told = [event for event in self.bench.events(job) if event.outcome is not None or event.until is not None]
        buried = any(letter.job == job for letter in self.letters())
        ended = any(event.outcome is not None for event in told)
        if ack is AckType.REJECT:
            good = buried and ended
        else:
            good = ((buried or job in self.outcomes()) and ended) or self._goes_on(record, told)
        if not good:
            self.accepted_early.append(job)

    def _goes_on(self, record: Record, told: list[Event]) -> bool:
        """Whether another record stands for the job, and somebody said so; of a left-over nobody need tell."""
        spent = read_past(record.headers).spent
        waiting = [one.past.spent for one in waits(self.log) if one.record.key == record.key]
        taken = [
            read_past(one.headers).spent
            for one in self.log.read(self.topic, 0)
            if one.key == record.key and one.offset != record.offset
        ]
        held = self.store._objects.get(claim_name((record.key or b"").decode()))
        left_over = held is not None and not parse(Claim, held[1]).start.place.endswith(f"/{record.offset}")
        return max(waiting + taken, default=-1) >= spent and (left_over or bool(told))

    def letters(self) -> list[DeadLetter]:
        return [
            DeadLetter.model_validate_json(dict(entry.headers)["tape-dead-json"] or b"")
            for entry in self.log.read(NAMES.dead("say"), 0)
        ]

    def outcomes(self) -> dict[str, Outcome]:
        objects = self.store._objects
        return {
            outcome.job: outcome
            for name, (_, data) in objects.items()
            if name.endswith("/outcome.json") and (outcome := Outcome.model_validate_json(data))
        }

    def finish(self, turns: int = 2000) -> None:
        """Trouble for a while, then calm until all is done."""
        for number in range(turns):
            self.fate.calm = self.fate.calm or number > 150
            self.turn()
            left = self.log.group(NAMES.group("say")).describe(self.topic, 0)[1]
            if not left and not self.loop.held and not waits(self.log, self.moved):
                return
        raise AssertionError(f"not done after {turns} turns: {self.deaths}")

    def audit(self) -> None:
        """One outcome or dead letter each; events of one end have one id; the fold of all events agrees."""
        outcomes, letters = self.outcomes(), {letter.job for letter in self.letters()}
        assert self.accepted_early == []
        assert set(outcomes) | letters == set(self.sent)
        assert set(outcomes) & letters == set()
        finals: dict[str, set[str]] = defaultdict(set)
        states: dict[str, State] = {}
        for event in self.bench.events():
            states[event.job] = follow(states.get(event.job), event)
            if event.outcome is not None:
                finals[event.job].add(event.id)
        assert {job: ids for job, ids in finals.items() if len(ids) != 1} == {}
        for job, way in self.sent.items():
            if job in outcomes:
                assert states[job].value == outcomes[job].status.value
                assert way in ("good", "flaky", "broken")
            else:
                assert states[job] is State.DEAD
            if way in ("bad", "hopeless", "wrong"):
                assert job in letters
        originals = {entry.key: entry.value for entry in self.log.read(self.topic, 0)}
        for entry in self.log.read(NAMES.dead("say"), 0):
            assert entry.value == originals[entry.key]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    trouble=st.sampled_from([0.0, 0.1, 0.4]),
    deaths=st.sampled_from([0.0, 0.02, 0.1]),
    jobs=st.lists(st.sampled_from(WAYS), min_size=1, max_size=6),
)
def test_every_job_ends_exactly_once_whatever_fails_or_dies(
    seed: int, trouble: float, deaths: float, jobs: list[str]
) -> None:
    world = World(Fate(seed, trouble, deaths), jobs)
    world.finish()
    world.audit()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_death_at_each_step_loses_and_doubles_nothing(way: str, step: str, time: int) -> None:
    fate = Fate(0, 0, 0)
    fate.planned[step] = time
    world = World(fate, [way, "good"])
    world.finish()
    world.audit()
    assert world.deaths in ([], [step])
    if way == "good":
        (status,) = {outcome.status for outcome in world.outcomes().values()}
        assert status is Status.SUCCEEDED
        # Once the outcome is kept, no death makes the job run again.
        expected = 3 if step in ("run", "create before") or (step, time) in _BEFORE else 2
        assert sum(world.ran.values()) <= expected


_BEFORE = {("publish before", 1), ("publish after", 1), ("publish before", 3), ("publish after", 3)}


def test_without_trouble_nothing_is_told_twice() -> None:
    world = World(Fate(0, 0, 0), list(WAYS))
    world.finish()
    world.audit()
    assert world.deaths == []
    told = Counter(event.type for event in world.bench.events())
    assert told[EventType.RUNNING] == sum(world.ran.values()) == 8
    assert told[EventType.SUCCEEDED] == 2
    assert told[EventType.FAILED] == 1
    assert told[EventType.DEAD] == 3
    assert len(world.letters()) == 3
    assert json.loads(world.store.read(outcome_name("good-0")))["result"] == {"job": "good-0"}
