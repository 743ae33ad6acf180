"""One attempt at one job: what was acquired, and what it was decoded into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pydantic import BaseModel

from schemas.codec import Envelope, decode, parse, request_type
from schemas.errors import InvalidError
from schemas.ids import checked, derived_id
from schemas.job import Job
from workers.kinds import Kind


class Record(Protocol):
    """What the share consumer hands out: a record under a lock."""

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
    @property
    def delivery_count(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """A decoded record: the job, its parameters, which try this is, and the trace it belongs to."""

    record: Record
    id: str
    kind: Kind
    lane: str
    job: Job
    params: BaseModel
    number: int
    started_at: datetime
    carrier: Mapping[str, str]

    @property
    def timeout_s(self) -> float | None:
        """Seconds this attempt may run; the request's own word wins over the kind's."""
        return self.job.timeout_s or self.kind.timeout_s

    @property
    def limit(self) -> int:
        """Attempts this job may have."""
        return self.job.max_attempts or self.kind.max_attempts


def identify(record: Record) -> str:
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
    envelope = decode(record.value, record.headers)
    _check_type(envelope.type, kind.name)
    job = parse(Job, envelope.data)
    return Attempt(
        record=record,
        id=_id(record, envelope),
        kind=kind,
        lane=lane,
        job=_with_expiry(job, envelope),
        params=parse(kind.params, job.params, kind=kind.name),
        number=record.delivery_count,
        started_at=now,
        carrier=envelope.extensions,
    )


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
    return job.model_copy(update={"expires_at": moment if moment.tzinfo else moment.replace(tzinfo=UTC)})
