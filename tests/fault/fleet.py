"""Real workers on a real broker, jobs from a plain Kafka client, and the ledger that nothing may fall out of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer

from schemas.dead import DISPOSITION
from schemas.event import Event, EventType
from schemas.outcome import Outcome
from schemas.topics import Names, groups, topics
from wire.blobs import open_store
from wire.broker import NativeBroker
from wire.follow import KafkaFollower
from wire.process import wait_until
from wire.settings import Settings
from wire.topics import ensure

ROOT = Path(__file__).parents[2]
KINDS = ("echo", "trouble", "light")


@dataclass
class Crew:
    """One worker process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def lines(self) -> list[dict[str, Any]]:
        """Its log, as far as it is JSON."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"event": line})
        return found

    def said(self, event: str) -> bool:
        return any(line.get("event") == event for line in self.lines() if isinstance(line, dict))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)


@dataclass
class Mark:
    """A line that a handler wrote when it started."""

    job: str
    worker: str
    attempt: int
    at: float

    @property
    def pid(self) -> int:
        return int(self.worker.rsplit("-", 2)[1])


@dataclass
class Fleet:
    """Workers and the jobs sent to them."""

    settings: Settings
    folder: Path
    crews: list[Crew] = field(default_factory=list)
    sent: dict[str, str] = field(default_factory=dict)
    _producer: Any = None

    def __enter__(self) -> Fleet:
        self.names = Names(self.settings.prefix)
        self.prepare(*KINDS)
        return self

    def prepare(self, *kinds: str) -> None:
        """Make the topics and groups of these kinds."""
        wanted = topics(self.names, kinds, self.settings.partitions)
        ensure(self.settings, wanted, groups(self.names, kinds, self.settings.lock_ms))

    def delete(self, topic: str) -> None:
        """Delete a topic, as somebody might by mistake."""
        admin = KafkaAdminClient(bootstrap_servers=self.settings.kafka_url)
        try:
            admin.delete_topics([topic])
        finally:
            admin.close()

    def __exit__(self, *_: object) -> None:
        for crew in self.crews:
            if crew.process.poll() is None:
                crew.process.kill()
            crew.process.wait()
        self.hush()

    def hush(self) -> None:
        """Close the client: while a broker is down, kafka-python leaves the sockets of its tries unclosed."""
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def start(self, *arguments: str, kinds: str = "trouble,light", wait: bool = True, **env: str) -> Crew:
        """Start one worker and wait until it is up."""
        log = self.folder / f"worker-{len(self.crews)}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TAPE_")}
        paths = os.pathsep.join([str(ROOT / "tests" / "trouble"), str(ROOT)])
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", "--kinds", kinds, *arguments],
                stdout=out, stderr=subprocess.STDOUT, env=clean | self.settings.environ() | {"PYTHONPATH": paths} | env,
                cwd=self.folder,
            )  # fmt: skip
        crew = Crew(process, log)
        self.crews.append(crew)
        if wait:
            assert wait_until(lambda: crew.said("worker up") or process.poll() is not None, deadline_s=60)
            assert process.poll() is None, log.read_text()
        return crew

    def submit(self, job: str, kind: str = "trouble", lane: str = "bulk", **fields: Any) -> None:
        """Publish as docs/protocol.md says, with a plain client, and wait for the broker's word."""
        if self._producer is None:
            self._producer = KafkaProducer(bootstrap_servers=self.settings.kafka_url, acks="all")
        headers = {
            "ce_specversion": "1.0", "ce_id": job, "ce_source": "/desk", "ce_type": f"tape.request.{kind}.v1",
            "ce_subject": job,
        }  # fmt: skip
        self._producer.send(
            self.names.jobs(kind, lane),
            key=job.encode(),
            value=json.dumps(fields).encode(),
            headers=[(name, text.encode()) for name, text in headers.items()],
        ).get(30)
        self.sent[job] = kind

    def work(self, job: str, seconds: float, kind: str = "trouble", **fields: Any) -> None:
        """Send a job that leaves a mark when it starts."""
        params = {"do": "work", "seconds": seconds, "mark": str(self.folder / "marks")}
        self.submit(job, kind, params=params, **fields)

    def marks(self, job: str | None = None) -> list[Mark]:
        """What handlers wrote when they started."""
        try:
            lines = (self.folder / "marks").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [Mark(one, worker, int(attempt), float(at)) for one, worker, attempt, at in map(str.split, lines)]
        return [mark for mark in found if job is None or mark.job == job]

    def started(self, job: str, times: int = 1, deadline_s: float = 60) -> list[Mark]:
        """Wait until a job was started so many times."""
        assert wait_until(lambda: len(self.marks(job)) >= times, deadline_s=deadline_s, every_s=0.01), (
            f"{job} was started {len(self.marks(job))} times\n{self.logs()}"
        )
        return self.marks(job)

    def events(self) -> Iterator[Event]:
        with KafkaFollower(self.settings).read(self.names.events) as feed:
            for batch in feed:
                for record in batch:
                    yield Event.model_validate_json(record.value or b"")

    def ended(self) -> dict[str, set[str]]:
        """The final events by job, each with their ids: readers drop repeats of one id."""
        found: dict[str, set[str]] = {}
        for event in self.events():
            if event.outcome is not None:
                found.setdefault(event.job, set()).add(event.id)
        return found

    def all_ended(self, deadline_s: float = 90) -> None:
        """Wait until everything that was sent has ended."""
        until = time.monotonic() + deadline_s
        while not set(self.sent) <= set(self.ended()):
            assert time.monotonic() < until, f"{set(self.sent) - set(self.ended())} never ended\n{self.logs()}"

    def check(self) -> Counter[str]:
        """The ledger: everything that was acknowledged ended exactly once. Returns how."""
        ended = self.ended()
        assert set(ended) == set(self.sent)
        assert {job: ids for job, ids in ended.items() if len(ids) != 1} == {}
        statuses = {event.job: event.outcome for event in self.events() if event.outcome is not None}
        dead = self.letters()
        store = open_store(self.settings)
        for job, kind in self.sent.items():
            outcome = statuses[job]
            assert outcome is not None
            assert (job in dead) == (outcome.status == "dead"), f"{job} is {outcome.status} and dead={job in dead}"
            if kind == "trouble" and job not in dead:
                assert Outcome.model_validate_json(store.read(f"runs/{job}/outcome.json")) == outcome
        return Counter(outcome.status.value for outcome in statuses.values() if outcome is not None)

    def letters(self) -> dict[str, bytes | None]:
        """The jobs with a dead letter, and its verdict."""
        found: dict[str, bytes | None] = {}
        for kind in KINDS:
            with KafkaFollower(self.settings).read(self.names.dead(kind)) as feed:
                for batch in feed:
                    for record in batch:
                        headers = dict(record.headers)
                        found[(headers["tape-dead-job"] or b"").decode()] = headers.get(DISPOSITION)
        return found

    def runs(self, job: str) -> int:
        """How often a job was told to be running."""
        return sum(event.type is EventType.RUNNING for event in self.events() if event.job == job)

    def logs(self) -> str:
        """The ends of all logs, for a failing test."""
        return "\n".join(f"== {crew.log.name}\n{crew.log.read_text(errors='replace')[-3000:]}" for crew in self.crews)


def kill(pid: int) -> float:
    """Kill a process for certain; returns when."""
    os.kill(pid, signal.SIGKILL)
    return time.time()


def restart(broker: NativeBroker) -> None:
    """Kill a broker's one node, and start it again once it is gone."""
    pid = broker.status().nodes[0].pid
    assert pid is not None
    kill(pid)
    assert wait_until(lambda: not broker.status().running, deadline_s=10)
    broker.start(tie=True)
