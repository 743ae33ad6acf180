"""The loop that owns Kafka: acquire what fits, keep every lease renewed, acknowledge what is settled.

One thread runs it and nothing else touches the consumers. Slots run the jobs; when one is settled they say so through
`done`, which only queues the word and wakes this loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import structlog

from wire.share import AckType, ShareError
from wire.share import Record as ShareRecord
from wire.share.errors import LeaseLostError
from workers.attempt import Record
from workers.round import Rate, Round
from workers.slots import ADAPT_S, Pool
from workers.source import Lease, Source
from workers.tenants import Moved

_LOG = structlog.get_logger("tickertape.lease")
Place = tuple[str, int, int]
TICK_S = 0.25
"""The longest the loop sleeps: heartbeats, renewals and health need it awake now and then."""
ROTATE_S = 0.025
"""How long a source may wait in vain for a record while others wait for its slot."""
HORIZON_S = 0.1
"""Light pools buffer what they settle in this time, so that slots never wait for a fetch."""
BUFFER_LIMIT = 2_000
"""Records that wait for the slots of a light pool, at most."""
ASIDE_LIMIT = 1_000
"""Records on their way aside, at most."""
UNSETTLED = 500
"""Light jobs that may have ended without their ends being durable yet, before no more are taken for them."""
SMOOTH = 0.2
"""The weight of the newest slot time in the mean."""
BATCH_S = 3.0 / 500
"""Slot time of a job up to which whole batches are taken."""


class LeaseLoop:
    """Owns the leases of one worker."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        forget: Callable[[Record], None] = lambda _: None,
        aside: Callable[[Moved], None] = lambda _: None,
        gate: Callable[[str], int | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        limit: int | None = None,
        idle_s: float | None = None,
    ) -> None:
        self.sources = list(sources)
        self._pools = list({id(source.pool): source.pool for source in sources}.values())
        self._rounds = {id(pool): Round([source for source in sources if source.pool is pool]) for pool in self._pools}
        self._forget, self._gate, self._clock, self._idle_s = forget, gate, clock, idle_s
        self._aside = aside
        self._queues: dict[str, Source] = {}
        self._spent: deque[tuple[Record, float]] = deque()
        self._kept: deque[Record] = deque()
        self._asides = 0
        self._left = limit
        self._held: dict[Place, Lease] = {}
        self._adrift: dict[int, Lease] = {}
        self._load = dict.fromkeys(map(id, self._pools), 0)
        self._ended = dict.fromkeys(map(id, self._pools), 0)
        self._slot_s = dict.fromkeys(map(id, self._pools), 0.0)
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
        """What runs or waits for a slot now, each with its kind; callable from any thread."""
        return [(lease.record, lease.source.kind) for lease in list(self._held.values()) if not lease.aside]

    def running(self) -> list[tuple[Record, float]]:
        """What has a slot, or waits for one, and was not charged yet, and since when; the loop's own thread only."""
        return [(found.record, found.since) for found in self._held.values() if not (found.aside or found.charged)]

    def shared(self) -> set[str]:
        """Return the kinds in whose queues several tenants wait; callable from any thread."""
        return {source.kind for source in self.sources if source.tenants.shared}

    def wake(self) -> None:
        """Make the loop look again at once; callable from any thread."""
        if not self._wake.is_set():
            self._wake.set()

    def done(self, record: Record, ack: AckType) -> None:
        """Tell that a record is settled; callable from any thread."""
        self._settled.append((record, ack))
        self.wake()

    def spent(self, record: Record, seconds: float) -> None:
        """Tell for how long a job used its slot; callable from any thread."""
        self._spent.append((record, seconds))

    def keep(self, record: Record) -> None:
        """Tell that a record could not be put aside: it waits for a slot here; callable from any thread."""
        self._kept.append(record)
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
        self._charge()
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
            if lease is not None and lease.aside:
                self._asides -= 1
            elif lease is not None:
                pool = id(lease.source.pool)
                self._load[pool] -= 1
                self._ended[pool] -= lease.charged
                self._rates[pool].add(1)
                self._forget(record)

    def _charge(self) -> None:
        spent = self._spent
        for _ in range(len(spent)):
            record, seconds = spent.popleft()
            source = self._queues[record.topic]
            source.tenants.spent(record, seconds)
            self._slot_s[id(source.pool)] += SMOOTH * (seconds - self._slot_s[id(source.pool)])
            lease = self._held.get((record.topic, record.partition, record.offset))
            if lease is not None and lease.record is record and not lease.charged:
                lease.charged = True
                self._ended[id(source.pool)] += 1
        while self._kept:
            record = self._kept.popleft()
            lease = self._held.get((record.topic, record.partition, record.offset))
            ours = lease is not None and lease.record is record
            if not ours:
                lease = self._adrift.pop(id(record), None)
            if lease is not None and lease.aside:
                self._asides -= 1
                lease.source.tenants.rest()
                if ours:
                    lease.aside = False
                    self._load[id(lease.source.pool)] += 1
                    lease.source.pool.give(lease.record)

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
        crowded = self._busy(pool) >= pool.size
        for source in turn.sources:
            source.tenants.crowd(crowded)
            if promised := source.consumer.promised:
                self._take(source, source.consumer.poll(promised, 0.0))
                if self._full or rooms[source.kind] == 0 or source.tenants.vain():
                    self._take(source, source.consumer.poll(0, 0.0))
        if self._full:
            return
        self._dig(pool, turn, rooms)
        if shut := [source for source in turn.sources if rooms[source.kind] is not None]:
            self._pause = min(self._pause, ROTATE_S if len(shut) < len(turn.sources) else TICK_S)
        asking = [source for source in turn.order() if not source.consumer.promised and rooms[source.kind] != 0]
        waiting = [source for source in turn.sources if source.consumer.promised]
        if not waiting:
            turn.asked_at = self.beat
        elif asking and self.beat - turn.asked_at >= ROTATE_S:
            turn.skip(waiting)  # fewer free slots than sources: who waited in vain gives its turn to the next
            turn.asked_at = self.beat
            for source in waiting:
                self._take(source, source.consumer.poll(0, 0.0))
        self._ask(pool, turn, asking, rooms)
        asked = [source.consumer.promised > 0 for source in turn.sources]
        if (any(asked) and not all(asked)) or any(source.tenants.asking for source in turn.sources):
            self._pause = min(self._pause, ROTATE_S)

    def _dig(self, pool: Pool, turn: Round[Source], rooms: dict[str, int | None]) -> None:
        """Have put aside what lies before the job that comes next, whether there is room for that job or not."""
        for source in turn.sources if self._room(pool, turn.sources) >= 0 else ():
            if source.consumer.promised or rooms[source.kind] == 0 or self._asides > ASIDE_LIMIT:
                continue
            if (plan := source.tenants.dig()) is not None:
                source.consumer.focus(plan.partitions)
                self._take(source, source.consumer.poll(plan.count, 0.0))

    def _ask(self, pool: Pool, turn: Round[Source], asking: Sequence[Source], rooms: dict[str, int | None]) -> None:
        """Ask the sources for what there is room for; one whose dependency is on trial for one job in all."""
        room = self._room(pool, turn.sources)
        batches = 0.0 < self._slot_s[id(pool)] < BATCH_S * pool.size
        for place, source in enumerate(asking):
            if room <= 0:
                break
            share = -(-room // (len(asking) - place))
            if (limit := rooms[source.kind]) is not None:
                held = sum(lease.source.kind == source.kind for lease in self._held.values())
                share = min(share, limit - held - sum(o.consumer.promised for o in asking if o.kind == source.kind))
                if share <= 0:
                    continue
            if (plan := source.tenants.plan(share, dig=self._asides <= ASIDE_LIMIT)) is None:
                continue
            source.consumer.focus(plan.partitions, batches=batches)
            records = source.consumer.poll(plan.count, 0.0)
            room -= min(share, len(records)) + source.promised
            self._take(source, records)

    def _busy(self, pool: Pool) -> int:
        """Leases that need a slot. What has ended needs none, but a heavy job's keeps its own until that is durable."""
        load = self._load[id(pool)]
        return load - min(self._ended[id(pool)], UNSETTLED) if pool.light else load

    def _room(self, pool: Pool, mine: Sequence[Source]) -> int:
        buffer = 0
        if pool.light:  # a little more than can run, at least one for each source, so that none waits for its turn
            buffer = min(BUFFER_LIMIT, int(self._rates[id(pool)].value * HORIZON_S))
            if self._slot_s[id(pool)] < HORIZON_S:  # else that is nothing beside the wait for a slot
                buffer = max(len(mine), buffer)
        room = pool.size + buffer - self._busy(pool) - sum(source.promised for source in mine)
        if self._left is None:
            return room
        return min(room, self._left - sum(source.consumer.promised for source in self.sources))

    def _take(self, source: Source, records: Sequence[ShareRecord]) -> None:
        if not records:
            return
        self._part()  # what was lost may be among these again, under a new lease
        since = self._clock()
        renew_at = since + self._renewal
        if not self._draining:
            self._queues.setdefault(records[0].topic, source)
            records, moved = source.tenants.sort(records, source.pool.size - self._busy(source.pool))
            for one in moved:
                self._held[one.record[:3]] = Lease(one.record, source, renew_at, aside=True)
                self._aside(one)
            self._asides += len(moved)
        keep = 0 if self._draining else len(records) if self._left is None else min(self._left, len(records))
        give = source.pool.give
        for record in records[:keep]:
            self._held[record.topic, record.partition, record.offset] = Lease(record, source, renew_at, since)
            give(record)
        for record in records[keep:]:
            self._say(Lease(record, source, renew_at), AckType.RELEASE)
        self._load[id(source.pool)] += keep
        if keep:
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
