"""Events: every transition and every progress report of a job, and the state machine they move through."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import Field

from schemas import codec
from schemas.ids import derived_id
from schemas.model import Moment, Open
from schemas.outcome import Failure, Outcome, Status


class State(StrEnum):
    """Where a job is (DESIGN §3)."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    POSTPONED = "postponed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED, State.DEAD})
"""A job that reached one of these stays there. Only a dead one may live again: redriven, or sent again, mended."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.POSTPONED, State.RETRYING}) | FINAL,
    State.RUNNING: frozenset({State.RUNNING, State.RETRYING, State.POSTPONED}) | FINAL,
    State.RETRYING: frozenset({State.RUNNING, State.RETRYING, State.POSTPONED}) | FINAL,
    State.POSTPONED: frozenset({State.RUNNING, State.POSTPONED, State.RETRYING}) | FINAL,
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
    State.DEAD: frozenset({State.QUEUED, State.RUNNING, State.RETRYING, State.POSTPONED}) | FINAL - {State.DEAD},
}
"""What may follow what. `running → running` is another worker that took over a lost lease. Light jobs go from `queued`
straight to their end: their one event tells when they started. A dead letter is no outcome: a mended record under the
same id runs, and what becomes of it counts. `dead → queued` is a redrive, and its event says which; the submitter's own
`queued` may come late and says 0."""


class EventType(StrEnum):
    """What an event tells: a transition into a state, or progress within `running`."""

    QUEUED = "queued"
    RUNNING = "running"
    PROGRESS = "progress"
    RETRYING = "retrying"
    POSTPONED = "postponed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


STATE_OF: dict[EventType, State | None] = {
    EventType.QUEUED: State.QUEUED,
    EventType.RUNNING: State.RUNNING,
    EventType.PROGRESS: None,
    EventType.RETRYING: State.RETRYING,
    EventType.POSTPONED: State.POSTPONED,
    EventType.SUCCEEDED: State.SUCCEEDED,
    EventType.FAILED: State.FAILED,
    EventType.CANCELLED: State.CANCELLED,
    EventType.EXPIRED: State.EXPIRED,
    EventType.DEAD: State.DEAD,
}

EVENT_OF: dict[Status, EventType] = {
    Status.SUCCEEDED: EventType.SUCCEEDED,
    Status.FAILED: EventType.FAILED,
    Status.CANCELLED: EventType.CANCELLED,
    Status.EXPIRED: EventType.EXPIRED,
    Status.DEAD: EventType.DEAD,
}


class Event(Open):
    """The value of a record on the events topic."""

    schema_version: int = 1
    id: str = Field(description="equal for repeats of one outcome, so readers can drop them")
    type: EventType
    job: str
    kind: str
    lane: str = "bulk"
    tenant: str = "default"
    time: Moment
    attempt: int = Field(default=0, ge=0, description="0 before the first attempt")
    redrive: int = Field(default=0, ge=0, description="how often the job was sent back from the dead letters")
    worker: str | None = None
    started_at: Moment | None = None
    until: Moment | None = Field(default=None, description="a retrying or postponed job is not taken before")
    progress: dict[str, Any] | None = None
    failure: Failure | None = None
    outcome: Outcome | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Written(NamedTuple):
    """The record of an event."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def written(event: Event, source: str) -> Written:
    """Return the record of an event that `source` (a URI reference) tells: its key is the job's id."""
    value = event.model_dump_json(exclude_none=True).encode()
    kind, time = codec.event_type(event.type), event.time.isoformat()
    envelope = codec.Envelope(id=event.id, type=kind, source=source, data=value, subject=event.job, time=time)
    return Written(event.job.encode(), value, codec.encode(envelope))


def end_id(job: str) -> str:
    """Return the id of the event by which a job ends: whoever tells it, and however often, it is one."""
    return derived_id(job, "outcome")


def queued(
    job: str,
    *,
    kind: str,
    lane: str,
    tenant: str,
    time: datetime,
    labels: Mapping[str, str],
    redrive: int = 0,
    identity: str | None = None,
) -> Event:
    """Return the event that a job begins with, or begins again with: then it has an `identity` of its own."""
    return Event(
        id=identity or derived_id(job, EventType.QUEUED), type=EventType.QUEUED, job=job, kind=kind, lane=lane,
        tenant=tenant, time=time, redrive=redrive, labels=dict(labels),
    )  # fmt: skip


def follow(state: State | None, event: Event) -> State:
    """Return the state after `event`: what `TRANSITIONS` allows, else unchanged (a late or repeated event)."""
    target = STATE_OF[event.type]
    if target is None:
        return state or State.RUNNING
    if state is State.DEAD and target is State.QUEUED and not event.redrive:
        return state  # the `queued` of a job that died at once may come after its end
    if state is None or target in TRANSITIONS[state]:
        return target
    return state
