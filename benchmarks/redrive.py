"""How fast dead letters are planned and sent back: time to plan, letters moved a second, each with its event and fate.

    python -m benchmarks.redrive [--letters 10000] [--events 1000000] [--json redrive.json]

Starts a native broker of its own in a temporary folder; its CPU is on the same machine and counted. Beside it stands
the limit measured in the same run: the same records, three a letter, published without transactions and without
reading anything. The goal is a plan of 10,000 letters in less than 5 s, and 1,000 letters moved a second.

A plan reads every event since the first of its letters died, to know which of their jobs have ended. `--events` is how
many of other jobs lie there then; 0 leaves that case out, which takes some minutes and a gigabyte of disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from producers.dead import Desk, Filter
from producers.redrive import state
from producers.redrive.cost import costs
from producers.redrive.ended import ended
from producers.redrive.pace import Pace
from producers.redrive.patch import Patch
from producers.redrive.plan import Wish, plan
from producers.redrive.run import Runner
from schemas.dead import DeadLetter, dead_headers
from schemas.event import Event, EventType, end_id, written
from schemas.ids import derived_id
from schemas.outcome import Failure, Outcome, Status, Usage
from schemas.past import Past, Try
from schemas.topics import Names, topics
from wire.broker.native import NativeBroker
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.topics import ensure

PATCH = [{"op": "add", "path": "/params/batch_size", "value": 1}]
CODES = ("TAPE-6003", "TAPE-5002", "TAPE-7001")


def bury(settings: Settings, count: int) -> None:
    """Write letters as workers do, each with two attempts in its past, and dead for as long as all else may take."""
    names, now = Names(settings.prefix), datetime.now(UTC) - timedelta(minutes=30)
    publisher = KafkaPublisher(settings)
    value = json.dumps({"params": {"model": "builtin:m", "prompt": "Revenue rose. " * 20}, "tenant": "desk"}).encode()
    for number in range(count):
        job, code = f"job-{number}", CODES[number % 3]
        failure = Failure(failure="resource", code=code, message="out of memory at layer 7")
        told = {"failure": failure.failure, "code": code, "message": failure.message}
        tries = tuple(Try(attempt=attempt, ended_at=now, worker="w-1", **told) for attempt in (1, 2))
        letter = DeadLetter(
            job=job, kind="inference", topic=names.jobs("inference", "bulk"), partition=number % 8, offset=number,
            attempts=3, worker="gpu-7-1234", time=now, failure=failure, past=Past(spent=2, tries=tries),
            gpu_seconds=12.5,
        )  # fmt: skip
        headers = [
            ("ce_specversion", b"1.0"), ("ce_id", job.encode()), ("ce_source", b"/desk"),
            ("ce_type", b"tape.request.inference.v1"), ("ce_subject", job.encode()), *dead_headers(letter),
        ]  # fmt: skip
        publisher.publish(names.dead("inference"), key=job.encode(), value=value, headers=headers)
    publisher.close(60)


def tell(settings: Settings, count: int) -> int:
    """Write events of other jobs' lives as workers tell them, four a job; return how many."""
    names, now, job = Names(settings.prefix), datetime.now(UTC), "0" * 8 + "-e27a-79e8-9618-4d19f7350748"
    told: dict[str, Any] = {"job": job, "kind": "inference", "time": now, "attempt": 1, "worker": "gpu-7-1234-02ec"}
    done = Outcome(
        job=job, kind="inference", status=Status.SUCCEEDED, attempt=1, worker="gpu-7-1234-02ec", finished_at=now,
        result={"text": "positive"}, usage=Usage(seconds=0.4, prompt_tokens=90),
    )  # fmt: skip
    life = [
        Event(id=derived_id(job, "queued"), type=EventType.QUEUED, **told | {"attempt": 0, "worker": None}),
        Event(id=derived_id(job, "running"), type=EventType.RUNNING, started_at=now, **told),
        Event(id=derived_id(job, "step"), type=EventType.PROGRESS, progress={"part": 1, "parts": 2}, **told),
        Event(id=end_id(job), type=EventType.SUCCEEDED, started_at=now, outcome=done, **told),
    ]
    records = [written(event, "/tickertape/worker/gpu-7-1234-02ec") for event in life]
    publisher = KafkaPublisher(settings)
    for number in range(count):
        own, record = b"%08x" % (number // 4), records[number % 4]
        headers = [(name, raw.replace(b"0" * 8, own)) for name, raw in record.headers]
        key, value = record.key.replace(b"0" * 8, own), record.value.replace(b"0" * 8, own)
        publisher.publish(names.events, key=key, value=value, headers=headers)
    publisher.close(120)
    return count


def limit(settings: Settings, count: int) -> float:
    """Publish what a redrive writes, and nothing else; letters a second."""
    names = Names(settings.prefix)
    publisher = KafkaPublisher(settings)
    began = time.perf_counter()
    for number in range(count):
        key = b"job-%d" % number
        for topic in (names.jobs("inference", "bulk"), names.events, names.letters):
            publisher.publish(topic, key=key, value=b"x" * 300, headers=[("ce_id", key)] * 8)
    publisher.close(60)
    return count / (time.perf_counter() - began)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what the work returns, its wall time and this process's CPU time, in seconds."""
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - began, time.process_time() - cpu


def planned(desk: Desk, patch: list[dict[str, Any]] | None) -> state.Kept:
    """Plan for every letter, as `tape dead redrive plan --all` does."""
    wish = Wish(Filter(), desk.topics(), desk.now(), desk.who, patch=Patch(patch) if patch else None)
    made, text = plan(
        wish, desk.letters(desk.dead()), lambda kinds: costs(desk.follower, desk.names, kinds, desk.now()),
        lambda jobs: ended(desk, jobs),
    )  # fmt: skip
    return state.create(desk.blobs, made, text)


def beside(settings: Settings, count: int, events: int) -> list[dict[str, Any]]:
    """Plan for `count` letters while so many events lie behind their deaths."""
    ensure(settings, topics(Names(settings.prefix), ("inference",), 8), [])
    bury(settings, count)
    tell(settings, events)
    rows = []
    for turn in range(3):
        kept, seconds, cpu = timed(lambda: planned(Desk.open(settings), None))
        assert kept.redrive.plan.letters == count
        rows.append(row(f"plan, {events:,} events, {turn + 1}", count, seconds, cpu))
    return rows


def case(settings: Settings, count: int, patch: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Plan and run one redrive of `count` letters."""
    ensure(settings, topics(Names(settings.prefix), ("inference",), 8), [])
    bury(settings, count)
    desk = Desk.open(settings)
    name = "patched" if patch else "as they are"
    kept, took, planning = timed(lambda: planned(desk, patch))
    assert kept.redrive.plan.letters == count
    done, ran, running = timed(lambda: Runner(desk, kept, Pace()).run())
    assert (done.phase, done.moved) == ("done", count)
    again, looked, _ = timed(lambda: sum(letter.status == "redriven" for letter in desk.letters(desk.dead())))
    assert again == count
    return [
        row(f"plan, {name}", count, took, planning),
        row(f"run, {name}", count, ran, running),
        row(f"list with fates, {name}", count, looked, 0.0),
    ]


def row(name: str, count: int, seconds: float, cpu: float) -> dict[str, Any]:
    """Return one line of the table."""
    return {
        "case": name, "letters": count, "seconds": round(seconds, 2), "per_s": round(count / seconds),
        "us_cpu": round(cpu / count * 1e6) if cpu else "",
    }  # fmt: skip


def main() -> None:
    """Run every case, print a table, write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--letters", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        base = Settings(home=Path(folder), store_url=f"dir:{folder}/store")
        broker = NativeBroker(Path(folder) / "broker", base.cache)
        url = broker.start(tie=True).url
        try:
            rows = []
            for prefix, patch in (("a.", None), ("b.", PATCH)):
                settings = base.model_copy(update={"kafka_url": url, "prefix": prefix})
                rows += case(settings, args.letters, patch)
            if args.events:
                settings = base.model_copy(update={"kafka_url": url, "prefix": "c."})
                rows += beside(settings, args.letters, args.events)
            peer = limit(base.model_copy(update={"kafka_url": url, "prefix": "a."}), args.letters)
        finally:
            broker.stop()
    rows.append({"case": "limit: only publishing", "letters": args.letters, "seconds": round(args.letters / peer, 2),
                 "per_s": round(peer), "us_cpu": ""})  # fmt: skip
    print(f"{'case':32}{'letters':>9}{'seconds':>9}{'per s':>9}{'CPU us':>9}")
    for one in rows:
        cells = "".join(f"{one[name]!s:>9}" for name in ("letters", "seconds", "per_s", "us_cpu"))
        print(f"{one['case']:32}{cells}")
    ratio = rows[1]["per_s"] / peer
    print(f"run / limit {ratio:.2f}; peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "ratio": round(ratio, 3)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
