"""Control messages: what every worker must know at once, on a compacted topic. Told apart by their `action`.

| action | key | what |
|---|---|---|
| cancel | the job's id | stop a job |
| breaker | `breaker:DEPENDENCY` | what the fleet thinks of a dependency |
| drain | `drain:WORKER` | a worker shall take no more jobs, finish or hand back what it has, and end |
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from schemas.codec import parse, parse_object
from schemas.model import Open


class Cancel(Open):
    """Stop a job, wherever it is. The record's key is the job's id."""

    schema_version: int = 1
    action: Literal["cancel"] = "cancel"
    job: str
    reason: str = "cancelled on request"
    time: AwareDatetime


class BreakerState(StrEnum):
    """Whether jobs that need a dependency are taken: all, none, or one to try it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker(Open):
    """What became of a dependency's breaker. The record's key is `breaker:DEPENDENCY`.

    Every message is one step: of those with the same epoch the first in the log counts, the others are ignored.
    `half_open` is a claim: until `until`, `worker` alone may try the dependency with one job.
    """

    schema_version: int = 1
    action: Literal["breaker"] = "breaker"
    dependency: str
    state: BreakerState
    epoch: int = Field(ge=1, lt=2**53)
    worker: str
    since: AwareDatetime
    until: AwareDatetime | None = None
    opened: int = Field(default=0, ge=0, description="how often it opened without having closed")
    reason: str = ""
    fingerprint: str | None = None


class Drain(Open):
    """A worker shall take no more jobs, finish or hand back what it has, and end. The key is `drain:WORKER`."""

    schema_version: int = 1
    action: Literal["drain"] = "drain"
    worker: str
    reason: str = "drained on request"
    time: AwareDatetime


Control = Cancel | Breaker | Drain
ACTIONS: dict[str, type[Control]] = {"cancel": Cancel, "breaker": Breaker, "drain": Drain}


def key(message: Control) -> str:
    """Return the key under which a control message is published: the newest one of a key is the one that counts."""
    if isinstance(message, Breaker):
        return f"breaker:{message.dependency}"
    return f"drain:{message.worker}" if isinstance(message, Drain) else message.job


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
