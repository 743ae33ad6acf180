"""`tape` as a person or a script runs it: what it printed, and the events of the jobs it submitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from producers.memory import MemoryPorts
from schemas.event import Event, EventType
from schemas.ids import uuid7
from schemas.outcome import Outcome, Status
from wire.topics import Change

PARAMS = '{"model": "builtin:m", "prompt": "hi"}'


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        """The lines on stdout, each of which must be JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def row(self) -> Any:
        (row,) = self.rows
        return row


Tape = Callable[..., Result]


def bare(tape: Tape) -> Tape:
    """`tape` on what its settings lead to, held to JSON on every line of stdout."""

    def run(*argv: str) -> Result:
        found = tape(*argv, outside=None)
        for line in found.out.splitlines():
            json.loads(line)
        return found

    return run


def submitted(tape: Tape, *more: str) -> str:
    return str(tape("submit", "inference", "--params", PARAMS, *more).rows[0]["job"])


def told(ports: MemoryPorts, job: str, kind: EventType, **fields: Any) -> None:
    ports.tell(Event(id=uuid7(), type=kind, job=job, kind="inference", time=datetime.now(UTC), **fields))


def ended(ports: MemoryPorts, job: str, status: Status = Status.SUCCEEDED, **fields: Any) -> None:
    outcome = Outcome(
        job=job, kind="inference", status=status, attempt=1, worker="w", finished_at=datetime.now(UTC), **fields
    )
    told(ports, job, EventType(status.value), attempt=1, worker="w", outcome=outcome)


MISSING = Change("create", "topic", "tape.events")
DRIFT = Change("drift", "topic", "tape.control", "partitions", "2", "1", "not taken away")


def plan(*changes: Change) -> SimpleNamespace:
    """What `topics apply` would change, as `wire.topics` tells it."""
    pending = [change for change in changes if change.kind not in {"ok", "drift"}]
    drift = [change for change in changes if change.kind == "drift"]
    return SimpleNamespace(changes=changes, pending=pending, drift=drift, topics=(1,), groups=(1,))
