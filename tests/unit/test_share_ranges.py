"""Acknowledgement ranges: what goes in comes out, in as few batches as can be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.share import ranges

acks = st.dictionaries(st.integers(0, 60) | st.integers(0, 2**62), st.integers(0, 4))


@given(acks)
def test_round_trip(given_acks: dict[int, int]) -> None:
    assert ranges.decode(ranges.encode(given_acks)) == given_acks


@given(acks)
def test_batches_are_maximal_runs_in_order(given_acks: dict[int, int]) -> None:
    batches = ranges.encode(given_acks)
    for (_, last, _), (first, _, _) in pairwise(batches):
        assert first > last + 1
    assert sum(last - first + 1 for first, last, _ in batches) == len(given_acks)


@given(acks)
def test_one_type_where_the_run_agrees(given_acks: dict[int, int]) -> None:
    for first, last, types in ranges.encode(given_acks):
        assert len(types) == 1 or (len(types) == last - first + 1 and len(set(types)) > 1)


@given(st.sets(st.integers(0, 100)))
def test_spans_cover_just_the_offsets(offsets: set[int]) -> None:
    spans = list(ranges.spans(offsets))
    covered = [offset for first, last in spans for offset in range(first, last + 1)]
    assert covered == sorted(offsets)
    assert len(spans) == len([offset for offset in offsets if offset - 1 not in offsets])


@pytest.mark.parametrize("batch", [(5, 4, [1]), (1, 3, [1, 1]), (1, 1, [])])
def test_nonsense_is_refused(batch: tuple[int, int, list[int]]) -> None:
    with pytest.raises(ValueError, match="batch"):
        ranges.decode([batch])
