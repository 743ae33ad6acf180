"""What differs between two versions: what was asked, of what, with what, what it came to, and the files. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schemas.artifact import ArtifactFile
from schemas.lineage import ModelVersion

MADE_OF = (
    "method", "base", "base_sha256", "data", "data_sha256", "validation", "validation_sha256", "warnings",
    "teacher", "teacher_sha256", "tokenizer", "tokenizer_sha256", "request", "settings",
    "versions", "commit", "processor", "exact", "metrics",
)  # fmt: skip
INCIDENTAL = {"request.publish_as", "metrics.seconds", "metrics.resumed_from"}
"""What differs between runs that are the same."""


def differences(
    one: ModelVersion, other: ModelVersion, files: tuple[Iterable[ArtifactFile], Iterable[ArtifactFile]] = ((), ())
) -> list[dict[str, Any]]:
    """Return a row for each field that differs: its name, both values, and the change where both are numbers."""
    left, right = (_flat(version) | _listed(held) for version, held in zip((one, other), files, strict=True))
    names = [*left, *(name for name in right if name not in left)]
    return [_row(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)]


def _flat(version: ModelVersion) -> dict[str, Any]:
    found: dict[str, Any] = {}
    row = version.model_dump(mode="json", include=set(MADE_OF))
    for field in MADE_OF:
        found |= _spread(field, row[field])
    return {name: value for name, value in found.items() if name not in INCIDENTAL}


def _spread(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, inner in value.items() for path, leaf in _spread(f"{name}.{key}", inner).items()}


def _listed(files: Iterable[ArtifactFile]) -> dict[str, Any]:
    return {f"file {file.path}": file.sha256 for file in files}


def _row(field: str, one: Any, other: Any) -> dict[str, Any]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    return {"field": field, "a": one, "b": other, "change": other - one if numbers else None}
