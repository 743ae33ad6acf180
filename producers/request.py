"""What a client asks for, and the records it becomes: pure, no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypedDict

from schemas import codec
from schemas.errors import InvalidError
from schemas.event import Event, queued, written
from schemas.ids import job_id, uuid7
from schemas.job import PARAMS, THREADS, Job, Lane, Lora, Training, kind_of
from schemas.model import Strict
from schemas.topics import MESSAGE_LIMIT, Names

Header = tuple[str, bytes]


class Options(TypedDict, total=False):
    """How to treat a job; every field may be left out."""

    lane: str
    tenant: str | None
    key: str | None
    timeout_s: float | None
    stall_s: float | None
    expires_at: datetime | None
    not_before: datetime | None
    max_attempts: int | None
    labels: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Request:
    """One job to submit: its kind, the kind's parameters, and how to treat it.

    `key` is the idempotency key: the same tenant and key are the same job, however often it is submitted. `timeout_s`
    bounds one attempt in seconds, `stall_s` how long it may make no progress; a job is started neither before
    `not_before` nor after `expires_at`.
    """

    kind: str
    params: Mapping[str, Any]
    lane: str = Lane.BULK
    tenant: str | None = None
    key: str | None = None
    timeout_s: float | None = None
    stall_s: float | None = None
    expires_at: datetime | None = None
    not_before: datetime | None = None
    max_attempts: int | None = None
    labels: Mapping[str, str] | None = field(default=None)

    @classmethod
    def of(cls, subject: Strict | str | Request, params: Mapping[str, Any] | None = None, **options: Any) -> Request:
        """Make a request of parameters (`Training(...)`), of a kind's name and a mapping, or of a request."""
        if isinstance(subject, Request):
            return subject
        if isinstance(subject, str):
            return cls(subject, params if params is not None else {}, **options)
        try:
            kind = kind_of(subject)
        except KeyError:
            raise InvalidError(
                f"{type(subject).__name__} belongs to no kind that ships with Tickertape; give the kind's name first",
                code="TAPE-1003",
            ) from None
        return cls(kind, subject.model_dump(mode="json", exclude_unset=True), **options)


@dataclass(frozen=True, slots=True)
class Message:
    """One record to publish."""

    topic: str
    key: str
    value: bytes
    headers: list[Header]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that passed every check: its job id and both of its records."""

    job: str
    kind: str
    tenant: str
    keyed: bool
    time: datetime
    fingerprint: str
    request: Message
    queued: Message


def prepare(request: Request, names: Names, *, tenant: str, now: datetime | None = None) -> Prepared:
    """Validate a request and build its records.

    Unknown kinds pass: their topic tells whether they exist. Raises `InvalidError`: TAPE-1002 names the wrong field,
    also of a job that would expire before it may start; TAPE-1006 a request larger than its topic takes.
    """
    now = now or datetime.now(UTC)
    tenant = request.tenant or tenant
    params = _checked(request)
    if request.lane not in set(Lane):
        raise InvalidError(
            f"{request.lane!r} is not a lane", code="TAPE-1002", field="lane", hint=f"use {' or '.join(Lane)}"
        )
    job = codec.parse(
        Job,
        {
            "params": params,
            "tenant": tenant,
            "key": request.key,
            "timeout_s": request.timeout_s,
            "stall_s": request.stall_s,
            "expires_at": request.expires_at,
            "not_before": request.not_before,
            "max_attempts": request.max_attempts,
            "labels": dict(request.labels or {}),
        },
        kind=request.kind,
    )
    _runs(job)
    name = job_id(tenant, request.key)
    value = job.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
    envelope = codec.Envelope(
        id=uuid7(), type=codec.request_type(request.kind), source=_source(tenant), data=value, subject=name,
        time=now.isoformat(),
    )  # fmt: skip
    first = queued(name, kind=request.kind, lane=request.lane, tenant=tenant, time=now, labels=job.labels)
    prepared = Prepared(
        job=name,
        kind=request.kind,
        tenant=tenant,
        keyed=request.key is not None,
        time=now,
        fingerprint=fingerprint(request.kind, params),
        request=Message(
            names.jobs(request.kind, request.lane),
            name,
            value,
            codec.encode(envelope),
        ),
        queued=event_message(first, names.events),
    )
    _fits(prepared.request)
    return prepared


def event_message(event: Event, topic: str) -> Message:
    """Return the record of a lifecycle event."""
    record = written(event, _source(event.tenant))
    return Message(topic, event.job, record.value, record.headers)


def fingerprint(kind: str, params: Mapping[str, Any]) -> str:
    """Return the hash by which two requests under one idempotency key are the same: kind and parameters.

    Defaults that were spelled out do not count, nor does how the job is treated (lane, deadlines, labels).
    """
    model = PARAMS.get(kind)
    told = model.model_validate(dict(params)).model_dump(mode="json", exclude_defaults=True) if model else params
    return hashlib.sha256(json.dumps([kind, told], sort_keys=True, default=str).encode()).hexdigest()


def traced(message: Message, carrier: Mapping[str, str]) -> Message:
    """Return the message with trace context in its headers."""
    more = [(name, value.encode()) for name, value in carrier.items()]
    return Message(message.topic, message.key, message.value, [*message.headers, *more])


def _checked(request: Request) -> dict[str, Any]:
    """The parameters as they are sent: what was given and no defaults, so that older workers can read newer clients."""
    model = PARAMS.get(request.kind)
    if model is None:
        return dict(request.params)
    parsed = codec.parse(model, dict(request.params), kind=request.kind)
    _meant(parsed, request)
    return parsed.model_dump(mode="json", exclude_unset=True)


def _meant(params: Strict, request: Request) -> None:
    # Here and not in the contract: what is in a queue already keeps its meaning.
    if (getattr(params, "threads", None) or 0) > THREADS:
        raise InvalidError(
            f"threads: {THREADS} are the most", code="TAPE-1002", field="threads", kind=request.kind,
            hint="ask for as many as the worker has cores, or leave it out",
        )  # fmt: skip
    again = "reproduces" in (request.labels or {})  # what was made so is made so once more
    if isinstance(params, Training) and params.method == "full" and params.lora != Lora() and not again:
        raise InvalidError(
            "lora: `full` trains a whole model; the method `lora` an adapter", code="TAPE-1002", field="lora",
            kind=request.kind, hint="leave `lora` out, or take the method `lora`",
        )  # fmt: skip


def _runs(job: Job) -> None:
    # Here and not in the contract: what is in a queue already keeps its meaning, and expires.
    if job.not_before is not None and job.expires_at is not None and job.not_before >= job.expires_at:
        raise InvalidError(
            f"the job must not start before {job.not_before.isoformat()} and expires at {job.expires_at.isoformat()}: "
            "it could never run", code="TAPE-1002", field="not_before",
            hint="let it start earlier (`not_before`, --start-in) or expire later (`expires_at`, --expires-in)",
        )  # fmt: skip


def _source(tenant: str) -> str:
    return f"/tickertape/client/{tenant}"


def _fits(message: Message) -> None:
    # 512 bytes stand for the framing of the record and its batch (about 100) and the trace headers (about 150).
    size = len(message.value) + len(message.key) + 512 + sum(len(name) + len(value) for name, value in message.headers)
    if size > MESSAGE_LIMIT:
        raise InvalidError(
            f"the request is {size:,} bytes and the topic takes {MESSAGE_LIMIT:,}",
            code="TAPE-1006",
            topic=message.topic,
            hint="put the data in the store (client.upload(path) or `tape submit --data PATH`) and send its blob: name",
        )
