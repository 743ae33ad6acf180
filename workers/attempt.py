"""One attempt at one job: what was acquired, and what it was decoded into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pydantic import BaseModel

from schemas.codec import Envelope, decode, parse, request_type
from schemas.dead import Place
from schemas.errors import InvalidError
from schemas.ids import checked, derived_id
from schemas.job import Job
from schemas.model import within
from schemas.past import ATTEMPT, FORMER, LIFE, LINE, OWN, Hint, Past
from schemas.past import read as read_past
from schemas.topics import MESSAGE_LIMIT
from workers.kinds import Kind
from workers.policy import Policy, policy


class Written(Protocol):
    """A record as it lies in a log."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]: ...


class Record(Written, Protocol):
    """What the share consumer hands out: a record under a lock."""

    @property
    def delivery_count(self) -> int: ...


SUSPECT = 3
"""Deliveries from which on a light job is no longer trusted: workers may have died of it."""


LONGEST = 300
"""Characters of a place: a topic's name has at most 249."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A decoded record: the job, its parameters, which try this is, what came before, and the trace it belongs to."""

    record: Record
    id: str
    kind: Kind
    lane: str
    job: Job
    params: BaseModel
    number: int
    started_at: datetime
    carrier: Mapping[str, str]
    past: Past
    epoch: int = 0
    """Of its claim; 0: it has none."""
    reached: float = 0.0
    """How far this attempt's newest checkpoint is."""

    @property
    def advanced(self) -> bool:
        """Whether it left a newer checkpoint than any attempt before it."""
        return self.reached > self.past.reached

    def elsewhere(self, worker: str) -> bool:
        """Whether another worker should try it after it failed at this one: once, for there may be none."""
        ours = bool(self.past.tries) and self.past.tries[-1].worker == worker
        return self.past.hint is Hint.ELSEWHERE and ours and self.record.delivery_count == 1

    @property
    def suspect(self) -> bool:
        """Whether workers died of this job, or may have: it runs beside no other suspect."""
        return self.past.hint is Hint.ALONE or self.record.delivery_count >= SUSPECT

    @property
    def ledgered(self) -> bool:
        """Whether its start is written down before it runs (ADR 3); a light job's only once it is suspect."""
        return self.kind.recorded or self.suspect

    @property
    def expired(self) -> bool:
        """Whether it came too late to be started."""
        end = self.job.expires_at
        return end is not None and self.started_at > end

    @property
    def line(self) -> str:
        """The line of this record."""
        return line_of(self.record)

    @property
    def policy(self) -> Policy:
        """How patient the queue is with this job."""
        kind = self.kind
        return policy(kind.name, default=kind.max_attempts, asked=self.job.max_attempts, own=kind.retry)

    @property
    def timeout_s(self) -> float | None:
        """Seconds this attempt may run; the request's own word wins over the kind's."""
        return self.job.timeout_s or self.kind.timeout_s


def place_of(record: Written) -> Place:
    """Return where a record lies."""
    return Place(record.topic, record.partition, record.offset)


def line_of(record: Written) -> str:
    """Return TOPIC/PARTITION/OFFSET of a record, or of the one that it is a copy of."""
    return _place_in(record, LINE) or str(place_of(record))


def life_of(record: Written) -> str:
    """Return the line by which a record's life of its job began; "" where an older version wrote that it was tried."""
    tried = next((raw for name, raw in record.headers if name == ATTEMPT), None) not in (None, b"0")
    return _place_in(record, LIFE) or ("" if tried else line_of(record))


def former_of(record: Written) -> str:
    """Return the place of the redelivered record that this one was put aside from, if it was; else nothing."""
    return _place_in(record, FORMER)


def _place_in(record: Written, header: str) -> str:
    told = next((raw for name, raw in record.headers if name == header and raw), b"")
    return told.decode("utf-8", "replace")[:LONGEST]


def identify(record: Written) -> str:
    """Return the id of a record's job, as far as it can be told from bytes that may be broken.

    `ce_subject`, else the key, else derived from `ce_source` and `ce_id`, else from the record's place.
    """
    headers = {name.lower(): raw for name, raw in record.headers if raw is not None}
    for raw in (headers.get("ce_subject"), record.key):
        if raw and (found := _safe(raw)) is not None:
            return found
    if "ce_source" in headers and "ce_id" in headers:
        return derived_id(*(headers[name].decode("utf-8", "replace") for name in ("ce_source", "ce_id")))
    return derived_id(record.topic, str(record.partition), str(record.offset))


def _safe(raw: bytes) -> str | None:
    try:
        return checked(raw.decode())
    except (UnicodeDecodeError, InvalidError):
        return None


def read(record: Record, kind: Kind, lane: str, now: datetime) -> Attempt:
    """Decode and validate a record. Raises `InvalidError` that names the header or field."""
    _check_size(record)
    envelope = decode(record.value, record.headers)
    _check_type(envelope.type, kind.name)
    job = parse(Job, envelope.data)
    past = read_past(record.headers)
    return Attempt(
        record=record,
        id=_id(record, envelope),
        kind=kind,
        lane=lane,
        job=_with_expiry(job, envelope),
        params=parse(kind.params, job.params, kind=kind.name),
        number=past.spent + 1,
        started_at=now,
        carrier=envelope.extensions,
        past=past,
    )


def _check_size(record: Record) -> None:
    """Refuse what could not be written again for a retry; what we added ourselves has its own room."""
    own = sum(len(name) + len(raw or b"") for name, raw in record.headers if name not in OWN)
    size = len(record.value or b"") + len(record.key or b"") + own
    if size > MESSAGE_LIMIT:
        told = f"the request is {size:,} bytes before compression, and {MESSAGE_LIMIT:,} are the most"
        raise InvalidError(told, code="TAPE-1006", topic=record.topic)


def _check_type(given: str, kind: str) -> None:
    if given != request_type(kind):
        raise InvalidError(
            f"{given} is not read here", code="TAPE-1005", field="ce_type", hint=f"send {request_type(kind)}"
        )


def _id(record: Record, envelope: Envelope) -> str:
    if envelope.subject is not None:
        return checked(envelope.subject)
    by_key = _safe(record.key) if record.key else None
    return by_key or derived_id(envelope.source, envelope.id)


def _with_expiry(job: Job, envelope: Envelope) -> Job:
    text = envelope.extensions.get("expirytime")
    if text is None or job.expires_at is not None:
        return job
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidError("not an RFC 3339 time", code="TAPE-1004", field="ce_expirytime") from error
    try:
        moment = within(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except ValueError as error:
        raise InvalidError(str(error), code="TAPE-1004", field="ce_expirytime") from None
    return job.model_copy(update={"expires_at": moment})
