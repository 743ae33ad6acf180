"""Dead letters: the original record untouched, in headers why it is dead; and the record of what became of it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from schemas.event import Event, EventType
from schemas.ids import derived_id
from schemas.model import Moment, Open
from schemas.outcome import Failure, Outcome, Status
from schemas.past import Past
from schemas.topics import LETTER_LIMIT, PAST_ROOM

HEADER = "tape-dead-"
"""Prefix of the headers that carry a `DeadLetter`; the original's own headers stay as they were."""
CUT = HEADER + "cut"
"""On a letter that could not hold its record: how many bytes that was."""
DISPOSITION = "tape-disposition"
"""On a dead letter that was judged: is the job (`poison`), the world (`outage`) or nobody yet (`none`) to blame?"""
_SHORT = 256
"""Bytes of a header, and headers, that a letter holds in any case."""
ORIGINAL = "tape-original"
"""On a redriven record whose payload was mended: TOPIC/PARTITION/OFFSET of the dead letter that holds the original."""


class DeadLetter(Open):
    """Why a record is on a dead-letter topic. Its key, value and headers there are the original's, verbatim."""

    schema_version: int = 1
    job: str
    kind: str
    topic: str = Field(description="where the original was")
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    attempts: int = Field(ge=0)
    worker: str
    time: Moment
    failure: Failure
    past: Past | None = Field(default=None, description="the attempts: when, worker, class, code, text; bounded")
    first_failed_at: Moment | None = None
    last_failed_at: Moment | None = None
    trace: str | None = Field(default=None, description="trace id of the last attempt")
    tenant: str | None = None
    model: str | None = Field(default=None, description="the model that the job asked for")
    disposition: str | None = Field(default=None, description="the verdict on the failure: poison or outage")
    replays: int = Field(default=0, ge=0, description="how often the job had come back from the dead letters")
    gpu_seconds: float | None = Field(default=None, ge=0, description="what its attempts cost")


class Place(NamedTuple):
    """Where a dead letter lies; as text TOPIC/PARTITION/OFFSET, the key on the topic of fates."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """Return the place that a text names; None for any other text."""
        topic, _, rest = text.partition("/")  # a topic's name holds no slash
        partition, _, offset = rest.partition("/")
        whole = all(part.isascii() and part.isdecimal() for part in (partition, offset))
        return cls(topic, int(partition), int(offset)) if topic and whole else None


class Became(StrEnum):
    """What became of a dead letter. A restored one was discarded by mistake and waits again."""

    REDRIVEN = "redriven"
    DISCARDED = "discarded"
    RESTORED = "restored"


class Fate(Open):
    """What became of one dead letter, by whom and why: a record of the compacted topic `letters` (ADR 3).

    Its key is the letter's place. It is written in the same transaction as the redriven job.
    """

    schema_version: int = 1
    became: Became
    letter: str = Field(description="TOPIC/PARTITION/OFFSET of the dead letter")
    origin: str | None = Field(default=None, description="TOPIC/PARTITION/OFFSET of the record that died")
    job: str
    kind: str
    code: str | None = None
    target: str | None = Field(default=None, description="the topic that the redriven job went to")
    redrive: str | None = Field(default=None, description="the redrive that moved it")
    replay: int = Field(default=0, ge=0, description="how often the job has come back from the dead letters now")
    patched: bool = Field(default=False, description="whether the payload was mended on the way")
    by: str = Field(description="user@host")
    reason: str = ""
    time: Moment


def buried(letter: DeadLetter, lane: str) -> Event:
    """Return the last event of a job whose record nobody could read or pass on; its letter tells all but the lane."""
    outcome = Outcome(
        job=letter.job, kind=letter.kind, status=Status.DEAD, attempt=letter.attempts, worker=letter.worker,
        finished_at=letter.time, failure=letter.failure,
    )  # fmt: skip
    return Event(
        id=derived_id(letter.job, "dead", letter.topic, str(letter.partition), str(letter.offset)),
        type=EventType.DEAD, job=letter.job, kind=letter.kind, lane=lane, time=letter.time, attempt=letter.attempts,
        worker=letter.worker, failure=letter.failure, outcome=outcome,
    )  # fmt: skip


def fitting(
    key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Return what a dead letter holds of a record: all of it, or where that is too much, short headers and its size.

    Kafka's limit is one of compressed bytes, so what comes out of a topic may be larger than what goes into another.
    """
    kept = list(headers)
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(raw or b"") for name, raw in kept)
    if size <= LETTER_LIMIT - PAST_ROOM:
        return key, value, kept
    short = [(name, raw) for name, raw in kept if len(name) + len(raw or b"") <= _SHORT]
    return key and key[:_SHORT], None, [*short[:_SHORT], (CUT, str(size).encode())]


def dead_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """Return the headers that tell why a record is dead; flat texts for tools, and the whole as JSON."""
    flat = {
        "job": letter.job,
        "kind": letter.kind,
        "topic": letter.topic,
        "partition": str(letter.partition),
        "offset": str(letter.offset),
        "attempts": str(letter.attempts),
        "worker": letter.worker,
        "time": letter.time.isoformat(),
        "class": letter.failure.failure.value,
        "code": letter.failure.code,
        "message": letter.failure.message,
        "json": letter.model_dump_json(exclude_none=True),
    }
    headers = [(HEADER + name, text.encode()) for name, text in flat.items()]
    return headers if letter.disposition is None else [*headers, (DISPOSITION, letter.disposition.encode())]
