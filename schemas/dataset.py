"""Data sets: rows that were checked and made alike, in parts, registered under a name as versions that never change."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.model import Name, Open, Sha256
from schemas.version import Version


class Rule(StrEnum):
    """What can be wrong with a row, or with a set of them; in the order in which it is told."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ENCODING = "encoding"
    HEADER = "header"
    CELLS = "cells"
    MISSING = "missing"
    TYPE = "type"
    EMPTY = "empty"
    ANSWER = "answer"
    LONG = "long"
    LEAK = "leak"
    CONFLICT = "conflict"
    DUPLICATE = "duplicate"
    PERSONAL = "personal"
    IMBALANCE = "imbalance"
    NONE = "none"


WARNINGS = frozenset({Rule.CONFLICT, Rule.DUPLICATE, Rule.PERSONAL, Rule.IMBALANCE})
"""What is told and recorded, and stops nothing; all else is an error, and nothing is trained on a set that has one."""

MENDS = {
    Rule.JSON: "write one JSON object a line, or in a .json file one array of them and nothing else",
    Rule.CSV: "close every quote, and double those inside a cell",
    Rule.PARQUET: "write the file anew",
    Rule.ENCODING: "save the file as UTF-8",
    Rule.HEADER: "give each column a name of its own in the first line",
    Rule.CELLS: "give each row as many cells as the header, and quote cells with a comma",
    Rule.MISSING: "add the field, or name the recipe with --recipe",
    Rule.TYPE: "write the field as the recipe has it",
    Rule.EMPTY: "fill the field in, or leave the row out",
    Rule.ANSWER: "add the answer, or leave the row out",
    Rule.LONG: "shorten the row, or raise --longest",
    Rule.LEAK: "leave the row out of the training part",
    Rule.CONFLICT: "decide which answer is right",
    Rule.DUPLICATE: "leave the repetition out",
    Rule.PERSONAL: "take it out, or let --mask do it",
    Rule.IMBALANCE: "add rows of the rare answers",
    Rule.NONE: "give at least one row",
}


class Problem(Open):
    """Something wrong, where it is, and how to mend it."""

    rule: Rule
    part: str = Field(description="`train`, `validation` or `test`")
    file: str
    line: int = Field(ge=0, description="0: the whole part")
    field: str = ""
    message: str

    @property
    def error(self) -> bool:
        """Whether nothing may be trained on a set that has this."""
        return self.rule not in WARNINGS

    @property
    def mend(self) -> str:
        """The way out."""
        return MENDS[self.rule]


class Part(Open):
    """The rows of one part: a blob of JSONL, one shape for all."""

    sha256: Sha256
    size: int = Field(ge=0, description="bytes")
    rows: int = Field(ge=1)
    source: str = Field(description="the name of the file it was made of")
    source_sha256: Sha256
    recipe: Name


class DatasetVersion(Version):
    """A version of a data set. Its id follows from the bytes of its parts: the same rows are the same version."""

    parts: dict[str, Part] = Field(min_length=1)
    warnings: dict[Rule, int] = Field(default_factory=dict, description="what was told and let pass, with its count")
    fixed: dict[Rule, int] = Field(default_factory=dict, description="records left out, and what was hidden, by rule")
    report: Sha256 | None = Field(default=None, description="a blob: every problem that was found, as JSONL")
