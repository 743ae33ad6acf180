"""Dead letters on the memory twins: a desk, letters of every sort, and workers that are played."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from producers.dead import Desk, Filter
from producers.redrive import state
from producers.redrive.pace import Pace
from producers.redrive.patch import Patch
from producers.redrive.plan import MAX_REPLAYS, Wish, plan
from producers.redrive.run import Runner
from producers.redrive.state import Kept
from schemas import past
from schemas.dead import DeadLetter, dead_headers
from schemas.errors import CODES
from schemas.event import Event, EventType
from schemas.ids import derived_id, uuid7
from schemas.outcome import Failure
from schemas.topics import Names, topics
from wire.blobs.memory import Memory
from wire.follow import MemoryFollower
from wire.publish import MemoryPublisher
from wire.share.memory import Entry, MemoryLog
from wire.transact import MemoryTransactor

START = datetime(2030, 1, 2, 9, 0, tzinfo=UTC)
KINDS = ("inference", "training")


@dataclass
class Rig:
    """A cluster in memory, a store in memory, and a clock that only moves when it is told to."""

    names: Names = field(default_factory=Names)
    time: datetime = START
    waited: float = 0.0
    offsets: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.log = MemoryLog(clock=lambda: self.time.timestamp())
        for topic in topics(self.names, KINDS, 4):
            self.log.create(topic.name, topic.partitions)
        self.blobs = Memory()
        self.desk = self.fresh()

    def fresh(self, who: str = "ops@desk") -> Desk:
        return Desk(
            names=self.names,
            follower=MemoryFollower(self.log),
            topics=lambda: set(self.log.topics()),
            transactor=lambda name: MemoryTransactor(self.log, name),
            store=lambda: self.blobs,
            now=lambda: self.time,
            who=who,
        )

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.waited += seconds
        assert self.waited < 10_000, "it waits for what does not come"

    def bury(self, job: str, kind: str = "inference", code: str = "TAPE-6003", **more: Any) -> str:
        """Write a dead letter as a worker does; return its place."""
        topic = more.pop("topic", self.names.jobs(kind, "bulk"))
        offset = more.pop("offset", None)
        if offset is None:
            offset, self.offsets[topic] = self.offsets[topic], self.offsets[topic] + 1
        body = more.pop("body", {"params": {"model": "builtin:m", "prompt": "hi"}})
        replays = more.pop("replays", 0)
        headers = [("ce_specversion", b"1.0"), ("ce_id", job.encode()), ("ce_source", b"/desk"),
                   ("ce_type", b"tape.request"), ("ce_subject", job.encode()), *more.pop("headers", [])]  # fmt: skip
        headers = past.write(headers, past.Past(spent=3, replays=replays)) if replays else headers
        failure = Failure(failure=CODES[code].failure, code=code, message=more.pop("message", CODES[code].meaning))
        letter = DeadLetter(
            job=job, kind=kind, topic=topic, partition=0, offset=offset, attempts=more.pop("attempts", 3), worker="w-1",
            time=more.pop("time", self.time), failure=failure, **more,
        )  # fmt: skip
        value = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.append(self.names.dead(kind), job.encode(), value, [*headers, *dead_headers(letter)])

    def append(self, topic: str, key: bytes | None, value: bytes | None, headers: list[Any]) -> str:
        partition, offset = self.log.append(topic, key, value, headers)
        return f"{topic}/{partition}/{offset}"

    def entries(self, topic: str) -> list[Entry]:
        return [entry for part in range(self.log.partitions(topic)) for entry in self.log.read(topic, part)]

    def jobs(self, kind: str = "inference", lane: str = "bulk") -> list[Entry]:
        """What was sent back."""
        return self.entries(self.names.jobs(kind, lane))

    def moved(self) -> Counter[str]:
        """How often each job was sent back, of all kinds."""
        return Counter((entry.key or b"").decode() for kind in KINDS for entry in self.jobs(kind))

    def tell(self, job: str, kind: EventType, **fields: Any) -> None:
        """Play a worker that tells of a job."""
        event = Event(id=uuid7(), type=kind, job=job, kind="inference", time=self.time, **fields)
        value = event.model_dump_json(exclude_none=True).encode()
        MemoryPublisher(self.log).publish(self.names.events, key=job.encode(), value=value).result()

    def play(self, ends: Callable[[str], EventType]) -> Callable[[float], None]:
        """Return a sleep in which workers end every job that was sent back and has not ended."""
        told: set[str] = set()

        def sleep(seconds: float) -> None:
            self.sleep(seconds)
            for entry in [entry for kind in KINDS for entry in self.jobs(kind)]:
                job = (entry.key or b"").decode()
                name = derived_id(job, str(past.read(entry.headers).replays))
                if name not in told:
                    told.add(name)
                    self.tell(job, ends(job))

        return sleep

    def plan(
        self, chosen: Filter | None = None, *, patch: list[dict[str, Any]] | None = None, max_replays: int = MAX_REPLAYS
    ) -> Kept:
        """Plan a redrive and keep it."""
        wish = Wish(
            chosen or Filter(), self.desk.topics(), self.time, "ops@desk", Patch(patch) if patch else None, max_replays,
            "because",
        )  # fmt: skip
        made, text = plan(wish, self.desk.letters(self.desk.dead()), lambda kinds: {})
        return state.create(self.blobs, made, text)

    def runner(self, identity: str, pace: Pace | None = None, **more: Any) -> Runner:
        """Return a runner as a process of its own has it: nothing is known but what is kept."""
        desk = more.pop("desk", None) or self.fresh()
        given = {"sleep": self.sleep, "clock": lambda: self.time.timestamp()} | more
        return Runner(desk, state.load(desk.blobs, identity), pace or Pace(), **given)


def headers(entry: Entry) -> dict[str, bytes | None]:
    return dict(entry.headers)


def values(entries: Iterable[Entry]) -> list[Any]:
    return [json.loads(entry.value or b"null") for entry in entries]
