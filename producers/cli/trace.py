"""`tape trace JOB`: where a job's time went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from producers.cli.output import safe, took
from producers.cli.shell import Shell

WIDTH = 48
Span = dict[str, Any]


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(trace)


def trace(context: typer.Context, job: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """Draw the spans of a job's traces as a waterfall, from the local span files (without a collector)."""
    shell: Shell = context.obj
    from schemas.errors import NotFoundError
    from wire.telemetry import read_spans, traces_folder

    folder = traces_folder(shell.settings)
    lines = waterfall(of_job(list(read_spans(folder)), job))
    if not lines:
        raise NotFoundError(
            "no span file here tells of this job",
            code="TAPE-2002",
            job=job,
            file=str(folder),
            hint="with TAPE_OTLP_ENDPOINT set, spans are at the collector; else run this where client and worker ran",
        )
    if not shell.output.table:
        shell.output.rows([line.row() for line in lines])
        return
    draw(shell, lines)


@dataclass(frozen=True, slots=True)
class Line:
    """One span of the waterfall: how deep it is nested, when it began after the first one, how long it took."""

    span: Span
    depth: int
    offset_ms: float
    duration_ms: float

    def row(self) -> dict[str, Any]:
        """Return the span with its place in the waterfall."""
        return {**self.span, "depth": self.depth, "offset_ms": self.offset_ms, "duration_ms": self.duration_ms}


def of_job(spans: Iterable[Span], job: str) -> list[Span]:
    """Return all spans of the traces in which a span names the job."""
    found = list(spans)
    traces = {span["trace_id"] for span in found if span.get("attributes", {}).get("tape.job") == job}
    return [span for span in found if span["trace_id"] in traces]


def waterfall(spans: list[Span]) -> list[Line]:
    """Return spans in the order of drawing: parents before children, each family by its time.

    A span whose parent is not there (not ended yet, or in another machine's file) stands as a root.
    """
    ids = {span["span_id"] for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span["start_ns"]):
        parent = span.get("parent_id")
        children.setdefault(parent if parent in ids and parent != span["span_id"] else None, []).append(span)
    start = min((span["start_ns"] for span in spans), default=0)
    lines: list[Line] = []
    waiting = [(span, 0) for span in reversed(children.get(None, []))]
    while waiting:
        span, depth = waiting.pop()
        taken = (span["end_ns"] - span["start_ns"]) / 1e6
        lines.append(Line(span, depth, (span["start_ns"] - start) / 1e6, taken))
        waiting += [(child, depth + 1) for child in reversed(children.get(span["span_id"], []))]
    return lines


def draw(shell: Shell, lines: list[Line]) -> None:
    """Print the waterfall for people."""
    from rich.table import Table
    from rich.text import Text

    console = shell.output.console()
    width = max(
        10, min(WIDTH, console.width - 2 - max(2 * line.depth + len(safe(line.span["name"])) for line in lines) - 36)
    )
    total = max((line.offset_ms + line.duration_ms for line in lines), default=0.0) or 1.0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("span", "service"):
        table.add_column(name.upper(), no_wrap=True)
    table.add_column("START", justify="right", no_wrap=True)
    table.add_column("TOOK", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=width)
    for line in lines:
        wrong = line.span.get("status") == "error"
        colour = "red" if wrong else "cyan"
        name = "  " * line.depth + str(line.span["name"]) + (" ✗" if wrong else "")
        table.add_row(
            Text(safe(name)), Text(safe(str(line.span.get("service", "")))),
            took(line.offset_ms), took(line.duration_ms), Text(bar(line, total, width), style=colour),
        )  # fmt: skip
    console.print(table)


def bar(line: Line, total_ms: float, width: int = WIDTH) -> str:
    """Return the bar of a span in a picture `width` characters wide; the shortest one is still seen."""
    left = min(width - 1, int(line.offset_ms / total_ms * width))
    length = max(1, min(width - left, round(line.duration_ms / total_ms * width)))
    return " " * left + "━" * length
