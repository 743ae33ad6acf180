"""Claims: the store's word on who runs a job, and the ledger of attempts that began and never ended (DESIGN §4)."""

from __future__ import annotations

from pydantic import Field

from schemas.model import Moment, Open
from schemas.past import Past


class Start(Open):
    """An attempt that began. It is in the ledger for as long as nothing was heard of its end.

    `place`, `line`, `spent` and `replays` are of the record that was taken: they tell it from all other records of its
    job. `line` is the place of the first of those that are copies of each other.
    """

    attempt: int = Field(ge=1)
    worker: str
    epoch: int = Field(ge=1)
    started_at: Moment
    place: str = Field(default="", description="TOPIC/PARTITION/OFFSET of the record")
    line: str = ""
    spent: int = Field(default=0, ge=0)
    replays: int = Field(default=0, ge=0)
    reached: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="its newest checkpoint, once it is over")


class End(Open):
    """What an attempt came to, where the job has no outcome yet: the past of its next record, or of its dead letter."""

    past: Past
    buried: bool = False


class Claim(Open):
    """`runs/JOB/claim.json`, written by compare-and-swap before an attempt runs.

    `epoch` rises with every holder, so an old one is told from the new. `beat` rises while the holder lives: others
    watch it on their own clocks, so no two clocks are ever compared.
    """

    schema_version: int = 1
    job: str
    held: bool = Field(description="false: the attempt ended, or was handed back")
    start: Start
    origin: str = Field(default="", description="TOPIC/PARTITION/OFFSET of the record by which this life began")
    lives: tuple[str, ...] = Field(default=(), description="the origins of lives that are over")
    beat: int = Field(default=0, ge=0)
    reached: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="how far this attempt's checkpoint is")
    lost: tuple[Start, ...] = Field(default=(), description="attempts whose worker died")
    end: End | None = Field(default=None, description="none: the attempt goes on, or was handed back")
