"""One partition's way into the log: records in order, one batch at a time, numbered so that none counts twice.

The broker knows a producer by its identity and counts its batches per partition. A batch that is sent again keeps its
identity and its number, so the broker drops a copy. Only one batch of a lane is on its way at any time, which keeps
the order whatever fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka.structs import TopicPartition

from wire.publish.port import Headers, Sent

SEQUENCES = 1 << 31


class Identity(NamedTuple):
    """A producer as the broker knows it."""

    id: int
    epoch: int


class Record(NamedTuple):
    """One record on its way, with the future that waits for its place."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    born: float
    size: int
    future: Future[Sent]


class Batch:
    """Records that travel together under one number.

    `doubtful` is set once the batch may have reached a broker without an answer: it may be in the log.
    """

    __slots__ = ("data", "doubtful", "identity", "records", "sequence", "size")

    def __init__(self, records: list[Record], data: bytes, identity: Identity, sequence: int) -> None:
        self.records = records
        self.size = sum(record.size for record in records)
        self.data = data
        self.identity = identity
        self.sequence = sequence
        self.doubtful = False

    @property
    def born(self) -> float:
        """When its oldest record was taken, on the monotonic clock."""
        return self.records[0].born


def builder(identity: Identity, sequence: int, limit: int, *, transactional: bool = False) -> DefaultRecordBatchBuilder:
    """Return an empty batch of at most `limit` bytes (one record always fits), numbered from `sequence`."""
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=transactional,
        producer_id=identity.id,
        producer_epoch=identity.epoch,
        base_sequence=sequence,
        batch_size=limit,
    )


class Lane:
    """The records of one partition, in order."""

    __slots__ = (
        "_identity",
        "_sequence",
        "batch",
        "bytes",
        "limit",
        "not_before",
        "place",
        "queue",
        "sending",
        "trouble",
    )

    def __init__(self, topic: str, partition: int, limit: int) -> None:
        self.place = TopicPartition(topic, partition)
        self.limit = limit
        self.queue: deque[Record] = deque()
        self.bytes = 0
        self.batch: Batch | None = None
        self.sending = False
        self.not_before = 0.0
        self.trouble: BaseException | None = None
        self._identity: Identity | None = None
        self._sequence = 0

    def add(self, record: Record) -> None:
        """Put a record at the end."""
        self.queue.append(record)
        self.bytes += record.size

    def next(self, identity: Identity) -> Batch:
        """Return the batch to send: the one to be sent again, or a new one of at most `limit` bytes.

        A new identity is only taken up by a new batch, never by one that may be in the log under the old one.
        """
        if self.batch is None:
            if identity != self._identity:
                self._identity, self._sequence = identity, 0
            self.batch = self._build(identity)
            self._sequence = (self._sequence + len(self.batch.records)) % SEQUENCES
        self.sending = True
        return self.batch

    def _build(self, identity: Identity) -> Batch:
        batch = builder(identity, self._sequence, self.limit)
        taken: list[Record] = []
        append, queue = batch.append, self.queue
        while queue:
            record = queue[0]
            if append(len(taken), record.timestamp_ms, record.key, record.value, record.headers) is None:
                break
            taken.append(queue.popleft())
        made = Batch(taken, bytes(batch.build()), identity, self._sequence)
        self.bytes -= made.size
        return made

    def confirm(self) -> Batch:
        """Take the batch out: it is in the log."""
        batch = self._take()
        self.trouble = None
        return batch

    def refuse(self) -> Batch:
        """Take the batch out: it is certainly not in the log, so its numbers are free again."""
        batch = self._take()
        if batch.identity == self._identity:
            self._sequence = batch.sequence
        return batch

    def abandon(self) -> Batch:
        """Take the batch out without knowing whether it is in the log: the lane needs a fresh identity after this."""
        batch = self._take()
        self._identity = None
        return batch

    def _take(self) -> Batch:
        batch, self.batch, self.sending = self.batch, None, False
        assert batch is not None
        return batch

    def later(self, moment: float, trouble: BaseException) -> None:
        """Keep the batch for another try, not before a moment on the monotonic clock."""
        self.sending, self.not_before, self.trouble = False, moment, trouble

    def restore(self, records: Iterable[Record]) -> None:
        """Put records back to the front, in their order; used to send a refused batch in other sizes."""
        returned = list(records)
        self.queue.extendleft(reversed(returned))
        self.bytes += sum(record.size for record in returned)

    def expired(self, before: float) -> list[Record]:
        """Take the waiting records that were born before a moment out, and return them."""
        found = []
        while self.queue and self.queue[0].born < before:
            found.append(self.queue.popleft())
        self.bytes -= sum(record.size for record in found)
        return found
