"""Registered data sets: checked rows as content-addressed blobs, a version that names them, and references to a part.

dataset:NAME            the newest version          dataset:NAME@VERSION
dataset:NAME#test       another part of it          dataset:NAME@ALIAS#validation
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from schemas.dataset import DatasetVersion, Part, Rule
from schemas.errors import InvalidError, NotFoundError
from wire.blobs import Blobs
from wire.blobs.manifest import blob_name, digest_of, send
from wire.registry import Registry
from wire.rows.check import Report

TOP: Final = "datasets"
SCHEME: Final = "dataset:"


def registry(blobs: Blobs) -> Registry[DatasetVersion]:
    """Return the data sets of a store."""
    return Registry(blobs, TOP, DatasetVersion)


def register(
    blobs: Blobs,
    name: str,
    report: Report,
    *,
    recipe: str,
    by: str,
    now: datetime,
    fixed: Mapping[Rule, int] | None = None,
) -> DatasetVersion:
    """Store the parts of a report and register them as a version; return the one that stands.

    `fixed` is what was left out of them (`Check.fix`) and hidden in them, where somebody did that.

    Raises `InvalidError` (TAPE-1014) where the report has errors that nobody left out, and what the store raises.
    """
    faults = report.errors if fixed is None else {}
    gone = fixed or {}
    if faults or report.unread or not all(part.count for part in report.parts):
        raise InvalidError("a data set with errors is not registered", code="TAPE-1014", name=name)
    parts: dict[str, Part] = {}
    for part in report.parts:
        digest, size = digest_of(part.rows)
        send(blobs, part.rows, digest, size)
        source, _ = digest_of(part.source)
        parts[part.name] = Part(
            sha256=digest, size=size, rows=part.count, source=part.source.name, source_sha256=source, recipe=recipe
        )
    told, size = digest_of(report.problems)
    if report.counts:
        send(blobs, report.problems, told, size)
    content = "\n".join(f"{name}:{part.sha256}" for name, part in sorted(parts.items()))
    version = DatasetVersion(
        name=name,
        version=hashlib.sha256(content.encode()).hexdigest()[:16],
        created_at=now,
        created_by=by,
        parts=parts,
        warnings={
            rule: count - gone.get(rule, 0) for rule, count in report.warnings.items() if count > gone.get(rule, 0)
        },
        fixed=dict(gone),
        report=told if report.counts else None,
    )
    return registry(blobs).add(version)


def part_for(kind: str, use: str) -> str:
    """Return which part of a data set a kind of job means by one of its fields, where a reference names none."""
    return "validation" if use == "validation" else "train" if kind == "training" else "test"


def find(blobs: Blobs, reference: str, *, part: str) -> tuple[DatasetVersion, str]:
    """Return the version that a reference names, and which part of it: `part` where it names none and there is one.

    Raises `NotFoundError` (TAPE-2008), `InvalidError` (TAPE-1010).
    """
    asked, hash_, named = reference.removeprefix(SCHEME).partition("#")
    version = registry(blobs).find(asked)
    if not hash_:
        named = part if part in version.parts else next(iter(version.parts))
    if named not in version.parts:
        raise NotFoundError(
            f"{version.name}@{version.version} has no part {named!r}", code="TAPE-2008", name=reference,
            hint=f"it has {', '.join(version.parts)}",
        )  # fmt: skip
    return version, named


def pinned(version: DatasetVersion, part: str) -> str:
    """Return the reference that means these rows for ever."""
    return f"{SCHEME}{version.name}@{version.version}#{part}"


def fetch(blobs: Blobs, part: Part, cache: Path) -> Path:
    """Return the local file of a part, every byte verified, and keep it. Raises `JobError` (TAPE-6007)."""
    path = cache / "rows" / f"{part.sha256}.jsonl"
    if not (path.is_file() and digest_of(path)[0] == part.sha256):
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs.fetch(blob_name(part.sha256), path, sha256=part.sha256)
    return path
