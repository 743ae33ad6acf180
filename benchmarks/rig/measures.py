"""The measures: each a function of a bench that returns rows, the repetitions of all systems taken in turn."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rig.runs import BareRun, Drain, PeerRun, Run, System, TapeRun
from benchmarks.rig.services import ONE, ROOT, MissingError, Services, environment
from schemas.topics import Names, groups, topics
from wire.process import alive, spawn, stop, tail, wait_until
from wire.settings import Settings
from wire.topics import ensure

TAPE = System("tickertape", "Tickertape", ("kafka",), records=True, jobs=20_000)
BARE = (
    System("bare-pure", "bare loop, plain kafka-python", ("kafka",), jobs=10_000, peer="pure"),
    System("bare-plain", "bare loop, kafka-python producer", ("kafka",), jobs=15_000, peer="plain"),
    System("bare-publisher", "bare loop, our publisher", ("kafka",), jobs=30_000, peer="publisher"),
)
PEERS = (
    System("dramatiq", "Dramatiq, RabbitMQ", ("rabbit",), jobs=6_000, peer="dramatiq"),
    System("celery", "Celery, RabbitMQ", ("rabbit",), jobs=4_000, peer="celery"),
    System("celery-result", "Celery, RabbitMQ + results in Redis", ("rabbit", "redis"), True, 3_000, "celery"),
    System("taskiq", "Taskiq, Redis", ("redis",), jobs=5_000, peer="taskiq"),
    System("faststream", "FastStream, Kafka, AckPolicy.ACK", ("kafka",), jobs=4_000, peer="faststream"),
    System("dramatiq-result", "Dramatiq, RabbitMQ + results in Redis", ("rabbit", "redis"), True, 4_000, "dramatiq"),
    System("taskiq-result", "Taskiq, Redis + results in Redis", ("redis",), True, 4_000, "taskiq"),
)
BEYOND = ("dramatiq-result", "taskiq-result")
"""Peers in ways that the issue's targets do not name; shown beside, left out of a quick run."""

Row = dict[str, Any]


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Bench:
    """One run of the benchmark: what to measure, how often, and until when repetitions are begun."""

    services: Services
    only: frozenset[str]
    quick: bool
    repetitions: int
    until: float
    skipped: dict[str, str] = field(default_factory=dict)

    def chosen(self, *systems: System) -> list[System]:
        """Return those of the systems that were asked for and can run here; the others are skipped with a reason."""
        found = []
        for system in systems:
            if (self.only and system.key not in self.only) or system.key in self.skipped:
                continue
            try:
                for name in system.needs:
                    self.services.url(name)
                if system in PEERS:
                    environment(self.services.cache)
                found.append(system)
            except MissingError as error:
                self.skipped[system.key] = str(error)
                say(f"  skipped: {system.title}: {error}")
        return found

    def open(self, system: System, **options: Any) -> Run:
        """Return a fresh run of a system."""
        if system in BARE:
            return BareRun(self.services, system)
        if system in PEERS:
            return PeerRun(self.services, system, environment(self.services.cache))
        return TapeRun(self.services, system, **options)

    def rounds(self) -> Iterator[int]:
        """Count repetitions, as long as there is time for one more like the longest so far."""
        longest = 0.0
        for number in range(self.repetitions):
            began = time.monotonic()
            if number and began + longest > self.until:
                say("  no time for another repetition")
                return
            yield number
            longest = max(longest, time.monotonic() - began)

    def size(self, jobs: int) -> int:
        """Return how many jobs a repetition takes."""
        return jobs // 2 if self.quick else jobs


@dataclass(slots=True)
class Tally:
    """The repetitions of one system under one measure."""

    title: str
    drains: list[Drain] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, work: Callable[[], Drain]) -> None:
        """Add a repetition; one that failed leaves a note and no figure."""
        try:
            drain = work()
            if drain.note:
                self.notes.append(drain.note)
            drain.rate()
        except (RuntimeError, OSError, subprocess.SubprocessError, IndexError, StopIteration) as error:
            self.notes.append(f"{type(error).__name__}: {error}")
            say(f"  {self.title}: {self.notes[-1]}")
            return
        self.drains.append(drain)
        say(f"  {self.title}: {drain.rate():,.0f} jobs/s{'; ' + drain.note if drain.note else ''}")

    def row(self) -> Row:
        """Return medians and every figure behind them."""
        costs = [drain.cost() for drain in self.drains]
        return {
            "title": self.title,
            "rate": median([drain.rate() for drain in self.drains]),
            "rates": [round(drain.rate()) for drain in self.drains],
            "whole": median([drain.whole() for drain in self.drains]),
            "worker_us": median([cost[0] for cost in costs]),
            "broker_us": median([cost[1] for cost in costs]),
            "rss_mb": median([float(drain.rss_mb) for drain in self.drains]),
            "enqueue": median([drain.enqueue for drain in self.drains]),
            "notes": self.notes,
        }


def median(values: list[float]) -> float | None:
    """Return the median, to three digits more than anybody needs; None of nothing."""
    return round(statistics.median(values), 3) if values else None


def noop(bench: Bench) -> dict[str, Row]:
    """No-op jobs from a filled queue, one worker process with 16 slots."""
    peers = [peer for peer in PEERS if not (bench.quick and peer.key in BEYOND)]
    systems = bench.chosen(TAPE, *BARE, *peers)
    tallies = {system.key: Tally(system.title) for system in systems}
    if TAPE in systems:  # the broker's code is compiled while it runs: the first jobs are not counted
        with bench.open(TAPE) as run:
            run.drain(bench.size(6_000))
    for _ in bench.rounds():
        for system in systems:
            with bench.open(system) as run:
                tallies[system.key].add(partial(run.drain, bench.size(system.jobs)))
    return {key: tally.row() for key, tally in tallies.items()}


def sleep(bench: Bench) -> dict[str, Row]:
    """Jobs that sleep 10 ms, 16 slots: 1,600 a second would be ideal."""
    systems = bench.chosen(TAPE, PEERS[0])
    tallies = {system.key: Tally(system.title) for system in systems}
    for _ in bench.rounds():
        for system in systems:
            with bench.open(system) as run:
                tallies[system.key].add(partial(run.drain, bench.size(6_000), seconds=0.01))
    return {key: tally.row() for key, tally in tallies.items()}


def latency(bench: Bench) -> dict[str, Row]:
    """Milliseconds from before the submission until the handler starts, 50 jobs a second, on a warm worker."""
    systems = bench.chosen(TAPE, PEERS[0])
    count = 200 if bench.quick else 500
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in bench.rounds():
        for system in systems:
            ways = ("submit", "publisher") if system is TAPE else ("",)
            with bench.open(system) as run:
                run.start(0)
                run.fill(50, rate=50.0)
                for number, way in enumerate(ways, 1):
                    if isinstance(run, TapeRun):
                        run.way = way
                    first = number * 100_000
                    run.fill(count, rate=50.0, first=first)
                    wait_until(partial(_covers, run, first, count), deadline_s=10)
                    times = sorted((m.start - m.made) * 1000 for m in run.marks() if first <= m.number < first + count)
                    title = f"{system.title}{', ' if way else ''}{_WAYS.get(way, '')}"
                    if len(times) < count:
                        say(f"  {title}: {len(times)} of {count} started: {tail(run.output, 3)}")
                        continue
                    cuts = (times[count // 2], times[count * 99 // 100], times[-1])
                    found.setdefault(title, []).append(cuts)
                    say(f"  {title}: p50 {cuts[0]:.1f} ms, p99 {cuts[1]:.1f} ms")
    return {
        title: {
            "title": title,
            "p50_ms": median([cut[0] for cut in cuts]),
            "p99_ms": median([cut[1] for cut in cuts]),
            "max_ms": max(cut[2] for cut in cuts),
            "jobs": count,
            "repetitions": len(cuts),
        }
        for title, cuts in found.items()
    }


_WAYS = {"submit": "Client.submit", "many": "Client.submit_many", "publisher": "KafkaPublisher"}


def _covers(run: Run, first: int, count: int) -> bool:
    return sum(first <= mark.number < first + count for mark in run.marks()) >= count


def memory(bench: Bench) -> dict[str, Row]:
    """Resident memory of a worker of the three model kinds that waits for its first job, and whether torch is in it."""
    if not bench.chosen(TAPE):
        return {}
    services = bench.services
    settings = services.settings()
    kinds = "training,evaluation,inference"
    _topics(settings, tuple(kinds.split(",")))
    log = services.folder / "memory.log"
    command = [sys.executable, "-m", "workers", "--kinds", kinds, "--health-port", "0"]
    process = spawn(command, log=log, env=os.environ | settings.environ() | {"PYTHONPATH": str(ROOT)}, tie=True)
    try:
        up = wait_until(lambda: "health on" in tail(log, 50), deadline_s=30, process=process)
        wait_until(lambda: False, deadline_s=4, process=process)  # groups joined, first fetches answered
        if not up or not alive(process):
            say(f"  the worker did not stay up: {tail(log, 3)}")
            return {}
        worker = psutil.Process(process.pid)
        rss = worker.memory_info().rss >> 20
        children = [child.memory_info().rss >> 20 for child in worker.children(recursive=True)]
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    finally:
        stop(process)
    say(f"  {rss} MB, warm children {children}")
    row = {"title": f"python -m workers --kinds {kinds}", "rss_mb": rss, "children_mb": children}
    return {"tickertape": row | {"torch": "torch" in maps}}


def _topics(settings: Settings, kinds: tuple[str, ...]) -> None:
    names = Names(settings.prefix)
    wanted = [topic for topic in topics(names, kinds) if topic.name != names.events]
    ensure(settings, wanted, groups(names, kinds))


def scale(bench: Bench) -> dict[str, Row]:
    """One and two worker processes on a topic with one partition; the broker shares the cores with them."""
    if not bench.chosen(TAPE):
        return {}
    tallies: dict[str, Tally] = {}
    shares: dict[str, list[float]] = {}
    for _ in bench.rounds():
        for kind, jobs in (("noop", 20_000), ("burn", 4_000)):
            for workers in (1, 2):
                key = f"{kind}-{workers}"
                tally = tallies.setdefault(key, Tally(f"{_JOBS[kind]}, {workers} worker{'s' * (workers > 1)}"))
                with ExitStack() as stack:
                    run = stack.enter_context(bench.open(TAPE, kind=kind, prefix=ONE))
                    tally.add(partial(run.drain, bench.size(jobs), workers=workers))
                    by_worker = Counter(mark.pid for mark in run.marks())
                    shares.setdefault(key, []).append(round(min(by_worker.values()) / sum(by_worker.values()), 2))
    return {key: tally.row() | {"smaller_share": shares[key]} for key, tally in tallies.items()}


_JOBS = {"noop": "no-op", "burn": "1 ms of CPU"}


def enqueue(bench: Bench) -> dict[str, Row]:
    """Jobs submitted a second by one process, each confirmed by the broker (acks=all)."""
    if not bench.chosen(TAPE):
        return {}
    found: dict[str, list[dict[str, float]]] = {}
    for _ in bench.rounds():
        for way, jobs in (("submit", 1_500), ("many", 6_000), ("publisher", 30_000)):
            with bench.open(TAPE, kind="sink") as run:
                assert isinstance(run, TapeRun)
                run.way = way
                count = bench.size(jobs)
                try:
                    told = run.fill(count)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    say(f"  {_WAYS[way]}: {error}")
                    continue
                told["cpu_us"] = told["CPU"] / count * 1e6
                found.setdefault(way, []).append(told)
                say(f"  {_WAYS[way]}: {told['RATE']:,.0f} jobs/s")
    return {
        way: {
            "title": _WAYS[way],
            "rate": median([told["RATE"] for told in rows]),
            "rates": [round(told["RATE"]) for told in rows],
            "client_us": median([told["cpu_us"] for told in rows]),
        }
        for way, rows in found.items()
    }


MEASURES: dict[str, Callable[[Bench], dict[str, Row]]] = {
    "noop": noop,
    "sleep": sleep,
    "latency": latency,
    "memory": memory,
    "scale": scale,
    "enqueue": enqueue,
}
