"""Dead letters: the original record untouched, and in headers why it is dead."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from schemas.model import Open
from schemas.outcome import Failure

HEADER = "tape-dead-"
"""Prefix of the headers that carry a `DeadLetter`; the original's own headers stay as they were."""


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
    time: AwareDatetime
    failure: Failure
