"""Redrives: dead letters sent back by plan. The plan, its lines, and the states that its execution goes through."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from schemas.model import Moment, Open


class Phase(StrEnum):
    """Where a redrive is."""

    PLANNED = "planned"
    CANARY = "canary"
    RAMPING = "ramping"
    HALTED = "halted"
    DONE = "done"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.PLANNED: frozenset({Phase.CANARY, Phase.RAMPING, Phase.HALTED, Phase.DONE}),
    Phase.CANARY: frozenset({Phase.CANARY, Phase.RAMPING, Phase.HALTED, Phase.DONE}),
    Phase.RAMPING: frozenset({Phase.RAMPING, Phase.HALTED, Phase.DONE}),
    Phase.HALTED: frozenset({Phase.CANARY, Phase.RAMPING, Phase.DONE}),
    Phase.DONE: frozenset({Phase.DONE}),
}
"""What may follow what. A runner that takes over from a dead one stays in its phase; a halted redrive goes on where it
was; a done one is done, and running it again moves nothing."""


class Skip(StrEnum):
    """Why a plan leaves a letter where it is."""

    REDRIVEN = "already redriven"
    DISCARDED = "discarded"
    TWIN = "another letter tells of the same record"
    REPLAYS = "replayed too often"
    EXPIRED = "its deadline has passed"
    UNTOLD = "nothing tells its original topic"
    TOPIC = "the original topic is gone"
    CLOSED = "its original topic takes no requests"
    HEADERS = "its headers cannot be read"
    PATCH = "the patch does not apply"
    MENDED = "the patched payload is not valid"
    EMPTY = "the letter does not hold the record"
    GONE = "the letter is gone"
    ENDED = "its job has ended since"


class Line(Open):
    """One letter of a plan; `skip` says why it stays."""

    letter: str = Field(description="TOPIC/PARTITION/OFFSET of the dead letter")
    job: str
    kind: str
    target: str | None = None
    failure: str
    code: str
    replays: int = Field(default=0, ge=0)
    gpu_seconds: float | None = Field(default=None, ge=0)
    skip: str | None = Field(default=None, description="why it stays: a `Skip`, or what a newer version calls it")
    detail: str | None = Field(default=None, description="more about why it is skipped")


class Estimate(Open):
    """What the redriven jobs may cost, and how much of that is known."""

    gpu_seconds: float | None = Field(default=None, description="None when nothing is known of any letter")
    letters: int = Field(default=0, ge=0, description="letters whose own attempts tell")
    kinds: int = Field(default=0, ge=0, description="letters that are taken for their kind's recent mean")
    unknown: int = Field(default=0, ge=0, description="letters of which nothing is known; not in the sum")


class Plan(Open):
    """What a redrive will do: counts now, the letters in `redrives/ID/plan.jsonl`. Written once, never changed."""

    schema_version: int = 1
    id: str
    created_at: Moment
    by: str
    reason: str = ""
    filters: dict[str, str] = Field(default_factory=dict)
    patch: list[dict[str, Any]] | None = Field(default=None, description="JSON Patch, RFC 6902")
    max_replays: int = Field(ge=1)
    letters: int = Field(ge=0, description="letters that will be moved")
    skipped: dict[str, int] = Field(default_factory=dict)
    codes: dict[str, int] = Field(default_factory=dict)
    classes: dict[str, int] = Field(default_factory=dict)
    kinds: dict[str, int] = Field(default_factory=dict)
    topics: list[str] = Field(default_factory=list, description="the dead-letter topics it reads")
    targets: dict[str, int] = Field(default_factory=dict, description="the topics it writes to, and how many to each")
    estimate: Estimate = Estimate()
    sha256: str = Field(description="of plan.jsonl")


class Note(Open):
    """One entry of a redrive's diary."""

    time: Moment
    by: str
    what: str


class Redrive(Open):
    """`redrives/ID/state.json`: where a redrive is. What was moved is not here but on the topic of fates."""

    schema_version: int = 1
    plan: Plan
    phase: Phase = Phase.PLANNED
    canary: int = Field(default=0, ge=0)
    rate: float | None = Field(default=None, gt=0, description="jobs a second at most")
    halt_above: float = Field(default=20.0, ge=0, le=100, description="percent of the settled jobs that failed again")
    canary_passed: bool = False
    started_at: Moment | None = None
    counted_from: Moment | None = Field(
        default=None, description="failures of jobs moved before then halt it no more: somebody looked, and resumed it"
    )
    updated_at: Moment
    runner: str | None = Field(default=None, description="who moves letters now, or did last")
    moved: int = Field(default=0, ge=0)
    left: int = Field(default=0, ge=0, description="letters of the plan that something else happened to meanwhile")
    settled: int = Field(default=0, ge=0, description="redriven jobs that have ended, as far as the runner saw")
    failed: int = Field(default=0, ge=0, description="of these, those that failed again")
    notes: tuple[Note, ...] = Field(default=(), description="who did what, when and why; the newest last")
