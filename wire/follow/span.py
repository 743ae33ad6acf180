"""Which offsets a fetched piece of a log holds, and which of them are records that count.

Read from the batches' headers alone (Apache Kafka's record batch, magic 2), so the network thread can go on fetching
while somebody else decodes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_HEADER = struct.Struct(">qiibIhiqqqhii")
_PREFIX = 12
_TRANSACTIONAL, _CONTROL = 0x10, 0x20


class Span(NamedTuple):
    """One batch: its offsets, who wrote it, and whether it belongs to a transaction or ends one."""

    base: int
    last: int
    producer: int
    transactional: bool
    control: bool


def spans(data: bytes | memoryview) -> Iterator[Span]:
    """Return the whole batches in order; one cut off at the end is left out."""
    view = memoryview(data)
    at, size = 0, len(view)
    while size - at >= _HEADER.size:
        base, length, _, _, _, attributes, delta, _, _, producer, *_ = _HEADER.unpack_from(view, at)
        at += _PREFIX + length
        if at > size or length < _HEADER.size - _PREFIX:
            return
        yield Span(base, base + delta, producer, bool(attributes & _TRANSACTIONAL), bool(attributes & _CONTROL))


def committed(
    found: Iterable[Span], aborted: Sequence[tuple[int, int]], *, start: int, end: int | None
) -> list[tuple[int, int]]:
    """Return the runs of offsets, from `start` and below `end`, that are not part of an aborted transaction.

    `aborted` holds (producer, first offset), as a fetch answers them. A transaction of a producer ends with its
    control batch.
    """
    waiting = sorted(aborted, key=lambda entry: entry[1])
    active: set[int] = set()
    runs: list[tuple[int, int]] = []
    for span in found:
        while waiting and waiting[0][1] <= span.last:
            active.add(waiting.pop(0)[0])
        if span.control:
            active.discard(span.producer)
            continue
        first, last = max(span.base, start), span.last if end is None else min(span.last, end - 1)
        if first > last or (span.transactional and span.producer in active):
            continue
        runs.append((first, last))
    return runs
