"""What every peer shares: the payload of about 600 bytes, the handler's body, the mark it leaves, the enqueue loops.

Tickertape's own benchmark kinds (`benchmarks.rig.kinds`) use the very same payload and mark. Standard library only.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

RUN = os.environ.get("BENCH_RUN", "bench")
"""The queue or topic of this run."""
SLOTS = int(os.environ.get("BENCH_SLOTS", "16"))
REDIS, AMQP, KAFKA = (os.environ.get(f"BENCH_{name}", "") for name in ("REDIS", "AMQP", "KAFKA"))
RESULTS = os.environ.get("BENCH_RESULTS") == "1"
"""Whether the outcome of every job is recorded."""

EVERY_S = 0.05
"""How often the marks are written."""

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
    """One line a job, written a few times a second: a system call in every handler would measure threads."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._started = False

    def mark(self, number: int, made: float, start: float) -> None:
        """Say that a job was run: its number, when it was made, started and ended, and by which process."""
        self._lines.append(b"%d %.6f %.6f %.6f %d\n" % (number, made, start, time.time(), os.getpid()))
        if not self._started:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._serve, name="marks", daemon=True).start()
                atexit.register(self._write)

    def _serve(self) -> None:
        while True:
            time.sleep(EVERY_S)
            self._write()

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            with Path(os.environ["BENCH_LOG"]).open("ab", buffering=0) as file:
                file.write(b"".join(lines))


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
