"""Record batches to records: aiokafka's C codec when it is installed, kafka-python's else.

Compressed batches are inflated here and handed on as plain ones, so both codecs read every compression. A batch that
lies outside what was acquired is skipped unread, and the last batch of a partition is kept: with a record limit, the
broker sends the same batch again for each few records of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

from kafka.record.util import calc_crc32c

from . import compression
from .errors import CorruptError
from .model import Record

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, two timestamps, producer id and epoch,
# base sequence, record count
_HEADER = struct.Struct(">qiibIhiqqqhii")
_PREFIX = 12
_CRC_FROM = 21
_ATTRIBUTES_AT = 21
_COUNT_AT = 57
_CODEC, _CONTROL = 0x07, 0x20

Acquired = tuple[int, int, int]
"""First offset, last offset and delivery count of a run of acquired records."""


def _codec() -> tuple[Callable[[bytes], Any], str]:
    try:
        from aiokafka.record._crecords import DefaultRecordBatch
    except ImportError:
        from kafka.record.default_records import DefaultRecordBatch as PlainBatch

        return PlainBatch, "kafka-python"
    return DefaultRecordBatch, "aiokafka"


class Decoded(NamedTuple):
    """What a partition's bytes held: records, offsets without one, and what could not be read."""

    records: list[Record]
    gaps: list[int]
    corrupt: list[int]
    error: CorruptError | None


class _Batch(NamedTuple):
    base: int
    last: int
    magic: int
    codec: int
    control: bool
    crc: int
    data: memoryview


class Decoder:
    """Decodes fetched bytes; one per consumer, used by one thread. `check_crcs` verifies every batch it reads."""

    def __init__(self, *, check_crcs: bool = True) -> None:
        self._check = check_crcs
        self._make, self.codec = _codec()
        self._kept: dict[tuple[str, int], tuple[int, int, list[Any]]] = {}

    def decode(
        self,
        data: bytes | memoryview,
        topic: str,
        partition: int,
        acquired: Sequence[Acquired],
        *,
        keys: Container[bytes] | None = None,
    ) -> Decoded:
        """The acquired records among `data`, in order of offsets. Never raises for bad data: it is in the result.

        With `keys` (the same at every call) only those that have one of them; the others are passed over.
        """
        records: list[Record] = []
        corrupt: list[int] = []
        error: CorruptError | None = None
        seen = -1
        for batch in _split(data):
            seen = batch.last
            runs = [run for run in acquired if run[0] <= batch.last and run[1] >= batch.base]
            if not runs or batch.control:
                continue
            try:
                raw = self._read(topic, partition, batch, keys, more=runs[-1][1] < batch.last)
            except CorruptError as exc:
                error = CorruptError(f"{topic}[{partition}]@{batch.base}-{batch.last}: {exc}")
                corrupt += [
                    offset
                    for first, last, _ in runs
                    for offset in range(max(first, batch.base), min(last, batch.last) + 1)
                ]
                continue
            _pick(records, raw, topic, partition, runs)
        missing = _missing(acquired, records, corrupt) if keys is None else _unsent(acquired, seen)
        unseen = [offset for offset in missing if offset > seen]
        if unseen:  # never call a gap what may be a record: a gap is gone for good
            error = error or CorruptError(f"{topic}[{partition}]@{unseen[0]}: acquired, but not among the bytes sent")
        return Decoded(records, [offset for offset in missing if offset <= seen], corrupt + unseen, error)

    def _read(
        self, topic: str, partition: int, batch: _Batch, keys: Container[bytes] | None, *, more: bool
    ) -> list[Any]:
        kept = self._kept.get((topic, partition))
        if kept is not None and kept[0] == batch.base and kept[1] == batch.crc:
            return kept[2] if more else self._kept.pop((topic, partition))[2]
        if batch.magic != 2:
            raise CorruptError(f"unknown record format {batch.magic}")
        if self._check and calc_crc32c(batch.data[_CRC_FROM:]) != batch.crc:
            raise CorruptError("the checksum is wrong")
        plain = bytes(batch.data)
        if batch.codec:
            head = bytearray(plain[: _HEADER.size])
            body = compression.decompress(batch.codec, batch.data[_HEADER.size :])
            attributes = struct.unpack_from(">h", head, _ATTRIBUTES_AT)[0] & ~_CODEC
            struct.pack_into(">h", head, _ATTRIBUTES_AT, attributes)
            struct.pack_into(">i", head, 8, _HEADER.size - _PREFIX + len(body))
            plain = bytes(head) + body
        try:
            plain = plain if keys is None else _thinned(plain, keys)
            raw = list(self._make(plain)) if plain else []
        except Exception as exc:  # either codec's own classes, IndexError and UnicodeDecodeError among them
            raise CorruptError(f"{type(exc).__name__}: {exc}") from exc
        if more:
            self._kept[topic, partition] = (batch.base, batch.crc, raw)
        return raw


def _split(data: bytes | memoryview) -> Iterator[_Batch]:
    """Whole batches in order; a batch cut off at the end is left out."""
    view = memoryview(data)
    at, end = 0, len(view)
    while end - at >= _HEADER.size:
        base, length, _, magic, crc, attributes, delta, *_ = _HEADER.unpack_from(view, at)
        stop = at + _PREFIX + length
        if length < _HEADER.size - _PREFIX or stop > end:
            return
        control = bool(attributes & _CONTROL)
        yield _Batch(base, base + delta, magic, attributes & _CODEC, control, crc, view[at:stop])
        at = stop


def _thinned(plain: bytes, keys: Container[bytes]) -> bytes:
    """The batch with those of its records only that have one of these keys; nothing where none has.

    To look at a key takes a tenth of the time of decoding its record. Lengths are zigzag varints, and before the key
    stand the record's own length, one byte, and two numbers that do not matter here (record batch, magic 2).
    """
    kept: list[bytes] = []
    at = _HEADER.size
    for _ in range(struct.unpack_from(">i", plain, _COUNT_AT)[0]):
        start = at
        size, at = _number(plain, at)
        end = at + size
        at += 1
        while plain[at] > 0x7F:
            at += 1
        at += 1
        while plain[at] > 0x7F:
            at += 1
        length, at = _number(plain, at + 1)
        if length >= 0 and plain[at : at + length] in keys:
            kept.append(plain[start:end])
        at = end
    if at != len(plain):
        raise ValueError("the records do not fill their batch")
    if not kept:
        return b""
    head, body = bytearray(plain[: _HEADER.size]), b"".join(kept)
    struct.pack_into(">i", head, _COUNT_AT, len(kept))
    struct.pack_into(">i", head, 8, _HEADER.size - _PREFIX + len(body))
    return bytes(head) + body


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where it ends. Raises `IndexError` where the bytes do."""
    byte = data[at]
    at += 1
    value, shift = byte & 0x7F, 7
    while byte > 0x7F:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return (value >> 1) ^ -(value & 1), at


def _pick(out: list[Record], raw: list[Any], topic: str, partition: int, runs: Sequence[Acquired]) -> None:
    append = out.append
    if len(runs) == 1:
        ((first, last, count),) = runs
        out += [
            Record(topic, partition, item.offset, item.key, item.value, tuple(item.headers), item.timestamp, count)
            for item in raw
            if first <= item.offset <= last
        ]
        return
    remaining = iter(runs)
    first, last, count = next(remaining)
    for item in raw:
        offset = item.offset
        while offset > last:
            following = next(remaining, None)
            if following is None:
                return
            first, last, count = following
        if offset >= first:
            append(
                Record(topic, partition, offset, item.key, item.value, tuple(item.headers), item.timestamp, count),
            )


def _unsent(acquired: Sequence[Acquired], seen: int) -> list[int]:
    """The last offset, where even that did not come; nobody asks which were passed over."""
    last = max((last for _, last, _ in acquired), default=-1)
    return [last] if last > seen else []


def _missing(acquired: Sequence[Acquired], records: list[Record], corrupt: list[int]) -> list[int]:
    wanted = sum(last - first + 1 for first, last, _ in acquired)
    if wanted == len(records) + len(corrupt):
        return []
    found = {record.offset for record in records}.union(corrupt)
    return [offset for first, last, _ in acquired for offset in range(first, last + 1) if offset not in found]
