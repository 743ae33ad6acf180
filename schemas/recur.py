"""Recurring jobs: a template and a cron expression on a compacted topic, and what each has fired last beside it.

A template's key is its name; the record of its last firing has the key NAME/fired, on the same partition. A firing is
one transaction that holds the job, its first event and that record, so that each moment fires once in the fleet.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import Field

from schemas import codec
from schemas.delays import Delayed
from schemas.event import queued, written
from schemas.ids import derived_id, job_id
from schemas.job import Job, Lane
from schemas.model import Moment, Name, Open
from schemas.topics import Names

_FIRED = "/fired"


class Recurring(Open):
    """A job that is submitted again and again: when, and what. Its name is the record's key."""

    schema_version: int = 1
    name: Name
    cron: str = Field(
        min_length=1,
        max_length=256,
        description="minute hour day month weekday, as Debian's cron; a field of seconds may come first",
    )
    timezone: str = Field(default="UTC", max_length=64, description="IANA name, e.g. Europe/Berlin")
    kind: Name
    lane: Lane = Lane.BULK
    params: dict[str, Any]
    tenant: str = Field(default="default", min_length=1, max_length=128)
    timeout_s: float | None = Field(default=None, gt=0)
    stall_s: float | None = Field(default=None, gt=0)
    max_attempts: int | None = Field(default=None, ge=1, le=8)
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    added_at: Moment = Field(description="moments before this do not count")


class Fired(Open):
    """The last moment for which a recurring job was submitted. Its key is NAME/fired."""

    schema_version: int = 1
    name: Name
    moment: Moment = Field(description="the moment that the expression names")
    job: str
    time: Moment = Field(description="when it was submitted")


class Firing(NamedTuple):
    """One submission: the job's id, and the records that are written together."""

    job: str
    records: tuple[Delayed, ...]
    fired: Fired


def fired_key(name: str) -> bytes:
    """Return the key of a template's last firing."""
    return f"{name}{_FIRED}".encode()


def name_of(key: bytes | None) -> tuple[str, bool]:
    """Return the name that a record's key tells, and whether the record is of a firing."""
    text = (key or b"").decode("utf-8", "replace")
    return text.removesuffix(_FIRED), text.endswith(_FIRED)


def fire(template: Recurring, moment: datetime, *, names: Names, partition: int, now: datetime) -> Firing:
    """Return what is written when a template fires for a moment: the job's id follows from name and moment."""
    moment = moment.astimezone(UTC)
    key = f"recurring/{template.name}/{moment.isoformat()}"
    job = job_id(template.tenant, key)
    fields = template.model_dump(include={"params", "tenant", "timeout_s", "stall_s", "max_attempts", "labels"})
    request = Job(**fields, key=key)
    fired = Fired(name=template.name, moment=moment, job=job, time=now)
    value = request.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
    kind, lane = template.kind, template.lane
    source = f"/tickertape/recurring/{template.name}"
    envelope = codec.Envelope(
        id=derived_id(job, "request"), type=codec.request_type(kind), source=source, data=value, subject=job,
        time=now.isoformat(),
    )  # fmt: skip
    told = queued(job, kind=kind, lane=lane, tenant=template.tenant, time=now, labels=template.labels)
    return Firing(
        job,
        (
            Delayed(names.jobs(kind, lane), None, job.encode(), value, codec.encode(envelope), None),
            Delayed(names.events, None, *written(told, source), None),
            Delayed(names.recurring, partition, fired_key(template.name), _json(fired), [], None),
        ),
        fired,
    )


def _json(message: Open) -> bytes:
    return message.model_dump_json(exclude_none=True).encode()
