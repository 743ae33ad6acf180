"""How soon a dead worker's job runs elsewhere, beside Celery and Dramatiq in the same sitting.

    python benchmarks/recovery.py [--kills 50] [--quick] [--only tickertape,celery-redis,…] [--wait 30]

Two workers, one job at a time. In the middle of the job its worker is killed (SIGKILL, with all its processes); the
time is from the kill to the job's handler beginning on the other worker. A new worker takes the dead one's place before
the next kill. All peers acknowledge late and have their defaults else: Celery on Redis hands a job on after its
visibility timeout (one hour), Dramatiq on Redis after its heartbeat timeout (60 s). What does not come within `--wait`
seconds is told as such, and after three of those a system is given up. It is all kept in `.bench/recovery.json`.
"""

import sys
from pathlib import Path

# A neighbour of this file has the name of a module of the standard library: its folder must not be searched.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from abc import ABC, abstractmethod  # noqa: E402
from contextlib import chdir, suppress  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

from benchmarks.rig.hold import NAMES  # noqa: E402
from benchmarks.rig.machine import describe  # noqa: E402
from benchmarks.rig.services import MissingError, Services, environment  # noqa: E402
from schemas.codec import Envelope, encode, request_type  # noqa: E402
from schemas.ids import uuid7  # noqa: E402
from schemas.topics import Names, groups, topics  # noqa: E402
from wire.process import Process, alive, spawn, stop, tail, wait_until  # noqa: E402
from wire.publish import KafkaPublisher  # noqa: E402
from wire.settings import Settings  # noqa: E402
from wire.topics import ensure  # noqa: E402

SECONDS = 1.0
"""Length of a job; the kill falls into its first half."""
UP_S, GIVE_UP = 60.0, 3
TARGET_S = 3.0
SEED = 11


class Mark(NamedTuple):
    """The beginning of a job: on which worker, and when."""

    number: int
    worker: int
    at: float


class System(ABC):
    """A queue with two workers. A context manager: at its end nothing of it runs."""

    title, up = "", ""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.name = f"hold-{uuid7()[-8:]}"
        self.marked = services.folder / f"{self.name}.marks"
        self.workers: dict[int, Process] = {}
        self._logs: list[Path] = []

    def __enter__(self) -> "System":
        for _ in range(2):
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            stop(worker, grace_s=0.0)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command of one worker."""

    @abstractmethod
    def send(self, number: int) -> None:
        """Enqueue a job, confirmed."""

    def environment(self) -> dict[str, str]:
        """Return the variables of the workers."""
        quiet = {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        return os.environ | quiet | {"BENCH_LOG": str(self.marked), "BENCH_RUN": self.name}

    def start(self) -> None:
        """Start a worker and wait until it says that it is up. Raises `MissingError`."""
        log = self.services.folder / f"{self.name}-{len(self._logs)}.log"
        self._logs.append(log)
        with chdir(self.services.folder):
            worker = spawn(self.command(), log=log, env=self.environment(), tie=True)
        self.workers[worker.pid] = worker
        if not wait_until(lambda: self.up in log.read_text(errors="replace"), deadline_s=UP_S, process=worker):
            raise MissingError(f"{self.title}: a worker did not start: {tail(log, 3)}")

    def marks(self, number: int) -> list[Mark]:
        """Return when and where a job has begun so far."""
        with suppress(FileNotFoundError):
            rows = (line.split() for line in self.marked.read_text().splitlines())
            return [Mark(int(n), int(worker), float(at)) for n, worker, at in rows if int(n) == number]
        return []

    def round(self, number: int, dice: random.Random, wait_s: float) -> float | None:
        """Send a job, kill its worker in the middle; return the seconds until it began on the other, or None."""
        self.send(number)
        if not wait_until(lambda: self.marks(number), deadline_s=UP_S, every_s=0.01):
            raise MissingError(f"{self.title}: a job did not start: {tail(self._logs[-1], 3)}")
        time.sleep(dice.uniform(0, SECONDS / 2))
        (first,) = self.marks(number)
        dead = self.workers.pop(first.worker)
        os.killpg(dead.pid, signal.SIGKILL)
        killed = time.time()
        found = wait_until(lambda: len(self.marks(number)) > 1, deadline_s=wait_s, every_s=0.01)
        took = self.marks(number)[1].at - killed if found else None
        wait_until(lambda: not alive(dead), deadline_s=5.0)
        self.start()
        time.sleep(SECONDS if found else 0.0)  # the next job finds both workers idle
        return took


class Tape(System):
    """Tickertape, with a light kind or one that runs in a child process."""

    up = "worker up"

    def __init__(self, services: Services, kind: str, title: str) -> None:
        super().__init__(services)
        self.kind, self.title = kind, title
        self.settings = services.settings(f"{self.name}.").model_copy(update={"log_level": "info"})
        self.names = Names(self.settings.prefix)
        ensure(self.settings, topics(self.names, NAMES, 8), groups(self.names, NAMES))
        self._publisher = KafkaPublisher(self.settings)

    def __exit__(self, *given: object) -> None:
        super().__exit__(*given)
        self._publisher.close()

    def environment(self) -> dict[str, str]:
        """Add the settings, and the kinds to the path."""
        info = self.services.folder / "hold" / "tickertape_hold-0.dist-info"
        if not info.exists():
            info.mkdir(parents=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tickertape-hold\nVersion: 0\n")
            lines = [f"{name} = benchmarks.rig.hold:{name}\n" for name in NAMES]
            (info / "entry_points.txt").write_text("[tickertape.kinds]\n" + "".join(lines))
        path = f"{info.parent}{os.pathsep}{ROOT}"
        return super().environment() | self.settings.environ() | {"PYTHONPATH": path}

    def command(self) -> list[str]:
        """One worker as anybody starts it."""
        return [sys.executable, "-m", "workers", "--kinds", self.kind, "--slots", "1"]

    def send(self, number: int) -> None:
        """The record as any upstream system would publish it."""
        value = json.dumps({"params": {"number": number, "seconds": SECONDS}}).encode()
        job = f"job-{number}"
        envelope = Envelope(id=job, type=request_type(self.kind), source="/benchmark", data=value, subject=job)
        topic = self.names.jobs(self.kind, "bulk")
        self._publisher.publish(topic, key=job.encode(), value=value, headers=encode(envelope)).result(30)


class Peer(System):
    """Celery or Dramatiq on Redis or RabbitMQ."""

    def __init__(self, services: Services, peer: str, broker: str, title: str) -> None:
        super().__init__(services)
        self.peer, self.title = peer, title
        self._url = services.url(broker)
        self._commands = environment(Settings.load().cache)
        self.up = {"celery": "ready.", "dramatiq": "is ready for action"}[peer]
        self._sender: subprocess.Popen[str] | None = None

    def __exit__(self, *given: object) -> None:
        super().__exit__(*given)
        if self._sender is not None:
            self._sender.kill()
            self._sender.communicate()

    def environment(self) -> dict[str, str]:
        """Add which peer, and where its broker is."""
        return super().environment() | {"BENCH_PEER": self.peer, "BENCH_BROKER": self._url}

    def command(self) -> list[str]:
        """One worker with one slot: a child process of Celery, a thread of a child process of Dramatiq."""
        module, program = "benchmarks.peers.hold", str(self._commands / self.peer)
        if self.peer == "celery":
            return [program, "-A", module, "worker", "-c", "1", "-l", "INFO", "-n", f"{uuid7()[-8:]}@%h"]
        return [program, module, "--processes", "1", "--threads", "1"]

    def send(self, number: int) -> None:
        """Use the peer's own client, in a process of its own."""
        if self._sender is None:
            self._sender = subprocess.Popen(
                [str(self._commands / "python"), "-m", "benchmarks.peers.hold"], env=self.environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                cwd=self.services.folder,
            )  # fmt: skip
        assert self._sender.stdin is not None
        assert self._sender.stdout is not None
        self._sender.stdin.write(f"{number} {SECONDS}\n")
        self._sender.stdin.flush()
        if self._sender.stdout.readline().strip() != "sent":
            raise MissingError(f"{self.title}: a job could not be sent")


SYSTEMS: dict[str, Any] = {
    "tickertape": lambda services: Tape(services, "hold", "Tickertape, job in a child process"),
    "tickertape-light": lambda services: Tape(services, "brief", "Tickertape, light job"),
    "celery-rabbit": lambda services: Peer(services, "celery", "rabbit", "Celery on RabbitMQ"),
    "celery-redis": lambda services: Peer(services, "celery", "redis", "Celery on Redis"),
    "dramatiq-rabbit": lambda services: Peer(services, "dramatiq", "rabbit", "Dramatiq on RabbitMQ"),
    "dramatiq-redis": lambda services: Peer(services, "dramatiq", "redis", "Dramatiq on Redis"),
}


def measure(services: Services, key: str, kills: int, wait_s: float) -> dict[str, Any]:
    """Kill the workers of one system so many times."""
    dice, took, late = random.Random(SEED), [], 0
    system: System = SYSTEMS[key](services)
    with system:
        for number in range(kills):
            seconds = system.round(number, dice, wait_s)
            if seconds is None:
                late += 1
            else:
                took.append(round(seconds, 3))
            if late >= GIVE_UP:
                break
            print(f"\r{system.title}: {number + 1} of {kills}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    row: dict[str, Any] = {"title": system.title, "kills": len(took) + late, "late": late, "took_s": took}
    if took:
        cuts = sorted(took)
        row |= {"p50_s": round(statistics.median(cuts), 3), "p95_s": cuts[-(-len(cuts) * 95 // 100) - 1]}
        row |= {"worst_s": cuts[-1]}
    return row


def table(found: dict[str, Any]) -> str:
    """Return what was found, to be read."""
    wait = found["wait_s"]
    lines = [f"{'':36}{'kills':>7}{'p50 s':>8}{'p95 s':>8}{'worst':>8}   not within {wait:g} s"]
    for row in found["systems"].values():
        cells = "".join(f"{row.get(name, '—'):>8}" for name in ("p50_s", "p95_s", "worst_s"))
        lines.append(f"{row['title']:36}{row['kills']:>7}{cells}   {row['late'] or ''}")
    lines += [f"not measured: {told}" for told in found["skipped"]]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, keep; exit status 1 when Tickertape's p95 is not below three seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="10 kills")
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"systems, by commas: {', '.join(SYSTEMS)}")
    parser.add_argument("--wait", type=float, default=30.0, help="seconds a job is waited for")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "recovery.json")
    given = parser.parse_args()
    keys = [name.strip() for name in given.only.split(",")]
    if unknown := set(keys) - set(SYSTEMS):
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(SYSTEMS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": describe(), "wait_s": given.wait, "systems": {}, "skipped": [],
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        Services(Path(folder), Settings.load().cache) as services,
    ):
        for key in keys:
            try:
                found["systems"][key] = measure(services, key, 10 if given.quick else given.kills, given.wait)
            except MissingError as error:
                found["skipped"].append(f"{key}: {error}")
        found["services"] = services.versions
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    ours = [row for key, row in found["systems"].items() if key.startswith("tickertape")]
    return int(any(row["late"] or row.get("p95_s", TARGET_S) >= TARGET_S for row in ours))


if __name__ == "__main__":
    sys.exit(main())
