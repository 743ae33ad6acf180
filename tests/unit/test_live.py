"""The line that `tape watch` draws: a bar, the loss so far, the time left."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from producers.cli.live import BLOCKS, KEPT, WIDTH, Course, clock, screen, sparkline


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([2.0, 2.0, 2.0], "▁▁▁"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], BLOCKS),
        ([8.0, 4.0, 0.0], "█▅▁"),
    ],
)
def test_a_line_of_blocks(values: list[float], line: str) -> None:
    assert sparkline(values) == line


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 40))
def test_a_line_of_blocks_has_its_ends(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BLOCKS)
    if len(values) <= width and max(values) > min(values):
        assert line[values.index(max(values))] == BLOCKS[-1]
        assert line[values.index(min(values))] == BLOCKS[0]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (11_045, "3:04:05"), (-3, "0:00")]
)
def test_a_time_is_told_as_on_a_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told


def test_a_course_tells_how_far_it_is() -> None:
    course = Course()
    assert not course.take(None)
    assert not course.take({"step": "train", "rows": 3}), "what is no step is printed"
    assert not course.take({"step": True, "steps": 4})
    assert list(course.words()) == ["0/0"]
    for step in (1, 2):
        assert course.take({"step": step, "steps": 4, "loss": 2.0 / step, "tokens_per_s": 1234.5, "eta_s": 61})
    assert list(course.words()) == ["2/4", "loss 1 █▁", "1,234 tokens/s", "1:01 left"]
    taken = {"peak_memory_bytes": 1.26e9, "energy_wh": 0.01234, "energy_source": "estimated", "cost": 0.0375}
    course.take({"step": 3, "steps": 4, "loss": 1.0, **taken})
    assert list(course.words()) == ["3/4", "loss 1 █▁▁", "1.3 GB", "0.0123 Wh", "cost 0.0375"]
    course.take({"step": 3, "steps": 4, **taken, "peak_device_bytes": 9e9})
    assert list(course.words())[2] == "9.0 GB", "that of the accelerator is what runs out first"
    course = Course()
    for step in (1, 2):
        course.take({"step": step, "steps": 4, "loss": 2.0 / step})
    course.take({"step": 4, "steps": 4, "loss": 0.5, "eta_s": 0})
    assert list(course.words()) == ["4/4", "loss 0.5 █▃▁"]


def test_what_was_undone_by_a_death_is_forgotten() -> None:
    course = Course()
    for step in range(1, 11):
        course.take({"step": step, "steps": 20, "loss": float(step)})
    course.take({"step": 6, "steps": 20, "loss": 6.0})
    assert (course.step, course.losses) == (6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0])


def test_a_long_training_is_remembered_evenly() -> None:
    course = Course()
    for step in range(1, 10 * KEPT):
        course.take({"step": step, "steps": 10 * KEPT, "loss": float(step)})
    assert KEPT / 2 <= len(course.losses) <= KEPT
    gaps = {later - sooner for sooner, later in zip(course.losses, course.losses[1:], strict=False)}
    assert len(gaps) <= 2 and max(gaps) <= 2 * min(gaps), "no part of it counts for more"
    assert math.isclose(course.losses[-1], 10 * KEPT, rel_tol=0.01)


def test_the_line_is_drawn_below_what_is_printed() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    course = Course()
    with screen(console) as draw:
        draw("10:00:00  running", course)
        assert "━" not in out.getvalue(), "nothing is known yet"
        course.take({"step": 3, "steps": 6, "loss": 1.5})
        draw("", course)
        draw("10:00:01  [bold]done", course)
    printed = out.getvalue()
    assert printed.count("━" * (WIDTH // 2)) >= 1
    assert "3/6  loss 1.5 ▁" in printed
    assert printed.index("running") < printed.index("3/6")
    assert "done" in printed
