"""How long a tenant's first job waits behind ten thousand of another's, beside Celery and Dramatiq in the same sitting.

    python benchmarks/fair.py [--quick] [--measures waits,share,noop] [--only tickertape,celery-redis,…] [--wait 30]

waits  One worker with one slot; tenant `flood` has queued 10,000 jobs of 1 s. Then, again and again, a tenant that was
       never seen submits its first job at a random moment: the time is from before its submission to the beginning of
       its handler, and beside it how many records the worker wrote anew for that (put aside). Celery and Dramatiq have
       their default, one queue; what does not come within `--wait` seconds is told as such, and after three of those a
       system is given up.
share  Two slots, two tenants with jobs of 0.2 s and of 1 s and weights 1:1 and 1:3: the slot-seconds of each in a
       minute as a ratio to its part. By what the events tell, start to end; and by the slots' whole time, of which
       what lies between two jobs counts for each job alike. `handlers` is how much of that time they ran.
noop   Jobs that do nothing, 16 slots, the queue filled before the worker starts: the rate with one tenant, with two
       that take turns in the queue, and with two of which one is behind the other; as a ratio to the first.

It is all kept in `.bench/fair.json`. The exit status is 1 when a first job of Tickertape's came later than one job's
duration and one second.
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
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterable, Iterator, Mapping  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any  # noqa: E402

from kafka import KafkaConsumer, TopicPartition  # noqa: E402

from benchmarks.recovery import GIVE_UP, SECONDS, SEED, UP_S, Peer, Tape  # noqa: E402
from benchmarks.rig.fair import Span, cuts, parts, spread, used  # noqa: E402
from benchmarks.rig.machine import describe  # noqa: E402
from benchmarks.rig.runs import Drain  # noqa: E402
from benchmarks.rig.services import MissingError, Services  # noqa: E402
from schemas.codec import Envelope, dump, encode, parse, request_type  # noqa: E402
from schemas.control import Tenant, key  # noqa: E402
from schemas.errors import TapeError  # noqa: E402
from schemas.event import Event, EventType  # noqa: E402
from wire.follow import KafkaFollower  # noqa: E402
from wire.process import wait_until  # noqa: E402
from wire.settings import Settings  # noqa: E402

SETTLE_S = 4.0
"""So long the flood runs before the first other tenant comes, and two tenants before their window begins."""
LATE_S = SECONDS + 1.0
SHORT, LONG = "short", "long"
LENGTHS = {SHORT: 0.2, LONG: 1.0}
WEIGHTS = ((1.0, 1.0), (1.0, 3.0))
SLOTS, MANY_SLOTS = 2, 16
DRAIN_S = 180.0


class Ours(Tape):
    """Tickertape with one worker, started when it is told to."""

    def __init__(self, services: Services, kind: str, title: str, *, slots: int = 1) -> None:
        super().__init__(services, kind, title)
        self.slots = slots
        self._ends = KafkaConsumer(bootstrap_servers=self.settings.kafka_servers, enable_auto_commit=False)

    def __enter__(self) -> "Ours":
        return self

    def __exit__(self, *given: object) -> None:
        super().__exit__(*given)
        self._ends.close()

    def command(self) -> list[str]:
        """One worker with so many slots."""
        return [*super().command()[:-1], str(self.slots)]

    def put(self, jobs: Iterable[tuple[int, str]], seconds: float) -> None:
        """Enqueue numbered jobs of tenants, confirmed, as any upstream system would publish them."""
        topic, sent = self.names.jobs(self.kind, "bulk"), []
        for number, tenant in jobs:
            value = json.dumps({"tenant": tenant, "params": {"number": number, "seconds": seconds}}).encode()
            job = f"job-{number}"
            envelope = Envelope(id=job, type=request_type(self.kind), source="/benchmark", data=value, subject=job)
            sent.append(self._publisher.publish(topic, key=job.encode(), value=value, headers=encode(envelope)))
        for future in sent:
            future.result(60)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Give tenants their weights."""
        for tenant, weight in weights.items():
            said = Tenant(tenant=tenant, weight=weight, time=datetime.now(UTC), who="benchmark")
            self._publisher.publish(self.names.control, key=key(said).encode(), value=dump(said)).result(30)

    def records(self) -> int:
        """Return how many records were ever written into the queue."""
        topic = self.names.jobs(self.kind, "bulk")
        places = [TopicPartition(topic, number) for number in self._ends.partitions_for_topic(topic)]
        return sum(self._ends.end_offsets(places).values())

    def spans(self) -> Iterator[Span]:
        """Return who had a slot from when to when, as the events tell."""
        began: dict[str, datetime] = {}
        with KafkaFollower(self.settings).read(self.names.events) as feed:
            while records := feed.poll(5.0):
                for event in (parse(Event, record.value) for record in records if record.value):
                    if event.type is EventType.RUNNING:
                        began[event.job] = event.time
                    elif event.type is EventType.SUCCEEDED and (start := event.started_at or began.get(event.job)):
                        yield Span(event.tenant, start.timestamp(), event.time.timestamp())


class Theirs(Peer):
    """Celery or Dramatiq with one worker and one queue for all."""

    def __enter__(self) -> "Theirs":
        return self

    def put(self, jobs: Iterable[tuple[int, str]], seconds: float) -> None:
        """Enqueue numbered jobs; whose they are is nothing to the queue."""
        assert seconds == SECONDS
        for number, _ in jobs:
            self.send(number)

    def records(self) -> int:
        """Nothing is put aside."""
        return 0


TITLES = {"hold": "Tickertape, job in a child process", "brief": "Tickertape, light job"}
KINDS = {"tickertape": "hold", "tickertape-light": "brief"}
SYSTEMS: dict[str, Callable[[Services], Any]] = {
    "tickertape": lambda services: Ours(services, "hold", TITLES["hold"]),
    "tickertape-light": lambda services: Ours(services, "brief", TITLES["brief"]),
    "celery-redis": lambda services: Theirs(services, "celery", "redis", "Celery on Redis, one queue"),
    "dramatiq-redis": lambda services: Theirs(services, "dramatiq", "redis", "Dramatiq on Redis, one queue"),
}


def waits(services: Services, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Let new tenants come one after the other beside a flood."""
    dice = random.Random(SEED)
    took: list[float] = []
    aside: list[int] = []
    late = 0
    system = SYSTEMS[name](services)
    with system:
        system.start()
        system.put(((number, "flood") for number in range(given.flood)), SECONDS)
        if not wait_until(lambda: system.marks(0), deadline_s=UP_S):
            raise MissingError(f"{system.title}: the flood did not start")
        time.sleep(SETTLE_S)
        for number in range(given.flood, given.flood + given.rounds):
            before, sent = system.records(), time.time()
            system.put([(number, f"desk-{number}")], SECONDS)
            if wait_until(partial(system.marks, number), deadline_s=given.wait, every_s=0.01):
                took.append(round(system.marks(number)[0].at - sent, 3))
                aside.append(system.records() - before - 1)
            else:
                late += 1
            if late >= GIVE_UP:
                break
            print(f"\r{system.title}: {len(took) + late} of {given.rounds}", end="", file=sys.stderr, flush=True)
            time.sleep(SECONDS + dice.uniform(0, SECONDS))  # that job is over, and the next one of the flood runs
    print(file=sys.stderr)
    row: dict[str, Any] = {
        "title": system.title,
        "tenants": len(took) + late,
        "late": late,
        "took_s": took,
        "aside": aside,
    }
    return row | cuts(took)


def share(services: Services, kind: str, weights: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Let two tenants with jobs of different length share two slots."""
    title = f"{TITLES[kind]}, {' : '.join(f'{weight:g}' for weight in weights.values())}"
    with Ours(services, kind, title, slots=SLOTS) as ours:
        ours.weigh(weights)
        owners: dict[int, str] = {}
        for tenant, length in LENGTHS.items():
            # Enough for both slots all the time; one tenant's all lie behind the other's.
            numbers = range(len(owners), len(owners) + int(SLOTS * (seconds + 4 * SETTLE_S) / length))
            owners |= dict.fromkeys(numbers, tenant)
            ours.put(((number, tenant) for number in numbers), length)
        sent = ours.records()
        ours.start()
        wait_until(lambda: ours.marked.exists(), deadline_s=UP_S)
        time.sleep(SETTLE_S)
        since = time.time()
        time.sleep(seconds)
        until = time.time()
        aside = ours.records() - sent
        time.sleep(LENGTHS[LONG] + 1.0)  # what runs across the end is over
        told = used(ours.spans(), since, until)
        rows = (line.split() for line in ours.marked.read_text().splitlines())
        begun = [owners[int(number)] for number, _, at in rows if since <= float(at) < until]
    jobs = {tenant: begun.count(tenant) for tenant in LENGTHS}
    room = SLOTS * (until - since)
    return {
        "title": title, "weights": dict(weights), "seconds": round(until - since, 1), "slots": SLOTS, "jobs": jobs,
        "slot_s": {tenant: round(each, 1) for tenant, each in told.items()},
        "ratio": {tenant: round(each, 3) for tenant, each in parts(told, weights).items()},
        "ratio_whole": {tenant: round(each, 3) for tenant, each in parts(spread(told, jobs, room), weights).items()},
        "handlers": round(sum(count * LENGTHS[tenant] for tenant, count in jobs.items()) / room, 3), "aside": aside,
    }  # fmt: skip


QUEUES: dict[str, Callable[[int, int], str]] = {
    "one tenant": lambda _, __: "a",
    "two tenants in turns": lambda number, _: "ab"[number % 2],
    "two tenants, one behind the other": lambda number, count: "ab"[number >= count // 2],
}
"""Whose job each of so many is."""


def noop(services: Services, queue: str, count: int) -> dict[str, Any]:
    """Drain a queue of jobs that do nothing."""
    with Ours(services, "brief", queue, slots=MANY_SLOTS) as ours:
        ours.put(((number, QUEUES[queue](number, count)) for number in range(count)), 0.0)
        ours.start()

        def done() -> int:
            return ours.marked.read_bytes().count(b"\n") if ours.marked.exists() else 0

        whole = wait_until(lambda: done() >= count, deadline_s=DRAIN_S, every_s=0.1)
        rows = sorted(float(line.split()[2]) for line in ours.marked.read_text().splitlines())
        drain = Drain(points=[(at, number) for number, at in enumerate(rows, 1)])
        extra = len(rows) - count
        row = {"rate": round(drain.rate()), "aside": ours.records() - count, "done": len(rows)}
    return row | ({} if whole else {"note": f"{-extra} not done within {DRAIN_S:g} s"})


def rates(services: Services, count: int, repetitions: int) -> dict[str, Any]:
    """Drain each queue several times, in turn, and compare the medians."""
    runs: dict[str, list[dict[str, Any]]] = {queue: [] for queue in QUEUES}
    for _ in range(repetitions):
        for queue, rows in runs.items():
            rows.append(noop(services, queue, count))
            print(f"no-op, {queue}: {rows[-1]['rate']} jobs/s", file=sys.stderr, flush=True)
    medians = {queue: statistics.median(row["rate"] for row in rows) for queue, rows in runs.items()}
    base = medians[next(iter(QUEUES))]
    return {
        queue: {"runs": rows, "rate": medians[queue], "ratio": round(medians[queue] / base, 3), "jobs": count}
        for queue, rows in runs.items()
    }


def table(found: dict[str, Any]) -> str:
    """Return what was found, to be read."""
    lines: list[str] = []
    if found["waits"]:
        lines.append(f"{'first job beside a flood':44}{'tenants':>8}{'p50 s':>8}{'p95 s':>8}{'worst':>8}{'aside':>8}"
                     f"   not within {found['wait_s']:g} s")  # fmt: skip
    for row in found["waits"].values():
        cells = "".join(f"{row.get(name, '—'):>8}" for name in ("p50_s", "p95_s", "worst_s"))
        moved = round(statistics.mean(row["aside"])) if row["aside"] else "—"
        lines.append(f"{row['title']:44}{row['tenants']:>8}{cells}{moved:>8}   {row['late'] or ''}")
    if found["share"]:
        lines.append(
            f"{'slot-seconds to the ideal':44}{'by the events':>16}{'whole slots':>16}{'handlers':>10}{'aside':>7}"
        )
    for row in found["share"]:
        ratios = [f"{row[name][SHORT]:.2f} {row[name][LONG]:.2f}" for name in ("ratio", "ratio_whole")]
        lines.append(f"{row['title']:44}{ratios[0]:>16}{ratios[1]:>16}{row['handlers']:>10}{row['aside']:>7}")
    if found["noop"]:
        lines.append(f"{'no-op jobs':44}{'jobs/s':>8}{'ratio':>8}{'aside':>8}")
    for queue, row in found["noop"].items():
        moved = round(statistics.median(run["aside"] for run in row["runs"]))
        notes = "; ".join(run["note"] for run in row["runs"] if "note" in run)
        lines.append(f"{queue:44}{row['rate']:>8g}{row['ratio']:>8}{moved:>8}   {notes}")
    lines += [f"not measured: {told}" for told in found["skipped"]]
    return "\n".join(lines)


def measure(services: Services, found: dict[str, Any], keys: list[str], given: argparse.Namespace) -> None:
    """Take what was asked for, one after the other."""
    measures = given.measures.split(",")

    def tried(name: str, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except (MissingError, TapeError) as error:
            found["skipped"].append(f"{name}: {error}")
            return None

    for name in keys if "waits" in measures else ():
        if (row := tried(name, partial(waits, services, name, given))) is not None:
            found["waits"][name] = row
    cases = [(KINDS[name], pair) for name in keys if name in KINDS for pair in WEIGHTS]
    for kind, pair in cases if "share" in measures else ():
        weights = dict(zip(LENGTHS, pair, strict=True))
        if (row := tried(f"share, {kind}", partial(share, services, kind, weights, given.seconds))) is not None:
            found["share"].append(row)
            print(f"{row['title']}: {row['ratio']}", file=sys.stderr, flush=True)
    if "noop" in measures:
        found["noop"] = tried("noop", partial(rates, services, given.count, given.repetitions)) or {}


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return what was asked for, and which systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flood", type=int, default=10_000, help="jobs that tenant `flood` has queued")
    parser.add_argument("--rounds", type=int, default=20, help="tenants that come beside it, one after the other")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long two tenants share two slots")
    parser.add_argument("--count", type=int, default=10_000, help="no-op jobs")
    parser.add_argument("--repetitions", type=int, default=2, help="of the no-op measures; the median counts")
    parser.add_argument("--quick", action="store_true", help="6 tenants, 15 s, 5,000 no-op jobs, once")
    parser.add_argument("--measures", default="waits,share,noop")
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"systems, by commas: {', '.join(SYSTEMS)}")
    parser.add_argument("--wait", type=float, default=30.0, help="seconds a job is waited for")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "fair.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.count, given.repetitions = 6, 15.0, 5_000, 1
    keys = [name.strip() for name in given.only.split(",")]
    if unknown := set(keys) - set(SYSTEMS):
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(SYSTEMS)}")
    if unknown := set(given.measures.split(",")) - {"waits", "share", "noop"}:
        parser.error(f"{sorted(unknown)[0]} is none of waits, share, noop")
    return given, keys


def main() -> int:
    """Measure, print, keep; exit status 1 when a first job of ours came late."""
    given, keys = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": describe(), "wait_s": given.wait, "flood": given.flood,
        "waits": {}, "share": [], "noop": {}, "skipped": [],
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        Services(Path(folder), Settings.load().cache) as services,
    ):
        measure(services, found, keys, given)
        found["services"] = services.versions
    found["load_after"] = round(os.getloadavg()[0], 1)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    ours = [row for name, row in found["waits"].items() if name in KINDS]
    return int(any(row["late"] or row.get("worst_s", LATE_S) > LATE_S for row in ours))


if __name__ == "__main__":
    sys.exit(main())
