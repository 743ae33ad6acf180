"""End a cancelled job that is put off: nobody runs it, and whoever asked should not wait until it is due. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from producers.fold import newest
from schemas.errors import JobError
from schemas.event import EVENT_OF, Event, EventType, end_id
from schemas.outcome import Failure, Outcome, Status

PUT_OFF = frozenset({EventType.POSTPONED, EventType.RETRYING})
MARGIN = timedelta(seconds=5)
"""A job that is due within this time may run by now: its worker ends it."""


def concluded(events: Iterable[Event], reason: str, *, by: str, now: datetime) -> Event | None:
    """Return the last event of a job that is put off for a while, its outcome in it; None where a worker must end it.

    It is the event that a worker would tell when the job is due, and tells again then: the two count as one.
    """
    last = newest(events)
    if last is None or last.type not in PUT_OFF or last.until is None or last.until - now < MARGIN:
        return None
    failure = Failure.of(JobError(reason, code="TAPE-6005"))
    outcome = Outcome(
        job=last.job, kind=last.kind, tenant=last.tenant, status=Status.CANCELLED, attempt=last.attempt, worker=by,
        finished_at=now, failure=failure,
    )  # fmt: skip
    return Event(
        id=end_id(last.job), type=EVENT_OF[outcome.status], job=last.job, kind=last.kind,
        lane=last.lane, tenant=last.tenant, time=now, attempt=last.attempt, worker=by, labels=last.labels,
        failure=failure, outcome=outcome,
    )  # fmt: skip
