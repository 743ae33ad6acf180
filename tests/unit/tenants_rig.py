"""A lease loop over one queue of several tenants; its scout, its slots and its broker move when a test says so."""

from __future__ import annotations

from typing import Any

from lease_rig import LOCK_S, Slots, Slow
from worker_twin import NAMES, Clock, request

from schemas.topics import LOCKS
from wire.publish import MemoryPublisher
from wire.share import Listener, MemoryLog, Record
from wire.share.locks import GroupConfig
from workers.aside import Aside
from workers.fair import Shares
from workers.lease import LeaseLoop
from workers.source import Source
from workers.tenants import CROWDED_S, Moved, Tenants

TOPIC = NAMES.jobs("say", "bulk")


class Worker:
    """A lease loop over one queue; its scout, its slots and its broker move when a test says so."""

    def __init__(
        self, log: MemoryLog, clock: Clock, *, slots: int = 1, light: bool = False, publisher: Any = None,
        movable: Any = lambda _: True,
    ) -> None:  # fmt: skip
        self.log, self.clock = log, clock
        self.pool = Slots(slots, light=light)
        config = GroupConfig(lock_duration=LOCK_S, delivery_limit=10, max_locks=LOCKS)
        worker = self

        class Heard(Listener):
            def on_lost(self, ranges: Any, error: Any) -> None:
                worker.loop.lost([(r.topic, r.partition, at) for r in ranges for at in range(r.first, r.last + 1)])

        self.consumer = Slow([TOPIC], NAMES.group("say"), log, clock=clock, config=config, listener=Heard())
        self.tenants = Tenants(
            Shares(), movable=movable, running=lambda: self.loop.running(), clock=clock,
            wall=lambda: 0.0,
        )  # fmt: skip
        self.aside = Aside(
            publisher or MemoryPublisher(log), lambda *told: self.loop.done(*told), lambda it: self.loop.keep(it)
        )
        self.put: list[Moved] = []
        self.loop = LeaseLoop(
            [Source("say", "bulk", self.consumer, self.pool, self.tenants)],  # type: ignore[arg-type]
            clock=clock, aside=self.put.append,
        )  # fmt: skip
        self.ahead: dict[int, int] | None = None
        self.began: dict[tuple[str, int, int], float] = {}
        self.ran: list[Record] = []

    def scout(self) -> None:
        """Read on, as the scout does, while somebody wants to know."""
        if not self.tenants.wanted.is_set():
            self.ahead = None
            return
        if self.ahead is None:
            group = self.log.group(NAMES.group("say"))
            self.ahead = {part: group.describe(TOPIC, part)[0] for part in range(self.log.partitions(TOPIC))}
            self.tenants.begin()
        for part, offset in self.ahead.items():
            entries = self.log.read(TOPIC, part, offset)
            self.tenants.see([Record(TOPIC, *entry, 0) for entry in entries])
            self.ahead[part] = offset + len(entries)

    def turn(self, seconds: float = 0.01) -> list[Record]:
        """One turn; the broker answers, what goes aside is written, free slots take what waits."""
        self.clock.advance(seconds)
        self.scout()
        self.loop.step()
        asked = self.consumer.asked
        before = len(self.consumer.arrived)
        self.consumer.fetch()
        if asked:
            self.tenants.fetched(len(self.consumer.arrived) - before)
        for moved in self.put:
            self.aside.write(moved)
        self.put.clear()
        started = self.pool.start()
        for found in started:
            self.began[found[:3]] = self.clock()
            self.ran.append(found)
        return started

    def until_started(self, turns: int = 60) -> Record:
        """Turn until one job starts."""
        for _ in range(turns):
            if started := self.turn():
                assert len(started) == 1
                return started[0]
        raise AssertionError("nothing was started")

    def end(self, found: Record) -> None:
        self.pool.end(self.loop, found)
        self.loop.spent(found, self.clock() - self.began.pop(found[:3]))


def send(log: MemoryLog, tenant: str, name: str, partition: int | None = None) -> None:
    key, value, headers = request(name, tenant=tenant)
    log.append(TOPIC, key, value, headers, partition)


def job(found: Record) -> str:
    return (found.key or b"").decode()


def crowded(worker: Worker) -> Record:
    """The first job runs, and has been running for long enough to make somebody look."""
    started: list[Record] = []
    while not started:
        started = worker.turn()
    worker.turn()
    worker.turn(CROWDED_S)
    worker.turn()
    assert worker.tenants.wanted.is_set()
    return started[0]
