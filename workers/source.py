"""Where a worker's jobs come from: one share consumer for each kind and lane, and the records held from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wire.share import AckType
from wire.share import Record as ShareRecord
from workers.fair import Shares
from workers.slots import Pool
from workers.tenants import Tenants


class Consumer(Protocol):
    """What the loop needs of a share consumer, real or in memory."""

    @property
    def promised(self) -> int: ...
    @property
    def lock_timeout(self) -> float: ...
    def poll(self, max_records: int, timeout: float) -> Sequence[ShareRecord]: ...
    def focus(self, partitions: Collection[int] | None, *, batches: bool = True) -> None: ...
    def acknowledge(self, record: ShareRecord, kind: AckType = ...) -> None: ...
    def flush(self, timeout: float) -> None: ...
    def close(self, timeout: float) -> None: ...


@dataclass(slots=True, eq=False)
class Source:
    """One consumer: the jobs of a kind and lane, the pool that runs them, and whose they are."""

    kind: str
    lane: str
    consumer: Consumer
    pool: Pool
    tenants: Tenants = field(default_factory=lambda: Tenants(Shares()))

    @property
    def promised(self) -> int:
        """Records that may still come and want room; what is only put aside needs none."""
        return 0 if self.tenants.digging else self.consumer.promised


@dataclass(slots=True)
class Lease:
    """A record that this worker holds."""

    record: ShareRecord
    source: Source
    renew_at: float
    since: float = 0.0
    aside: bool = False
    """Whether it is only held until it was written anew."""
    charged: bool = False
    """Whether its slot was counted already: it is held until its end is durable."""
