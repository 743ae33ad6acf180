"""The words of the package: acknowledgement types, records, ranges of offsets, and the hooks a user may override."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .errors import ShareError

# What the consumer says about offsets the broker handed out that hold no record (transaction markers, compaction).
GAP = 0


class AckType(IntEnum):
    """What becomes of an acquired record."""

    ACCEPT = 1
    RELEASE = 2
    REJECT = 3
    RENEW = 4


class AcquireMode(IntEnum):
    """How a fetch counts: whole batches (faster, may exceed the limit) or at most so many records."""

    BATCH = 0
    RECORD_LIMIT = 1


class Record(NamedTuple):
    """One acquired record: the lease is bound to this very object, so hand it back to `acknowledge`."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int
    delivery_count: int


class OffsetRange(NamedTuple):
    """Offsets `first` to `last` (both included) of one partition."""

    topic: str
    partition: int
    first: int
    last: int

    def __str__(self) -> str:
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.topic}[{self.partition}]@{span}"


class Listener:
    """Hooks with nothing in them: derive and override.

    They are called from the network thread (`on_lost` also from `poll`), never with a lock held, and must not block.
    An exception in a hook is logged and goes no further.
    """

    def on_assigned(self, partitions: Sequence[tuple[str, int]]) -> None:
        """The group gave this member these partitions (the whole assignment, not the change)."""

    def on_lost(self, ranges: Sequence[OffsetRange], error: ShareError) -> None:
        """These records are not ours any more: stop their work, others will get them.

        When the lock of a held record expired and this very consumer got it again, this comes before `poll` returns it.
        """

    def on_fetch(self, records: int, size: int, seconds: float) -> None:
        """A fetch returned so many records and bytes after so many seconds."""

    def on_ack(self, records: int, kind: int, error: ShareError | None) -> None:
        """The broker answered so many acknowledgements of one kind (`AckType`, 0 for gaps)."""

    def on_error(self, error: ShareError) -> None:
        """Something failed that the consumer handles by itself, or (a `FatalError`) cannot."""
