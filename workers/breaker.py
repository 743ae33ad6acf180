"""Breakers: whether a dependency is away is found out by all workers together, and known to all of them.

A breaker is closed (jobs that need the dependency are taken), open (they are not), or half open (one job of the whole
fleet tries it). Every step is a message on the compacted control topic, with an epoch one higher than the last; as that
topic has one partition, all workers read the same order, and of several messages with one epoch the first counts. So
a worker acts on its own message only when it has read it back: whoever's claim came first holds the one probe. Whoever
dies with it is missed on the same topic, where every worker says every ten seconds that it is there: its claim ends
when it counts as silent. One that is only slow to say so loses its claim, no more: the log decides whose step counts.

Credentials that are refused are the worker's own: its breaker `store@WORKER` opens, and the others go on. Where they
are refused to all, each finds that out for itself.

When a breaker steps is decided in `workers.circuit`; `Breakers` adds the lock and the publishing. Single calls have
breakers of their own process beside this one: see `workers.guard`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import structlog

from schemas.control import SILENT_S, Breaker, BreakerState, private
from schemas.errors import FailureClass, TapeError
from schemas.outcome import Failure
from schemas.past import Past
from workers.circuit import FRESH, LONGEST_S, Blame, Circuit, Order, Rules, Step, apply, ask, hand_on, report
from workers.failures import REFUSED, cause, fingerprint
from workers.failures import dependency as owner

_LOG = structlog.get_logger("tickertape.breaker")
NEUTRAL = frozenset({FailureClass.INVALID, FailureClass.PERMANENT})
"""Classes that say nothing about a dependency: the job itself is at fault."""
KIND = "kind:"
"""Before a kind's name: the breaker of all that its jobs need and nobody named."""
KNOWN = 1_000
"""Workers that are remembered at least."""
YOUNG_S = 30.0
"""Seconds in which a worker reads what was said before it came; only then it needs the wall clock."""


class Disposition(StrEnum):
    """Who is to blame for a failure: the world, the job, or nobody yet."""

    OUTAGE = "outage"
    POISON = "poison"
    NONE = "none"


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
        self._claimed_for: dict[str, frozenset[str]] = {}
        """All that the jobs need for which a probe was claimed last."""
        self._heard: dict[str, float] = {}
        """When each worker last said that it is there (monotonic)."""
        self._lock = threading.Lock()
        self._born = clock()

    @property
    def worker(self) -> str:
        """Whose they are."""
        return self._me

    def report(self, job: str, dependency: str, failure: Failure | None) -> None:
        """Tell how it went: a job used the dependency well (None), or failed because of it."""
        mine = private(dependency, self._me)
        if failure is None:
            self._judge(job, mine, None)
        refused = failure is not None and failure.code in REFUSED
        self._judge(job, mine if refused else dependency, failure)
        if refused:
            self._hand_on(dependency, job, "its credentials were refused: another worker tries")

    def _judge(self, job: str, dependency: str, failure: Failure | None) -> None:
        circuits = self._circuits
        if failure is None and circuits.get(dependency, FRESH).quiet:
            return
        if failure is not None and failure.failure in NEUTRAL:
            self._give_back(job, dependency)
            return
        blame = None if failure is None else Blame(fingerprint(failure.code, failure.message), cause(failure))
        # Jobs that kill their processes in different ways are poison, and their neighbours go on.
        poison = failure is not None and failure.failure is FailureClass.CRASHED and dependency.startswith(KIND)
        with self._lock:
            found = report(
                circuits.get(dependency, FRESH), job, blame, me=self._me, now=self._clock(), rules=self._rules,
                chance=self._chance(), row=not poison,
            )  # fmt: skip
            circuits[dependency] = found[0]
        self._say(dependency, found)

    def apply(self, message: Breaker) -> None:
        """Take in a message of the control topic, in the order of the log."""
        with self._lock:
            before = self._circuits.get(message.dependency, FRESH)
            now = self._clock()
            wall = self._now() if now - self._born < YOUNG_S else None
            circuit, again = apply(before, message, me=self._me, now=now, wall=wall)
            self._circuits[message.dependency] = circuit
        if again and circuit.said is not None:
            self._send(circuit.said)

    def heard(self, worker: str, *, there: bool = True) -> None:
        """Take in that a worker says that it is there, or took that back, in the order of the log."""
        now = self._clock()
        self._heard[worker] = now if there else float("-inf")
        if len(self._heard) > KNOWN:
            self._heard = {name: at for name, at in self._heard.items() if now - at < LONGEST_S}

    def _ask(self, circuit: Circuit) -> tuple[Circuit, float, Order | None]:
        now, silent = self._clock(), float("inf")
        # Who does not hear himself hears nobody; who was never heard may be an older worker, that says nothing.
        if now - self._heard.get(self._me, float("-inf")) < SILENT_S and circuit.holder in self._heard:
            silent = self._heard[circuit.holder] + SILENT_S
        return ask(circuit, me=self._me, now=now, rules=self._rules, silent=silent)

    def allowed(self, dependencies: Iterable[str]) -> Answer:
        """Say whether jobs that need these dependencies may be taken now; claims the probe where one is due."""
        circuits = self._circuits
        whole = frozenset(dependencies)
        names = {name for one in whole for name in (one, private(one, self._me))}
        known = (name for name in names if not circuits.get(name, FRESH).quiet)
        asked = sorted(known, key=lambda name: ("@" not in name, name))  # its own trouble first
        probes: list[str] = []
        # Nobody claims the fleet's probe of one while another is away for him: the others could use it.
        for name in asked:
            circuit, wait, order = self._ask(circuits.get(name, FRESH))
            if wait > 0 and order is None:
                self._let_go(whole, name)
                return self._paused(name, circuit, wait)
        # In one order everywhere, the next only when the last is held: two workers never wait for each other's claim.
        for name in asked:
            with self._lock:
                before = circuits.get(name, FRESH)
                circuit, wait, order = self._ask(before)
                circuits[name] = circuit
            self._say(name, (circuit, order))
            if order is not None:
                self._claimed_for[name] = whole
            if wait > 0:
                return self._paused(name, circuit, wait)
            if circuit.state is BreakerState.HALF_OPEN:
                probes.append(name)
        return Probe(tuple(probes)) if probes else Allowed()

    def apart(self, dependencies: Iterable[str]) -> bool:
        """Whether something of this is away for this worker, and nothing for the fleet: others may take the jobs."""
        whole = frozenset(dependencies)
        return any(self._away(private(name, self._me)) for name in whole) and not any(map(self._away, whole))

    def _away(self, name: str) -> bool:
        circuit = self._circuits.get(name, FRESH)
        return circuit.state is not BreakerState.CLOSED or self._clock() - circuit.asked < self._rules.answer_s

    def _let_go(self, whole: frozenset[str], away: str) -> None:
        """Hand on what was claimed for jobs that need all of this, where one of it is away: they cannot probe it."""
        if self._clock() - self._circuits.get(away, FRESH).asked < self._rules.answer_s:
            return  # not away: a step of our own is on its way
        for name in whole - {away}:
            circuit = self._circuits.get(name, FRESH)
            if self._claimed_for.get(name) == whole and self._clock() - circuit.asked >= self._rules.answer_s:
                self._hand_on(name, None, f"{away} is away for its holder: another worker tries")

    def _paused(self, name: str, circuit: Circuit, wait: float) -> Paused:
        reason = circuit.said.reason if circuit.said else "it is opening"
        reason += f" ({circuit.cause})" if circuit.cause else ""
        return Paused(self._now() + timedelta(seconds=wait), reason, name, wait)

    def take(self, probe: Probe, job: str) -> bool:
        """Make `job` the probe. False: the claim is gone meanwhile; postpone the job."""
        with self._lock:
            found = {name: self._circuits.get(name, FRESH) for name in probe.dependencies}
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
        names = () if name is None else (name, private(name, self._me))
        if any(self._circuits.get(one, FRESH).state is not BreakerState.CLOSED for one in names):
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

    def _hand_on(self, dependency: str, job: str | None, reason: str) -> None:
        with self._lock:
            before = self._circuits.get(dependency, FRESH)
            found = hand_on(before, job, reason, me=self._me, now=self._clock(), rules=self._rules)
            self._circuits[dependency] = found[0]
        self._say(dependency, found)

    def _give_back(self, job: str, dependency: str) -> None:
        with self._lock:
            circuit = self._circuits.get(dependency, FRESH)
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
                cause=order.cause,
            )
        )

    def _send(self, message: Breaker) -> None:
        try:
            self._publish(message)
        except TapeError as error:  # a verdict must not fail the job it is about; the step is asked for again
            _LOG.warning("a breaker's step was not published", dependency=message.dependency, error=str(error))
