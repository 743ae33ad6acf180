"""The loop that owns Kafka: acquire what fits, keep every lease renewed, acknowledge what is settled.

One thread runs it and nothing else touches the consumers. Slots run the jobs; when one is settled they say so through
`done`, which only queues the word and wakes this loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from wire.share import AckType
from wire.share import Record as ShareRecord
from workers.attempt import Record
from workers.slots import Pool

_LOG = structlog.get_logger("tickertape.lease")
Place = tuple[str, int, int]
TICK_S = 0.25
"""The longest the loop sleeps: heartbeats, renewals and health need it awake now and then."""
ROTATE_S = 0.1
"""How long a source may wait in vain for a record while others wait for its slot."""
HORIZON_S = 0.1
"""Light pools buffer what they settle in this time, so that slots never wait for a fetch."""
BUFFER_LIMIT = 2_000
WEIGHTS = {"interactive": 4, "bulk": 1}
"""Turns per round: interactive jobs first, bulk never starved."""


class Consumer(Protocol):
    """What the loop needs of a share consumer, real or in memory."""

    @property
    def promised(self) -> int: ...
    @property
    def lock_timeout(self) -> float: ...
    def poll(self, max_records: int, timeout: float) -> Sequence[ShareRecord]: ...
    def acknowledge(self, record: ShareRecord, kind: AckType = ...) -> None: ...
    def flush(self, timeout: float) -> None: ...
    def close(self, timeout: float) -> None: ...


@dataclass(slots=True)
class Source:
    """One consumer: the jobs of a kind and lane, and the pool that runs them."""

    kind: str
    lane: str
    consumer: Consumer
    pool: Pool


@dataclass(slots=True)
class Lease:
    """A record that this worker holds."""

    record: ShareRecord
    source: Source
    renew_at: float


class Rate:
    """Settled jobs a second, smoothed over about a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since, self._count, self.value = clock(), 0, 0.0

    def add(self, count: int) -> None:
        """Count settled jobs."""
        self._count += count
        elapsed = self._clock() - self._since
        if elapsed >= 0.05:
            weight = min(1.0, elapsed * 2)
            self.value += weight * (self._count / elapsed - self.value)
            self._since, self._count = self._clock(), 0


def turns(sources: Sequence[Source], start: int) -> list[Source]:
    """Return every source once, in the order of a weighted round that begins at turn `start`."""
    circle = [source for source in sources for _ in range(WEIGHTS.get(source.lane, 1))]
    ordered: list[Source] = []
    for step in range(len(circle)):
        source = circle[(start + step) % len(circle)]
        if source not in ordered:
            ordered.append(source)
    return ordered


class LeaseLoop:
    """Owns the leases of one worker."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        forget: Callable[[Record], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        limit: int | None = None,
        idle_s: float | None = None,
    ) -> None:
        self.sources = list(sources)
        self._pools = list({id(source.pool): source.pool for source in sources}.values())
        self._forget, self._clock, self._idle_s = forget, clock, idle_s
        self._left = limit
        self._held: dict[Place, Lease] = {}
        self._load = dict.fromkeys(map(id, self._pools), 0)
        self._rates = {id(pool): Rate(clock) for pool in self._pools}
        self._settled: deque[tuple[Record, AckType]] = deque()
        self._lost: deque[Place] = deque()
        self._turn, self._turned = 0, 0.0
        self._wake = threading.Event()
        self._draining = False
        self.beat = clock()
        self._busy_at = clock()

    @property
    def age(self) -> float:
        """Seconds since the loop last turned."""
        return self._clock() - self.beat

    @property
    def held(self) -> int:
        """Leases held now."""
        return len(self._held)

    def wake(self) -> None:
        """Make the loop look again at once; callable from any thread."""
        if not self._wake.is_set():
            self._wake.set()

    def done(self, record: Record, ack: AckType) -> None:
        """Tell that a record is settled; callable from any thread."""
        self._settled.append((record, ack))
        self.wake()

    def lost(self, places: Iterable[Place]) -> None:
        """Tell that leases are gone: another worker may have their jobs; callable from any thread."""
        self._lost.extend(places)
        self.wake()

    def drain(self) -> None:
        """Acquire nothing more, and give back what no slot has started."""
        self._draining = True
        self.wake()

    @property
    def draining(self) -> bool:
        """Whether the loop takes nothing new."""
        return self._draining

    def run(self, until: Callable[[], bool]) -> None:
        """Turn until `until()` holds, or, when draining, until nothing is held any more."""
        while not until():
            self.step()
            if self._draining and not self._held:
                return
            self._wake.wait(TICK_S)
            self._wake.clear()

    def step(self) -> None:
        """One turn: acknowledge, give back, renew, acquire."""
        self.beat = self._clock()
        self._acknowledge()
        if self._idle():
            self._draining = True
        if self._draining:
            self._give_back()
        self._renew()
        for pool in self._pools:
            self._acquire(pool)

    def _idle(self) -> bool:
        if self._held:
            self._busy_at = self.beat
        out = self._left == 0
        return out or (self._idle_s is not None and self.beat - self._busy_at >= self._idle_s)

    def _acknowledge(self) -> None:
        while self._lost:
            if (lease := self._held.pop(self._lost.popleft(), None)) is not None:
                self._load[id(lease.source.pool)] -= 1
                _LOG.warning("lease lost", topic=lease.record.topic, offset=lease.record.offset)
        settled = self._settled
        for _ in range(len(settled)):
            record, ack = settled.popleft()
            lease = self._held.pop((record.topic, record.partition, record.offset), None)
            if lease is not None:
                lease.source.consumer.acknowledge(lease.record, ack)
                pool = id(lease.source.pool)
                self._load[pool] -= 1
                self._rates[pool].add(1)
                self._forget(record)

    def _give_back(self) -> None:
        for pool in self._pools:
            for record in pool.drop():
                self.done(record, AckType.RELEASE)
        self._acknowledge()

    def _renew(self) -> None:
        now = self.beat
        while self._held:
            place, lease = next(iter(self._held.items()))
            if lease.renew_at > now:
                return
            del self._held[place]
            lease.renew_at = now + lease.source.consumer.lock_timeout / 3
            self._held[place] = lease
            lease.source.consumer.acknowledge(lease.record, AckType.RENEW)

    def _acquire(self, pool: Pool) -> None:
        mine = [source for source in self.sources if source.pool is pool]
        for source in mine:
            if promised := source.consumer.promised:
                self._take(source, source.consumer.poll(promised, 0.0))
        room = self._room(pool, mine)
        ordered = turns(mine, self._turn)
        asking = [source for source in ordered if not source.consumer.promised]
        for place, source in enumerate(asking):
            if room <= 0:
                break
            share = -(-room // (len(asking) - place))
            room -= share
            self._take(source, source.consumer.poll(share, 0.0))
        if len(asking) < len(mine):
            self._rotate(pool, mine, ordered)

    def _rotate(self, pool: Pool, mine: Sequence[Source], ordered: Sequence[Source]) -> None:
        """Where there are fewer free slots than sources, who waited in vain for a while gives its turn to the next."""
        waiting = [source for source in mine if source.consumer.promised]
        if len(waiting) == len(mine) or self._draining or self.beat - self._turned < ROTATE_S:
            return
        self._turned = self.beat
        self._turn += max(1, len(waiting))
        for source in waiting:
            self._take(source, source.consumer.poll(0, 0.0))

    def _room(self, pool: Pool, mine: Sequence[Source]) -> int:
        if self._draining:
            return 0
        buffer = 0
        if pool.light:  # a little more than can run, at least one for each source, so that none waits for its turn
            buffer = min(BUFFER_LIMIT, max(len(mine), int(self._rates[id(pool)].value * HORIZON_S)))
        promised = sum(source.consumer.promised for source in mine)
        room = pool.size + buffer - self._load[id(pool)] - promised
        return room if self._left is None else min(room, self._left - promised)

    def _take(self, source: Source, records: Sequence[ShareRecord]) -> None:
        if not records:
            return
        renew_at = self._clock() + source.consumer.lock_timeout / 3
        give = source.pool.give
        for record in records:
            self._held[record.topic, record.partition, record.offset] = Lease(record, source, renew_at)
            give(record)
        self._load[id(source.pool)] += len(records)
        if self._left is not None:
            self._left = max(0, self._left - len(records))

    def close(self, timeout: float) -> None:
        """Acknowledge what is settled, release the rest at once, and leave the groups."""
        self._acknowledge()
        for place, lease in list(self._held.items()):
            lease.source.consumer.acknowledge(lease.record, AckType.RELEASE)
            del self._held[place]
        for source in self.sources:
            source.consumer.close(timeout)
