"""What a consumer holds and what it has said about it: a table of leases. Pure; the caller holds the lock.

A record goes: held → (acknowledge) queued → (request) flying → (answer) gone. A renewal leaves it held. The broker
settles a partition's acknowledgements all or none, so one stale record refuses its neighbours too: a refused set is
cut in halves and tried again until only what is really lost remains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import ranges
from .errors import LeaseLostError, ShareError
from .messages import TopicPartition
from .model import GAP, AckType, OffsetRange, Record

RETRIES = 5


class Answered(NamedTuple):
    """What an answer meant: acknowledgements by kind with their error, and ranges lost with the cause."""

    kinds: dict[int, int]
    lost: list[OffsetRange]
    error: ShareError | None


class Lost(NamedTuple):
    """Ranges that were open, and those among them whose acceptance or rejection was not confirmed."""

    ranges: list[OffsetRange]
    unconfirmed: list[OffsetRange]


class _Partition:
    __slots__ = ("again", "flying", "held", "index", "newest", "node", "queue", "topic", "tries")

    def __init__(self, topic: str, index: int, node: int) -> None:
        self.topic, self.index, self.node = topic, index, node
        self.held: dict[int, Record] = {}
        self.queue: dict[int, int] = {}
        self.again: deque[dict[int, int]] = deque()
        self.flying: dict[int, int] = {}
        self.newest = -1
        self.tries = 0

    def spans(self, offsets: Iterable[int]) -> list[OffsetRange]:
        return [OffsetRange(self.topic, self.index, first, last) for first, last in ranges.spans(offsets)]

    def open(self) -> set[int]:
        offsets = {*self.held, *self.queue, *self.flying}
        return offsets.union(*self.again)

    def said(self) -> list[int]:
        acks = (pair for acks in (self.queue, self.flying, *self.again) for pair in acks.items())
        return [offset for offset, kind in acks if kind in (AckType.ACCEPT, AckType.REJECT)]


class Leases:
    """The leases of one consumer, by partition."""

    def __init__(self) -> None:
        self._table: dict[TopicPartition, _Partition] = {}
        self._by_name: dict[tuple[str, int], _Partition] = {}
        self.held = 0

    def add(self, tip: TopicPartition, node: int, topic: str, records: Sequence[Record]) -> list[OffsetRange]:
        """Records acquired from a leader. Returns what was held already: those locks expired before they came again."""
        part = self._part(tip, node, topic)
        before = len(part.held)
        again = part.spans(record.offset for record in records if record.offset in part.held) if before else []
        for record in records:
            part.held[record.offset] = record
        self.held += len(part.held) - before
        if part.held:
            part.newest = max(part.newest, next(reversed(part.held)))
        return again

    def put(self, tip: TopicPartition, node: int, topic: str, acks: Mapping[int, int]) -> None:
        """Queue acknowledgements for offsets that never became records (gaps, unreadable ones)."""
        self._part(tip, node, topic).queue.update(acks)

    def holds(self, record: Record) -> bool:
        """This very record is held."""
        part = self._by_name.get((record.topic, record.partition))
        return part is not None and part.held.get(record.offset) is record

    def settle(self, record: Record, kind: AckType) -> bool:
        """Queue an acknowledgement. Returns whether it is the first to wait in its partition.

        Raises LeaseLostError when this very record is not held any more.
        """
        part = self._by_name.get((record.topic, record.partition))
        offset = record.offset
        if part is None or part.held.get(offset) is not record:
            span = OffsetRange(record.topic, record.partition, offset, offset)
            raise LeaseLostError(f"{span} is not held: lost, or settled before", [span])
        if kind is not AckType.RENEW:
            del part.held[offset]
            self.held -= 1
        part.queue[offset] = int(kind)
        return len(part.queue) == 1

    def settle_all(self, kind: AckType) -> None:
        """Queue the same acknowledgement for everything held."""
        for part in self._table.values():
            part.queue.update(dict.fromkeys(part.held, int(kind)))
            self.held -= len(part.held)
            part.held.clear()

    def holding(self, node: int) -> bool:
        """Records of this leader are held."""
        return any(part.held for part in self._of(node))

    def queued(self, node: int | None = None) -> bool:
        """Acknowledgements wait to be sent (to this leader)."""
        return any((part.queue or part.again) and node in (None, part.node) for part in self._table.values())

    def pending(self) -> bool:
        """Acknowledgements wait to be sent or answered."""
        return any(part.queue or part.again or part.flying for part in self._table.values())

    def renewing(self, node: int) -> bool:
        """Renewals are among what waits for this leader; they cannot ride on a fetch."""
        renew = int(AckType.RENEW)
        return any(
            renew in part.queue.values() or any(renew in group.values() for group in part.again)
            for part in self._of(node)
            if part.queue or part.again
        )

    def take(self, node: int) -> dict[TopicPartition, dict[int, int]]:
        """What to say to this leader now; it flies until `answered` or `lose`."""
        taken: dict[TopicPartition, dict[int, int]] = {}
        for tip, part in self._table.items():
            if part.node != node or part.flying:
                continue
            if part.again:
                part.flying = part.again.popleft()
            elif part.queue:
                part.flying, part.queue = part.queue, {}
            else:
                continue
            taken[tip] = part.flying
        return taken

    def answered(self, tip: TopicPartition, error: ShareError | None, *, retry: bool = False) -> Answered:
        """The leader's answer to what flew for a partition.

        A LeaseLostError halves the set and tries again; `retry` (the broker's state could not be written) tries the
        whole again, a few times.
        """
        part = self._table[tip]
        flown, part.flying = part.flying, {}
        if error is None:
            part.tries = 0
            return Answered(_count(flown), [], None)
        if retry and part.tries < RETRIES:
            part.tries += 1
            part.again.append(flown)
            return Answered({}, [], error)
        if isinstance(error, LeaseLostError) and len(flown) > 1 and not retry:
            offsets = sorted(flown)
            for half in (offsets[: len(offsets) // 2], offsets[len(offsets) // 2 :]):
                part.again.append({offset: flown[offset] for offset in half})
            return Answered({}, [], None)
        part.tries = 0
        return Answered(_count(flown), part.spans(self._forget(part, flown)), error)

    def lose(self, node: int | None = None, tip: TopicPartition | None = None) -> Lost:
        """Everything of a leader, or of one partition, is lost."""
        lost: list[OffsetRange] = []
        unsaid: list[OffsetRange] = []
        for key in list(self._table):
            part = self._table[key]
            if (node is not None and part.node != node) or (tip is not None and key != tip):
                continue
            lost += part.spans(part.open())
            unsaid += part.spans(part.said())
            self.held -= len(part.held)
            del self._table[key]
            if self._by_name.get((part.topic, part.index)) is part:
                del self._by_name[part.topic, part.index]
        return Lost(lost, unsaid)

    def node(self, tip: TopicPartition) -> int | None:
        """The leader whose leases on this partition are open, if any are."""
        part = self._table.get(tip)
        return part.node if part is not None and part.open() else None

    def window(self) -> dict[tuple[str, int], int]:
        """By partition: offsets from the oldest one open here to the newest acquired, both counted; 0 if none."""
        spread: dict[tuple[str, int], int] = {}
        for part in self._table.values():
            offsets = part.open()
            spread[part.topic, part.index] = part.newest - min(offsets) + 1 if offsets else 0
        return spread

    def _of(self, node: int) -> Iterator[_Partition]:
        return (part for part in self._table.values() if part.node == node)

    def _part(self, tip: TopicPartition, node: int, topic: str) -> _Partition:
        part = self._table.get(tip)
        if part is None:
            part = self._table[tip] = self._by_name[topic, tip[1]] = _Partition(topic, tip[1], node)
        part.node = node
        return part

    def _forget(self, part: _Partition, flown: Mapping[int, int]) -> list[int]:
        """What is lost of a refused set: gaps and what was let go anyway are not."""
        for offset, kind in flown.items():
            if kind == AckType.RENEW and part.held.pop(offset, None) is not None:
                self.held -= 1
                part.queue.pop(offset, None)
        return [offset for offset, kind in flown.items() if kind not in (GAP, AckType.RELEASE)]


def _count(acks: Mapping[int, int]) -> dict[int, int]:
    kinds: dict[int, int] = {}
    for kind in acks.values():
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds
