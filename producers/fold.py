"""Events folded into what is known of each job: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from schemas.event import FINAL, STATE_OF, TRANSITIONS, Event, EventType, State, follow


@dataclass(slots=True)
class View:
    """One job as its events tell it; one that came back from the dead letters as those since then do."""

    job: str
    kind: str
    lane: str
    tenant: str
    state: State
    attempt: int
    worker: str | None
    submitted: datetime | None
    started: datetime | None
    updated: datetime
    progress: dict[str, Any] | None
    code: str | None
    labels: dict[str, str]

    @property
    def final(self) -> bool:
        """Whether the job is at its end."""
        return self.state in FINAL

    @property
    def seconds(self) -> float | None:
        """How long it ran, or has been running."""
        return None if self.started is None else max(0.0, (self.updated - self.started).total_seconds())

    def row(self) -> dict[str, Any]:
        """Return the view as plain data."""
        return {**asdict(self), "seconds": self.seconds}


def fold(events: Iterable[Event]) -> dict[str, View]:
    """Return the view of every job, by its id, in the order of their first events.

    Repeats and late events change nothing.
    """
    views: dict[str, View] = {}
    for event in events:
        view = views.get(event.job)
        if view is None:
            views[event.job] = _first(event)
        elif not view.final or event.type == EventType.QUEUED:
            _next(view, event)
    return views


def newest(events: Iterable[Event]) -> Event | None:
    """Return the event that brought one job to where `fold` says it is; None where none did.

    That is not the last one of the topic: the submitter's `queued` may land there behind a worker's `postponed`.
    """
    state: State | None = None
    found: Event | None = None
    for event in events:
        if state in FINAL and event.type != EventType.QUEUED:
            continue
        before, state = state, follow(state, event)
        if STATE_OF[event.type] is state and (before is None or state in TRANSITIONS[before]):
            found = event
    return found


def _first(event: Event) -> View:
    return View(
        job=event.job,
        kind=event.kind,
        lane=event.lane,
        tenant=event.tenant,
        state=follow(None, event),
        attempt=event.attempt,
        worker=event.worker,
        submitted=event.time if event.type == EventType.QUEUED else None,
        started=_started(event),
        updated=event.time,
        progress=event.progress,
        code=event.failure.code if event.failure else None,
        labels=event.labels,
    )


def _next(view: View, event: Event) -> None:
    if event.type == EventType.QUEUED and view.submitted is None:
        view.submitted = event.time
    before, view.state = view.state, follow(view.state, event)
    if view.state == before and event.type not in (EventType.PROGRESS, EventType.RUNNING, EventType.RETRYING):
        return
    if before is State.DEAD:  # another life: its attempts count from zero again
        view.attempt, view.worker, view.started, view.progress, view.code = 0, None, None, None, None
    view.updated = max(view.updated, event.time)
    view.attempt = max(view.attempt, event.attempt)
    view.worker = event.worker or view.worker
    view.progress = event.progress or view.progress
    view.labels = event.labels or view.labels
    view.started = _started(event) or view.started
    view.code = event.failure.code if event.failure else None if view.state == State.SUCCEEDED else view.code


def _started(event: Event) -> datetime | None:
    return event.started_at or (event.time if event.type == EventType.RUNNING else None)
