"""Curves in a terminal: a panel for each metric, a mark for each job, and axes with numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from producers.plot.scale import bounds, inked, named, panels
from producers.plot.series import NAMES, TITLES, Axis, Series

if TYPE_CHECKING:
    from rich.text import Text

MARKS = "•×+o*#%"
INKS = ("cyan", "red", "green", "magenta", "yellow", "blue", "white")
HEIGHT = 12
WIDEST, NARROWEST = 120, 30
"""Columns of a picture, its numbers included."""


def draw(series: Sequence[Series], axis: Axis, *, width: int, height: int = HEIGHT) -> Iterator[Text]:
    """Yield the lines of all panels, for a terminal of `width` columns."""
    from rich.text import Text

    ink = inked(series)
    for number, (metric, lines) in enumerate(panels(series).items()):
        if number:
            yield Text()
        yield Text(NAMES.get(metric, metric), style="bold")
        yield from _panel(lines, axis, ink, max(NARROWEST, min(WIDEST, width)), height)
    if len(ink) > 1:
        yield Text("  ").join(_styled(f"{MARKS[at % len(MARKS)]} {label}", at) for label, at in ink.items())


def _panel(lines: list[Series], axis: Axis, ink: dict[str, int], width: int, height: int) -> Iterator[Text]:
    from rich.text import Text

    low, high = bounds(value for line in lines for value in line.drawn)
    left, right = bounds(value for line in lines for value in line.x)
    marks = {0: named(high), height // 2: named((low + high) / 2), height - 1: named(low)}
    gutter = max(map(len, marks.values()))
    wide = width - gutter - 2
    grid: list[list[int | None]] = [[None] * wide for _ in range(height)]
    for line in lines:
        for column, value in _columns(line, left, right, wide).items():
            row = round((high - value) / (high - low) * (height - 1))
            grid[row][column] = ink[line.label]
    for row, cells in enumerate(grid):
        text = Text(f"{marks.get(row, ''):>{gutter}} {'┤' if row in marks else '│'}")
        text.append_text(Text().join(_styled(" " if at is None else MARKS[at % len(MARKS)], at) for at in cells))
        yield text
    yield Text(f"{'':>{gutter}} └{'─' * wide}")
    ends = named(left), named(right)
    title = TITLES[axis].center(wide - len(ends[0]) - len(ends[1]))
    yield Text(f"{'':>{gutter}}  {ends[0]}{title}{ends[1]}")


def _columns(line: Series, left: float, right: float, wide: int) -> dict[int, float]:
    """The mean of what falls into each column."""
    found: dict[int, list[float]] = {}
    for at, value in zip(line.x, line.drawn, strict=True):
        if math.isfinite(value):
            found.setdefault(round((at - left) / (right - left) * (wide - 1)), []).append(value)
    return {column: sum(values) / len(values) for column, values in found.items()}


def _styled(text: str, at: int | None) -> Text:
    from rich.text import Text

    return Text(text, style="" if at is None else INKS[at % len(INKS)])
