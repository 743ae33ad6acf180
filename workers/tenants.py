"""Whose job a worker asks for next: the tenants of one queue, while more of them wait than there is room for.

A share group hands records out in the order of their partitions. So who waits behind ten thousand jobs of another would
wait for all of them. While a queue is crowded the worker looks ahead (workers.scout), reads from the partition in which
the next tenant's record is nearest to the head, and puts what lies before that record aside: to the end of another
partition, where more of the same tenant waits, so that it need not be moved again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from schemas.codec import tenant_of
from wire.share import Record
from workers.attempt import Written, place_of
from workers.fair import QUANTUM_S, Backlog, Nearest, Shares

CROWDED_S = 0.5
"""How long there must be no room, before somebody looks who waits."""
CALM_S = 10.0
"""How long there must have been room, before nobody looks any more."""
OLD_S = 1.0
"""A record that waited for longer than this came out of a crowd."""
DIG = 500
"""Records that are put aside at a time."""
REST_S = 30.0
"""How long nothing is put aside, after something could not be."""
PROBE_S = 1.0
"""How long it is known where a partition begins, after a record of it came."""
VAIN = 3
"""Fetches that bring nothing from a chosen partition, before something else is asked for."""
PAUSES_S = 0.5, 2.0
"""When it is asked again: the broker was slow, or locked no more behind a running job. Then nothing waits there."""
AGAIN_S = 10.0
"""How soon the scout may begin anew after something was looked for in vain: what was seen may be wrong."""
ALONE_S = 1.0
"""How much of the time is counted for which a job ran before another tenant came."""
CHECK_S = 5.0
"""How often what is thought to run is compared with what does."""
UNREAD = 50_000
"""Runs that the scout may be ahead of the loop."""
NAMES, OTHERS = 1_000, "\0others"
"""Tenants that are told apart in a queue; all who come after them are taken for one."""
BURST, EACH, PER_S = 20_000, 50, 5_000
"""Records that may be written anew, at once, for each job that runs and a second; it can write 35,000."""

Run = tuple[int, int, int, str]
"""Partition, first and last offset, and tenant of neighbouring records."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask for: `count` records of these partitions (None: of any)."""

    count: int
    partitions: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """A record that goes to the end of a partition (None: of its own one)."""

    record: Record
    partition: int | None


@dataclass(frozen=True, slots=True)
class _Goal:
    """The record that is wanted or, to `dig`, the one that others lie before."""

    tenant: str
    nearest: Nearest
    dig: bool


class Tenants:
    """The tenants of one queue; the lease loop's, but for `wanted`, `begin` and `see`, which the scout uses.

    `peers` are all the queues of the lane that share `shares`, this one among them. `movable` says whether a record may
    be written anew, `running` what holds slots when the tenants begin to count, and since when.
    """

    def __init__(
        self,
        shares: Shares,
        *,
        movable: Callable[[Record], bool] = lambda _: True,
        running: Callable[[], Iterable[tuple[Written, float]]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.shares, self.peers = shares, [self]
        self.wanted = threading.Event()
        self._seen: deque[Run | None] = deque()
        self._movable, self._running, self._clock, self._wall = movable, running, clock, wall
        self._backlog = Backlog()
        self._goal: _Goal | None = None
        self._probed: dict[int, float] = {}
        self._refilled_at = clock()
        self._full_since: float | None = None
        self._crowded_at = self._rested_at = self._checked_at = float("-inf")
        self._counting = self._doubted = False
        self._empty, self._vain, self._topic = 0, False, ""
        self._pauses: dict[int, tuple[int, float]] = {}
        self._size, self._credit = DIG, float(BURST)
        self._names: set[str] = set()

    @property
    def waiting(self) -> Set[str]:
        """Who waits here, as far as it is known."""
        return self._backlog.tenants()

    def begin(self) -> None:
        """The scout begins anew: what was seen before counts no more."""
        self._seen.append(None)
        self._doubted = False

    @property
    def enough(self) -> bool:
        """Whether the scout has seen enough for now."""
        return len(self._seen) >= UNREAD

    def see(self, records: Sequence[Written]) -> None:
        """Take in what waits, in the order of each partition."""
        run: Run | None = None
        for record in records:
            name = self._tenant(record)
            if run is not None and run[0] == record.partition and run[3] == name:
                run = run[0], run[1], record.offset, name
                continue
            if run is not None:
                self._seen.append(run)
            run = record.partition, record.offset, record.offset, name
        if run is not None:
            self._seen.append(run)

    @property
    def shared(self) -> bool:
        """Whether several tenants wait, here or in the lane's other queues, and each goes in its turn."""
        return self._counting

    @property
    def digging(self) -> bool:
        """Whether what was asked for shall only be put aside: it needs no room."""
        return self._goal is not None and self._goal.dig

    @property
    def asking(self) -> bool:
        """Whether certain records were asked for, and did not come yet."""
        return self._goal is not None

    def rest(self) -> None:
        """Something could not be put aside: try no more for a while, and then with one."""
        self._rested_at, self._size = self._clock(), 1

    def crowd(self, full: bool) -> None:
        """Say whether there is room now: when there was none for a while, the scout is called.

        While certain records are asked for nothing is forgotten: whoever knows of no goal waits for them for ever.
        """
        now = self._clock()
        self._full_since = None if not full else now if self._full_since is None else self._full_since
        if self._full_since is not None and now - self._full_since >= CROWDED_S:
            self._crowded_at = now
        if now - self._crowded_at < CALM_S:
            self.wanted.set()
        elif self.wanted.is_set() and self._goal is None:
            self.wanted.clear()
            self._forget()

    def dig(self) -> Plan | None:
        """Return what to ask for only to put it aside, so that the next tenant's record comes to the head of its queue.

        None when there is nothing in its way. It is not worth to wait for a free slot with that.
        """
        found = self._next()
        if found is None or found[1].depth == 0:
            return None
        tenant, nearest = found
        now, partition = self._clock(), nearest.partition
        self._goal = _Goal(tenant, nearest, dig=True)
        known = now - self._probed.get(partition, float("-inf")) <= PROBE_S
        return Plan(min(self._size, nearest.depth, max(1, int(self._credit))) if known else 1, frozenset({partition}))

    def plan(self, room: int, *, dig: bool = True) -> Plan | None:
        """Return what to ask for when there is room for so many.

        None when something must be put aside first; what comes is taken as it is where nobody may `dig`.
        """
        found = self._next()
        if found is None or (found[1].depth > 0 and not dig):
            return Plan(room)
        tenant, nearest = found
        if nearest.depth > 0:
            return None
        self._goal = _Goal(tenant, nearest, dig=False)
        return Plan(min(room, max(nearest.count, self.shares.batch)), frozenset({nearest.partition}))

    def _next(self) -> tuple[str, Nearest] | None:
        """Return the tenant whose job comes next and where it lies; None when there is no choice."""
        self._goal, self._empty, self._vain = None, 0, False
        if not self.wanted.is_set():
            return None
        self._learn()
        self._count()
        now, shares = self._clock(), self.shares
        paused = {partition for partition, (_, until) in self._pauses.items() if now < until}
        waiting = self._backlog.tenants(besides=paused)
        if len(waiting) < 2 or now - self._rested_at < REST_S:
            return None
        tenant = shares.choose(waiting, now, self._everybody())
        if tenant is None or shares.behind(tenant, waiting, now) <= QUANTUM_S:
            return None
        nearest = self._backlog.nearest(tenant, besides=paused)
        return None if nearest is None or not self._affords(nearest.depth, now) else (tenant, nearest)

    def _affords(self, depth: int, now: float) -> bool:
        """Whether so many may be written anew now, or the first of very many."""
        self._credit = min(float(BURST), self._credit + PER_S * (now - self._refilled_at))
        self._refilled_at = now
        return self._credit >= min(depth, BURST / 2)

    def fetched(self, count: int) -> None:
        """A fetch brought so many records; callable from any thread."""
        self._empty = 0 if count else self._empty + 1

    def vain(self) -> bool:
        """Whether what was planned last gives nothing; it is looked for later, and then nothing waits there.

        The goal stands until nothing is promised any more: what is under way may still come, and must be sorted.
        """
        if self._goal is None or self._empty < VAIN:
            return False
        if not self._vain:
            self._vain = self._doubted = True
            self._pause(self._goal.nearest.partition)
        return True

    def _pause(self, partition: int) -> None:
        """Look elsewhere for a while; what a job of our own keeps the broker from locking waits there all the same."""
        tried, _ = self._pauses.get(partition, (0, 0.0))
        if tried < len(PAUSES_S) or self._runs_in(partition):
            self._pauses[partition] = tried + 1, self._clock() + PAUSES_S[min(tried, len(PAUSES_S) - 1)]
        else:
            del self._pauses[partition]
            self._backlog.emptied(partition)

    def _runs_in(self, partition: int) -> bool:
        return any((record.topic, record.partition) == (self._topic, partition) for record, _ in self._running())

    def anew(self, since: float) -> bool:
        """Whether the scout, who began at `since`, should begin anew."""
        return self._doubted and self._clock() - since >= AGAIN_S

    def sort(self, records: Sequence[Record], room: int) -> tuple[Sequence[Record], Sequence[Moved]]:
        """Return which of the acquired records are to run, when there is room for so many, and which go aside."""
        self._notice(records)
        if not self.wanted.is_set():
            return records, ()
        run, aside = self._sorted(records, room) if self._counting else (records, ())
        now = self._clock()
        for partition, offset in {record.partition: record.offset for record in records}.items():
            self._probed[partition] = now
            self._pauses.pop(partition, None)
            self._backlog.passed(partition, offset)
        return run, aside

    def spent(self, record: Written, seconds: float) -> None:
        """A job used its slot for so many seconds; what waits behind it may be locked from now on."""
        self._pauses.pop(record.partition, None)
        self.shares.ended(place_of(record), seconds, self._clock())

    def _sorted(self, records: Sequence[Record], room: int) -> tuple[list[Record], list[Moved]]:
        now, goal = self._clock(), self._goal
        run: list[Record] = []
        aside: list[Moved] = []
        homes: dict[tuple[str, int], int | None] = {}
        names = [self._tenant(record) for record in records]
        there = goal is not None and goal.tenant in names
        for record, tenant in zip(records, names, strict=True):
            if goal is not None and self._before(record, tenant, goal, there or len(run) >= room):
                key = tenant, record.partition
                if key not in homes:
                    homes[key] = self._backlog.home(*key)
                aside.append(Moved(record, homes[key]))
            else:
                run.append(record)
                self.shares.started(tenant, place_of(record), now)
        if goal is not None and goal.dig:  # what cannot go aside is held here: then one at a time
            self._size = min(DIG, self._size * 2) if aside and len(run) <= 1 else 1
        self._credit += EACH * len(run) - len(aside)
        return run, aside

    def _tenant(self, record: Written) -> str:
        name = tenant_of(record.value)
        if name in self._names:
            return name
        if len(self._names) >= NAMES:
            return OTHERS
        self._names.add(name)
        return name

    def _count(self) -> None:
        """Charge the tenants of the lane only while there are several."""
        counting, now = len(self._everybody()) > 1, self._clock()
        if counting and (not self._counting or now - self._checked_at >= CHECK_S):
            running = {place_of(record): (record, since) for record, since in self._running()}
            self.shares.only(running)
            for place, (record, since) in running.items():
                # Who was alone did nobody wrong, but is not the next again.
                self.shares.started(self._tenant(record), place, max(since, now - ALONE_S))
            self._checked_at = now
        self._counting = counting

    def _everybody(self) -> set[str]:
        return set().union(*(peer.waiting for peer in self.peers))

    def _learn(self) -> None:
        seen = self._seen
        for _ in range(len(seen)):
            run = seen[0]
            if run is None:
                self._backlog, self._probed, self._pauses = Backlog(), {}, {}
            elif not self._backlog.see(*run):
                self._doubted = True  # as much of that partition as can be remembered: the scout looks again
            seen.popleft()

    def _forget(self) -> None:
        self._seen.clear()
        self._backlog, self._goal, self._probed, self._counting = Backlog(), None, {}, False
        self._pauses = {}
        self._names = set()

    def _notice(self, records: Sequence[Record]) -> None:
        """Records that waited long came out of a crowd, even if there is room each time somebody looks."""
        self._topic, stamp = records[0].topic, records[0].timestamp_ms  # the first one tells
        if stamp > 0 and self._wall() - stamp / 1000 > OLD_S:
            self._crowded_at = self._clock()

    def _before(self, record: Record, tenant: str, goal: _Goal, enough: bool) -> bool:
        """Whether a record is in the way of those that are wanted, or came along while there are `enough` of them."""
        near = goal.nearest
        if record.partition != near.partition or tenant == goal.tenant or not self._movable(record):
            return False
        return enough or (goal.dig and record.offset < near.offset)
