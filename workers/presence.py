"""Presence: a worker says that it is there, what it serves and how busy it is, for views and for `tape why`."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import structlog

from schemas.control import NAMED, PRESENCE_S, BreakerState, Control, Presence, key
from workers.attempt import Record, identify
from workers.gate import needs
from workers.kinds import Kind

_LOG = structlog.get_logger("tickertape.presence")
STOP_S = 5.0
Lease = tuple[Record, str]
"""A record that is held, and its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What does not change about a worker; `slots` is the size of each of its pools."""

    worker: str
    kinds: Mapping[str, Kind]
    lanes: tuple[str, ...]
    slots: int
    started_at: datetime

    def look(
        self,
        leases: Iterable[Lease],
        *,
        draining: bool,
        breakers: Mapping[str, BreakerState],
        shared: Iterable[str] = (),
        now: datetime,
    ) -> Presence:
        """Return what there is to say at `now`; of `breakers` only those that are not closed."""
        held = list(leases)
        light = {name: kind.isolation == "thread" for name, kind in self.kinds.items()}
        load = Counter(light[kind] for _, kind in held)
        return Presence(
            worker=self.worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
            kinds=tuple(sorted(self.kinds)),
            lanes=self.lanes,
            needs={name: needs(kind) for name, kind in sorted(self.kinds.items())},
            slots=self.slots * len(set(light.values())),
            held=len(held),
            full=tuple(sorted(name for name, thread in light.items() if load[thread] >= self.slots)),
            running=tuple(identify(record) for record, _ in held[:NAMED]),
            shared=tuple(sorted(shared)),
            draining=draining,
            breakers={name: state for name, state in breakers.items() if state is not BreakerState.CLOSED},
            started_at=self.started_at,
            time=now,
        )


class Announcer:
    """Says from a thread of its own, every so many seconds, that the worker is there. Never harms the worker.

    `publish` sends a message under `schemas.control.key`, `tombstone` deletes a key; neither needs to wait until it
    arrived. Whatever they and `look` raise is logged, and said again at the next time.
    """

    def __init__(
        self,
        publish: Callable[[Control], None],
        tombstone: Callable[[str], None],
        look: Callable[[], Presence],
        every_s: float = PRESENCE_S,
        *,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._publish, self._tombstone, self._look = publish, tombstone, look
        self._every_s, self._wait = every_s, wait
        self._wake, self._ended = threading.Event(), threading.Event()
        self._last: Presence | None = None
        self._thread = threading.Thread(target=self._serve, name="presence", daemon=True)

    def start(self) -> None:
        """Say it for the first time, and go on."""
        self._thread.start()

    def now(self) -> None:
        """Say it at once, because something changed; callable from any thread."""
        self._wake.set()

    def stop(self) -> None:
        """Say no more, and take back what was said: the worker is gone. Nothing happens without a `start`."""
        if self._ended.is_set() or not self._thread.is_alive():
            return
        self._ended.set()
        self._wake.set()
        self._thread.join(STOP_S)
        if self._last is None:
            return
        # An order to drain is obeyed by now, and its worker's name does not come again.
        for name in (key(self._last), f"drain:{self._last.worker}"):
            try:
                self._tombstone(name)
            except Exception as error:
                _LOG.warning("a presence was not taken back", key=name, error=str(error))

    def _serve(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            self._say()
            self._wait(self._wake, self._every_s)

    def _say(self) -> None:
        try:
            presence = self._look()
            self._last = presence
            self._publish(presence)
        except Exception as error:  # whoever looks on learns less; the work goes on
            _LOG.warning("presence was not announced", error=str(error))


def _version() -> str:
    try:
        return version("tickertape")
    except PackageNotFoundError:
        return ""
