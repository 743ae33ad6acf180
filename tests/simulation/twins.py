"""The twins in memory, as one process sees them: each call may fail before or after the deed, or end the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.errors import UnavailableError
from wire.blobs.memory import Memory
from wire.follow.port import Received
from wire.publish import MemoryPublisher
from wire.share import AckType, MemoryLog, MemoryShareConsumer, Record
from wire.transact import MemoryIntake, MemoryTransactor
from wire.transact.port import Place

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Meet = Callable[[str], bool]
"""Come to a step; True: it fails."""


class Time:
    """Seconds that have truly passed."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def epoch(self) -> float:
        """Return the time of the brokers' wall clock, in seconds of the epoch."""
        return EPOCH.timestamp() + self.seconds


class Watch:
    """The clocks of one process: a monotonic one that is right, and a wall clock that is off by `skew` seconds."""

    def __init__(self, time: Time) -> None:
        self._time = time
        self.skew = 0.0

    @property
    def seconds(self) -> float:
        return self._time.seconds

    def __call__(self) -> float:
        return self._time.seconds

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._time.seconds + self.skew)

    def advance(self, seconds: float) -> None:
        self._time.seconds += seconds


class Journal(MemoryLog):
    """The brokers' log, which tells of every record that is written."""

    def __init__(self, time: Time, told: Callable[[str, int, int, Any], object]) -> None:
        super().__init__(clock=time.epoch)
        self._told = told
        self.written = 0

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Any = (),
        partition: int | None = None,
        **options: Any,
    ) -> tuple[int, int]:
        self.written += 1
        place = super().append(topic, key, value, headers, partition, **options)
        self._told(topic, *place, self.read(topic, *place, 1)[0])
        return place


class Link:
    """A process's ways to the brokers and to the store: each may be cut, and a call may fail by itself."""

    def __init__(self, meet: Meet) -> None:
        self._meet = meet
        self.brokers = self.store = True

    def meet(self, step: str) -> None:
        """Come to a step at the brokers. Raises `UnavailableError`."""
        if self._meet(step) or not self.brokers:
            raise UnavailableError(f"no answer: {step}", code="TAPE-5003" if step.endswith("after") else "TAPE-5001")

    def visit(self, step: str) -> None:
        """Come to a step at the store. Raises `UnavailableError`."""
        if self._meet(step) or not self.store:
            raise UnavailableError(f"no answer: {step}", code="TAPE-5002")


class Shaky(MemoryPublisher):
    """A publisher whose records may be lost, or written and not confirmed."""

    def __init__(self, log: MemoryLog, link: Link) -> None:
        super().__init__(log)
        self._link = link

    def publish(self, topic: str, **options: Any) -> Any:
        self._link.meet("publish before")
        future = super().publish(topic, **options)
        self._link.meet("publish after")
        return future


class Cracked(Memory):
    """One process's view of the common store; it fails before or after the deed."""

    def __init__(self, common: Memory, link: Link) -> None:
        super().__init__()
        self._lock, self._objects, self._writes = common._lock, common._objects, common._writes
        self._link = link
        self.wrote: Callable[[str, bytes], object] = lambda name, data: None

    def put(self, name: str, source: Any, **options: Any) -> Any:
        self._link.visit("put before")
        blob = super().put(name, source, **options)
        self.wrote(name, self._objects[name][1])
        self._link.visit("put after")
        return blob

    def get(self, name: str, **options: Any) -> Any:
        self._link.visit("get")
        return super().get(name, **options)


class Holder(MemoryShareConsumer):
    """A member of a share group that may die before or after it acknowledges, or be cut off from the brokers.

    Like the real one it notices nothing at once: what it says while it is cut off is said when the way is open again.
    """

    link: Link
    promised = 0
    lock_timeout = 30.0

    def poll(self, max_records: int, timeout: float = 0.0) -> list[Record]:
        if not self.link.brokers:
            return []
        self.catch_up()
        return super().poll(max_records, timeout)

    def acknowledge(self, record: Record, kind: AckType = AckType.ACCEPT) -> None:
        if kind is not AckType.RENEW:
            self.link._meet("acknowledge before")
        if self.link.brokers:
            self.catch_up()
            super().acknowledge(record, kind)
        elif kind is not AckType.RENEW:
            self._unsaid().append((record, kind))
        if kind is not AckType.RENEW:
            self.link._meet("acknowledge after")

    def _unsaid(self) -> list[tuple[Record, AckType]]:
        return self.__dict__.setdefault("_said_later", [])  # type: ignore[no-any-return]

    def catch_up(self) -> None:
        """Say what could not be said; what was lost meanwhile is told as the real consumer tells it."""
        said = self._unsaid()
        while said:
            record, kind = said.pop(0)
            if self._held.get(record[:3]) is record:
                super().acknowledge(record, kind)


class Seat(MemoryIntake):
    """A mover's place in its group; nothing is waited for, and what has not changed is not looked at again."""

    link: Link
    _looked: tuple[Any, ...] = ()

    def poll(self, timeout_s: float) -> Any:
        self.link.meet("poll before")
        found = super().poll(0.0)
        self.link.meet("poll after")
        return found

    def _fetch(self) -> list[Received]:
        log: Any = self._log
        state = (log.written, self._generation, tuple(sorted(self._held)), self._sought)
        if state == self._looked:
            return []
        self._looked = state
        return super()._fetch()

    _sought = 0

    def seek(self, place: Place, offset: int) -> None:
        self._sought += 1
        super().seek(place, offset)

    def rewind(self, places: Any) -> None:
        self._sought += 1
        super().rewind(places)


class Pen(MemoryTransactor):
    """A mover's transactor: a transaction may fail, or be written and not confirmed."""

    link: Link
    around: Callable[[Sequence[Any], Callable[[], None]], None]

    def commit(self, records: Sequence[Any], *args: Any, **options: Any) -> None:
        self.link.meet("commit before")
        commit = super().commit
        self.around(records, lambda: commit(records, *args, **options))
        self.link.meet("commit after")
