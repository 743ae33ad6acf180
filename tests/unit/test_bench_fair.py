"""The arithmetic of the fair share's benchmark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rig.fair import Span, cuts, parts, spread, used


def test_only_what_lies_within_the_window_counts() -> None:
    spans = [
        Span("a", 0.0, 3.0),  # its last second
        Span("a", 4.0, 4.5),
        Span("b", 9.0, 12.0),  # its first second
        Span("b", 1.0, 2.0),  # none of it
        Span("c", 0.0, 20.0),
    ]
    assert used(spans, 2.0, 10.0) == {"a": 1.5, "b": 1.0, "c": 8.0}


def test_parts_are_ratios_to_the_weights() -> None:
    assert parts({"a": 10.0, "b": 30.0}, {"a": 1.0, "b": 3.0}) == {"a": 1.0, "b": 1.0}
    assert parts({"a": 20.0, "b": 20.0}, {"a": 1.0, "b": 3.0}) == pytest.approx({"a": 2.0, "b": 2 / 3})
    assert parts({"a": 5.0}, {"a": 1.0, "b": 1.0}) == {"a": 2.0, "b": 0.0}
    assert parts({}, {"a": 1.0}) == {"a": 0.0}


def test_what_is_left_of_the_slots_is_each_jobs_alike() -> None:
    assert spread({"a": 2.0, "b": 4.0}, {"a": 10, "b": 5}, 12.0) == {"a": 6.0, "b": 6.0}
    assert spread({"a": 9.0}, {"a": 1}, 8.0) == {"a": 9.0}
    assert spread({}, {"a": 0}, 8.0) == {"a": 0.0}


def test_the_cuts_are_nearest_ranks() -> None:
    assert cuts([]) == {}
    assert cuts([0.25]) == {"p50_s": 0.25, "p95_s": 0.25, "worst_s": 0.25}
    assert cuts([float(n) for n in range(20, 0, -1)]) == {"p50_s": 10.5, "p95_s": 19.0, "worst_s": 20.0}


@given(st.lists(st.floats(0.0, 1e6), min_size=1))
def test_the_cuts_are_in_order(took: list[float]) -> None:
    found = cuts(took)
    assert found["p50_s"] <= found["p95_s"] + 1e-3
    assert found["p95_s"] <= found["worst_s"]
    assert found["worst_s"] == round(max(took), 3)
