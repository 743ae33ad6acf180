"""What a worker measures of itself: a table of metrics, fed by facts that are there already.

How jobs end is counted from the events once the broker has them; what is held, open or late is asked when somebody
reads. A light job costs two increments and the reading of its event, some microseconds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics import Meter as Instruments

from schemas.control import Breaker, BreakerState
from schemas.event import FINAL, STATE_OF, Event, State
from schemas.topics import Names
from workers.again import Again
from workers.attempt import Record
from workers.breaker import Breakers
from workers.circuit import Circuit
from workers.delay import Mover
from workers.kinds import Kind
from workers.lease import LeaseLoop
from workers.runner import Runner
from workers.slots import Pool, Work

Sort = Literal["counter", "gauge", "histogram"]
Values = Iterable[tuple[float, Mapping[str, str]]]
Read = Callable[[], Values]
BOUNDS_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 10_800, 21_600)
"""Where the buckets of durations end: jobs take from moments to hours."""
STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name, what sort it is, its labels, its unit, and what it tells."""

    name: str
    sort: Sort
    labels: tuple[str, ...]
    told: str
    unit: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tape.jobs.taken", "counter", ("kind", "lane"), "records that a slot took up"),
        Metric(
            "tape.jobs.ended", "counter", ("kind", "lane", "status", "class"), "jobs that ended here, dead ones too"
        ),
        Metric(
            "tape.jobs.retried", "counter", ("kind", "lane", "class"), "attempts after which the job is tried again"
        ),
        Metric("tape.jobs.postponed", "counter", ("kind", "lane", "reason"), "jobs put off without an attempt spent"),
        Metric("tape.jobs.dead", "counter", ("kind", "class", "code"), "dead letters written here"),
        Metric(
            "tape.jobs.seconds", "histogram", ("kind",), "how long a slot had a job, kinds that run in a process", "s"
        ),
        Metric("tape.slots.busy", "counter", ("kind",), "time that slots spent on jobs", "s"),
        Metric("tape.slots", "gauge", ("pool",), "slots of this worker"),
        Metric("tape.leases", "gauge", ("kind",), "records held: running, waiting for a slot, waiting to be settled"),
        Metric("tape.settling", "gauge", (), "ended jobs whose end could not be made durable yet"),
        Metric("tape.loop.age", "gauge", (), "time since the loop that owns Kafka last turned", "s"),
        Metric("tape.breaker.state", "gauge", ("dependency",), "0 closed, 1 half open, 2 open, for the whole fleet"),
        Metric("tape.breaker.opens", "counter", ("dependency",), "times that it opened"),
        Metric("tape.mover.records", "counter", ("what",), "delayed records moved or buried, recurring jobs fired"),
        Metric(
            "tape.mover.late", "gauge", (), "the latest that a record was moved after it was due, since the start", "s"
        ),
    )
}


class Tally:
    """Counters by their labels; thread-safe."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, *labels: str, by: float = 1) -> None:
        """Count one more."""
        with self._lock:
            self._counts[labels] += by

    def items(self) -> list[tuple[tuple[str, ...], float]]:
        """Return what was counted."""
        with self._lock:
            return list(self._counts.items())


class Meter:
    """The meter of one worker. What it is not told of by `watch` is simply not there."""

    def __init__(
        self,
        instruments: Instruments,
        names: Names,
        kinds: Mapping[str, Kind],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._instruments, self._names, self._kinds = instruments, names, kinds
        self._now, self._born = now, time.monotonic()
        counted = [metric.name for metric in METRICS.values() if metric.sort == "counter"]
        self._tallies: dict[str, Tally] = {name: Tally() for name in counted if name != "tape.mover.records"}
        for name, tally in self._tallies.items():
            self.watch(name, partial(self._counted, name, tally))
        metric = METRICS["tape.jobs.seconds"]
        self._seconds = instruments.create_histogram(
            metric.name, metric.unit, metric.told, explicit_bucket_boundaries_advisory=BOUNDS_S
        )

    def watch(self, name: str, read: Read) -> None:
        """Ask `read` for the values of a metric whenever somebody looks."""
        metric = METRICS[name]
        make = self._instruments.create_observable_gauge
        if metric.sort == "counter":
            make = self._instruments.create_observable_counter  # type: ignore[assignment]
        make(name, [partial(_observe, read)], metric.unit, metric.told)

    def look(
        self, breakers: Breakers, loop: LeaseLoop, pools: Iterable[Pool], again: Again, mover: Mover | None
    ) -> None:
        """Watch the parts of a worker."""

        def leases() -> Values:
            held = Counter(kind for _, kind in loop.leases())
            return [(held[kind], {"kind": kind}) for kind in self._kinds]

        def moved() -> Values:
            assert mover is not None
            return [(getattr(mover, what), {"what": what}) for what in ("moved", "buried", "fired")]

        self.watch("tape.leases", leases)
        self.watch("tape.slots", lambda: [(pool.size, {"pool": pool.name}) for pool in pools])
        self.watch("tape.settling", lambda: [(again.pending, {})])
        self.watch("tape.loop.age", lambda: [(loop.age, {})])
        self.watch(
            "tape.breaker.state",
            lambda: [(STATES[circuit.state], {"dependency": name}) for name, circuit in breakers.states().items()],
        )
        if mover is not None:
            self.watch("tape.mover.records", moved)
            self.watch("tape.mover.late", lambda: [(mover.late_s, {})])

    def slots(self, work: Work, spent: Callable[[Record, float], None] = lambda *_: None) -> Work:
        """Return `work`, measured; `spent` hears for how many seconds a record had its slot."""
        taken, busy = self._tallies["tape.jobs.taken"], self._tallies["tape.slots.busy"]
        topics: dict[str, tuple[str, str, bool]] = {}

        def run(record: Record, runner: Runner) -> None:
            found = topics.get(record.topic)
            if found is None:
                found = topics[record.topic] = self._place(record.topic)
            kind, lane, recorded = found
            taken.add(kind, lane)
            began = time.perf_counter()
            work(record, runner)
            seconds = time.perf_counter() - began
            busy.add(kind, by=seconds)
            spent(record, seconds)
            if recorded:
                self._seconds.record(seconds, {"kind": kind})

        return run

    def breaker(self, breakers: Breakers, message: Breaker) -> None:
        """Pass on a breaker's step, and count it if it opens: of several with one epoch only the first counts."""
        before = breakers.states().get(message.dependency, Circuit()).epoch
        breakers.apply(message)
        after = breakers.states().get(message.dependency, Circuit())
        start = self._now() - timedelta(seconds=time.monotonic() - self._born)
        if after.epoch > before and after.state is BreakerState.OPEN and message.since > start:
            self._tallies["tape.breaker.opens"].add(message.dependency)

    def _counted(self, name: str, tally: Tally) -> Values:
        return [(count, dict(zip(METRICS[name].labels, labels, strict=True))) for labels, count in tally.items()]

    def _place(self, topic: str) -> tuple[str, str, bool]:
        kind, lane = self._names.parse_jobs(topic)
        return kind, lane, kind in self._kinds and self._kinds[kind].recorded

    def told(self, event: Event) -> None:
        """Count an event that the broker has. A repeat of an end that another worker told counts here too."""
        state, failure, tallies = STATE_OF[event.type], event.failure, self._tallies
        cause = failure.failure.value if failure else ""
        if state in FINAL:
            tallies["tape.jobs.ended"].add(event.kind, event.lane, event.type.value, cause)
        if state is State.DEAD:
            tallies["tape.jobs.dead"].add(event.kind, cause, failure.code if failure else "")
        elif state is State.RETRYING:
            tallies["tape.jobs.retried"].add(event.kind, event.lane, cause)
        elif state is State.POSTPONED:
            reason = (failure.place.get("dependency") or failure.code) if failure else "scheduled"
            tallies["tape.jobs.postponed"].add(event.kind, event.lane, str(reason))


def _observe(read: Read, _: CallbackOptions) -> Iterable[Observation]:
    return [Observation(value, labels) for value, labels in read()]
