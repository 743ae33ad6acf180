"""The bare loop: `python -m benchmarks.rig.bare pure|plain|publisher COUNT`, a queue's worker with no worker in it.

Share fetch, one publish per record, acknowledge when that is confirmed: the records that Tickertape's worker would
write, ready made, and nothing is decoded, validated or run. `pure` reads and publishes with kafka-python's own record
code (and crc32c), `plain` reads with aiokafka's codec and publishes with kafka-python's producer, `publisher` with
ours. Leaves a line `MOMENT COUNT` in the log every 20 ms.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from kafka import KafkaProducer

from schemas.event import Event, EventType, written
from schemas.ids import uuid7
from schemas.outcome import Outcome, Status
from schemas.topics import Names
from wire.publish import KafkaPublisher, Sent
from wire.settings import Settings
from wire.share import AcquireMode, ShareConfig, ShareConsumer

BATCH, WINDOW, EVERY_S, STALL_S = 500, 2_000, 0.02, 10.0
Send = Callable[[bytes | None, Callable[[], None]], None]


def event() -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the value and the headers of the event that a no-op job ends with."""
    now, job, worker = datetime.now(UTC), uuid7(), "host-12345-abcd"
    outcome = Outcome(job=job, kind="noop", status=Status.SUCCEEDED, attempt=1, worker=worker, finished_at=now)
    made = Event(
        id=uuid7(), type=EventType.SUCCEEDED, job=job, kind="noop", time=now, attempt=1, worker=worker,
        started_at=now, outcome=outcome,
    )  # fmt: skip
    record = written(made, f"/tickertape/worker/{worker}")
    return record.value, record.headers


def plain(settings: Settings) -> tuple[Send, Callable[[], Any]]:
    """Publish with kafka-python's own producer."""
    producer = KafkaProducer(
        bootstrap_servers=settings.kafka_servers, acks="all", enable_idempotence=True, linger_ms=2, batch_size=65536
    )
    topic, (value, headers) = Names(settings.prefix).events, event()

    def send(key: bytes | None, then: Callable[[], None]) -> None:
        future = producer.send(topic, value, key=key, headers=headers)
        future.add_callback(lambda _: then())
        future.add_errback(_fail)

    return send, producer.close


def publisher(settings: Settings) -> tuple[Send, Callable[[], Any]]:
    """Publish with Tickertape's publisher."""
    line = KafkaPublisher(settings)
    topic, (value, headers) = Names(settings.prefix).events, event()

    def send(key: bytes | None, then: Callable[[], None]) -> None:
        line.publish(topic, key=key, value=value, headers=headers).add_done_callback(partial(_settled, then))

    return send, line.close


def _settled(then: Callable[[], None], sent: Future[Sent]) -> None:
    error = sent.exception()
    if error is not None:
        _fail(error)
    then()


def _fail(error: object) -> None:
    print("the bare loop ended:", error, file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    """Take COUNT records through the loop."""
    way, count = sys.argv[1], int(sys.argv[2])
    if way == "pure":
        cast(dict[str, Any], sys.modules)["aiokafka.record._crecords"] = None  # what is not there is not used
    settings = Settings.load()
    names = Names(settings.prefix)
    send, close = {"pure": plain, "plain": plain, "publisher": publisher}[way](settings)
    confirmed: deque[Any] = deque()
    came = threading.Event()
    config = ShareConfig(bootstrap_servers=settings.kafka_servers, mode=AcquireMode.BATCH)
    with (
        Path(os.environ["BENCH_LOG"]).open("ab", buffering=0) as log,
        ShareConsumer([names.jobs("noop", "bulk")], names.group("noop"), config, on_ready=came.set) as consumer,
    ):
        taken = done = written = 0
        told, moved = 0.0, time.time()

        def settle(record: Any) -> None:
            confirmed.append(record)
            came.set()

        while done < count:
            room = min(BATCH, WINDOW - (taken - done))
            records = consumer.poll(room, 0.0) if room > 0 else []
            taken += len(records)
            for record in records:
                send(record.key, partial(settle, record))
            while confirmed:
                consumer.acknowledge(confirmed.popleft())
                done += 1
            if (now := time.time()) - told > EVERY_S or done == count:
                if done == written and now - moved > STALL_S:
                    _fail(f"stalled: {taken} taken, {done} confirmed, {consumer.outstanding} held")
                moved = moved if done == written else now
                told, written = now, done
                log.write(b"%.6f %d\n" % (now, done))
            if not records:
                came.wait(0.05)
                came.clear()
        consumer.flush(10)
    close()


if __name__ == "__main__":
    main()
