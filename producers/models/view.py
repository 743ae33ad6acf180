"""Registered models as rows: one for each version, and everything of one."""

from __future__ import annotations

from typing import Any

from producers.models.shelf import Shelf
from producers.models.verify import files
from schemas.errors import TapeError
from schemas.lineage import ModelVersion, label
from schemas.version import Aliases


def listed(shelf: Shelf, name: str | None = None) -> list[dict[str, Any]]:
    """Return a row for each version of a name, or of all, the newest of each last. Raises `NotFoundError` (2008)."""
    rows = []
    for each in shelf.registry.names() if name is None else [name]:
        held = shelf.registry.aliases(each)
        rows += [_row(version, held) for version in shelf.registry.versions(each)]
    return rows


def shown(shelf: Shelf, asked: str) -> dict[str, Any]:
    """Return everything of one version. `files` is empty, and `problem` says why, where the list cannot be read.

    Raises `NotFoundError` (TAPE-2008), `InvalidError` (TAPE-1010).
    """
    version = shelf.registry.find(asked)
    held = shelf.registry.aliases(version.name)
    row = version.model_dump(mode="json", exclude={"schema_version", "name", "version", "created_at"})
    found: dict[str, Any] = {
        "model": version.name, "version": version.version, "aliases": _aliases(version, held),
        "created_at": version.created_at, **row,
    }  # fmt: skip
    try:
        listed = files(shelf.blobs, version)
        found["files"] = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in listed]
    except TapeError as error:
        found |= {"files": [], "problem": str(error)}
    moves = [move for move in held.history if version.version in (move.before, move.after)]
    return found | {"history": [move.model_dump(mode="json") for move in moves]}


def _row(version: ModelVersion, held: Aliases) -> dict[str, Any]:
    return {
        "model": version.name, "version": version.version, "aliases": _aliases(version, held),
        "method": version.request.get("method", version.method),
        "base": label(version.base), "data": label(version.data), "loss": version.metrics.get("loss"),
        "validation_loss": version.metrics.get("validation_loss"), "created_at": version.created_at,
        "size": version.artifact.size, "exact": version.exact, "job": version.job,
    }  # fmt: skip


def _aliases(version: ModelVersion, held: Aliases) -> list[str]:
    return sorted(alias for alias, at in held.aliases.items() if at == version.version)
