"""A broker's side of share groups, in memory: which record is available, acquired, or done. Pure; times are given.

available --acquire--> acquired --accept--> done
                                --reject--> done (archived)
                                --release, lock expired--> available, or archived at the delivery limit
                                --renew--> acquired, with a new lock
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import LeaseLostError
from .model import GAP, AckType


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """A share group's settings, as the broker's group configs of the same meaning. Times in seconds."""

    lock_duration: float = 30.0
    delivery_limit: int = 5
    max_locks: int = 2000
    earliest: bool = True


@dataclass(slots=True)
class _Lock:
    member: str
    until: float
    count: int


class SharePartition:
    """One partition as one share group sees it. Offsets below `start` are finished."""

    def __init__(self, config: GroupConfig, start: int = 0) -> None:
        self._config = config
        self.start = start
        self._next = start
        self._released: list[int] = []
        self._counts: dict[int, int] = {}
        self._locks: dict[int, _Lock] = {}
        self._done: set[int] = set()
        self.archived: list[int] = []

    def acquire(self, member: str, limit: int, end: int, now: float) -> list[tuple[int, int]]:
        """Lock up to `limit` of the oldest available records below `end`. Returns offsets with delivery counts."""
        self.expire(now)
        taken: list[tuple[int, int]] = []
        while len(taken) < limit:
            if self._released:
                offset = heapq.heappop(self._released)
            elif self._next < min(end, self.start + self._config.max_locks):
                offset = self._next
                self._next += 1
            else:
                break
            count = self._counts.get(offset, 0) + 1
            self._counts[offset] = count
            self._locks[offset] = _Lock(member, now + self._config.lock_duration, count)
            taken.append((offset, count))
        return taken

    def acknowledge(self, member: str, acks: Mapping[int, int], now: float) -> None:
        """Settle or renew, all or none, as a broker does. Raises LeaseLostError."""
        self.expire(now)
        stale = [offset for offset in acks if not self._owned(member, offset)]
        if stale:
            raise LeaseLostError(f"not locked by this member: {stale[:5]}")
        for offset, kind in acks.items():
            if kind == AckType.RENEW:
                self._locks[offset].until = now + self._config.lock_duration
            elif kind == AckType.RELEASE:
                self._release(offset)
            else:
                del self._locks[offset]
                self._finish(offset, archived=kind in (AckType.REJECT, GAP))

    def release(self, member: str) -> None:
        """A member's session ended: what it held is available again."""
        for offset in [offset for offset, lock in self._locks.items() if lock.member == member]:
            self._release(offset)

    def expire(self, now: float) -> None:
        """Release every lock whose time is over."""
        for offset in [offset for offset, lock in self._locks.items() if lock.until <= now]:
            self._release(offset)

    def restart(self) -> None:
        """The broker died: locks are gone and delivery counts start anew, what was settled stays settled."""
        for offset in list(self._locks):
            del self._locks[offset]
            heapq.heappush(self._released, offset)
        self._counts.clear()

    def locked(self) -> int:
        """How many records are acquired."""
        return len(self._locks)

    def lag(self, end: int) -> int:
        """Records not finished yet."""
        return end - self.start - len(self._done)

    def _owned(self, member: str, offset: int) -> bool:
        lock = self._locks.get(offset)
        return lock is not None and lock.member == member

    def _release(self, offset: int) -> None:
        lock = self._locks.pop(offset)
        if lock.count >= self._config.delivery_limit:
            self._finish(offset, archived=True)
        else:
            heapq.heappush(self._released, offset)

    def _finish(self, offset: int, *, archived: bool) -> None:
        self._counts.pop(offset, None)
        self._done.add(offset)
        if archived:
            self.archived.append(offset)
        while self.start in self._done:
            self._done.discard(self.start)
            self.start += 1
