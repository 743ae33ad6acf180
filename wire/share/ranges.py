"""Offsets to ranges and back: how acknowledgements look on the wire. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

Batch = tuple[int, int, list[int]]


def encode(acks: Mapping[int, int]) -> list[Batch]:
    """Acknowledgements by offset as batches (first, last, types), in order of offsets.

    A batch is a run of consecutive offsets. Its types are one value when the whole run agrees, else one per offset.
    """
    batches: list[Batch] = []
    run: list[int] = []
    first = last = -1
    for offset in sorted(acks):
        if run and offset == last + 1:
            run.append(acks[offset])
        else:
            if run:
                batches.append((first, last, _shorten(run)))
            first, run = offset, [acks[offset]]
        last = offset
    if run:
        batches.append((first, last, _shorten(run)))
    return batches


def _shorten(types: list[int]) -> list[int]:
    return types[:1] if types.count(types[0]) == len(types) else types


def decode(batches: Iterable[tuple[int, int, list[int]]]) -> dict[int, int]:
    """Acknowledgements by offset, from batches as they come in a request.

    Raises ValueError for a batch that ends before it starts or whose types do not fit its length.
    """
    acks: dict[int, int] = {}
    for first, last, types in batches:
        count = last - first + 1
        if count < 1 or len(types) not in (1, count):
            raise ValueError(f"batch {first}-{last} with {len(types)} types")
        for index in range(count):
            acks[first + index] = types[index] if len(types) > 1 else types[0]
    return acks


def spans(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive offsets as (first, last), in order."""
    first = last = None
    for offset in sorted(offsets):
        if first is None or last is None:
            first = last = offset
        elif offset == last + 1:
            last = offset
        else:
            yield first, last
            first = last = offset
    if first is not None and last is not None:
        yield first, last
