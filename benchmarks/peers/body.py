"""What every peer shares: the payload of about 600 bytes, the handler's body, the mark it leaves, the enqueue loops.

Tickertape's own benchmark kinds (`benchmarks.rig.kinds`) use the very same payload and mark. Standard library only.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

RUN = os.environ.get("BENCH_RUN", "bench")
"""The queue or topic of this run."""
SLOTS = int(os.environ.get("BENCH_SLOTS", "16"))
REDIS, AMQP, KAFKA = (os.environ.get(f"BENCH_{name}", "") for name in ("REDIS", "AMQP", "KAFKA"))
RESULTS = os.environ.get("BENCH_RESULTS") == "1"
"""Whether the outcome of every job is recorded."""

BODY: dict[str, Any] = {
    "kind": "email",
    "to": "someone@example.org",
    "tenant": 4711,
    "tags": ["a", "b", "c"],
    "text": "x" * 440,
}


def payload(number: int, seconds: float = 0.0) -> dict[str, Any]:
    """Return one job's parameters: about 600 bytes as JSON, with its number and when it was made."""
    return {**BODY, "number": number, "seconds": seconds, "made": time.time()}


class Log:
    """One line a job, one write a line, so that many threads and processes may share the file."""

    def __init__(self) -> None:
        self._handle = -1

    def mark(self, number: int, made: float, start: float) -> None:
        """Say that a job was run: its number, when it was made, started and ended, and by which process."""
        if self._handle < 0:
            self._handle = os.open(os.environ["BENCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        line = b"%d %.6f %.6f %.6f %d\n" % (number, made, start, time.time(), os.getpid())
        os.write(self._handle, line)


LOG = Log()


def work(params: dict[str, Any]) -> None:
    """Do a job: nothing, or sleep."""
    start = time.time()
    if params["seconds"]:
        time.sleep(params["seconds"])
    LOG.mark(params["number"], params["made"], start)


async def awork(params: dict[str, Any]) -> None:
    """Do a job in an event loop."""
    start = time.time()
    if params["seconds"]:
        await asyncio.sleep(params["seconds"])
    LOG.mark(params["number"], params["made"], start)


def pause(index: int, began: float, rate: float) -> float:
    """Return how long to wait before the next job so that `rate` a second are sent; 0 is as fast as can be."""
    return max(0.0, began + index / rate - time.time()) if rate else 0.0


def enqueue(send: Callable[[dict[str, Any]], Any], count: int, seconds: float, rate: float, first: int = 0) -> float:
    """Send jobs one after the other; return how many a second."""
    began = time.time()
    for index in range(count):
        if wait := pause(index, began, rate):
            time.sleep(wait)
        send(payload(first + index, seconds))
    return count / (time.time() - began)


async def aenqueue(
    send: Callable[[dict[str, Any]], Awaitable[Any]], count: int, seconds: float, rate: float, first: int = 0
) -> float:
    """Send jobs one after the other, each awaited; return how many a second."""
    began = time.time()
    for index in range(count):
        if wait := pause(index, began, rate):
            await asyncio.sleep(wait)
        await send(payload(first + index, seconds))
    return count / (time.time() - began)
