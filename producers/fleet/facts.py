"""What is known of one job that waits, and the answer to why: plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from producers.fleet.view import Fleet
from schemas.control import Tenant
from schemas.dead import Fate
from schemas.event import STATE_OF, Event, EventType, State
from schemas.past import Past
from schemas.quota import Tally


class Blocker(StrEnum):
    """What a job waits for; exactly one is named."""

    ENDED = "ended"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    RUNNING = "running"
    LOST = "worker-lost"
    DELAYED = "delayed"
    MOVER = "no-mover"
    ELSEWHERE = "runs-elsewhere"
    QUOTA = "quota"
    EXPIRED = "expired"
    KIND = "unknown-kind"
    WORKERS = "no-worker"
    SILENT = "workers-silent"
    DRAINING = "workers-draining"
    BREAKER = "breaker"
    SUSPECT = "suspect"
    SLOTS = "slots-busy"
    POSITION = "position"
    NEXT = "next"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a share group stands in a partition: unfinished records lie in [start, end); -1 is unknown."""

    topic: str
    partition: int
    start: int
    end: int
    lag: int

    @property
    def waiting(self) -> int:
        """Unfinished records, as far as is known."""
        return self.lag if self.lag >= 0 else max(0, self.end - max(0, self.start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job's newest record lies in its job topic, and what it says."""

    topic: str
    partition: int
    offset: int
    written: datetime
    past: Past = field(default_factory=Past)
    expires_at: datetime | None = None
    not_before: datetime | None = None
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class Turns:
    """What waits in a queue that several tenants share: `own` jobs of the tenant came first, others have so many."""

    own: int
    others: Mapping[str, int]

    def ahead(self, mine: float, weight: Callable[[str], float]) -> int:
        """Return about how many jobs start before the tenant's next: each other has as many turns, by its weight."""
        turns = {name: math.ceil((self.own + 1) * weight(name) / mine) for name in self.others}
        return self.own + sum(min(count, turns[name]) for name, count in self.others.items())


@dataclass(frozen=True, slots=True)
class Rate:
    """How many jobs of the kind and lane ended in so many seconds."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known at `now`. `searched`: the queue was looked at to its end, so no `place` means it is not there.

    `queue` is None where the job topic does not exist; `other` counts what waits in the other lanes of the kind;
    `turns` is known where tenants share the queue;
    `fate` tells that a dead job was discarded;
    `tally` is what the tenant's jobs have taken of its quota, None where it has none or the store did not say.
    """

    job: str
    now: datetime
    kind: str | None = None
    lane: str = "bulk"
    events: tuple[Event, ...] = ()
    place: Place | None = None
    searched: bool = False
    queue: tuple[Standing, ...] | None = ()
    other: int = 0
    fleet: Fleet = field(default_factory=Fleet)
    rate: Rate | None = None
    tenant: str = "default"
    tally: Tally | None = None
    turns: Turns | None = None
    fate: Fate | None = None

    def weight(self, tenant: str) -> float:
        """Return a tenant's weight."""
        said = self.fleet.tenants.get(tenant)
        return 1.0 if said is None else said.weight

    @property
    def early(self) -> datetime | None:
        """The moment before which the job is not taken, as its record says; None once that has come."""
        moment = self.place.not_before if self.place is not None else None
        return moment if moment is not None and moment > self.now else None

    @property
    def tried(self) -> list[str]:
        """The workers that took the job one after the other and said nothing of an end."""
        found: list[str] = []
        for event in self.events:
            if event.job != self.job:
                continue
            if event.type is EventType.RUNNING:
                found += [event.worker or "unknown"] if not found or found[-1] != event.worker else []
            elif STATE_OF[event.type] is not None:
                found = []
        return list(dict.fromkeys(found))

    @property
    def quota(self) -> Tenant | None:
        """What the job's tenant may, if it has a quota."""
        said = self.fleet.tenants.get(self.tenant)
        return said if said is not None and said.limited else None

    @property
    def used(self) -> dict[str, Any]:
        """What the job's tenant may, and what its jobs have taken of that, as plain data."""
        said, tally = self.quota, self.tally
        if said is None:
            return {"tenant": self.tenant, "quota": "taken back since"}
        found: dict[str, Any] = {"tenant": said.tenant, "may run": said.in_flight, "may start a second": said.rate}
        if tally is not None and said.in_flight is not None:
            found["in flight"] = tally.in_flight
        if tally is not None and said.rate is not None:
            found["in line"] = tally.waiting
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Why a job is not running: one sentence, its facts, and what to do. `ahead` and `position` are estimates."""

    job: str
    state: State | None
    blocker: Blocker
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)
    ahead: int | None = None
    expected_start: datetime | None = None
    next: tuple[str, ...] = ()

    @property
    def position(self) -> int | None:
        """Its place in the line; 1 is the next."""
        return None if self.ahead is None else self.ahead + 1

    def row(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "job": self.job,
            "state": self.state,
            "blocker": self.blocker,
            "detail": self.detail,
            "position": self.position,
            "ahead": self.ahead,
            "expected_start": self.expected_start,
            "facts": self.facts,
            "next": list(self.next),
        }
