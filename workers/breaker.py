"""Breakers: whether a dependency is away is found out by all workers together, and known to all of them.

A breaker is closed (jobs that need the dependency are taken), open (they are not), or half open (one job of the whole
fleet tries it). Every step is a message on the compacted control topic, with an epoch one higher than the last; as that
topic has one partition, all workers read the same order, and of several messages with one epoch the first counts. So
a worker acts on its own message only when it has read it back: whoever's claim came first holds the one probe.

It opens when a dependency fails several times in a row, for more than one job, or when several jobs fail alike within
a while and failures prevail. One job that fails again and again opens nothing: that is poison, not an outage.

Times are those of the monotonic clock: of a message only its duration is trusted, so a clock that is hours off neither
keeps a breaker open nor takes a claim from its holder. All steps are pure functions of a `Circuit`; `Breakers` adds
the lock and the publishing. Single calls have breakers of their own process beside this one: see `workers.guard`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from zlib import crc32

import structlog

from schemas.control import Breaker, BreakerState
from schemas.errors import FailureClass, TapeError
from schemas.outcome import Failure
from schemas.past import Past
from workers.failures import dependency as owner
from workers.failures import fingerprint

_LOG = structlog.get_logger("tickertape.breaker")
NEUTRAL = frozenset({FailureClass.INVALID, FailureClass.PERMANENT})
KIND = "kind:"
"""Before a kind's name: the breaker of all that its jobs need and nobody named."""
"""Classes that say nothing about a dependency: the job itself is at fault."""
KEPT = 64
"""Failures that are remembered for one dependency."""
LONGEST_S = 3_600.0
"""Seconds a foreign message may keep a breaker from moving on."""
YOUNG_S = 30.0
"""Seconds in which a worker reads what was said before it came; only then it needs the wall clock."""


class Disposition(StrEnum):
    """Who is to blame for a failure: the world, the job, or nobody yet."""

    OUTAGE = "outage"
    POISON = "poison"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When breakers open and for how long. Times are seconds."""

    streak: int = 5
    jobs: int = 3
    window_s: float = 60.0
    share: float = 0.5
    base_s: float = 5.0
    factor: float = 2.0
    cap_s: float = 300.0
    probe_s: float = 120.0
    spread_s: float = 2.0
    answer_s: float = 5.0

    def pause(self, opened: int, chance: float) -> float:
        """Return how long the breaker stays open the `opened`-th time in a row (from 1); half of it is jitter."""
        return min(self.cap_s, self.base_s * self.factor ** min(opened - 1, 32)) * (1 + chance) / 2


@dataclass(frozen=True, slots=True)
class Seen:
    """A failure of the dependency: when (monotonic), whose, and what it looks like."""

    at: float
    job: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """What one worker knows of one dependency."""

    state: BreakerState = BreakerState.CLOSED
    epoch: int = 0
    holder: str = ""
    opened: int = 0
    until: float = 0.0
    said: Breaker | None = None
    seen: tuple[Seen, ...] = ()
    successes: int = 0
    streak: int = 0
    crowd: frozenset[str] = frozenset()
    asked: float = float("-inf")
    probe: str | None = None
    repeated: bool = False

    @property
    def quiet(self) -> bool:
        """Closed, and without a failure in memory."""
        return self.state is BreakerState.CLOSED and not self.seen and self.asked == float("-inf")


@dataclass(frozen=True, slots=True)
class Order:
    """A message to publish: the next step that this worker wants."""

    state: BreakerState
    seconds: float | None = None
    opened: int = 0
    reason: str = ""
    fingerprint: str | None = None


Step = tuple[Circuit, Order | None]


def report(
    circuit: Circuit, job: str, look: str | None, *, me: str, now: float, rules: Rules, chance: float, row: bool = True
) -> Step:
    """Take in a verdict on the dependency: `look` is the failure's fingerprint, None a success.

    Without `row` it counts for failures that are alike, and not for failures in a row.
    """
    if circuit.state is BreakerState.HALF_OPEN and circuit.holder == me and circuit.probe == job:
        settled = replace(circuit, asked=now)
        if look is None:
            return settled, Order(BreakerState.CLOSED, reason="the probe succeeded")
        opened = circuit.opened + 1
        return settled, Order(BreakerState.OPEN, rules.pause(opened, chance), opened, "the probe failed", look)
    if circuit.state is not BreakerState.CLOSED:
        return circuit, None
    if look is None:
        return _well(circuit, now, rules), None
    circuit = _remember(circuit, Seen(now, job, look), rules, row)
    reason = _outage(circuit, look, rules)
    if reason is None or now - circuit.asked < rules.answer_s:
        return circuit, None
    order = Order(BreakerState.OPEN, rules.pause(circuit.opened + 1, chance), circuit.opened + 1, reason, look)
    return replace(circuit, asked=now), order


def _well(circuit: Circuit, now: float, rules: Rules) -> Circuit:
    if not circuit.seen:
        return circuit
    if now - circuit.seen[-1].at > rules.window_s:
        return replace(circuit, seen=(), successes=0, streak=0, crowd=frozenset())
    return replace(circuit, successes=circuit.successes + 1, streak=0, crowd=frozenset())


def _remember(circuit: Circuit, last: Seen, rules: Rules, row: bool) -> Circuit:
    kept = (*(one for one in circuit.seen if last.at - one.at <= rules.window_s), last)[-KEPT:]
    before = len(circuit.seen)
    fresh = circuit.successes * (len(kept) - 1) // before if before else 0  # successes age with the failures
    crowd = circuit.crowd if len(circuit.crowd) > rules.jobs else circuit.crowd | {last.job}
    if not row:
        return replace(circuit, seen=kept, successes=fresh)
    return replace(circuit, seen=kept, successes=fresh, streak=circuit.streak + 1, crowd=crowd)


def _outage(circuit: Circuit, look: str, rules: Rules) -> str | None:
    """Return why this is an outage, or None."""
    if circuit.streak >= rules.streak and len(circuit.crowd) > 1:
        return f"{circuit.streak} failures in a row, of {len(circuit.crowd)} jobs or more"
    alike = {one.job for one in circuit.seen if one.fingerprint == look}
    prevails = len(circuit.seen) >= rules.share * (len(circuit.seen) + circuit.successes)
    if len(alike) >= rules.jobs and prevails:
        return f"{len(alike)} jobs failed alike within {rules.window_s:.0f} s"
    return None


def apply(circuit: Circuit, message: Breaker, *, me: str, now: float, wall: datetime | None) -> tuple[Circuit, bool]:
    """Take in the next message of the log; `wall` only where it may be an old one. True: say the present step again.

    Compaction keeps the last message of a key, which may be one that came too late and counts for nothing; the worker
    whose step is in force then repeats it, once.
    """
    if message.epoch <= circuit.epoch:
        late = (message.epoch, message.worker) != (circuit.epoch, circuit.holder)
        again = late and circuit.holder == me and not circuit.repeated
        return (replace(circuit, repeated=True) if again else circuit), again
    left = 0.0
    if message.until is not None:
        left = min(max((message.until - message.since).total_seconds(), 0.0), LONGEST_S)
        if wall is not None:
            left = min(max((message.until - wall).total_seconds(), 0.0), left)
    taken = Circuit(
        state=message.state,
        epoch=message.epoch,
        holder=message.worker,
        opened=message.opened if message.state is not BreakerState.CLOSED else 0,
        until=now + left,
        said=message,
    )
    return taken, False


@dataclass(frozen=True, slots=True)
class Allowed:
    """Take jobs."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Take none before `until`, which may move."""

    until: datetime
    reason: str
    dependency: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Take exactly one job, and say so by `Breakers.take` before it runs."""

    dependencies: tuple[str, ...]


Answer = Allowed | Paused | Probe


def ask(circuit: Circuit, *, me: str, now: float, rules: Rules) -> tuple[Circuit, float, Order | None]:
    """Return how many seconds jobs must wait (0: take them, one where it is half open), and a claim if one is due."""
    if now - circuit.asked < rules.answer_s:  # a step of ours is on its way; it is as good as said
        return circuit, rules.answer_s - (now - circuit.asked), None
    if circuit.state is BreakerState.CLOSED:
        return circuit, 0.0, None
    mine = circuit.state is BreakerState.HALF_OPEN and circuit.holder == me
    if now < circuit.until and mine and circuit.probe is None:
        return circuit, 0.0, None
    # Not all at once: each worker comes a little later than the moment, by a time of its own.
    due = circuit.until + rules.spread_s * (crc32(f"{me} {circuit.epoch}".encode()) % 1_000) / 1_000
    if now < due:
        return circuit, due - now, None
    claim = Order(BreakerState.HALF_OPEN, rules.probe_s, circuit.opened, "one job tries it")
    return replace(circuit, asked=now, probe=None), rules.answer_s, claim


class Breakers:
    """All breakers of one worker. Thread-safe.

    `publish` sends a message to the control topic under `schemas.control.key`, without waiting for it to arrive: one
    that is lost is said again. Whatever is read from there goes to `apply`, this worker's own messages too.
    """

    def __init__(
        self,
        worker: str,
        now: Callable[[], datetime],
        publish: Callable[[Breaker], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        rules: Rules | None = None,
    ) -> None:
        self._me, self._now, self._publish = worker, now, publish
        self._clock, self._chance, self._rules = clock, chance, rules or Rules()
        self._circuits: dict[str, Circuit] = {}
        self._lock = threading.Lock()
        self._born = clock()

    @property
    def worker(self) -> str:
        """Whose they are."""
        return self._me

    def report(self, job: str, dependency: str, failure: Failure | None) -> None:
        """Tell how it went: a job used the dependency well (None), or failed because of it."""
        circuits = self._circuits
        if failure is None and circuits.get(dependency, _FRESH).quiet:
            return
        if failure is not None and failure.failure in NEUTRAL:
            self._give_back(job, dependency)
            return
        look = None if failure is None else fingerprint(failure.code, failure.message)
        # Jobs that kill their processes in different ways are poison, and their neighbours go on.
        poison = failure is not None and failure.failure is FailureClass.CRASHED and dependency.startswith(KIND)
        with self._lock:
            found = report(
                circuits.get(dependency, _FRESH), job, look, me=self._me, now=self._clock(), rules=self._rules,
                chance=self._chance(), row=not poison,
            )  # fmt: skip
            circuits[dependency] = found[0]
        self._say(dependency, found)

    def apply(self, message: Breaker) -> None:
        """Take in a message of the control topic, in the order of the log."""
        with self._lock:
            before = self._circuits.get(message.dependency, _FRESH)
            now = self._clock()
            wall = self._now() if now - self._born < YOUNG_S else None
            circuit, again = apply(before, message, me=self._me, now=now, wall=wall)
            self._circuits[message.dependency] = circuit
        if again and circuit.said is not None:
            self._send(circuit.said)

    def allowed(self, dependencies: Iterable[str]) -> Answer:
        """Say whether jobs that need these dependencies may be taken now; claims the probe where one is due."""
        circuits = self._circuits
        asked = sorted(name for name in set(dependencies) if not circuits.get(name, _FRESH).quiet)
        probes: list[str] = []
        # In one order everywhere, the next only when the last is held: two workers never wait for each other's claim.
        for name in asked:
            with self._lock:
                before = circuits.get(name, _FRESH)
                circuit, wait, order = ask(before, me=self._me, now=self._clock(), rules=self._rules)
                circuits[name] = circuit
            self._say(name, (circuit, order))
            if wait > 0:
                reason = circuit.said.reason if circuit.said else "it is opening"
                return Paused(self._now() + timedelta(seconds=wait), reason, name, wait)
            if circuit.state is BreakerState.HALF_OPEN:
                probes.append(name)
        return Probe(tuple(probes)) if probes else Allowed()

    def take(self, probe: Probe, job: str) -> bool:
        """Make `job` the probe. False: the claim is gone meanwhile; postpone the job."""
        with self._lock:
            found = {name: self._circuits.get(name, _FRESH) for name in probe.dependencies}
            if not all(self._holds(circuit) and circuit.probe is None for circuit in found.values()):
                return False
            self._circuits.update({name: replace(circuit, probe=job) for name, circuit in found.items()})
        return True

    def ended(self, job: str) -> None:
        """A job is over, whatever came of it: if it was a probe without a verdict, another one may try."""
        for name in [name for name, circuit in list(self._circuits.items()) if circuit.probe == job]:
            self._give_back(job, name)

    def disposition(self, failure: Failure, past: Past) -> Disposition:
        """Say who is to blame: an open breaker, or the job that fails alike on different workers or crashes again."""
        name = owner(failure)
        if name is not None and self._circuits.get(name, _FRESH).state is not BreakerState.CLOSED:
            return Disposition.OUTAGE
        look = fingerprint(failure.code, failure.message)
        workers = {one.worker for one in past.tries if fingerprint(one.code, one.message) == look}
        crashed = failure.failure is FailureClass.CRASHED and any(
            one.failure is FailureClass.CRASHED for one in past.tries
        )
        return Disposition.POISON if crashed or workers - {self._me} else Disposition.NONE

    @property
    def calm(self) -> bool:
        """Whether nothing has ever failed: then there is nothing to ask."""
        return not self._circuits

    def states(self) -> dict[str, Circuit]:
        """Return what is known of every dependency: for views and metrics."""
        return dict(self._circuits)

    def _holds(self, circuit: Circuit) -> bool:
        mine = circuit.state is BreakerState.HALF_OPEN and circuit.holder == self._me
        return mine and self._clock() < circuit.until and self._clock() - circuit.asked >= self._rules.answer_s

    def _give_back(self, job: str, dependency: str) -> None:
        with self._lock:
            circuit = self._circuits.get(dependency, _FRESH)
            if circuit.probe == job:
                self._circuits[dependency] = replace(circuit, probe=None)

    def _say(self, dependency: str, step: Step) -> None:
        circuit, order = step
        if order is None:
            return
        since = self._now()
        self._send(
            Breaker(
                dependency=dependency,
                state=order.state,
                epoch=circuit.epoch + 1,
                worker=self._me,
                since=since,
                until=None if order.seconds is None else since + timedelta(seconds=order.seconds),
                opened=order.opened,
                reason=order.reason,
                fingerprint=order.fingerprint,
            )
        )

    def _send(self, message: Breaker) -> None:
        try:
            self._publish(message)
        except TapeError as error:  # a verdict must not fail the job it is about; the step is asked for again
            _LOG.warning("a breaker's step was not published", dependency=message.dependency, error=str(error))


_FRESH = Circuit()
