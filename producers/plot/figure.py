"""Curves as SVG or PNG, drawn by matplotlib; the same data gives the same bytes with the same version of it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from producers.plot.scale import DASHES, PALETTE, inked, panels
from producers.plot.series import NAMES, TITLES, Axis, Series
from schemas.errors import SetupError

SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "tickertape", "svg.fonttype": "path", "font.family": ["DejaVu Sans"], "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.edgecolor": "#666666", "axes.titleweight": "bold",
    "legend.frameon": False, "figure.facecolor": "white", "path.simplify": True,
}  # fmt: skip
"""Ids by a fixed salt, and letters as the shapes of the font that comes with matplotlib: any machine draws the same."""
NAMELESS = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
"""Neither the day nor the version is written, or documents would change by themselves."""
WIDTH, HEIGHT = 8.0, 3.6
"""Inches of a panel."""
DPI = 150


def draw(series: Sequence[Series], axis: Axis, *, title: str, form: str) -> bytes:
    """Return the picture as the bytes of an `svg` or `png`. Raises `SetupError` (TAPE-8003) without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SetupError(
            "matplotlib is not installed, which draws PNG and SVG", code="TAPE-8003",
            hint="pip install 'tickertape[plot]'; or write .html, or leave --out away to draw in the terminal",
        ) from error  # fmt: skip
    ink, parts = inked(series), panels(series)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, HEIGHT * len(parts) + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(parts), sharex=True, squeeze=False)[:, 0]
        for panel, (metric, lines) in zip(axes, parts.items(), strict=True):
            for line in lines:
                _line(panel, line, ink[line.label])
            panel.set_ylabel(NAMES.get(metric, metric))
            panel.margins(x=0.02)
            if len(lines) > 1:
                panel.legend(loc="best", handlelength=3)
        axes[-1].set_xlabel(TITLES[axis])
        figure.suptitle(title, fontsize=12, fontweight="bold")
        out = BytesIO()
        figure.savefig(out, format=form, dpi=DPI, metadata=NAMELESS[form])
    return out.getvalue()


def _line(panel: Any, line: Series, at: int) -> None:
    colour = PALETTE[at % len(PALETTE)]
    dash = tuple(map(float, DASHES[at % len(DASHES)].split()))
    style: Any = (0, dash) if dash else "solid"
    if line.smooth is not None:
        panel.plot(line.x, line.y, color=colour, alpha=0.25, linewidth=1)
    dot = "o" if len(line.x) < 25 else None  # few points, such as validations: they are what was measured
    panel.plot(line.x, line.drawn, color=colour, linestyle=style, linewidth=1.8, label=line.label, marker=dot, ms=4)
