"""The transactor in memory: the same promises on a log that lives in this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from schemas.errors import NotFoundError
from wire.partition import partition_for
from wire.publish.memory import DEFAULT_LIMIT
from wire.publish.port import no_partition, too_large
from wire.share.memory import MemoryLog
from wire.transact.port import NOTHING, Member, Outgoing, fenced, moved_on, shut


class Ledger:
    """What a cluster remembers beside its log: who holds a name, and what groups have read and who is in them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holders: dict[str, MemoryTransactor] = {}
        self.offsets: dict[str, dict[tuple[str, int], tuple[int, str]]] = {}
        self.generations: dict[str, int] = {}
        """The generation of groups that have members; no other one may commit for them."""


_LEDGERS: WeakKeyDictionary[MemoryLog, Ledger] = WeakKeyDictionary()
_MAKING = threading.Lock()


def ledger(log: MemoryLog) -> Ledger:
    """Return the ledger of a log."""
    with _MAKING:
        return _LEDGERS.setdefault(log, Ledger())


class MemoryTransactor:
    """A `Transactor` on a log in memory; the log's clock dates the records."""

    def __init__(self, log: MemoryLog, name: str, *, limits: Mapping[str, int] | None = None) -> None:
        self._log, self._name = log, name
        self._limits = dict(limits or {})
        self._ledger = ledger(log)
        self._closed = False
        with self._ledger.lock:
            self._ledger.holders[name] = self

    def commit(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[tuple[str, int], int] = NOTHING,
        *,
        group: Member | None = None,
    ) -> None:
        """Write all of it or nothing; see `Transactor.commit`."""
        if offsets and group is None:
            raise ValueError("offsets are committed for a group")
        with self._ledger.lock, self._log.changed:
            if self._closed:
                raise shut()
            if self._ledger.holders.get(self._name) is not self:
                raise fenced(self._name)
            places = [self._place(record) for record in records]
            if offsets and group is not None:
                self._check(group)
            for record, partition in zip(records, places, strict=True):
                self._log.append(record.topic, record.key, record.value, list(record.headers), partition)
            if group is not None:
                noted = {place: (offset, group.note) for place, offset in offsets.items()}
                self._ledger.offsets.setdefault(group.group, {}).update(noted)

    def close(self) -> None:
        """Take no more transactions."""
        self._closed = True

    def _check(self, group: Member) -> None:
        known = self._ledger.generations.get(group.group)
        if group.generation != (-1 if known is None else known):
            raise moved_on(group.group)

    def _place(self, record: Outgoing) -> int | None:
        count = self._log.partitions(record.topic)
        if not count:
            raise NotFoundError("the topic does not exist", code="TAPE-2004", topic=record.topic)
        limit = self._limits.get(record.topic, DEFAULT_LIMIT)
        size = len(record.key or b"") + len(record.value or b"")
        if size > limit:
            raise too_large(record.topic, size, limit)
        if record.partition is not None:
            if not 0 <= record.partition < count:
                raise no_partition(record.topic, record.partition, count)
            return record.partition
        return None if record.key is None else partition_for(record.key, count)
