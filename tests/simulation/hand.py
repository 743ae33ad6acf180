"""One worker of the simulation: the parts of a real one on twins, each of its threads taken step by step."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from schemas import control
from schemas.control import Breaker
from schemas.errors import InvalidError, JobError
from schemas.outcome import Succeeded
from tests.simulation.twins import Cracked, Holder, Link, Shaky, Watch
from tests.unit.worker_twin import NAMES, Bench, Say
from wire.share import Listener, OffsetRange, Record
from wire.share.locks import GroupConfig
from workers.context import Context
from workers.kinds import Kind
from workers.lease import LeaseLoop
from workers.source import Source

if TYPE_CHECKING:
    from tests.simulation.world import World

DELIVERIES = 10
"""The delivery limit of the groups, as `schemas.topics` sets it, where no process dies or freezes at random: with one
death in twenty steps ten deliveries in a row come to nothing, and a broker drops such a record."""
LIGHT = "shout"


class Inline:
    """Slots that run what they are given when they are told to."""

    def __init__(self, size: int, light: bool) -> None:
        self.size, self.light = size, light
        self.queue: deque[Record] = deque()

    def give(self, record: Record) -> None:
        self.queue.append(record)

    def adapt(self, _: float) -> bool:
        return False

    def drop(self) -> list[Record]:
        given = list(self.queue)
        self.queue.clear()
        return given


class Losses(Listener):
    """What a real worker does about lost leases."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand

    def on_lost(self, ranges: Iterable[OffsetRange], error: Any) -> None:
        self._hand.desk.claims.doubt()
        self._hand.loop.lost([(r.topic, r.partition, at) for r in ranges for at in range(r.first, r.last + 1)])


class Desk(Bench):
    """A worker's parts; while one of its threads waits the world goes on."""

    hand: Hand

    def sleep(self, seconds: float) -> bool:
        """Time passes, a little more than was asked for."""
        self.hand.wait(seconds)
        return self.ended


class Hand:
    """A worker."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.watch = Watch(world.time)
        self.link = Link(self.meet)
        self.busy = self.draining = False
        store = Cracked(world.store, self.link)
        store.wrote = self._wrote
        kinds = [Kind("say", Say, self.run, "process", 3), Kind(LIGHT, Say, self.run, "thread", 3)]
        self.desk = Desk(
            *kinds, log=world.log, store=store, publisher=Shaky(world.log, self.link), worker=name,
            clock=self.watch,  # type: ignore[arg-type]
        )  # fmt: skip
        self.desk.hand, self.desk.chance = self, 0.5
        self.desk.gate._clock = self.watch
        self.pools = [Inline(1, False), Inline(2, True)]
        self.members = [self._member(kind.name) for kind in kinds]
        self.loop = LeaseLoop(
            [Source(kind.name, "bulk", member, pool)  # type: ignore[arg-type]
             for kind, member, pool in zip(kinds, self.members, self.pools, strict=True)],
            forget=self.desk.again.forget, gate=self.desk.gate.room, clock=self.watch,
        )  # fmt: skip
        self._read = 0
        self._asked: set[str] = set()
        self.listen()

    def _member(self, kind: str) -> Holder:
        member = Holder(
            [NAMES.jobs(kind, "bulk")], NAMES.group(kind), self.world.log, clock=self.watch,
            config=GroupConfig(lock_duration=30, delivery_limit=self.world.deliveries), listener=Losses(self),
        )  # fmt: skip
        member.link = self.link
        return member

    def meet(self, step: str) -> bool:
        """Come to a step; frozen, it does nothing while the world goes on."""
        return self.world.fate.meet(self.name, step, lambda: self.world.meanwhile(self))

    def _wrote(self, name: str, data: bytes) -> None:
        if name.endswith("/claim.json"):
            self.world.claimed(name.split("/")[1], data)

    def run(self, context: Context, params: Say) -> Succeeded:
        """The handler of all kinds: what a job does is in its text."""
        job = self.world.oracle.jobs[context.job]
        job.runs += 1
        if context.job in self._asked:
            self.world.oracle.wrong.append(f"{context.job} ran on {self.name}, which knew that it was cancelled")
        if self.desk.control.paused(context.job):
            self.world.oracle.wrong.append(f"{context.job} ran on {self.name}, which knew that it was paused")
        way = params.text
        if self.meet("run"):
            raise JobError("a passing trouble")
        if way == "slow":
            for _ in range(3):
                self.wait(5.0)
                if context.cancelled:
                    self.wait(2.0)  # it puts away what it has
                context.check()
        if way == "bad":
            raise InvalidError("refused")
        if way in CODES:
            raise JobError(way, code=CODES[way])
        if way == "hopeless" or (way == "flaky" and context.attempt == 1):
            raise JobError("try again")
        if job.light:
            return Succeeded(result={"job": context.job})
        data = f"{context.job}/{context.attempt}".encode()
        name = f"blobs/{context.job}-{context.attempt}"
        context.store.put(name, data)
        return Succeeded(result={"blob": name, "sha256": hashlib.sha256(data).hexdigest()})

    def wait(self, seconds: float) -> None:
        """One of its threads waits: the others, and the world, go on."""
        self.world.rest(self, seconds)

    # Its threads, step by step

    def listen(self) -> None:
        """Read what is new on the control topic."""
        if not self.link.brokers:
            return
        for entry in self.world.log.read(NAMES.control, 0, self._read):
            self._read += 1
            if entry.value is not None and isinstance(message := control.read(entry.value), Breaker):
                self.desk.breakers.apply(message)
            else:
                self.desk.control.apply(entry)

    def turn(self) -> None:
        """One turn of the loop that owns the leases."""
        self.loop.step()
        self.pass_on()
        if self.draining and not self.loop.held and not self.busy:
            self.world.goes(self)

    def work(self) -> None:
        """Run one job, if there is one in a slot."""
        for pool in self.pools:
            if pool.queue:
                self.busy = True
                try:
                    # Known before it began: a cancellation that comes while it runs is another matter.
                    self._asked = set(self.desk.control._reasons)
                    self.desk.executor.execute(pool.queue.popleft(), self.desk.runner)
                finally:
                    self.busy = False
                self.pass_on()

    def retry(self) -> None:
        """Do again what is due."""
        self.desk.again.run()
        self.pass_on()

    def beat(self) -> None:
        """Keep its claims alive."""
        self.desk.claims.beat()

    def pass_on(self) -> None:
        """What is settled goes to the loop, what must be run again to its slot, and what it says to the brokers."""
        while self.desk.acks:
            record, ack = self.desk.acks.pop(0)
            self.world.oracle.settled(record, ack)
            self.loop.done(record, ack)
        while self.desk.given:
            record = self.desk.given.pop(0)
            self.pools[record.topic == NAMES.jobs(LIGHT, "bulk")].give(record)  # type: ignore[arg-type]
        while self.desk.said:
            message = self.desk.said.pop(0)
            if self.link.brokers:
                value = message.model_dump_json(exclude_none=True).encode()
                self.world.log.append(NAMES.control, control.key(message).encode(), value)

    def drain(self) -> None:
        """It takes nothing more, and ends when it holds nothing."""
        self.draining = True
        self.loop.drain()

    def hurry(self) -> None:
        """Its running jobs are to be handed back."""
        self.desk.stopping = True

    def end(self, *, at_once: bool) -> None:
        """It is gone; its sessions with it, or its locks once their time is over."""
        for member in self.members:
            member.crash(at_once=at_once)


CODES = {"broken": "TAPE-6009", "crash": "TAPE-6002", "short": "TAPE-6003"}
