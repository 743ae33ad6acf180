"""Events and outcomes of jobs, as workers tell them to a client."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from schemas.event import Event, EventType
from schemas.ids import uuid7
from schemas.outcome import Outcome, Status

PARAMS = {"model": "builtin:m", "prompt": "hi"}


def event(job: str, kind: EventType, *, at: datetime | None = None, **fields: Any) -> Event:
    return Event(id=uuid7(), type=kind, job=job, kind="inference", time=at or datetime.now(UTC), **fields)


def outcome(job: str, status: Status = Status.SUCCEEDED, **fields: Any) -> Outcome:
    return Outcome(
        job=job, kind="inference", status=status, attempt=1, worker="w", finished_at=datetime.now(UTC), **fields
    )


def end(job: str, **result: Any) -> Event:
    return event(job, EventType.SUCCEEDED, outcome=outcome(job, result=result))
