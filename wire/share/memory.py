"""The deterministic twin: a log in memory and share consumers on it, with the interface of the real one.

    log = MemoryLog()
    log.append("jobs", b"key", b"value")
    consumer = MemoryShareConsumer(["jobs"], "workers", log)

Locks, delivery counts and limits, releases, crashes and broker restarts behave as on a broker; time is what `clock`
says. Consumers of one group on one log share their state through `log.group(name)`.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from .errors import AcknowledgeError, ClosedError, ConfigError, LeaseLostError, SessionLostError, ShareError
from .locks import GroupConfig, SharePartition
from .membership import take_id
from .model import AckType, Listener, OffsetRange, Record

Headers = Sequence[tuple[str, bytes | None]]


class Entry(NamedTuple):
    """One record of the log."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class MemoryLog:
    """Topics of partitions of records, thread-safe. A topic comes to be with its first record or by `create`."""

    def __init__(self, *, partitions: int = 1, clock: Callable[[], float] = time.time) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._partitions = partitions
        self._clock = clock
        self._topics: dict[str, list[list[Entry]]] = {}
        self._groups: dict[str, MemoryGroup] = {}
        self._subscribers: list[Callable[[], None]] = []

    def create(self, topic: str, partitions: int | None = None) -> None:
        """Make a topic; nothing happens when it is there."""
        with self.changed:
            self._topics.setdefault(topic, [[] for _ in range(partitions or self._partitions)])
        self.notify()

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> tuple[int, int]:
        """Append a record and return its partition and offset. Without a partition the key decides, else the turn."""
        with self.changed:
            logs = self._topics.setdefault(topic, [[] for _ in range(self._partitions)])
            if partition is None:
                spread = zlib.crc32(key) if key is not None else sum(len(log) for log in logs)
                partition = spread % len(logs)
            log = logs[partition]
            log.append(Entry(partition, len(log), key, value, tuple(headers), int(self._clock() * 1000)))
            offset = len(log) - 1
        self.notify()
        return partition, offset

    def read(self, topic: str, partition: int, offset: int = 0, limit: int | None = None) -> list[Entry]:
        """Records from an offset on; none for what does not exist."""
        with self.changed:
            logs = self._topics.get(topic, [])
            log = logs[partition] if partition < len(logs) else []
            return log[offset : None if limit is None else offset + limit]

    def end(self, topic: str, partition: int) -> int:
        """The offset the next record will get."""
        with self.changed:
            return len(self._topics[topic][partition])

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has; 0 when there is no such topic."""
        with self.changed:
            return len(self._topics.get(topic, []))

    def topics(self) -> list[str]:
        """The topics there are."""
        with self.changed:
            return sorted(self._topics)

    def group(self, name: str, config: GroupConfig | None = None) -> MemoryGroup:
        """The state of a share group; its settings are those of the first call."""
        with self.changed:
            if name not in self._groups:
                self._groups[name] = MemoryGroup(self, config or GroupConfig())
            return self._groups[name]

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every change, from the thread that made it. Returns how to end that."""
        with self.changed:
            self._subscribers.append(callback)
        return lambda: self._unsubscribe(callback)

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        with self.changed:
            self.changed.notify_all()
            subscribers = list(self._subscribers)
        for callback in subscribers:
            callback()

    def _unsubscribe(self, callback: Callable[[], None]) -> None:
        with self.changed:
            if callback in self._subscribers:
                self._subscribers.remove(callback)


class MemoryGroup:
    """A share group on a log: what each partition's records are up to. The log's lock guards it."""

    def __init__(self, log: MemoryLog, config: GroupConfig) -> None:
        self.config = config
        self.members: list[MemoryShareConsumer] = []
        self._log = log
        self._states: dict[tuple[str, int], SharePartition] = {}

    def state(self, topic: str, partition: int) -> SharePartition:
        """A partition's state, made when first asked for."""
        key = (topic, partition)
        if key not in self._states:
            start = 0 if self.config.earliest else self._log.end(topic, partition)
            self._states[key] = SharePartition(self.config, start)
        return self._states[key]

    def describe(self, topic: str, partition: int) -> tuple[int, int]:
        """Start offset and lag of a partition."""
        with self._log.changed:
            state = self.state(topic, partition)
            return state.start, state.lag(self._log.end(topic, partition))

    def archived(self, topic: str, partition: int) -> list[int]:
        """Offsets rejected or given up at the delivery limit."""
        with self._log.changed:
            return list(self.state(topic, partition).archived)

    def restart(self) -> None:
        """The brokers died and came back: every lock is lost, delivery counts start anew, members are told."""
        with self._log.changed:
            for state in self._states.values():
                state.restart()
            members = list(self.members)
        for member in members:
            member.lose(SessionLostError("the broker restarted"))
        self._log.notify()


class MemoryShareConsumer:
    """A share consumer on a `MemoryLog`: same interface and errors as `ShareConsumer`, nothing in the background."""

    def __init__(
        self,
        topics: Sequence[str],
        group: str,
        log: MemoryLog,
        *,
        clock: Callable[[], float] = time.monotonic,
        config: GroupConfig | None = None,
        on_ready: Callable[[], None] | None = None,
        listener: Listener | None = None,
    ) -> None:
        if isinstance(topics, str) or not topics:
            raise ConfigError("topics must be a sequence of at least one name")
        if not group:
            raise ConfigError("group must not be empty")
        self._topics = sorted(topics)
        self._log, self._clock = log, clock
        self._listener = listener or Listener()
        self._on_ready = on_ready
        self._group = log.group(group, config)
        self._held: dict[tuple[str, int, int], Record] = {}
        self._newest: dict[tuple[str, int], int] = {}
        self._failures: list[tuple[OffsetRange, ShareError]] = []
        self._assigned: list[tuple[str, int]] = []
        self._turn = 0
        self._focus: frozenset[int] | None = None
        self._woken = self._closed = False
        self.member_id = take_id()
        self._group.members.append(self)
        self._end = log.subscribe(self._ready)

    def poll(self, max_records: int, timeout: float = 0.0) -> list[Record]:
        """Acquired records, at most `max_records`; see `ShareConsumer.poll`. The timeout is in real seconds."""
        deadline = time.monotonic() + timeout
        with self._log.changed:
            while True:
                if self._closed:
                    raise ClosedError("the consumer is closed")
                records = self._acquire(max_records)
                left = deadline - time.monotonic()
                if records or self._woken or left <= 0 or max_records <= 0:
                    self._woken = False
                    break
                self._log.changed.wait(left)
        if records:
            self._listener.on_fetch(len(records), sum(len(r.value or b"") for r in records), 0.0)
        return records

    def focus(self, partitions: Collection[int] | None, *, batches: bool = True) -> None:
        """Acquire from these partitions only, or from all again; see `ShareConsumer.focus`."""
        with self._log.changed:
            self._focus = None if partitions is None else frozenset(partitions)

    def acknowledge(self, record: Record, kind: AckType = AckType.ACCEPT) -> None:
        """Settle or renew at once. Raises LeaseLostError when this very record is not held, ClosedError."""
        if self._closed:
            raise ClosedError("the consumer is closed")
        key = record[:3]
        span = OffsetRange(record.topic, record.partition, record.offset, record.offset)
        error: LeaseLostError | None = None
        with self._log.changed:
            if self._held.get(key) is not record:
                raise LeaseLostError(f"{span} is not held: lost, or settled before", [span])
            try:
                state = self._group.state(record.topic, record.partition)
                state.acknowledge(self.member_id, {record.offset: kind}, self._clock())
            except LeaseLostError as exc:
                error = exc
            if error is not None or kind is not AckType.RENEW:
                del self._held[key]
            if error is not None and kind is not AckType.RELEASE:
                self._failures.append((span, error))
        self._listener.on_ack(1, kind, error)
        if error is not None and kind is not AckType.RELEASE:
            self._listener.on_lost([span], error)
        self._log.notify()

    def flush(self, timeout: float = 0.0) -> None:
        """Raise AcknowledgeError with the ranges refused since the last flush, if there are any."""
        with self._log.changed:
            failures, self._failures = self._failures, []
        if failures:
            raise AcknowledgeError(failures)

    def wakeup(self) -> None:
        """Make a waiting (or else the next) `poll` return at once."""
        with self._log.changed:
            self._woken = True
            self._log.changed.notify_all()

    def close(self, timeout: float = 5.0) -> None:
        """Release everything held and leave. Raises AcknowledgeError for acknowledgements refused before."""
        if self._closed:
            return
        self._leave(release=True)
        self.flush(timeout)

    def crash(self, *, at_once: bool = True) -> None:
        """Die without a word: what was held is free at once (the broker saw the connection close), or when its locks
        expire (the network is gone and nobody noticed)."""
        self._leave(release=at_once)

    def lose(self, error: ShareError) -> None:
        """The broker lost this member's session."""
        with self._log.changed:
            lost = [OffsetRange(*key, key[2]) for key in sorted(self._held)]
            self._held.clear()
        if lost:
            self._listener.on_lost(lost, error)
        self._ready()

    def window(self) -> dict[tuple[str, int], float]:
        """How full each partition's lock window is, as `ShareConsumer.window` has it."""
        with self._log.changed:
            oldest: dict[tuple[str, int], int] = {}
            for topic, partition, offset in self._held:
                place = (topic, partition)
                oldest[place] = min(offset, oldest.get(place, offset))
            limit = self._group.config.max_locks
            return {
                place: (newest - oldest[place] + 1) / limit if place in oldest else 0.0
                for place, newest in self._newest.items()
            }

    @property
    def promised(self) -> int:
        """Records that may still come without another word: none, `poll` acquires what it returns."""
        return 0

    @property
    def lock_timeout(self) -> float:
        """Seconds an acquired record stays locked."""
        return self._group.config.lock_duration

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """Every partition of the topics that exist: in the twin, all members share them all."""
        return [(topic, index) for topic in self._topics for index in range(self._log.partitions(topic))]

    @property
    def outstanding(self) -> int:
        """Records acquired and not yet settled."""
        return len(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ShareError:
            if error is None:
                raise

    def _acquire(self, limit: int) -> list[Record]:
        places = self.assignment
        if places != self._assigned:
            self._assigned = places
            self._listener.on_assigned(places)
        records: list[Record] = []
        again: list[OffsetRange] = []
        for index in range(len(places)):
            topic, partition = places[(self._turn + index) % len(places)]
            if self._focus is not None and partition not in self._focus:
                continue
            state = self._group.state(topic, partition)
            end = self._log.end(topic, partition)
            for offset, count in state.acquire(self.member_id, limit - len(records), end, self._clock()):
                (entry,) = self._log.read(topic, partition, offset, 1)
                record = Record(topic, *entry, count)
                if (topic, partition, offset) in self._held:
                    again.append(OffsetRange(topic, partition, offset, offset))
                self._held[topic, partition, offset] = record
                self._newest[topic, partition] = max(offset, self._newest.get((topic, partition), -1))
                records.append(record)
        self._turn += 1
        if again:
            self._listener.on_lost(again, LeaseLostError("the lock expired and the record came again", again))
        return records

    def _leave(self, *, release: bool) -> None:
        with self._log.changed:
            self._closed = True
            self._held.clear()
            self._group.members.remove(self)
            self._end()
            if release:
                for place in self.assignment:
                    self._group.state(*place).release(self.member_id)
        self._log.notify()

    def _ready(self) -> None:
        if self._on_ready is not None:
            self._on_ready()
