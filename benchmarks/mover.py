"""How late delayed jobs are: a thousand fall due every second, and one or two movers bring them to their topic.

    python -m benchmarks.mover [--rate 1000] [--seconds 20] [--movers 1] [--json mover.json]

Starts a native broker of its own in a temporary folder. The records are written before they fall due, over wheels of
both kinds (5s and 1m), and a reader of committed records looks at the clock when each arrives. Publisher, movers,
reader and broker share the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from schemas.delays import delayed
from schemas.topics import Names, topics
from wire.broker.native import NativeBroker
from wire.follow import KafkaFollower
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.topics import ensure
from workers.delay import Mover

KIND = "noop"
VALUE = b'{"params":{}}' + b" " * 287
HEADERS = [("ce_id", b"0192f0a0-aaaa-7bbb-8ccc-0123456789ab"), ("ce_type", b"tape.request.noop.v1")]
LIMIT_S = 1.0


def fill(settings: Settings, count: int, rate: float, *, first_s: float = 3.0) -> dict[bytes, int]:
    """Publish records due at an even rate, the first in some seconds; return each one's moment in milliseconds."""
    target = Names(settings.prefix).jobs(KIND, "bulk")
    publisher = KafkaPublisher(settings, delivery_s=60)
    start, dues, futures = time.time() + first_s, {}, []
    for number in range(count):
        key = b"%d" % number
        dues[key] = int((start + number / rate) * 1000)
        made = delayed(
            target, prefix=settings.prefix, key=key, value=VALUE, headers=HEADERS, due_ms=dues[key],
            now_ms=int(time.time() * 1000),
        )  # fmt: skip
        sent = publisher.publish(
            made.topic, partition=made.partition, key=made.key, value=made.value, headers=made.headers,
            timestamp_ms=made.timestamp_ms,
        )  # fmt: skip
        futures.append(sent)
    publisher.close(60)
    assert {str(future.exception(0)) for future in futures} == {"None"}
    return dues


def arrive(settings: Settings, count: int, found: dict[bytes, float], ready: threading.Event) -> None:
    """Note when each record can be read from the job topic."""
    with KafkaFollower(settings).follow(Names(settings.prefix).jobs(KIND, "bulk"), since="start") as feed:
        ready.set()
        while len(found) < count:
            batch = feed.poll(60)
            now = time.time()
            if not batch:
                return
            for record in batch:
                assert record.key not in found, "a record came twice"
                found[record.key or b""] = now


def idle(seconds: float) -> float:
    """Return the share of a core that this process takes while nothing is due."""
    process = psutil.Process()
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def measure(settings: Settings, rate: float, seconds: float, movers: int) -> dict[str, Any]:
    """One case."""
    ensure(settings, topics(Names(settings.prefix), (KIND,), 8))
    crew = [Mover(settings) for _ in range(movers)]
    for mover in crew:
        mover.start()
        mover.ready.wait(60)
    time.sleep(5)  # the group settles
    share = idle(10)
    count = int(rate * seconds)
    found: dict[bytes, float] = {}
    ready = threading.Event()
    reader = threading.Thread(target=arrive, args=(settings, count, found, ready))
    reader.start()
    ready.wait(30)
    dues = fill(settings, count, rate)
    reader.join(seconds + 120)
    for mover in crew:
        mover.stop()
    late = sorted(moment * 1000 - dues[key] for key, moment in found.items())
    cuts = statistics.quantiles(late, n=100)
    return {
        "case": f"{movers} mover(s), {rate:g} due/s, {seconds:g} s",
        "records": count,
        "lost": count - len(found),
        "early": sum(each < 0 for each in late),
        "p50_ms": round(cuts[49]),
        "p99_ms": round(cuts[98]),
        "worst_ms": round(late[-1]),
        "idle_core": round(share, 4),
    }


def main() -> None:
    """Run, print a table, write JSON when asked; exit 1 when a record was lost, early or more than 1 s late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--movers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        broker = NativeBroker(Path(folder), Settings().cache)
        try:
            settings = Settings(kafka_url=broker.start(tie=True).url, home=Path(folder))
            row = measure(settings, args.rate, args.seconds, args.movers)
        finally:
            broker.stop()
    for name, value in row.items():
        print(f"{name:12}{value}")
    if args.json:
        args.json.write_text(json.dumps(row, indent=2) + "\n")
    good = not row["lost"] and not row["early"] and row["worst_ms"] <= LIMIT_S * 1000
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
