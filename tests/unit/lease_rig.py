"""A lease loop on twins: slots, consumers and a clock that move when a test says so."""

from __future__ import annotations

from collections import deque
from typing import Any

from worker_twin import NAMES, Clock, request

from wire.share import AckType, Listener, MemoryLog, MemoryShareConsumer, Record, ShareError
from wire.share.locks import GroupConfig
from workers.lease import LeaseLoop
from workers.source import Source

LOCK_S = 30.0


class Slots:
    """A pool whose jobs start and end when a test says so."""

    def __init__(self, size: int, *, light: bool = False) -> None:
        self.size, self.light = size, light
        self.queue: deque[Record] = deque()
        self.running: list[Record] = []

    def give(self, record: Record) -> None:
        self.queue.append(record)

    def drop(self) -> list[Record]:
        dropped, self.queue = list(self.queue), deque()
        return dropped

    def adapt(self, _: float) -> bool:
        return False

    def start(self) -> list[Record]:
        """Free slots take what waits; returns what they took."""
        taken = []
        while self.queue and len(self.running) < self.size:
            taken.append(self.queue.popleft())
            self.running.append(taken[-1])
        return taken

    def end(self, loop: LeaseLoop, record: Record, ack: AckType = AckType.ACCEPT) -> None:
        self.running.remove(record)
        loop.done(record, ack)


class Slow(MemoryShareConsumer):
    """A consumer whose fetches take a turn: what was asked for comes with the next poll, as from a broker."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked = 0
        self.arrived: deque[Record] = deque()
        self.most = 0

    @property
    def promised(self) -> int:
        return self.asked + len(self.arrived)

    def fetch(self) -> None:
        """The broker answers what was asked."""
        found = super().poll(self.asked, 0.0)
        self.asked -= len(found)
        self.arrived.extend(found)

    def poll(self, max_records: int, timeout: float = 0.0) -> list[Record]:
        found = [self.arrived.popleft() for _ in range(min(max_records, len(self.arrived)))]
        self.asked = max_records - len(found)
        self.most = max(self.most, self.asked)
        return found


class Rig:
    """A loop over the two lanes of some kinds, one pool, a clock."""

    def __init__(
        self, slots: int = 1, kinds: tuple[str, ...] = ("say",), *, light: bool = False, log: MemoryLog | None = None,
        lanes: tuple[str, ...] = ("interactive", "bulk"), **options: Any,
    ) -> None:  # fmt: skip
        self.clock = Clock()
        self.log = log or MemoryLog()
        self.pool = Slots(slots, light=light)
        self.forgotten: list[Record] = []
        config = GroupConfig(lock_duration=LOCK_S, delivery_limit=10)
        rig = self

        class Losses(Listener):
            def on_lost(self, ranges: Any, error: ShareError) -> None:
                rig.loop.lost([(r.topic, r.partition, offset) for r in ranges for offset in range(r.first, r.last + 1)])

        self.consumers: dict[tuple[str, str], Slow] = {}
        for kind in kinds:
            for lane in lanes:
                topic = NAMES.jobs(kind, lane)
                self.log.create(topic)
                self.consumers[kind, lane] = Slow(
                    [topic], NAMES.group(kind), self.log, clock=self.clock, config=config, listener=Losses()
                )
        sources = [Source(kind, lane, one, self.pool) for (kind, lane), one in self.consumers.items()]  # type: ignore[arg-type]
        self.loop = LeaseLoop(sources, clock=self.clock, forget=self.forgotten.append, **options)

    def send(self, lane: str = "bulk", times: int = 1, kind: str = "say") -> None:
        for number in range(times):
            key, value, headers = request(f"{lane}-{number}")
            self.log.append(NAMES.jobs(kind, lane), key, value, headers)

    def turn(self, seconds: float = 0.0) -> list[Record]:
        """One turn of the loop, after which the broker answers and slots start; returns what started."""
        self.clock.advance(seconds)
        self.loop.step()
        for consumer in self.consumers.values():
            consumer.fetch()
        return self.pool.start()

    def until_started(self, turns: int = 60) -> Record:
        for _ in range(turns):
            if started := self.turn(self.loop._pause):
                return started[0]
        raise AssertionError("nothing was started")

    def state(self, lane: str = "bulk", kind: str = "say") -> tuple[int, int]:
        """Start offset and lag of a lane's only partition."""
        return self.log.group(NAMES.group(kind)).describe(NAMES.jobs(kind, lane), 0)
