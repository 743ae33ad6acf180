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

from wire.share import AckType, ShareError
from wire.share import Record as ShareRecord
from wire.share.errors import LeaseLostError
from workers.attempt import Record
from workers.slots import ADAPT_S, Pool

_LOG = structlog.get_logger("tickertape.lease")
Place = tuple[str, int, int]
TICK_S = 0.25
"""The longest the loop sleeps: heartbeats, renewals and health need it awake now and then."""
ROTATE_S = 0.025
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


@dataclass(slots=True, eq=False)
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


class Round:
    """Whose turn it is among the sources of a pool: a circle in which each has as many places as its lane weighs."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._circle = [source for source in sources for _ in range(WEIGHTS.get(source.lane, 1))]
        self._at = 0
        self.asked_at = 0.0

    def order(self) -> list[Source]:
        """Return every source once, the one whose turn it is first."""
        ordered: list[Source] = []
        for source in self._circle[self._at :] + self._circle[: self._at]:
            if source not in ordered:
                ordered.append(source)
        return ordered

    def served(self) -> None:
        """The turn was used: the next place of the circle has it."""
        self._at = (self._at + 1) % len(self._circle)

    def skip(self, waiting: Sequence[Source]) -> None:
        """The turn was in vain: give it to the next source that does not wait already."""
        for _ in self._circle:
            self.served()
            if self._circle[self._at] not in waiting:
                return


class LeaseLoop:
    """Owns the leases of one worker."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        forget: Callable[[Record], None] = lambda _: None,
        gate: Callable[[str], int | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        limit: int | None = None,
        idle_s: float | None = None,
    ) -> None:
        self.sources = list(sources)
        self._pools = list({id(source.pool): source.pool for source in sources}.values())
        self._rounds = {id(pool): Round([source for source in sources if source.pool is pool]) for pool in self._pools}
        self._forget, self._gate, self._clock, self._idle_s = forget, gate, clock, idle_s
        self._left = limit
        self._held: dict[Place, Lease] = {}
        self._adrift: dict[int, Lease] = {}
        self._load = dict.fromkeys(map(id, self._pools), 0)
        self._rates = {id(pool): Rate(clock) for pool in self._pools}
        self._settled: deque[tuple[Record, AckType]] = deque()
        self._lost: deque[Place] = deque()
        self._wake = threading.Event()
        self._draining = False
        self._pause = TICK_S
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

    def leases(self) -> list[tuple[Record, str]]:
        """What is held now, each with its kind; callable from any thread."""
        return [(lease.record, lease.source.kind) for lease in list(self._held.values())]

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
        """Turn until `until()` holds, or until nothing is held and nothing more will be taken."""
        while not until():
            self.step()
            if self._full and not self._held:
                return
            self._wake.wait(self._pause)
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
        self._pause = TICK_S
        for pool in self._pools:
            self._acquire(pool)
            if pool.adapt(self.beat):
                self._pause = min(self._pause, ADAPT_S)

    @property
    def _full(self) -> bool:
        """Whether nothing more will be taken, ever."""
        return self._draining or self._left == 0

    def _idle(self) -> bool:
        if self._held:
            self._busy_at = self.beat
        return self._idle_s is not None and self.beat - self._busy_at >= self._idle_s

    def _acknowledge(self) -> None:
        self._part()
        settled = self._settled
        for _ in range(len(settled)):
            record, ack = settled.popleft()
            place = record.topic, record.partition, record.offset
            lease = self._held.get(place)
            if lease is not None and lease.record is record:
                del self._held[place]
                self._say(lease, ack)
            else:
                lease = self._adrift.pop(id(record), None)
            if lease is not None:
                pool = id(lease.source.pool)
                self._load[pool] -= 1
                self._rates[pool].add(1)
                self._forget(record)

    def _part(self) -> None:
        """Let go of what was lost. Its job keeps its slot until it ends, so the slot is not given away twice."""
        while self._lost:
            if (lease := self._held.pop(self._lost.popleft(), None)) is not None:
                self._adrift[id(lease.record)] = lease
                _LOG.warning("lease lost", topic=lease.record.topic, offset=lease.record.offset)

    def _say(self, lease: Lease, ack: AckType) -> bool:
        """Acknowledge; return whether the lease was still ours."""
        try:
            lease.source.consumer.acknowledge(lease.record, ack)
        except LeaseLostError as error:
            _LOG.warning("lease lost", topic=lease.record.topic, offset=lease.record.offset, error=str(error))
            return False
        return True

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
            if self._say(lease, AckType.RENEW):
                lease.renew_at = now + self._renewal
                self._held[place] = lease
            else:
                self._adrift[id(lease.record)] = lease

    @property
    def _renewal(self) -> float:
        """Seconds between renewals: one measure for all groups keeps the held leases in the order they are due."""
        return min(source.consumer.lock_timeout for source in self.sources) / 3

    def _acquire(self, pool: Pool) -> None:
        turn = self._rounds[id(pool)]
        rooms = {source.kind: self._gate(source.kind) for source in turn.sources}
        for source in turn.sources:
            if promised := source.consumer.promised:
                self._take(source, source.consumer.poll(promised, 0.0))
                if self._full or rooms[source.kind] == 0:
                    self._take(source, source.consumer.poll(0, 0.0))
        if self._full:
            return
        if shut := [source for source in turn.sources if rooms[source.kind] is not None]:
            self._pause = min(self._pause, ROTATE_S if len(shut) < len(turn.sources) else TICK_S)
        asking = [source for source in turn.order() if not source.consumer.promised and rooms[source.kind] != 0]
        waiting = [source for source in turn.sources if source.consumer.promised]
        if not waiting:
            turn.asked_at = self.beat
        elif asking and self.beat - turn.asked_at >= ROTATE_S:
            # Fewer free slots than sources: who waited in vain for a while gives its turn to the next.
            turn.skip(waiting)
            turn.asked_at = self.beat
            for source in waiting:
                self._take(source, source.consumer.poll(0, 0.0))
        self._ask(pool, turn, asking, rooms)
        asked = [source.consumer.promised > 0 for source in turn.sources]
        if any(asked) and not all(asked):
            self._pause = min(self._pause, ROTATE_S)

    def _ask(self, pool: Pool, turn: Round, asking: Sequence[Source], rooms: dict[str, int | None]) -> None:
        """Ask the sources for what there is room for; one whose dependency is on trial for one job in all."""
        room = self._room(pool, turn.sources)
        for place, source in enumerate(asking):
            if room <= 0:
                break
            share = -(-room // (len(asking) - place))
            if (limit := rooms[source.kind]) is not None:
                held = sum(lease.source.kind == source.kind for lease in self._held.values())
                share = min(share, limit - held - sum(o.consumer.promised for o in asking if o.kind == source.kind))
                if share <= 0:
                    continue
            records = source.consumer.poll(share, 0.0)
            room -= len(records) + source.consumer.promised
            self._take(source, records)

    def _room(self, pool: Pool, mine: Sequence[Source]) -> int:
        buffer = 0
        if pool.light:  # a little more than can run, at least one for each source, so that none waits for its turn
            buffer = min(BUFFER_LIMIT, max(len(mine), int(self._rates[id(pool)].value * HORIZON_S)))
        room = pool.size + buffer - self._load[id(pool)] - sum(source.consumer.promised for source in mine)
        if self._left is None:
            return room
        return min(room, self._left - sum(source.consumer.promised for source in self.sources))

    def _take(self, source: Source, records: Sequence[ShareRecord]) -> None:
        if not records:
            return
        self._part()  # what was lost may be among these again, under a new lease
        keep = 0 if self._draining else len(records) if self._left is None else min(self._left, len(records))
        renew_at = self._clock() + self._renewal
        give = source.pool.give
        for record in records[:keep]:
            self._held[record.topic, record.partition, record.offset] = Lease(record, source, renew_at)
            give(record)
        for record in records[keep:]:
            self._say(Lease(record, source, renew_at), AckType.RELEASE)
        self._load[id(source.pool)] += keep
        self._rounds[id(source.pool)].served()
        if self._left is not None:
            self._left -= keep

    def close(self, timeout: float) -> None:
        """Acknowledge what is settled, release the rest at once, and leave the groups, all within `timeout` seconds."""
        self._acknowledge()
        for lease in self._held.values():
            self._say(lease, AckType.RELEASE)
        self._held.clear()
        until = time.monotonic() + timeout
        for source in self.sources:
            try:
                source.consumer.close(max(0.1, until - time.monotonic()))
            except ShareError as error:
                _LOG.warning("left a share group with trouble", kind=source.kind, lane=source.lane, error=str(error))
