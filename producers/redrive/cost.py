"""What a kind's jobs cost lately: the mean of the outcomes on the events topic."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from schemas.errors import NotFoundError
from schemas.event import Event
from schemas.topics import Names
from wire.follow import Follower

BUDGET_S = 1.5
"""How long may be read for it: a plan must not wait for a busy events topic."""
_ENDED = b'"type":"succeeded"'


def costs(
    follower: Follower,
    names: Names,
    kinds: Collection[str],
    now: datetime,
    *,
    since: timedelta = timedelta(days=1),
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Return the mean seconds of a succeeded job, by kind, of the time `since`; no entry for what nothing tells of."""
    found: dict[str, list[float]] = defaultdict(list)
    if not kinds:
        return {}
    until = clock() + BUDGET_S
    try:
        feed = follower.read(names.events, since=now - since)
    except NotFoundError:
        return {}
    with feed:
        for batch in feed:
            for record in batch:
                # A look at the bytes is a hundred times cheaper than reading them.
                if record.value is None or _ENDED not in record.value[:400]:
                    continue
                _count(found, record.value, kinds)
            if clock() > until:
                break
    return {kind: sum(seconds) / len(seconds) for kind, seconds in found.items()}


def _count(found: dict[str, list[float]], value: bytes, kinds: Collection[str]) -> None:
    try:
        event = Event.model_validate_json(value)
    except ValueError:
        return
    if event.outcome is not None and event.kind in kinds and event.outcome.usage.seconds > 0:
        found[event.kind].append(event.outcome.usage.seconds)
