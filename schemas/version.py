"""What is registered under a name: versions that never change, and aliases that are moved from one to another."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.model import Moment, Name, Open

VersionId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
"""The first 16 hexadecimal digits of a SHA-256 over what the version holds."""
HISTORY = 100


class Version(Open):
    """One version of something: `TOP/NAME/versions/VERSION.json`, created once."""

    schema_version: int = 1
    name: Name
    version: VersionId
    created_at: Moment
    created_by: str = ""


class Move(Open):
    """An alias was moved: from which version (none: it was new) to which (none: it was taken away), by whom, why."""

    alias: Name
    before: str | None = None
    after: str | None = None
    by: str
    time: Moment
    why: str = ""


class Aliases(Open):
    """`TOP/NAME/aliases.json`, moved by compare-and-swap; the newest move is the last of the history."""

    schema_version: int = 1
    aliases: dict[Name, VersionId] = Field(default_factory=dict)
    history: tuple[Move, ...] = ()

    def moved(self, move: Move) -> Aliases:
        """Return the aliases after a move."""
        found = {name: version for name, version in self.aliases.items() if name != move.alias}
        if move.after is not None:
            found[move.alias] = move.after
        return Aliases(aliases=found, history=(*self.history, move)[-HISTORY:])

    def former(self, alias: str) -> str | None:
        """Return what an alias was before its newest move that was no return to an earlier one; None: nothing."""
        stack: list[str] = []
        for move in self.history:
            if move.alias != alias or move.after is None:
                continue
            if len(stack) > 1 and stack[-2] == move.after:
                stack.pop()
            elif not stack or stack[-1] != move.after:
                stack.append(move.after)
        return stack[-2] if len(stack) > 1 else None
