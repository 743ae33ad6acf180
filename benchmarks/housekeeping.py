"""How big the log gets when a million jobs pass through: produce, lease, accept, and the housekeeper at work.

    python benchmarks/housekeeping.py [--records 1000000] [--every 5] [--json housekeeping.json]

Starts a native broker of its own in a temporary folder; prints the bytes on disk over time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from schemas.errors import TapeError
from schemas.topics import Group, Topic
from wire.broker import NativeBroker
from wire.housekeeper import Deletion, Housekeeper
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.share import AcquireMode, ShareConfig, ShareConsumer
from wire.topics import ensure

TOPIC = "jobs.noop.bulk"
VALUE = b'{"kind":"noop","params":{}}' + b" " * 273
HEADERS = [("ce_id", b"0192f0a0-aaaa-7bbb-8ccc-0123456789ab"), ("ce_type", b"tape.request.noop.v1")]


@dataclass
class Point:
    """One look: seconds since the start, records published and accepted, bytes of the topic on disk."""

    at_s: float
    published: int
    accepted: int
    disk: int


class Run:
    """One pass: a publisher, a consumer, a housekeeper, and somebody who looks at the disk."""

    def __init__(self, broker: NativeBroker, settings: Settings, records: int) -> None:
        self.broker, self.settings, self.records = broker, settings, records
        self.published = self.accepted = self.deleted = 0
        self.points: list[Point] = []
        self.stop = threading.Event()
        self.began = time.monotonic()

    def disk(self) -> int:
        """Bytes that the topic's segments take."""
        total = 0
        for path in (self.broker.folder / "node-1" / "data").glob(f"{TOPIC}-*/*.log*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def publish(self) -> None:
        """Publish, at most 20,000 records ahead of the consumer, as a queue in balance would be."""
        publisher = KafkaPublisher(self.settings)
        while self.published < self.records and not self.stop.is_set():
            if self.published - self.accepted > 20_000:
                self.stop.wait(0.01)
                continue
            for number in range(500):
                publisher.publish(TOPIC, key=b"%d" % (self.published + number), value=VALUE, headers=HEADERS)
            self.published += 500
        publisher.close(60)

    def consume(self) -> None:
        """Acquire and accept everything."""
        config = ShareConfig(bootstrap_servers=self.settings.kafka_url, mode=AcquireMode.BATCH)
        with ShareConsumer([TOPIC], "noop", config) as consumer:
            while self.accepted < self.records and not self.stop.is_set():
                for record in consumer.poll(500, 0.5):
                    consumer.acknowledge(record)
                    self.accepted += 1
            consumer.flush(30)

    def swept(self, outcome: list[Deletion] | TapeError) -> None:
        """Note what the housekeeper did."""
        if isinstance(outcome, TapeError):
            raise outcome
        self.deleted += sum(deletion.before - deletion.start for deletion in outcome)

    def look(self) -> Point:
        """Note how things stand, and print it."""
        point = Point(round(time.monotonic() - self.began, 1), self.published, self.accepted, self.disk())
        self.points.append(point)
        print(f"{point.at_s:8.1f} s {point.published:9,d} published {point.accepted:9,d} accepted {point.disk:12,d} B")
        return point


def measure(records: int, every_s: float, segment: int = 4 << 20, check_ms: int = 2_000) -> dict[str, object]:
    """Run once and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        extra = {"log.retention.check.interval.ms": str(check_ms), "log.initial.task.delay.ms": str(check_ms)}
        broker = NativeBroker(Path(folder), Settings().cache, extra=extra)
        settings = Settings(kafka_url=broker.start(tie=True).url)
        try:
            configs = {"retention.ms": "-1", "segment.bytes": str(segment), "file.delete.delay.ms": "500"}
            group = Group("noop", (TOPIC,), {"share.auto.offset.reset": "earliest"})
            ensure(settings, [Topic(TOPIC, 8, configs)], [group])
            run = Run(broker, settings, records)
            keeper = Housekeeper(settings, [group])
            threads = [threading.Thread(target=work) for work in (run.publish, run.consume)]
            sweeper = threading.Thread(
                target=keeper.run, args=(run.stop,), kwargs={"every_s": 2.0, "report": run.swept}
            )
            for thread in (*threads, sweeper):
                thread.start()
            while any(thread.is_alive() for thread in threads):
                threads[1].join(every_s)
                run.look()
            for _ in range(2):
                run.stop.wait(every_s)
                last = run.look()
            run.stop.set()
            sweeper.join()
            return {
                "records": records,
                "bytes_published": records * (len(VALUE) + 80),
                "largest_on_disk": max(point.disk for point in run.points),
                "at_the_end": last.disk,
                "deleted": run.deleted,
                "points": [asdict(point) for point in run.points],
            }
        finally:
            broker.stop(grace_s=2)


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.records, options.every)
    print({key: value for key, value in found.items() if key != "points"})
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
