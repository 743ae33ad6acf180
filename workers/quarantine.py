"""Quarantine: after its device failed a worker takes no heavy job until a fresh process found the device well.

The child whose device context broke is replaced at once; whether the device itself is broken nobody knows then. So a
process of its own probes it, again and again with growing pauses. Where no kind can tell how to probe, time must do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

_LOG = structlog.get_logger("tickertape.quarantine")
Probe = Callable[[], str | None]
"""Returns None when the device is well, else what is wrong with it."""
FIRST_S, CAP_S = 1.0, 300.0
"""The pause before the first probe, and the longest one."""
REST_S, LONG_S = 60.0, 3_600.0
"""Without a probe: how long the device rests after its first failure, and at most."""


def spawn(work: Callable[[], None]) -> None:
    """Do something in a thread of its own."""
    threading.Thread(target=work, name="quarantine", daemon=True).start()


class Quarantine:
    """Whether the device of this worker may be used; thread-safe.

    `wait` sleeps for seconds, `start` does something in the background; tests give their own.
    """

    def __init__(
        self,
        probe: Probe | None,
        *,
        wait: Callable[[float], object] = time.sleep,
        start: Callable[[Callable[[], None]], None] = spawn,
    ) -> None:
        self._probe, self._wait, self._start = probe, wait, start
        self._first, self._cap = (REST_S, LONG_S) if probe is None else (FIRST_S, CAP_S)
        self._lock = threading.Lock()
        self._blamed, self._strikes, self._healing = 0, 0, False
        self.reason: str | None = None
        """Why the device is not used; None when it is."""

    def blame(self, reason: str) -> None:
        """The device failed: do not use it until it was probed."""
        with self._lock:
            self.reason, self._blamed = reason, self._blamed + 1
            if self._healing:
                return
            self._healing, self._strikes = True, self._strikes + 1
        _LOG.error("device in quarantine", reason=reason, first_s=self._pause())
        self._start(self._heal)

    def doubt(self, reason: str) -> None:
        """A job hung, perhaps because of the device: use it no more until it was probed, if anybody can."""
        if self._probe is not None:
            self.blame(reason)

    def well(self) -> None:
        """A job that may have used the device went well: what comes next is not the same trouble again."""
        if self._strikes and self.reason is None:
            self._strikes = 0

    def _pause(self) -> float:
        return float(min(self._cap, self._first * 2.0 ** min(self._strikes - 1, 16)))

    def _heal(self) -> None:
        while not self._healed():
            self._strikes += 1

    def _healed(self) -> bool:
        seen = self._blamed
        self._wait(self._pause())
        found = self._look()
        with self._lock:
            if found is None and seen == self._blamed:
                self.reason, self._healing = None, False
            elif found is not None:
                self.reason = found
            healed = not self._healing
        _LOG.warning("device probed", well=healed, reason=self.reason)
        return healed

    def _look(self) -> str | None:
        try:
            return self._probe() if self._probe is not None else None
        except Exception as error:  # a probe that breaks proves nothing
            return f"the probe failed: {error}"
