"""Axes: how far they go, and where they are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from producers.plot.series import Series

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Colours that are told apart however one sees them (Okabe and Ito, 2008), without the yellow that white hides."""
DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""Beside the colour, each line has a pattern of its own."""


def bounds(values: Iterable[float]) -> tuple[float, float]:
    """Return the least and the most of the finite values; a little around a single one."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if low == high:
        apart = abs(low) * 0.1 or 1.0
        return low - apart, high + apart
    return low, high


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers between the two (Heckbert, Graphics Gems, 1990)."""
    raw = (high - low) / max(1, count)
    if not (math.isfinite(raw) and raw > 0):
        return [low]
    unit = 10 ** math.floor(math.log10(raw))
    step = next((unit * nice for nice in (1, 2, 5, 10) if unit * nice >= raw * 0.999), unit * 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def named(value: float) -> str:
    """Return a mark's text."""
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3g}" if abs(value) >= 1e6 else f"{value:,.0f}"
    return "0" if text in ("-0", "0") else text


def panels(series: Sequence[Series]) -> dict[str, list[Series]]:
    """Return the series by metric, in the order in which they were asked for."""
    found: dict[str, list[Series]] = {}
    for one in series:
        found.setdefault(one.metric, []).append(one)
    return found


def inked(series: Sequence[Series]) -> dict[str, int]:
    """Return the number of each label's ink: one job looks the same in every panel."""
    return {label: number for number, label in enumerate(dict.fromkeys(one.label for one in series))}
