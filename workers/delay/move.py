"""Where a record of a delay topic goes now: to its job topic, to the next delay, or to the dead letters. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from schemas import codec
from schemas.dead import DeadLetter, dead_headers
from schemas.delays import delayed, plan
from schemas.errors import InvalidError, TapeError
from schemas.event import Event, EventType
from schemas.ids import derived_id
from schemas.job import Lane
from schemas.outcome import Failure, Outcome, Status
from schemas.past import read
from schemas.topics import UNKNOWN, Names
from wire.follow.port import Received
from wire.transact import Outgoing
from workers.attempt import identify


class Taken(NamedTuple):
    """A record as `workers.attempt.identify` wants it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    delivery_count: int = 0


def onward(record: Received, names: Names, now_ms: int) -> Outgoing:
    """Return the record that takes this one's place.

    Raises `InvalidError`: TAPE-1004 without a readable plan, TAPE-2004 when that names no job topic.
    """
    found = plan(record.headers)
    names.parse_jobs(found.target)
    made = delayed(
        found.target,
        prefix=names.prefix,
        key=record.key,
        value=record.value,
        headers=record.headers,
        due_ms=found.due_ms,
        now_ms=now_ms,
    )
    return Outgoing(*made)


def bury(record: Received, error: TapeError, *, names: Names, worker: str, now: datetime) -> list[Outgoing]:
    """Return the dead letter of a record that cannot go on, and the job's last event."""
    kind, lane = _kind(record, names)
    topic = names.dead(UNKNOWN if error.code == "TAPE-2004" else kind)  # a kind without topics has none for its dead
    job = identify(Taken(*record[:6]))
    failure = Failure.of(error)
    past = read(record.headers)
    place = (record.topic, record.partition, record.offset)
    letter = DeadLetter(
        job=job, kind=kind, topic=record.topic, partition=record.partition, offset=record.offset, attempts=past.spent,
        worker=worker, time=now, failure=failure, past=past,
    )  # fmt: skip
    outcome = Outcome(
        job=job, kind=kind, status=Status.DEAD, attempt=past.spent, worker=worker, finished_at=now, failure=failure
    )
    event = Event(
        id=derived_id(job, "dead", *map(str, place)), type=EventType.DEAD, job=job, kind=kind, lane=lane, time=now,
        attempt=past.spent, worker=worker, failure=failure, outcome=outcome,
    )  # fmt: skip
    value = event.model_dump_json(exclude_none=True).encode()
    envelope = codec.Envelope(
        id=event.id, type=codec.event_type(event.type), source=f"/tickertape/mover/{worker}", data=value, subject=job,
        time=now.isoformat(),
    )  # fmt: skip
    return [
        Outgoing(topic, None, record.key, record.value, [*record.headers, *dead_headers(letter)]),
        Outgoing(names.events, None, job.encode(), value, codec.encode(envelope)),
    ]


def _kind(record: Received, names: Names) -> tuple[str, str]:
    try:
        return names.parse_jobs(plan(record.headers).target)
    except InvalidError:
        return UNKNOWN, Lane.BULK
