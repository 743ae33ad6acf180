"""Jobs that have ended otherwise since they became dead letters: sent again by hand, or by another letter of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from producers.dead.desk import Desk
from schemas.errors import NotFoundError
from schemas.event import FINAL, STATE_OF, Event, State

SLACK = timedelta(minutes=5)
"""How far the clocks of workers may be behind that of the broker."""


def ended(desk: Desk, jobs: Mapping[str, datetime]) -> dict[str, str]:
    """Return how those of these jobs ended that did after the moment given for each.

    Every event since the first of them is looked at, however many there are: a job that is missed here, and of which
    nothing is kept in the store, would run again. Of those of other jobs it is their keys only.
    """
    found: dict[str, str] = {}
    if not jobs:
        return found
    try:
        keys = {job.encode() for job in jobs}
        feed = desk.follower.read(desk.names.events, since=min(jobs.values()) - SLACK, keys=keys)
    except NotFoundError:
        return found
    with feed:
        for batch in feed:
            for record in batch:
                died = jobs.get((record.key or b"").decode("utf-8", "replace"))
                if died is None or record.value is None:
                    continue
                try:
                    event = Event.model_validate_json(record.value)
                except ValueError:
                    continue
                state = STATE_OF[event.type]
                if state is State.DEAD:
                    found.pop(event.job, None)
                elif state in FINAL and event.time > died:
                    found[event.job] = State(state).value
    return found
