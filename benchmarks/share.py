"""How fast the share consumer is: acquire and accept, two on one partition, and the latency of an idle queue.

    python -m benchmarks.share [--records 50000] [--json share.json]

Starts a native broker of its own in a temporary folder. The broker's CPU is on the same machine and counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from wire.broker.native import NativeBroker
from wire.settings import Settings
from wire.share import AcquireMode, ShareConfig, ShareConsumer
from wire.share.admin import ShareAdmin

HEADERS = [
    ("ce_id", b"0192f0a0-aaaa-7bbb-8ccc-0123456789ab"),
    ("ce_type", b"tape.job.requested.v1"),
    ("ce_source", b"benchmark"),
    ("ce_time", b"2026-01-01T00:00:00Z"),
    ("ce_specversion", b"1.0"),
    ("content-type", b"application/json"),
    ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
]


def prepare(url: str, partitions: int, records: int, acks: Any = "all") -> tuple[str, str]:
    """A fresh topic with records and a group that reads it from the start. Returns both names."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    group = f"{topic}-group"
    client = KafkaAdminClient(bootstrap_servers=url)
    client.create_topics([NewTopic(topic, partitions, 1)])
    client.close()
    with ShareAdmin(url) as admin:
        admin.configure_group(group, {"share.auto.offset.reset": "earliest"})
    producer = KafkaProducer(bootstrap_servers=url, acks=acks, linger_ms=5, batch_size=65536)
    for index in range(records):
        producer.send(topic, b"x" * 300, key=b"%d" % index, headers=HEADERS, partition=index % partitions)
    producer.flush()
    producer.close()
    return topic, group


def drain(url: str, topic: str, group: str, total: int, batch: int, mode: AcquireMode, out: Any = None) -> Any:
    """Acquire and accept until `total` records were seen, or nothing came for two seconds."""
    with ShareConsumer([topic], group, ShareConfig(bootstrap_servers=url, mode=mode)) as consumer:
        seen, first, last = 0, 0.0, time.perf_counter()
        cpu = time.process_time()
        while seen < total:
            records = consumer.poll(batch, 2.0)
            now = time.perf_counter()
            if not records:
                break
            first = first or now
            last = now
            for record in records:
                consumer.acknowledge(record)
            seen += len(records)
        consumer.flush(10)
        spent = time.process_time() - cpu
    result = (seen, first, last, spent)
    if out is not None:
        out.put(result)
    return result


def one(url: str, records: int, partitions: int, batch: int, mode: AcquireMode) -> dict[str, Any]:
    """One consumer."""
    topic, group = prepare(url, partitions, records)
    seen, first, last, spent = drain(url, topic, group, records, batch, mode)
    return {
        "case": f"1 consumer, {partitions} partition(s), {mode.name.lower()} {batch}",
        "records": seen,
        "per_s": round(seen / (last - first)),
        "client_us_per_record": round(spent / seen * 1e6, 1),
    }


def several(url: str, records: int, consumers: int, batch: int, mode: AcquireMode) -> dict[str, Any]:
    """Several processes on one partition."""
    topic, group = prepare(url, 1, records)
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    work = [
        context.Process(target=drain, args=(url, topic, group, records, batch, mode, out)) for _ in range(consumers)
    ]
    for process in work:
        process.start()
    results = [out.get(timeout=120) for _ in work]
    for process in work:
        process.join()
    results = [result for result in results if result[0]]
    seen = sum(result[0] for result in results)
    span = max(result[2] for result in results) - min(result[1] for result in results)
    return {
        "case": f"{consumers} consumers, 1 partition, {mode.name.lower()} {batch}",
        "records": seen,
        "per_s": round(seen / span),
        "client_us_per_record": round(sum(result[3] for result in results) / seen * 1e6, 1),
    }


def latency(url: str, rounds: int) -> dict[str, Any]:
    """Produce one record to an idle queue, wait until it is acquired; milliseconds."""
    topic, group = prepare(url, 4, 1)
    producer = KafkaProducer(bootstrap_servers=url, acks="all", linger_ms=0)
    times: list[float] = []
    with ShareConsumer([topic], group, ShareConfig(bootstrap_servers=url)) as consumer:
        for record in consumer.poll(4, 10.0):
            consumer.acknowledge(record)
        for index in range(rounds):
            began = time.perf_counter()
            producer.send(topic, b"x", partition=index % 4)
            records = consumer.poll(4, 5.0)
            times.append((time.perf_counter() - began) * 1000)
            for record in records:
                consumer.acknowledge(record)
            consumer.poll(4, 0.03)
    producer.close()
    cuts = statistics.quantiles(times, n=100)
    return {
        "case": "idle latency, produce to acquire",
        "records": rounds,
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
    }


def main() -> None:
    """Run every case, print a table, write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--url", help="use this broker instead of one of its own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        broker = None if args.url else NativeBroker(Path(folder), Settings().cache)
        url = args.url or broker.start(tie=True).url
        try:
            batch, limit = AcquireMode.BATCH, AcquireMode.RECORD_LIMIT
            rows = [
                one(url, args.records, 1, 500, batch),
                one(url, args.records, 4, 500, batch),
                one(url, args.records, 1, 500, limit),
                one(url, args.records // 10, 4, 8, limit),
                several(url, args.records, 2, 500, batch),
                latency(url, 300),
            ]
        finally:
            if broker is not None:
                broker.stop()
    print(f"{'case':44}{'records':>9}{'per s':>9}{'us/rec':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for row in rows:
        cells = [row.get(name, "") for name in ("records", "per_s", "client_us_per_record", "p50_ms", "p99_ms")]
        print(f"{row['case']:44}" + "".join(f"{cell!s:>9}" for cell in cells))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak RSS of this process {peak:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "peak_rss_mb": round(peak)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
