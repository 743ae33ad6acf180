"""How a job ends: what a handler may return, the failure it may carry, and the one outcome that is kept."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.artifact import Artifact
from schemas.errors import FailureClass, TapeError
from schemas.model import Moment, Open

TEXT_LIMIT = 4_000
"""Characters of an error text that are kept; the rest is in the worker's log."""


class Failure(Open):
    """Why an attempt failed, as data: class, stable code, text, place and the way out."""

    failure: FailureClass
    code: str = Field(pattern=r"^TAPE-[0-9]{4}$")
    message: str
    hint: str = ""
    place: dict[str, Any] = Field(default_factory=dict)
    detail: str | None = Field(default=None, description="the end of the traceback or of the last log lines")

    @classmethod
    def of(cls, error: TapeError, detail: str | None = None) -> Failure:
        """Return the failure that tells of `error`: its texts bounded by `TEXT_LIMIT` and always valid Unicode.

        A failure must be writable whatever went wrong: a file name that is not UTF-8 must not cost the outcome.
        """
        return cls(
            failure=error.failure,
            code=error.code,
            message=_clean(error.message)[:TEXT_LIMIT],
            hint=_clean(error.hint)[:TEXT_LIMIT],
            place={_clean(key): _plain(value) for key, value in error.place.items()},
            detail=_clean(detail)[-TEXT_LIMIT:] if detail else None,
        )


def _clean(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object) -> int | float | str:
    """Numbers that JSON can hold stay numbers; all else becomes text."""
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _clean(str(value))[:TEXT_LIMIT]


class Usage(Open):
    """What an attempt cost."""

    seconds: float = Field(default=0.0, ge=0, description="wall time of the attempt")
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    training_tokens: int = Field(default=0, ge=0)
    training_samples: int = Field(default=0, ge=0, description="rows that were trained on, each as often as it was")
    peak_memory_bytes: int = Field(default=0, ge=0, description="resident memory of the job's process")
    peak_device_bytes: int = Field(default=0, ge=0, description="memory that torch held on its accelerators")
    energy_wh: float | None = Field(default=None, ge=0, description="watt-hours")
    energy_source: Literal["measured", "estimated", "mixed"] | None = Field(
        default=None, description="counters of the machine, CPU seconds by the watts of a core, or one of each"
    )
    cost: float | None = Field(default=None, ge=0, description="of its slot for that time, in the operator's currency")


class Succeeded(Open):
    """A handler's word: the work is done, here is what came of it."""

    verdict: Literal["succeeded"] = "succeeded"
    result: dict[str, Any] = Field(default_factory=dict, description="small; large results are artifacts")
    artifacts: list[Artifact] = Field(default_factory=list)
    usage: Usage = Usage()


class Failed(Open):
    """A handler's word, or ours for it: the attempt failed; `workers.policy` decides what follows."""

    verdict: Literal["failed"] = "failed"
    failure: Failure
    usage: Usage = Usage()


class Cancelled(Open):
    """The work was stopped because somebody asked for it."""

    verdict: Literal["cancelled"] = "cancelled"
    reason: str = "cancelled on request"
    usage: Usage = Usage()


Verdict = Annotated[Succeeded | Failed | Cancelled, Field(discriminator="verdict")]
"""The closed set of what a handler may return; anything else is a failure (TAPE-6004)."""


class Status(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


class Outcome(Open):
    """The one final result of a job: `runs/JOB/outcome.json`, created once, and the body of its last event.

    A `dead` one is not final: the job is with the dead letters, and what a redrive comes to takes its place.
    """

    schema_version: int = 1
    job: str
    kind: str
    tenant: str = "default"
    status: Status
    attempt: int = Field(ge=0)
    worker: str
    finished_at: Moment
    result: dict[str, Any] = Field(default_factory=dict)
    artifacts: list[Artifact] = Field(default_factory=list)
    failure: Failure | None = None
    usage: Usage = Usage()
    epoch: int = Field(default=0, ge=0, description="the job's claim that it came of: a death gives way to a later one")

    @property
    def final(self) -> bool:
        """Whether nothing can follow it."""
        return self.status is not Status.DEAD


def outcome_name(job: str) -> str:
    """Return the name of a job's outcome in the store."""
    return f"runs/{job}/outcome.json"
