"""The two bases of every message: strict where people write, open where versions meet."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
"""A name that is safe in a topic, a path and a URL."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in lower-case hexadecimal."""


_NUMBER = re.compile(r"\s*[+-]?[0-9.]+\s*")
LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""What nobody lives to see: the moment for whatever is put off further than a date can tell."""


def within(moment: datetime) -> datetime:
    """Return a moment, which must have a date in UTC too. Raises `ValueError` for others.

    >>> within(datetime.fromisoformat("9999-12-31T23:59:59-14:00"))
    Traceback (most recent call last):
    ValueError: the date is not within the years 1 to 9999 in UTC
    """
    try:
        moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the date is not within the years 1 to 9999 in UTC") from None
    return moment


def written(given: object) -> object:
    """Let only a date pass, or text that is one; of a number nobody knows whether it counts seconds or milliseconds.

    >>> written("1790000000")
    Traceback (most recent call last):
    ValueError: a date is written as in 2026-03-01T12:00:00Z
    """
    if isinstance(given, datetime) or (isinstance(given, str) and not _NUMBER.fullmatch(given)):
        return given
    raise ValueError("a date is written as in 2026-03-01T12:00:00Z")


Moment = Annotated[AwareDatetime, BeforeValidator(written), AfterValidator(within)]
"""A date with a zone, which can be told in UTC: whoever reads it compares and converts it."""


class Strict(BaseModel):
    """What a person writes: an unknown field is an error, so a typing slip never passes silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Open(BaseModel):
    """What one version writes and another reads: unknown fields are ignored (see `schemas.compat`)."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


def wrong(field: str, value: Any, told: str) -> ValidationError:
    """Return what a check over several fields raises: an error at this one of them, and not at the whole."""
    # braces would be read as places for values
    problem = PydanticCustomError("wrong", "{told}", {"told": told})
    return ValidationError.from_exception_data("value", [InitErrorDetails(type=problem, loc=(field,), input=value)])
