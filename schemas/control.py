"""Control messages: what every worker must know at once, on a compacted topic. Told apart by their `action`.

| action | key | what |
|---|---|---|
| cancel | the job's id | stop a job |
| pause, resume | `pause/JOB` | a job shall wait, or wait no more; the newest counts |
| breaker | `breaker:DEPENDENCY` | what the fleet thinks of a dependency |
| drain | `drain:WORKER` | a worker shall take no more jobs, finish or hand back what it has, and end |
| presence | `worker:WORKER` | a worker is there: what it serves, how busy it is; a tombstone when it ends |
| tenant | `tenant:NAME` | a tenant's weight and quota; a tombstone takes both back |
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator

from schemas.codec import parse, parse_object
from schemas.model import Moment, Open


class Cancel(Open):
    """Stop a job, wherever it is. The record's key is the job's id."""

    schema_version: int = 1
    action: Literal["cancel"] = "cancel"
    job: str
    reason: str = "cancelled on request"
    time: Moment


PAUSE = "pause/"
"""What the keys of pauses begin with. No job's id has a slash, so none is taken for a cancellation's key."""


class Pause(Open):
    """A job shall wait where it is until somebody resumes it. The key is `pause/JOB`; a tombstone resumes it, too.

    It waits as one whose dependency is away does: no attempt is spent, and only `expires_at` or a cancellation ends it.
    """

    schema_version: int = 1
    action: Literal["pause"] = "pause"
    job: str
    reason: str = ""
    who: str = ""
    time: Moment

    @property
    def by(self) -> str:
        """Who paused the job, and why."""
        return (self.who or "somebody") + (f" ({self.reason})" if self.reason else "")


class Resume(Open):
    """A job shall wait no more. The key is that of its pause, which this message takes the place of."""

    schema_version: int = 1
    action: Literal["resume"] = "resume"
    job: str
    reason: str = ""
    who: str = ""
    time: Moment


class BreakerState(StrEnum):
    """Whether jobs that need a dependency are taken: all, none, or one to try it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker(Open):
    """What became of a dependency's breaker. The record's key is `breaker:DEPENDENCY`.

    `DEPENDENCY@WORKER` is away for that worker alone: it was refused its credentials.

    Every message is one step: of those with the same epoch the first in the log counts, the others are ignored.
    `half_open` is a claim: until `until`, `worker` alone may try the dependency with one job.
    """

    schema_version: int = 1
    action: Literal["breaker"] = "breaker"
    dependency: str
    state: BreakerState
    epoch: int = Field(ge=1, lt=2**53)
    worker: str
    since: Moment
    until: Moment | None = None
    opened: int = Field(default=0, ge=0, description="how often it opened without having closed")
    reason: str = ""
    fingerprint: str | None = None
    cause: str = Field(default="", description="code and text of the failure that opened it, or of the last probe")


def private(dependency: str, worker: str) -> str:
    """Return the breaker of what is away for one worker only.

    >>> private("store", "desk-1")
    'store@desk-1'
    """
    return f"{dependency}@{worker}"


def parted(breaker: str) -> tuple[str, str | None]:
    """Return the dependency that a breaker is about, and the one worker that it is away for; None: for all."""
    dependency, _, worker = breaker.partition("@")
    return dependency, worker or None


class Drain(Open):
    """A worker shall take no more jobs, finish or hand back what it has, and end. The key is `drain:WORKER`."""

    schema_version: int = 1
    action: Literal["drain"] = "drain"
    worker: str
    reason: str = "drained on request"
    time: Moment


PRESENCE_S = 10.0
"""Seconds from one word of a living worker to its next."""
SILENT_S = 35.0
"""Seconds without a word after which a worker is silent: three were missed."""
TENANT = "tenant:"
"""What the keys of tenants begin with."""
WORKER = "worker:"
"""What the keys of workers begin with."""
NAMED = 32
"""Running jobs that a presence names; the others are only counted."""


class Presence(Open):
    """A worker is there. The key is `worker:WORKER`; said every `PRESENCE_S` seconds, and a tombstone at its end."""

    schema_version: int = 1
    action: Literal["presence"] = "presence"
    worker: str
    host: str
    pid: int
    version: str = ""
    kinds: tuple[str, ...]
    lanes: tuple[str, ...]
    needs: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="by kind, the breakers that must be closed for its jobs to be taken"
    )
    slots: int = Field(ge=0)
    held: int = Field(
        default=0, ge=0, description="leases: running jobs, and those of light kinds that wait for a slot"
    )
    full: tuple[str, ...] = Field(default=(), description="kinds for which no slot is free")
    running: tuple[str, ...] = Field(default=(), description="jobs it holds, the first ones")
    shared: tuple[str, ...] = Field(default=(), description="kinds in whose queues several tenants wait, each its turn")
    draining: bool = False
    breakers: dict[str, BreakerState] = Field(
        default_factory=dict, description="what it knows of dependencies that are away"
    )
    started_at: Moment
    time: Moment

    @field_validator("running", mode="before")
    @classmethod
    def _first(cls, jobs: Any) -> Any:
        return tuple(jobs)[:NAMED] if isinstance(jobs, list | tuple) else jobs


class Tenant(Open):
    """A tenant's share and quota. The record's key is `tenant:NAME`; a tombstone takes both back.

    What is over the quota is postponed: it waits, spends no attempt, and is never buried for that.
    """

    schema_version: int = 1
    action: Literal["tenant"] = "tenant"
    tenant: str = Field(min_length=1, max_length=128)
    weight: float = Field(default=1.0, ge=0.001, le=1_000, description="its part of a lane beside other tenants'")
    in_flight: int | None = Field(default=None, ge=1, le=10_000, description="jobs that may run at once, in the fleet")
    rate: float | None = Field(default=None, ge=1e-5, le=1e6, description="jobs that may start a second, in the fleet")
    burst: int | None = Field(
        default=None, ge=1, le=1_000_000, description="jobs that may start at once after a pause; default: a second's"
    )
    time: Moment
    who: str = ""

    @property
    def limited(self) -> bool:
        """Whether it has a quota, not only a weight."""
        return self.in_flight is not None or self.rate is not None

    @property
    def depth(self) -> int:
        """Jobs that may start at once after a pause."""
        return self.burst or max(1, math.ceil(self.rate or 0.0))


Control = Cancel | Pause | Resume | Breaker | Drain | Presence | Tenant
ACTIONS: dict[str, type[Control]] = {
    "cancel": Cancel,
    "pause": Pause,
    "resume": Resume,
    "breaker": Breaker,
    "drain": Drain,
    "presence": Presence,
    "tenant": Tenant,
}


def key(message: Control) -> str:
    """Return the key under which a control message is published: the newest one of a key is the one that counts."""
    if isinstance(message, Breaker):
        return f"breaker:{message.dependency}"
    if isinstance(message, Drain):
        return f"drain:{message.worker}"
    if isinstance(message, Tenant):
        return f"{TENANT}{message.tenant}"
    if isinstance(message, Pause | Resume):
        return f"{PAUSE}{message.job}"
    return f"{WORKER}{message.worker}" if isinstance(message, Presence) else message.job


def read(value: bytes | None) -> Control | None:
    """Return a control message; None for a tombstone and for an action that this version does not know.

    A message without an action is a cancellation, as it was before there were others. Raises `InvalidError`
    (TAPE-1001, 1002) for one that cannot be read.
    """
    if value is None:
        return None
    found = parse_object(value)
    action = found.get("action", "cancel")
    model = ACTIONS.get(action) if isinstance(action, str) else None
    return parse(model, found) if model is not None else None
