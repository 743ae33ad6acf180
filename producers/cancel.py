"""End a cancelled job that nobody runs: whoever asked should not wait until a worker comes to it. Pure.

Its queue may be long, or its kind may be stopped by an open breaker. Where workers create outcomes once, as a client
does here, it does no harm that one may just begin it: whoever is second finds the first's. Light jobs have their
events only, so of them just those end here that are put off for a while.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from producers.fold import newest
from schemas.errors import JobError
from schemas.event import EVENT_OF, Event, EventType, end_id
from schemas.job import PARAMS
from schemas.outcome import Failure, Outcome, Status

PUT_OFF = frozenset({EventType.POSTPONED, EventType.RETRYING})
WAITING = PUT_OFF | {EventType.QUEUED}
RECORDED = frozenset(PARAMS)
"""Kinds whose outcomes are created once in the store, as far as a client knows."""
MARGIN = timedelta(seconds=5)
"""A light job that is due within this time may run by now: its worker ends it."""


def concluded(
    events: Iterable[Event], reason: str, *, by: str, now: datetime, recorded: Collection[str] = RECORDED
) -> Event | None:
    """Return the last event of a job that nobody runs, its outcome in it; None where a worker must end it.

    It is the event that a worker would tell when it comes to the job, and tells again then: the two count as one.
    """
    last = newest(events)
    if last is None or not (_waits(last) if last.kind in recorded else _put_off(last, now)):
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


def _waits(last: Event) -> bool:
    return last.type in WAITING


def _put_off(last: Event, now: datetime) -> bool:
    return last.type in PUT_OFF and last.until is not None and last.until - now >= MARGIN
