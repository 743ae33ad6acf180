"""What a transactor is: several records, and what a group has read, become visible together or not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from schemas.errors import ConflictError, UnavailableError
from wire.follow.port import Received
from wire.publish.port import Headers

Place = tuple[str, int]
"""A topic and one of its partitions."""
NOTHING: Mapping[Place, int] = MappingProxyType({})


class Outgoing(NamedTuple):
    """One record to write. Without a partition the key decides, without a key it is any; without a time it is now."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None = None


class Member(NamedTuple):
    """Who commits offsets for a classic consumer group (KIP-447): a member that the group has moved on from is refused.

    `note` is kept beside the offsets. Generation -1 without a name stands for somebody outside the group, who may
    commit only while it has no members.
    """

    group: str
    generation: int = -1
    name: str = ""
    instance: str | None = None
    note: str = ""


class Transactor(Protocol):
    """Writes transactions under a name of its own; opening another one of the same name fences this one.

    One transaction at a time: `commit` may be called from any thread, and calls wait for each other.
    """

    def commit(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[Place, int] = NOTHING,
        *,
        group: Member | None = None,
    ) -> None:
        """Write the records and commit the offsets (the next to read, by topic and partition) of the group, or neither.

        Raises `InvalidError` (TAPE-1006 too large, TAPE-1002 no such partition), `NotFoundError` (TAPE-2004),
        `AuthError`, `ConflictError` TAPE-3006 (fenced: this transactor is of no more use) or TAPE-3002 (the group has
        moved on without this member), `UnavailableError` TAPE-5001: nothing was written. `UnavailableError` TAPE-5003:
        the answer to the very last request is missing, so it is written or not; the next commit (or the next
        transactor of this name) begins only when that is decided. `ValueError`: offsets without a group.
        """
        ...

    def close(self) -> None:
        """Let go of everything; may be called twice."""
        ...


class Intake(Protocol):
    """A member of a classic group that reads what its owner's transactions move; for one thread.

    It commits nothing itself. Whatever it gains is fenced first: the name that is noted beside the offsets of a
    partition is opened and closed once, so that nobody else can still commit what is about to be moved. Its methods
    raise `AuthError` and `UnavailableError` (TAPE-5001).
    """

    def poll(self, timeout_s: float) -> tuple[list[Received], set[Place], set[Place]]:
        """Return what was fetched, and the partitions that were lost and gained before that.

        Records are in order within a partition; waits up to `timeout_s` for the first. What was lost and gained again
        is in both, and begins anew.
        """
        ...

    def owned(self) -> set[Place]:
        """Return the partitions of this member."""
        ...

    def position(self, place: Place) -> int:
        """Return the offset from which its records have not been returned yet."""
        ...

    def seek(self, place: Place, offset: int) -> None:
        """Go on from an offset."""
        ...

    def rewind(self, places: Collection[Place]) -> None:
        """Go on from what the group has committed, or from the start."""
        ...

    def hold(self, places: Collection[Place]) -> None:
        """Fetch nothing from these partitions, and from all the others again."""
        ...

    def member(self, note: str) -> Member:
        """Return who this is to the group at this moment."""
        ...

    def close(self) -> None:
        """Leave the group; may be called twice, and never fails."""
        ...


def fenced(name: str) -> ConflictError:
    """Return the error for a transactor whose name somebody else has taken."""
    return ConflictError("another holder of this transactional id took over", code="TAPE-3006", transactor=name)


def moved_on(group: str) -> ConflictError:
    """Return the error for a member that its group no longer counts."""
    return ConflictError(
        "the group has moved on without this member",
        code="TAPE-3002",
        group=group,
        hint="join again; the partitions may be another member's now",
    )


def shut() -> UnavailableError:
    """Return the error for a transactor that is closed."""
    return UnavailableError("the transactor is closed", code="TAPE-5001", hint="open another one")
