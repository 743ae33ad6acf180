"""Curves as one HTML file that needs nothing else: SVG drawn here, and a few lines of script to read values off it.

By hand, because a library that can do as much writes three megabytes of itself into every file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from producers.plot.scale import DASHES, PALETTE, bounds, inked, named, panels, ticks
from producers.plot.series import NAMES, TITLES, Axis, Series

TEMPLATE = Path(__file__).with_name("page.html")
WHOLE, LEFT, WIDTH, HEIGHT = 900, 70, 810, 240
ROW, LETTER = 16, 7.5
"""Height of a row of the legend, and about the width of a letter."""
POINTS = 2_000
"""Points of a line; of more, so many at equal distances are drawn, the first and the last among them."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a panel shows, and where in it a point lies."""

    x: tuple[float, float]
    y: tuple[float, float]
    columns: int
    top: int

    @property
    def bottom(self) -> int:
        return self.top + HEIGHT

    def across(self, value: float) -> float:
        return round(LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * WIDTH, 2)

    def down(self, value: float) -> float:
        return round(self.top + (self.y[1] - value) / (self.y[1] - self.y[0]) * HEIGHT, 2)


def draw(series: Sequence[Series], axis: Axis, *, title: str) -> str:
    """Return the page. It loads nothing, whoever opens it where."""
    ink = inked(series)
    columns = max(1, int(WIDTH // (50 + LETTER * max(map(len, ink)))))
    top = 30 + ROW * -(-len(ink) // columns)
    drawn, told = [], []
    for metric, lines in panels(series).items():
        thin = [(line, _thinned(line)) for line in lines]
        frame = _Frame(
            bounds(at for line in lines for at in line.x),
            bounds(value for line in lines for value in (*line.drawn, *(line.y if line.smooth else ()))),
            columns,
            top,
        )
        drawn.append("\n".join(_panel(metric, thin, frame, axis, ink)))
        shown = [
            {"label": line.label, "x": [line.x[at] for at in kept], "y": [line.drawn[at] for at in kept]}
            for line, kept in thin
        ]
        told.append({"x": frame.x, "y": frame.y, "lines": shown})
    box = {"left": LEFT, "top": top, "width": WIDTH, "height": HEIGHT, "whole": WHOLE}
    data = {"axis": TITLES[axis], "panels": told, "box": box}
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        title=escape(title), panels="\n".join(drawn), axis=escape(TITLES[axis]), data=_safe(data),
        rows="\n".join(_row(line) for line in series),
    )  # fmt: skip


def _thinned(line: Series) -> list[int]:
    finite = [at for at, value in enumerate(line.drawn) if math.isfinite(value) and math.isfinite(line.x[at])]
    if len(finite) <= POINTS:
        return finite
    return [finite[round(number * (len(finite) - 1) / (POINTS - 1))] for number in range(POINTS)]


def _panel(
    metric: str, lines: list[tuple[Series, list[int]]], frame: _Frame, axis: Axis, ink: dict[str, int]
) -> Iterator[str]:
    name = NAMES.get(metric, metric)
    who = ", ".join(line.label for line, _ in lines)
    tall = frame.bottom + 54
    yield f'<svg viewBox="0 0 {WHOLE} {tall}" role="img" tabindex="0" aria-label="{escape(f"{name} of {who}")}">'
    yield f'<text class="name" x="{LEFT}" y="18">{escape(name)}</text>'
    for value in ticks(*frame.y):
        y = frame.down(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y}" y2="{y}"/>'
        yield f'<text class="mark" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{named(value)}</text>'
    for value in ticks(*frame.x, 8):
        yield (
            f'<text class="mark" x="{frame.across(value)}" y="{frame.bottom + 18}" '
            f'text-anchor="middle">{named(value)}</text>'
        )
    yield f'<line class="axis" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{frame.bottom}" y2="{frame.bottom}"/>'
    yield f'<text x="{LEFT + WIDTH / 2}" y="{tall - 12}" text-anchor="middle">{escape(TITLES[axis])}</text>'
    yield f'<line class="here" y1="{frame.top}" y2="{frame.bottom}"/>'
    for number, (line, kept) in enumerate(lines):
        yield from _line(line, kept, frame, ink[line.label])
        yield from _legend(line.label, ink[line.label], number, frame.columns)
    yield '</svg><p class="read" aria-live="polite">Point at a curve, or press the arrow keys on it, to read it.</p>'


def _line(line: Series, kept: list[int], frame: _Frame, at: int) -> Iterator[str]:
    colour, dash = PALETTE[at % len(PALETTE)], DASHES[at % len(DASHES)]

    def path(values: Sequence[float]) -> str:
        return " ".join(f"{frame.across(line.x[one])},{frame.down(values[one])}" for one in kept)

    if line.smooth is not None:
        yield f'<polyline class="raw" stroke="{colour}" points="{path(line.y)}"/>'
    yield f'<polyline class="line" stroke="{colour}" stroke-dasharray="{dash}" points="{path(line.drawn)}"/>'
    yield f'<circle class="dot" r="4" fill="{colour}"/>'


def _legend(label: str, at: int, number: int, columns: int) -> Iterator[str]:
    x, y = LEFT + number % columns * (WIDTH // columns), 36 + number // columns * ROW
    colour, dash = PALETTE[at % len(PALETTE)], DASHES[at % len(DASHES)]
    yield f'<line class="line" stroke="{colour}" stroke-dasharray="{dash}" x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}"/>'
    yield f'<text x="{x + 34}" y="{y + 4}">{escape(label)}</text>'


def _row(line: Series) -> str:
    cells = (line.metric, line.label, named(line.x[-1]), f"{line.drawn[-1]:.5g}")
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _safe(data: dict[str, Any]) -> str:
    """JSON that no script element ends in, whatever a job is called."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
