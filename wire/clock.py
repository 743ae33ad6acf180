"""The time of day as the brokers have it, for a process whose own clock may be wrong or jump.

A topic with `message.timestamp.type=LogAppendTime` gets its records dated by the broker, and the answer to a produce
request says how: between asking and answer the broker's clock showed that time (Cristian's algorithm, 1989). From then
on the monotonic clock tells it on. This machine's clock is believed while it agrees within `TRUST_S`: then times stay
those that everything else on the machine writes down. Nobody can tell here which of the two is wrong: the brokers'
clocks are the fleet's, and must be kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

_LOG = structlog.get_logger("tickertape.clock")
TRUST_S = 2.0
"""How far this machine's clock may be off before it is no longer gone by."""
SLOW_S = 1.0
"""An answer that took longer tells less than is known already; the first one tells more than nothing."""


class Clock:
    """Tells the time; thread-safe."""

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._start: float | None = None
        self._wrong = False
        self._heard = threading.Event()

    def heard(self, at_ms: int | None, asked: float) -> None:
        """A broker said what time it is, in milliseconds of the epoch, when asked at a moment on the monotonic clock.

        None: it dates nothing in that topic.
        """
        answered = self._monotonic()
        if at_ms is not None and (self._start is None or answered - asked <= SLOW_S):
            self._start = at_ms / 1000 - (asked + answered) / 2
        self._heard.set()

    def wait(self, timeout: float) -> bool:
        """Wait until a broker answered for the first time."""
        return self._heard.wait(timeout)

    def time(self) -> float:
        """Return the seconds of the epoch."""
        wall = self._wall()
        if self._start is None:
            return wall
        told = self._start + self._monotonic()
        wrong = abs(wall - told) > TRUST_S
        if wrong != self._wrong:
            self._wrong = wrong
            if wrong:
                _LOG.warning("this machine's clock and the broker's differ; going by the broker's", ahead_s=wall - told)
            else:
                _LOG.info("this machine's clock and the broker's agree again")
        return told if wrong else wall

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)
