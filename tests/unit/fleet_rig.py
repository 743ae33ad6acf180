"""A fleet and its queue in memory, and the words of those who work and submit there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from producers.fleet import Answer, Lookout, Seen, why
from producers.request import event_message
from schemas.control import Breaker, BreakerState, Presence, Tenant
from schemas.errors import CODES
from schemas.event import Event, EventType
from schemas.ids import uuid7
from schemas.outcome import Failure, Outcome, Status
from schemas.topics import Names, topics
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher
from wire.share.memory import MemoryLog, MemoryShareConsumer

NOW = datetime(2030, 1, 2, 9, 0, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def event(kind: EventType = EventType.QUEUED, at: float = 60.0, **fields: Any) -> Event:
    return Event(id=uuid7(), type=kind, job="j", kind="heavy", time=ago(at), **fields)


def failure(code: str, message: str = "it failed") -> Failure:
    return Failure(failure=CODES[code].failure, code=code, message=message)


def ended(status: Status, code: str | None = None) -> tuple[Event, ...]:
    outcome = Outcome(
        job="j", kind="heavy", status=status, attempt=1, worker="w-1", finished_at=NOW,
        failure=failure(code) if code else None,
    )  # fmt: skip
    return event(), event(EventType(status.value), 3, outcome=outcome, worker="w-1")


def worker(name: str = "w-1", age_s: float = 2.0, **fields: Any) -> Seen:
    told = {"kinds": ("heavy",), "lanes": ("bulk", "interactive"), "slots": 2, "needs": {"heavy": ("store",)}}
    return Seen(Presence(worker=name, host="h", pid=1, started_at=NOW, time=NOW, **(told | fields)), age_s)


def breaker(name: str = "store", **fields: Any) -> dict[str, Breaker]:
    told = {"state": BreakerState.OPEN, "epoch": 1, "worker": "w-9", "since": ago(9), "reason": "5 failures in a row"}
    return {name: Breaker(dependency=name, **(told | fields))}


@dataclass
class Desk:
    """A cluster in memory whose clock stands until it is moved."""

    time: datetime = NOW

    def __post_init__(self) -> None:
        self.names = Names()
        self.log = MemoryLog(clock=lambda: self.time.timestamp())
        for topic in topics(self.names, ("heavy", "light"), 4):
            self.log.create(topic.name, topic.partitions)
        self.publisher = MemoryPublisher(self.log)
        self.blobs = Memory()
        self.lookout = Lookout.memory(
            self.log, self.names, now=lambda: self.time, clock=lambda: 0.0, store=lambda: self.blobs
        )

    def submit(self, job: str, *, told: bool = True, lane: str = "bulk", headers: Any = (), **fields: Any) -> None:
        value = json.dumps({"params": {}} | fields).encode()
        base = [
            ("ce_specversion", b"1.0"),
            ("ce_id", b"1"),
            ("ce_source", b"/d"),
            ("ce_type", b"tape.request.heavy.v1"),
        ]
        topic = self.names.jobs("heavy", lane)
        self.publisher.publish(topic, key=job.encode(), value=value, headers=[*base, *headers]).result()
        if told:
            self.tell(job, EventType.QUEUED, lane=lane)

    def tell(self, job: str, kind: EventType, **fields: Any) -> None:
        told = Event(id=uuid7(), type=kind, job=job, kind="heavy", time=self.time, **fields)
        message = event_message(told, self.names.events)
        self.publisher.publish(message.topic, key=message.key.encode(), value=message.value).result()

    def end(self, job: str) -> None:
        outcome = Outcome(
            job=job, kind="heavy", status=Status.SUCCEEDED, attempt=1, worker="w-1", finished_at=self.time
        )
        self.tell(job, EventType.SUCCEEDED, outcome=outcome)

    def present(self, **fields: Any) -> None:
        self.lookout.publish(worker(**fields).presence)

    def tenant(self, name: str, **fields: Any) -> None:
        self.lookout.publish(Tenant(tenant=name, time=self.time, **fields))

    def take(self, count: int) -> list[Any]:
        group = self.names.group("heavy")
        consumer = MemoryShareConsumer([self.names.jobs("heavy", "bulk")], group, self.log)
        records = list(consumer.poll(count, 0.0))
        for record in records:
            consumer.acknowledge(record)
        consumer.flush(1.0)
        return records

    def why(self, job: str) -> Answer:
        return why(self.lookout, job, NOW - timedelta(hours=1))
