"""Control messages: what every worker must know at once, on a compacted topic."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime

from schemas.model import Open


class Cancel(Open):
    """Stop a job, wherever it is. The record's key is the job's id."""

    schema_version: int = 1
    action: Literal["cancel"] = "cancel"
    job: str
    reason: str = "cancelled on request"
    time: AwareDatetime
