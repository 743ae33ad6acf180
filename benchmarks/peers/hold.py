"""A peer's job that says when it starts, and its sender: `python -m benchmarks.peers.hold` reads NUMBER SECONDS lines.

For the recovery benchmark only. Late acknowledgement and persistent messages throughout; all else is the peer's
default, above all for how long a dead worker's job is waited for.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

PEER = os.environ.get("BENCH_PEER", "")
BROKER = os.environ.get("BENCH_BROKER", "")
QUEUE = os.environ.get("BENCH_RUN", "bench")


def hold(number: int, seconds: float) -> None:
    """Leave a mark at once: the job's number, the worker's session, the time. Then take so many seconds."""
    line = b"%d %d %.6f\n" % (number, os.getsid(0), time.time())
    with Path(os.environ["BENCH_LOG"]).open("ab", buffering=0) as file:
        file.write(line)
    time.sleep(seconds)


def _celery() -> Any:
    celery = importlib.import_module("celery")
    app = celery.Celery("hold", broker=BROKER)
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True, task_default_queue=QUEUE,
        task_default_delivery_mode="persistent", broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1,
    )  # fmt: skip
    return app


def _dramatiq() -> Any:
    dramatiq = importlib.import_module("dramatiq")
    if BROKER.startswith("redis"):
        broker = importlib.import_module("dramatiq.brokers.redis").RedisBroker(url=BROKER)
    else:
        broker = importlib.import_module("dramatiq.brokers.rabbitmq").RabbitmqBroker(url=BROKER, confirm_delivery=True)
    dramatiq.set_broker(broker)
    return dramatiq


if PEER == "celery":
    app = _celery()
    run = app.task(name="hold")(hold)
    send: Any = run.delay
elif PEER == "dramatiq":
    run = _dramatiq().actor(queue_name=QUEUE, actor_name="hold")(hold)
    send = run.send


def main() -> None:
    """Send a job for every line."""
    for line in sys.stdin:
        number, seconds = line.split()
        send(int(number), float(seconds))
        print("sent", flush=True)


if __name__ == "__main__":
    main()
