"""Where a record of a delay topic goes now: to its job topic, to the next delay, or to the dead letters. Pure."""

from __future__ import annotations

from datetime import datetime

from schemas.dead import DeadLetter, buried, dead_headers
from schemas.delays import delayed, plan
from schemas.errors import InvalidError, TapeError
from schemas.event import written
from schemas.job import Lane
from schemas.outcome import Failure
from schemas.past import read
from schemas.topics import UNKNOWN, Names
from wire.follow.port import Received
from wire.transact import Outgoing
from workers.attempt import identify


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
    job = identify(record)
    failure = Failure.of(error)
    past = read(record.headers)
    letter = DeadLetter(
        job=job, kind=kind, topic=record.topic, partition=record.partition, offset=record.offset, attempts=past.spent,
        worker=worker, time=now, failure=failure, past=past,
    )  # fmt: skip
    event = written(buried(letter, lane), f"/tickertape/mover/{worker}")
    return [
        Outgoing(topic, None, record.key, record.value, [*record.headers, *dead_headers(letter)]),
        Outgoing(names.events, None, *event),
    ]


def _kind(record: Received, names: Names) -> tuple[str, str]:
    try:
        return names.parse_jobs(plan(record.headers).target)
    except InvalidError:
        return UNKNOWN, Lane.BULK
