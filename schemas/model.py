"""The two bases of every message: strict where people write, open where versions meet."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
"""A name that is safe in a topic, a path and a URL."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in lower-case hexadecimal."""


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
