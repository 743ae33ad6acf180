"""Fair share among the tenants of a lane: who waits where, what each has used, and whose job comes next.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): a tenant's virtual time grows by the slot-seconds its jobs
used, divided by its weight, and the one with the least goes next. Who was away comes back at the present virtual time,
so that nobody saves up a claim to the whole machine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Set
from dataclasses import dataclass, field
from functools import partial

from schemas.topics import LOCKS

LEAST_S = 0.001
"""What a job is charged at least: one that is postponed at once must not keep its tenant first for ever."""
EWMA = 0.2
QUANTUM_S = 0.25
"""Virtual time by which a tenant must be behind before anything is done for it; tiny jobs are taken as they come."""
RUNS = 100_000
"""Runs of one partition that are remembered; who waits behind them is seen when they are gone."""


FULL = LOCKS * 3 // 4
"""Records that wait in a partition, above which no more are sent there."""


@dataclass(slots=True)
class _Run:
    """Neighbouring offsets of one tenant."""

    first: int
    last: int


@dataclass(slots=True)
class _Line:
    """The records of a tenant in a partition: its runs, of which there is at least one, and how long they are."""

    runs: deque[_Run] = field(default_factory=deque)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Nearest:
    """A tenant's records that are nearest to the head of their partition; `depth` others, or markers, come first."""

    partition: int
    offset: int
    depth: int
    count: int


class Backlog:
    """Whose records wait in the partitions of one queue, as far as they were seen; not thread-safe.

    It may tell of records that another worker has long taken: `passed` mends that.
    """

    def __init__(self) -> None:
        self._parts: dict[int, dict[str, _Line]] = {}
        self._heads: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._counts: Counter[int] = Counter()
        self._tenants: Counter[str] = Counter()

    def see(self, partition: int, first: int, last: int, tenant: str) -> bool:
        """Take in neighbouring records; those of a partition come in order. False when there is no room for them."""
        head = self._heads.setdefault(partition, first)
        if last < head:
            return True
        lines, first = self._parts.setdefault(partition, {}), max(first, head)
        line = lines.get(tenant)
        if line is not None and line.runs[-1].last == self._ends.get(partition, -1):
            line.runs[-1].last = last
        elif self._counts[partition] >= RUNS:
            return False
        else:
            if line is None:
                line = lines[tenant] = _Line()
                self._tenants[tenant] += 1
            line.runs.append(_Run(first, last))
            self._counts[partition] += 1
        line.size += last - first + 1
        self._ends[partition] = last
        return True

    def passed(self, partition: int, offset: int) -> None:
        """Everything of a partition up to an offset is taken."""
        if offset < self._heads.get(partition, 0):
            return
        self._heads[partition] = offset + 1
        lines = self._parts.get(partition, {})
        for tenant in [tenant for tenant, line in lines.items() if line.runs[0].first <= offset]:
            line = lines[tenant]
            while line.runs and line.runs[0].last <= offset:
                gone = line.runs.popleft()
                line.size -= gone.last - gone.first + 1
                self._counts[partition] -= 1
            if not line.runs:
                del lines[tenant]
                self._tenants -= Counter((tenant,))
            elif line.runs[0].first <= offset:
                line.size -= offset + 1 - line.runs[0].first
                line.runs[0].first = offset + 1

    def emptied(self, partition: int) -> None:
        """Nothing of what was seen of a partition waits any more."""
        self.passed(partition, self._ends.get(partition, -1))

    def tenants(self, besides: Set[int] = frozenset()) -> Set[str]:
        """Return who waits, in other partitions than these."""
        if not besides:
            return self._tenants.keys()
        return {tenant for partition, lines in self._parts.items() if partition not in besides for tenant in lines}

    def nearest(self, tenant: str, besides: Set[int] = frozenset()) -> Nearest | None:
        """Return the record of a tenant that has the least before it, in other partitions than these."""
        best: Nearest | None = None
        for partition, lines in self._parts.items():
            if partition not in besides and (line := lines.get(tenant)) is not None:
                run, head = line.runs[0], self._heads[partition]
                if best is None or run.first - head < best.depth:
                    best = Nearest(partition, run.first, run.first - head, run.last - run.first + 1)
        return best

    def home(self, tenant: str, besides: int) -> int | None:
        """Return a partition, not `besides`, to send records of a tenant to; None when it waits in no other.

        It is the one with the most of them, so that few partitions hold them all and none is moved twice; but what lies
        behind more than the broker locks of a partition could not be reached, so full ones are spared.
        """
        sizes = {
            partition: sum(line.size for line in lines.values())
            for partition, lines in self._parts.items()
            if partition != besides
        }
        found = {
            partition: self._parts[partition][tenant].size for partition in sizes if tenant in self._parts[partition]
        }
        room = {partition: count for partition, count in found.items() if sizes[partition] < FULL}
        if room:
            return max(room, key=lambda partition: (room[partition], -partition))
        return min(sizes, key=lambda partition: (sizes[partition], partition)) if found else None


@dataclass(slots=True)
class _Account:
    """What one tenant has used, in virtual seconds, and the starts of its running jobs."""

    used: float
    running: dict[object, float]


class Shares:
    """The virtual times of the tenants of one lane; not thread-safe. Times are in seconds of a monotonic clock."""

    def __init__(self, weight: Callable[[str], float] = lambda _: 1.0) -> None:
        self._weight = weight
        self._accounts: dict[str, _Account] = {}
        self._tenants: dict[object, str] = {}
        self._virtual = 0.0
        self._typical = LEAST_S

    def choose(self, waiting: Iterable[str], now: float, others: Iterable[str] = ()) -> str | None:
        """Return the tenant whose job comes next, of those that wait; None when nobody does.

        `others` wait in other queues of the lane: they are not away.
        """
        names = sorted(waiting)
        here = {name: self._account(name) for name in (*names, *others)}
        for name in [name for name, account in self._accounts.items() if name not in here and not account.running]:
            # Who is away owes what was used beyond the present, and saves up nothing.
            if self._accounts[name].used <= self._virtual:
                del self._accounts[name]
        if not names:
            return None
        best = min(names, key=lambda name: self._time(name, now))
        self._virtual = max(self._virtual, min(self._accounts[name].used for name in names))
        return best

    def behind(self, tenant: str, others: Iterable[str], now: float) -> float:
        """Return by how much a tenant is behind the one of the others that had most, in virtual seconds."""
        return max(map(partial(self._time, now=now), others), default=0.0) - self._time(tenant, now)

    @property
    def batch(self) -> int:
        """How many jobs, as long as they were lately, are too short to matter beside each other."""
        return int(QUANTUM_S / self._typical)

    def started(self, tenant: str, job: object, now: float) -> None:
        """A job of a tenant holds a slot from now on, unless that is known."""
        if job not in self._tenants:
            self._account(tenant).running[job] = now
            self._tenants[job] = tenant

    def only(self, jobs: Container[object]) -> None:
        """Nothing but these runs: whatever else was thought to is forgotten, lest it be charged for ever."""
        for job in [job for job in self._tenants if job not in jobs]:
            del self._accounts[self._tenants.pop(job)].running[job]

    def ended(self, job: object, seconds: float, now: float) -> None:
        """A job is over and used its slot for so many seconds; what it used before it was known to run is no matter."""
        tenant = self._tenants.pop(job, None)
        if tenant is not None:
            account = self._account(tenant)
            charged = max(LEAST_S, min(seconds, now - account.running.pop(job)))
            account.used += charged / self._weight(tenant)
            self._typical += EWMA * (max(LEAST_S, seconds) - self._typical)

    def used(self, tenant: str) -> float:
        """Return a tenant's virtual time without what is running."""
        return self._account(tenant).used

    def _account(self, tenant: str) -> _Account:
        found = self._accounts.get(tenant)
        if found is None:
            found = self._accounts[tenant] = _Account(self._virtual, {})
        return found

    def _time(self, tenant: str, now: float) -> float:
        """Return a tenant's virtual time.

        A running job counts as long as jobs take, or longer when it has: several that start at once are spread.
        """
        account = self._account(tenant)
        running = sum(max(self._typical, now - since) for since in account.running.values())
        return account.used + running / self._weight(tenant)
