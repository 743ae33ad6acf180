"""Where registered models stand, and how the aliases that say which of them is used are moved: by compare-and-swap."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from producers.models.verify import present
from schemas.errors import InvalidError, NotFoundError
from schemas.lineage import TOP, ModelVersion
from schemas.version import Move
from wire.blobs import Blobs
from wire.registry import Registry, checked

NONE = "none"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The store, who moves aliases there (user@host, for the history), and the clock."""

    blobs: Blobs
    who: str = "unknown"
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def registry(self) -> Registry[ModelVersion]:
        """The registry of models."""
        return Registry(self.blobs, TOP, ModelVersion)


def promote(shelf: Shelf, asked: str, alias: str, *, why: str = "", expect: str | None = None) -> tuple[str, Move]:
    """Point an alias to the version that `asked` names; return the model's name and the move.

    `expect` is what the alias must point to now (a version, or `none`); without it that is what was just read. A move
    from a version to the same one changes nothing. Raises `ConflictError` (TAPE-3002) where the alias points elsewhere,
    `InvalidError` (TAPE-1010) for a wrong alias, `NotFoundError` (TAPE-2001, TAPE-2008), `JobError` (TAPE-6007)
    for a version whose files are not all there.
    """
    if re.fullmatch(r"[0-9a-f]{4,16}", checked(alias)):
        raise InvalidError(
            f"{alias!r} reads like a version", code="TAPE-1010", field="--to", hint="an alias is a word such as prod"
        )
    version = shelf.registry.find(asked)
    before = shelf.registry.aliases(version.name).aliases.get(alias)
    if expect is not None:
        before = None if expect == NONE else shelf.registry.find(f"{version.name}@{expect}").version
    return version.name, _move(shelf, version, alias, before, why)


def rollback(shelf: Shelf, name: str, alias: str, *, why: str = "") -> tuple[str, Move]:
    """Point an alias to what it was before; return the model's name and the move.

    Again and again it goes further back. Raises `NotFoundError` (TAPE-2008) where it was nothing before, or what it was
    is gone, and else what `promote` does.
    """
    held = shelf.registry.aliases(name)
    now, former = held.aliases.get(alias), held.former(alias)
    if now is None:
        shelf.registry.versions(name)
        known = ", ".join(sorted(held.aliases)) or "none"
        raise NotFoundError(
            f"{name!r} has no alias {alias!r}", code="TAPE-2008", name=name, hint=f"its aliases: {known}"
        )
    if former is None:
        raise NotFoundError(
            f"{name}@{alias} was no other version before {now}", code="TAPE-2008", name=name,
            hint=f"`tape models ls {name}` lists the versions; promote one of them",
        )  # fmt: skip
    return name, _move(shelf, shelf.registry.find(f"{name}@{former}"), alias, now, why)


def _move(shelf: Shelf, version: ModelVersion, alias: str, before: str | None, why: str) -> Move:
    present(shelf.blobs, version)
    move = Move(alias=alias, before=before, after=version.version, by=shelf.who, time=shelf.now(), why=why)
    if move.before == move.after and shelf.registry.aliases(version.name).aliases.get(alias) == before:
        return move
    shelf.registry.move(version.name, move)
    try:
        shelf.registry.find(f"{version.name}@{version.version}")
    except NotFoundError:  # swept in the meantime: nobody shall be led to it
        back = move.model_copy(update={"before": move.after, "after": before, "why": "the version was removed"})
        shelf.registry.move(version.name, back)
        raise
    return move
