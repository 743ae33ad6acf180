"""One run of one system: fill its queue, start its worker, watch it work, end it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition

from benchmarks.rig.machine import Meter
from benchmarks.rig.services import ROOT, Services
from schemas.topics import Names
from wire.process import Process, alive, spawn, stop, tail, wait_until

SLOTS = 16
LIMIT_S = 60.0
"""How long one run may take; what is not done by then is reported as not done."""
SAMPLE_S = 0.1
SUCCEEDED = b"tape.event.succeeded.v1"


@dataclass(frozen=True, slots=True)
class System:
    """A system under measure. `records` says whether the outcome of every job is kept; `needs` are its services."""

    key: str
    title: str
    needs: tuple[str, ...]
    records: bool = False
    jobs: int = 5_000
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a handler left: the job's number, when it was made, started and ended, and in which process."""

    number: int
    made: float
    start: float
    end: float
    pid: int


@dataclass(slots=True)
class Drain:
    """What was seen of a run: how many jobs were done when, and what that cost."""

    points: list[tuple[float, int]] = field(default_factory=list)
    samples: list[tuple[int, float, float]] = field(default_factory=list)
    rss_mb: int = 0
    enqueue: float = 0.0
    note: str = ""

    def rate(self) -> float:
        """Return jobs a second over the middle 80 % of the jobs: neither the start nor the last slots count."""
        low, high = self._cut(0.1), self._cut(0.9)
        return (high[1] - low[1]) / max(1e-9, high[0] - low[0])

    def whole(self) -> float:
        """Return jobs a second from the first to the last."""
        (first, began), (last, done) = self.points[0], self.points[-1]
        return (done - began) / max(1e-9, last - first)

    def _cut(self, share: float) -> tuple[float, int]:
        wanted = share * self.points[-1][1]
        return next(point for point in self.points if point[1] >= wanted)

    def cost(self) -> tuple[float, float]:
        """Return the CPU microseconds that a job cost the worker, and the brokers."""
        total = self.points[-1][1]
        inner = [sample for sample in self.samples if 0.05 * total <= sample[0] <= 0.95 * total]
        inner = inner if len(inner) > 1 else [sample for sample in self.samples if sample[0]]
        if len(inner) < 2 or inner[-1][0] == inner[0][0]:
            return 0.0, 0.0
        (count, worker, broker), (count2, worker2, broker2) = inner[0], inner[-1]
        jobs = (count2 - count) / 1e6
        return (worker2 - worker) / jobs, (broker2 - broker) / jobs


class Run:
    """The base: a log of marks, a worker or several, the meters on them. A context manager: at its end nothing runs."""

    def __init__(self, services: Services, system: System) -> None:
        self.services, self.system = services, system
        self.name = f"{system.key}-{uuid.uuid4().hex[:8]}"
        self.log = services.folder / f"{self.name}.marks"
        self.output = services.folder / f"{self.name}.log"
        self.workers: list[Process] = []
        for name in system.needs:
            services.url(name)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            stop(worker, grace_s=self.grace_s)
        for path in (self.log, self.output):
            path.unlink(missing_ok=True)

    grace_s = 0.0
    """A drained peer is killed: some take many seconds to end politely."""

    def environment(self) -> dict[str, str]:
        """Return the variables of worker and producer."""
        return os.environ | {
            "BENCH_RUN": self.name, "BENCH_LOG": str(self.log), "BENCH_SLOTS": str(SLOTS),
            "BENCH_RESULTS": str(int(self.system.records)), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
        }  # fmt: skip

    def producer(self, count: int, seconds: float, rate: float, first: int) -> list[str]:
        """Return the command that enqueues jobs and prints a line RATE."""
        raise NotImplementedError

    def worker(self, count: int) -> list[str]:
        """Return the command of one worker process."""
        raise NotImplementedError

    def fill(self, count: int, *, seconds: float = 0.0, rate: float = 0.0, first: int = 0) -> dict[str, float]:
        """Enqueue jobs; return what the producer printed."""
        command = self.producer(count, seconds, rate, first)
        limit = LIMIT_S + (count / rate if rate else 0)
        found = subprocess.run(
            command, cwd=self.services.folder, env=self.environment(), capture_output=True, text=True, timeout=limit,
            check=False,
        )  # fmt: skip
        if found.returncode:
            raise RuntimeError(f"{self.system.title}: enqueueing failed: {found.stderr.strip().splitlines()[-1:]}")
        rows = [line.split() for line in found.stdout.splitlines() if line.startswith(("RATE", "CPU"))]
        return {row[0]: float(row[1]) for row in rows}

    def start(self, count: int, workers: int = 1) -> None:
        """Start worker processes."""
        with chdir(self.services.folder):  # services and workers write nothing into the clone
            for _ in range(workers):
                self.workers.append(spawn(self.worker(count), log=self.output, env=self.environment(), tie=True))

    def marks(self) -> list[Mark]:
        """Return what the handlers left so far."""
        return list(_marks(self.log))

    def counted(self, lines: bytes) -> int:
        """Return how many jobs a piece of the log tells of."""
        return lines.count(b"\n")

    def watch(self, count: int) -> Drain:
        """Wait until `count` jobs are done and return what was seen meanwhile."""
        drain, done, place, sampled = Drain(), 0, 0, 0.0
        worker = Meter(process.pid for process in self.workers)
        brokers = Meter(pid for name in self.system.needs for pid in self.services.pids(name))
        until = time.monotonic() + LIMIT_S
        while done < count and time.monotonic() < until:
            time.sleep(0.03)
            living = any(alive(process) for process in self.workers)  # asked first: its last words are read below
            with suppress(FileNotFoundError), self.log.open("rb") as file:
                file.seek(place)
                lines = file.read()
                place += len(lines)
                done += self.counted(lines)
            if time.monotonic() - sampled > SAMPLE_S:
                sampled = time.monotonic()
                drain.samples.append((done, worker.cpu(), brokers.cpu()))
                drain.rss_mb = max(drain.rss_mb, worker.rss())
            if not living:
                break
        if done < count:
            drain.note = f"{done} of {count} done: {tail(self.output, 3)}"
        return drain

    def ended(self, drain: Drain) -> None:
        """Take the exact moments from the log, after the jobs are done."""
        ends = sorted(mark.end for mark in self.marks())
        drain.points = [(end, number) for number, end in enumerate(ends, 1)]

    def drain(self, count: int, *, seconds: float = 0.0, workers: int = 1) -> Drain:
        """Fill the queue, then start workers and watch until it is empty."""
        filled = self.fill(count, seconds=seconds)
        self.start(count, workers)
        drain = self.watch(count)
        drain.enqueue = filled["RATE"]
        self.ended(drain)
        return drain


class PeerRun(Run):
    """A run of another queue."""

    def __init__(self, services: Services, system: System, commands: Path) -> None:
        super().__init__(services, system)
        self._commands = commands
        if "kafka" in system.needs:
            services.topic(self.name, SLOTS)

    def environment(self) -> dict[str, str]:
        """Add where the brokers are."""
        urls = {"redis": "BENCH_REDIS", "rabbit": "BENCH_AMQP", "kafka": "BENCH_KAFKA"}
        return super().environment() | {urls[name]: self.services.url(name) for name in self.system.needs}

    def producer(self, count: int, seconds: float, rate: float, first: int) -> list[str]:
        """Use the peer's own client."""
        python = str(self._commands / "python")
        return [python, "-m", "benchmarks.peers.produce", self.system.peer, *map(str, (count, seconds, rate, first))]

    def worker(self, count: int) -> list[str]:
        """One process with 16 slots: threads, or tasks of an event loop."""
        peer, module = self.system.peer, f"benchmarks.peers.{self.system.peer}"
        command = str(self._commands / peer)
        return {
            "dramatiq": [command, module, "--processes", "1", "--threads", str(SLOTS)],
            "celery": [command, "-A", module, "worker", "-P", "threads", "-c", str(SLOTS), "-l", "WARNING"],
            "taskiq": [command, "worker", f"{module}:broker", "-w", "1", "--max-async-tasks", str(SLOTS),
                       "--log-level", "WARNING"],
            "faststream": [command, "run", f"{module}:app", "--log-level", "warning"],
        }[peer]  # fmt: skip


class TapeRun(Run):
    """A run of Tickertape: real worker processes; what counts is the outcome event in the broker's log."""

    grace_s = 10.0

    def __init__(self, services: Services, system: System, *, kind: str = "noop", prefix: str = "tape.") -> None:
        super().__init__(services, system)
        self.kind, self.settings = kind, services.settings(prefix)
        self.way = "publisher"
        self._consumer = KafkaConsumer(bootstrap_servers=self.settings.kafka_servers, enable_auto_commit=False)
        topic = Names(prefix).events
        places = [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic)]
        self._consumer.assign(places)
        self._from: Mapping[TopicPartition, int] = self._consumer.end_offsets(places)

    def __exit__(self, *given: object) -> None:
        self._consumer.close()
        super().__exit__(*given)

    def environment(self) -> dict[str, str]:
        """Add Tickertape's settings, and its kinds to the path."""
        path = f"{self.services.kinds()}{os.pathsep}{ROOT}"
        return super().environment() | self.settings.environ() | {"PYTHONPATH": path}

    def producer(self, count: int, seconds: float, rate: float, first: int) -> list[str]:
        """Submit through the client or the publisher, as `way` says."""
        module = [sys.executable, "-m", "benchmarks.rig.load", self.way, self.kind]
        return [*module, *map(str, (count, seconds, rate, first))]

    def worker(self, count: int) -> list[str]:
        """The worker as anybody starts it."""
        return [sys.executable, "-m", "workers", "--kinds", self.kind, "--slots", str(SLOTS)]

    def ended(self, drain: Drain) -> None:
        """Stop the worker politely, then count the outcome events and read the moments the broker put on them."""
        for worker in self.workers:
            if not stop(worker, grace_s=self.grace_s):
                drain.note = drain.note or "a worker had to be killed"
        moments, jobs = self._events()
        drain.points = [(moment, number) for number, moment in enumerate(sorted(moments), 1)]
        ran = len(self.marks())
        if len(jobs) != ran or len(moments) != ran:
            drain.note = drain.note or f"{ran} runs, {len(moments)} outcome events of {len(jobs)} jobs"

    def _events(self) -> tuple[list[float], set[bytes]]:
        ends = self._consumer.end_offsets(list(self._from))
        for place, offset in self._from.items():
            self._consumer.seek(place, offset)
        moments, jobs = [], set()
        until = time.monotonic() + LIMIT_S
        while any(self._consumer.position(place) < end for place, end in ends.items()):
            for records in self._consumer.poll(1000, max_records=5000).values():
                for record in records:
                    if dict(record.headers).get("ce_type") == SUCCEEDED:
                        moments.append(record.timestamp / 1000)
                        jobs.add(record.key)
            if time.monotonic() > until:
                break
        return moments, jobs


class BareRun(TapeRun):
    """A run of the bare loop over Tickertape's topics."""

    def worker(self, count: int) -> list[str]:
        """No worker, only its road to Kafka and back."""
        return [sys.executable, "-m", "benchmarks.rig.bare", self.system.peer, str(count)]

    def counted(self, lines: bytes) -> int:
        """The lines tell how many are done so far."""
        rows = [int(line.split()[1]) for line in lines.splitlines()]
        before, self._done = self._done, max([self._done, *rows])
        return self._done - before

    _done = 0

    def ended(self, drain: Drain) -> None:
        """The loop itself tells when it acknowledged."""
        wait_until(lambda: not any(map(alive, self.workers)), deadline_s=self.grace_s)  # the last are acknowledged
        rows = [line.split() for line in self.log.read_text().splitlines()]
        drain.points = [(float(row[0]), int(row[1])) for row in rows]
        assert all(earlier <= later for earlier, later in pairwise(drain.points))


def _marks(log: Path) -> Iterator[Mark]:
    with suppress(FileNotFoundError), log.open() as file:
        for line in file:
            number, made, start, end, pid = line.split()
            yield Mark(int(number), float(made), float(start), float(end), int(pid))
