"""Registered versions in the store: written once, listed, found by name, version or alias; aliases by compare-and-swap.

    TOP/NAME/versions/VERSION.json      what never changes
    TOP/NAME/aliases.json               which version `prod` is now, and what it was before

A name may be asked for as `NAME` (its newest version), `NAME@ALIAS`, or `NAME@VERSION`; four digits of it do
where no other version begins so.
"""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.codec import dump, parse
from schemas.errors import ConflictError, InvalidError, NotFoundError
from schemas.model import Name
from schemas.version import Aliases, Move, Version
from wire.blobs import Blobs

V = TypeVar("V", bound=Version)
DIGITS: Final = 4
_NAME: Final = TypeAdapter(Name)


class Registry(Generic[V]):
    """The versions of one sort of thing, e.g. `datasets`. Every method raises `UnavailableError` without the store."""

    def __init__(self, blobs: Blobs, top: str, model: type[V]) -> None:
        self._blobs, self._top, self._model = blobs, top, model

    def add(self, version: V) -> V:
        """Register a version; return the one that stands: what is there already was written first, and stays."""
        place = self._place(version.name, version.version)
        try:
            self._blobs.create(place, dump(version))
        except ConflictError:
            return self._parse(place)
        return version

    def names(self) -> list[str]:
        """Return the names that have a version."""
        start = len(self._top) + 1
        found = (blob.name[start:].split("/") for blob in self._blobs.list(f"{self._top}/"))
        return sorted({parts[0] for parts in found if len(parts) == 3 and parts[1] == "versions"})

    def versions(self, name: str) -> list[V]:
        """Return the versions of a name, the newest last. Raises `NotFoundError` (TAPE-2008) where there is none."""
        folder = f"{self._top}/{checked(name)}/versions/"
        found = [self._parse(blob.name) for blob in self._blobs.list(folder)]
        if not found:
            known = ", ".join(self.names()[:8]) or "none"
            raise NotFoundError(
                f"no {self._top[:-1]} is called {name!r}", code="TAPE-2008", name=name, hint=f"there are: {known}"
            )
        return sorted(found, key=lambda one: (one.created_at, one.version))

    def find(self, asked: str) -> V:
        """Return the version that `NAME`, `NAME@ALIAS` or `NAME@VERSION` names.

        Raises `NotFoundError` (TAPE-2008), and `InvalidError` (TAPE-1010) where several begin so.
        """
        name, at, which = asked.partition("@")
        if not at:
            return self.versions(name)[-1]
        pointed = self.aliases(name).aliases.get(which, which)
        if re.fullmatch(r"[0-9a-f]{16}", pointed):
            try:
                return self._parse(self._place(checked(name), pointed))
            except NotFoundError:
                pass
        versions = self.versions(name)
        found = [one for one in versions if len(pointed) >= DIGITS and one.version.startswith(pointed)]
        if len(found) > 1:
            begin = ", ".join(one.version for one in found[:4])
            raise InvalidError(f"{len(found)} versions begin with {pointed!r}", code="TAPE-1010", hint=begin)
        if not found:
            known = [*self.aliases(name).aliases, *(one.version for one in reversed(versions))]
            raise NotFoundError(
                f"{name!r} has no version or alias {which!r}", code="TAPE-2008", name=asked,
                hint=f"there are: {', '.join(known[:8])}",
            )  # fmt: skip
        return found[0]

    def aliases(self, name: str) -> Aliases:
        """Return where the aliases of a name point, and where they did before."""
        return self._read(name)[0]

    def move(self, name: str, move: Move) -> Aliases:
        """Move an alias of `name`; `move.before` is what it must point to now. Return the aliases after it.

        Raises `ConflictError` (TAPE-3002) where it points elsewhere, and `NotFoundError` (TAPE-2008) for a version
        that there is not.
        """
        if move.after is not None:
            self.find(f"{name}@{move.after}")
        while True:
            held, etag = self._read(name)
            now = held.aliases.get(move.alias)
            if now != move.before:
                raise ConflictError(
                    f"{move.alias!r} points to {now or 'nothing'}, not to {move.before or 'nothing'}",
                    code="TAPE-3002", name=f"{name}@{move.alias}", hint="look again, then decide",
                )  # fmt: skip
            moved = held.moved(move)
            try:
                if etag is None:
                    self._blobs.create(self._aliases(name), dump(moved))
                else:
                    self._blobs.replace(self._aliases(name), dump(moved), etag)
            except ConflictError:
                continue  # another alias may have been moved meanwhile
            return moved

    def remove(self, version: V) -> None:
        """Forget a version; what it refers to stays. Raises `ConflictError` (TAPE-3010) while an alias points to it."""
        pointing = [name for name, at in self.aliases(version.name).aliases.items() if at == version.version]
        if pointing:
            raise ConflictError(
                f"{version.name}@{version.version} is {', '.join(pointing)}", code="TAPE-3010",
                hint="move the alias first",
            )  # fmt: skip
        self._blobs.delete(self._place(version.name, version.version))

    def _read(self, name: str) -> tuple[Aliases, str | None]:
        try:
            with self._blobs.get(self._aliases(name)) as reader:
                return parse(Aliases, reader.read()), reader.blob.etag
        except NotFoundError:
            return Aliases(), None

    def _parse(self, place: str) -> V:
        return parse(self._model, self._blobs.read(place), name=place)

    def _place(self, name: str, version: str) -> str:
        return f"{self._top}/{name}/versions/{version}.json"

    def _aliases(self, name: str) -> str:
        return f"{self._top}/{checked(name)}/aliases.json"


def checked(name: str) -> str:
    """Return a name that may be registered. Raises `InvalidError` (TAPE-1010)."""
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        raise InvalidError(
            f"{name!r} is no name", code="TAPE-1010", hint="letters, digits, dots, hyphens, underscores; 128 at most"
        ) from None
