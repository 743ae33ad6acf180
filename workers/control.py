"""The control topic, which every worker follows from its start: which jobs must not run, what is away, who may what."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Protocol

import structlog

from schemas import control
from schemas.control import PAUSE, TENANT, WORKER, Breaker, Cancel, Drain, Pause, Presence, Resume, Tenant
from schemas.errors import TapeError, UnavailableError
from wire.follow import Follower, KafkaFollower, Since
from wire.settings import Settings

_LOG = structlog.get_logger("tickertape.control")
KEPT = 100_000
PAUSE_S = 2.0
INFORMED_S = 10.0
"""How long a job waits for what was said before its worker came."""


class ControlRecord(Protocol):
    """A record of the control topic."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


Reader = Callable[[threading.Event], Iterable[ControlRecord | None]]
"""Yields the topic's records from its start on, until the event is set; None when all that was there is read."""


def follow_control(settings: Settings, topic: str) -> Reader:
    """Return a reader of the control topic that outlives broker outages; reading a cancellation twice is harmless."""

    def read(stop: threading.Event) -> Iterator[ControlRecord | None]:
        follower = KafkaFollower(settings, name="tape-control")
        since: Since = "start"
        while not stop.is_set():
            try:
                if since == "start":
                    since = yield from _so_far(follower, topic)
                    yield None
                with follower.follow(topic, since=since, stop=stop) as feed:
                    for batch in feed:
                        yield from batch
            except TapeError as error:
                _LOG.warning("the control topic cannot be read", error=str(error))
                stop.wait(PAUSE_S)
            since = "start"

    return read


def _so_far(follower: Follower, topic: str) -> Generator[ControlRecord, None, Mapping[int, int]]:
    """Yield what the topic holds now; return where it goes on."""
    ends: dict[int, int] = {}
    with follower.read(topic) as feed:
        for batch in feed:
            for record in batch:
                ends[record.partition] = record.offset + 1
                yield record
    return ends


class Controls:
    """The cancelled jobs, the paused ones and the tenants, kept up to date by a thread that reads the control topic.

    A job cancelled or paused while it runs is noticed by its slot, which asks now and then. The newest hundred thousand
    cancellations are remembered: older ones have long met their job, or never will. A pause never grows old.
    """

    def __init__(
        self,
        read: Reader | None = None,
        *,
        breaker: Callable[[Breaker], None] = lambda _: None,
        drain: Callable[[Drain], None] = lambda _: None,
        worker: Callable[[str, bool], None] = lambda _name, _there: None,
    ) -> None:
        """Begin to read, if there is anything to. `worker` hears who is there, and who has gone."""
        self._reasons: OrderedDict[str, str] = OrderedDict()
        self._pauses: dict[str, Pause] = {}
        self.tenants: Mapping[str, Tenant] = {}
        """The newest word on each tenant; never changed, only replaced."""
        self._breaker, self._drain, self._worker = breaker, drain, worker
        self._stop, self._informed = threading.Event(), threading.Event()
        self._read = read
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        if read is not None:
            self._thread.start()
        else:
            self._informed.set()

    def reason(self, job: str) -> str | None:
        """Return why a job was cancelled, or None."""
        return self._reasons.get(job)

    def paused(self, job: str) -> Pause | None:
        """Return who paused a job, if it is. A worker that just came waits until it has read what was said before.

        Raises `UnavailableError` (TAPE-5001) when that cannot be read: nobody knows what may run.
        """
        self._catch_up()
        return self._pauses.get(job)

    def tenant(self, name: str) -> Tenant | None:
        """Return the newest word on a tenant; waits and raises as `paused` does: nobody knows who has a quota."""
        self._catch_up()
        return self.tenants.get(name)

    def _catch_up(self) -> None:
        if not self._informed.is_set() and not self._informed.wait(INFORMED_S):
            raise UnavailableError("the control topic is not read yet", code="TAPE-5001", seconds=INFORMED_S)

    def apply(self, record: ControlRecord) -> None:
        """Take in one record; a tombstone takes its key's word back, and an unreadable one says nothing."""
        if record.value is None:
            self._taken_back((record.key or b"").decode("utf-8", "replace"))
            return
        try:
            message = control.read(record.value)
        except TapeError as error:
            _LOG.warning("unreadable control message", error=str(error))
            return
        if isinstance(message, Cancel):
            self._reasons[message.job] = message.reason
            while len(self._reasons) > KEPT:
                self._reasons.popitem(last=False)
        elif isinstance(message, Pause):
            self._pauses[message.job] = message
        elif isinstance(message, Resume):
            self._pauses.pop(message.job, None)
        elif isinstance(message, Breaker):
            self._breaker(message)
        elif isinstance(message, Presence):
            self._worker(message.worker, True)
        elif isinstance(message, Drain):
            self._drain(message)
        elif isinstance(message, Tenant):
            self.tenants = {**self.tenants, message.tenant: message}

    def _taken_back(self, name: str) -> None:
        self._reasons.pop(name, None)
        if name.startswith(PAUSE):
            self._pauses.pop(name.removeprefix(PAUSE), None)
        if name.startswith(WORKER):
            self._worker(name.removeprefix(WORKER), False)
        if name.startswith(TENANT):
            tenant = name.removeprefix(TENANT)
            self.tenants = {one: said for one, said in self.tenants.items() if one != tenant}

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _serve(self) -> None:
        assert self._read is not None
        for record in self._read(self._stop):
            if record is None:
                self._informed.set()
            else:
                self.apply(record)
