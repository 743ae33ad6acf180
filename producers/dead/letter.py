"""One dead letter: its record as it lies in the topic, what its headers tell, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from producers.dead import origin as origins
from producers.dead.origin import FOREIGN, Origin
from schemas import codec, past
from schemas.dead import Became, Fate, Place
from schemas.errors import InvalidError
from schemas.ids import checked, derived_id
from schemas.topics import Names
from wire.follow import Received

WAITING = "waiting"
"""What a letter is for which nobody has decided yet."""
TWIN = "twin"
"""What a letter is that tells of the same dead record as an earlier one: its worker died before it could say so."""


@dataclass
class Letter:
    """A dead letter. Times are when it died; where nothing tells that, when it was written here."""

    record: Received
    origin: Origin
    names: Names
    fate: Fate | None = None
    twin: bool = False

    @classmethod
    def of(cls, record: Received, names: Names) -> Letter:
        """Return the letter that a record of a dead-letter topic is, whoever wrote it."""
        return cls(record, origins.read(record.headers), names)

    @property
    def place(self) -> Place:
        """Where the letter lies."""
        return Place(*self.record[:3])

    @property
    def died_at(self) -> datetime:
        """When the job was given up."""
        told = self.origin.time if self.origin.letter is not None else None
        return told or datetime.fromtimestamp(self.record.timestamp_ms / 1000, UTC)

    @property
    def status(self) -> str:
        """What became of it: waiting, redriven, discarded, or twin."""
        if self.fate is not None and self.fate.became is not Became.RESTORED:
            return self.fate.became.value
        return TWIN if self.twin else WAITING

    @cached_property
    def job(self) -> str:
        """The job's id, by the rules of `docs/protocol.md` where the letter does not say it."""
        if self.origin.letter is not None:
            return self.origin.letter.job
        headers = {name.lower(): raw for name, raw in self.record.headers if raw is not None}
        for raw in (headers.get("ce_subject"), self.record.key):
            try:
                if raw:
                    return checked(raw.decode())
            except (UnicodeDecodeError, InvalidError):
                continue
        return derived_id(*(self.origin.place or str(self.place)).rsplit("/", 2))

    @cached_property
    def lane(self) -> tuple[str, str] | None:
        """Kind and lane of the job topic that the record came from; None for a topic that is none of ours."""
        try:
            return self.names.parse_jobs(self.origin.target or "")
        except InvalidError:
            return None

    @property
    def kind(self) -> str:
        """The job's kind; `foreign` for what is no job of ours."""
        if self.origin.letter is not None:
            return self.origin.letter.kind
        return self.lane[0] if self.lane else FOREIGN

    @cached_property
    def past(self) -> past.Past:
        """What is known of its earlier attempts."""
        told = self.origin.letter.past if self.origin.letter is not None else None
        return told or past.read(self.record.headers)

    @property
    def replays(self) -> int:
        """How often it has come back from the dead letters already."""
        return max(past.read(self.record.headers).replays, self.past.replays)

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        return self.origin.attempts

    @property
    def tenant(self) -> str:
        """Whose job it is."""
        told = self.origin.letter.tenant if self.origin.letter is not None else None
        found = told or self.body.get("tenant")
        return found if isinstance(found, str) else "default"

    @property
    def model(self) -> str:
        """The model that the job asked for, as far as its parameters tell."""
        if self.origin.letter is not None and self.origin.letter.model:
            return self.origin.letter.model
        params = self.body.get("params")
        for name in ("model", "base", "encoder"):
            if isinstance(params, dict) and isinstance(params.get(name), str):
                return str(params[name])
        return ""

    @property
    def gpu_seconds(self) -> float | None:
        """What its attempts cost, where the letter tells it."""
        return self.origin.letter.gpu_seconds if self.origin.letter is not None else None

    @cached_property
    def body(self) -> dict[str, Any]:
        """The request, as far as it can be read: the value, or the data of a structured CloudEvent."""
        try:
            return codec.parse_object(codec.decode(self.record.value, self.record.headers).data)
        except InvalidError:
            pass
        try:
            return codec.parse_object(self.record.value)
        except InvalidError:
            return {}

    def lighten(self) -> Letter:
        """Let go of the payload, where many letters are kept and only what their headers tell is needed."""
        _ = self.job, self.past
        self.record = self.record._replace(value=None)
        self.__dict__.pop("body", None)
        return self

    def row(self) -> dict[str, Any]:
        """Return what a list shows of it."""
        return {
            "job": self.job,
            "kind": self.kind,
            "class": str(self.origin.failure),
            "code": self.origin.code,
            "died": self.died_at,
            "tenant": self.tenant,
            "tries": self.attempts,
            "replays": self.replays,
            "status": self.status,
            "verdict": self.origin.letter.disposition if self.origin.letter is not None else None,
            "letter": str(self.place),
            "message": self.origin.message,
        }
