"""`tape plot JOB...`: the curves of trainings beside each other, in the terminal or as a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.options import Strings, grouped
from producers.cli.output import Format
from producers.cli.shell import Shell
from schemas.errors import InvalidError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from producers.client import Client
    from producers.plot.series import Axis, Series
    from schemas.event import Event

FORMS = ("png", "svg", "html")
TAIL = 8
"""Characters of a job's id that stand for it: those of one minute begin alike."""
EXAMPLES = """Examples:

tape plot JOB — the loss, in the terminal

tape plot A B --metric loss --metric valid_loss --smooth 0.9 --out runs.png

tape plot A B --label 'rank 8' --label 'rank 64' --x tokens --out runs.html

tape plot JOB --metric lr --json"""


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLES)(grouped(plot))


@dataclass(frozen=True)
class Look:
    """What is drawn, and how."""

    metric: Annotated[Strings, typer.Option(help="A metric, a panel each; may be repeated. [loss]")] = None
    x: Annotated[str, typer.Option(metavar="step|epoch|time|tokens", help="What lies along the axis.")] = "step"
    smooth: Annotated[
        float,
        typer.Option(min=0.0, max=0.999, help="How much the values before count: 0 for not at all, 0.9 for much."),
    ] = 0.0
    label: Annotated[Strings, typer.Option(help="What a job is called, in the order of the jobs.")] = None
    title: Annotated[str | None, typer.Option(help="What stands above; by default what is drawn.")] = None

    def axis(self) -> Axis:
        """Return the axis. Raises `InvalidError` (TAPE-1010)."""
        from producers.plot.series import Axis

        if self.x not in set(Axis):
            hint = f"use one of {', '.join(Axis)}"
            raise InvalidError(f"{self.x!r} is no axis", code="TAPE-1010", field="--x", hint=hint)
        return Axis(self.x)

    def labels(self, jobs: list[str]) -> list[str]:
        """Return what each job is called, no two alike. Raises `InvalidError` (TAPE-1010)."""
        if self.label is None:
            short = [job[-TAIL:] for job in jobs]
            return short if len(set(short)) == len(jobs) else jobs
        wrong = "" if len(self.label) == len(jobs) else f"{len(self.label)} labels for {len(jobs)} jobs"
        wrong = wrong or ("two jobs have one label" if len(set(self.label)) < len(jobs) else "")
        if wrong:
            hint = "give one --label for each job, in their order"
            raise InvalidError(wrong, code="TAPE-1010", field="--label", hint=hint)
        return self.label


def plot(
    context: typer.Context,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="The jobs' ids.")],
    look: Look,
    out: Annotated[Path | None, typer.Option(help="A .png, .svg or .html; by default the terminal.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the points instead.")] = False,
) -> None:
    """Draw the metrics of trainings, ended or under way, beside each other; in the terminal, or into a file."""
    shell: Shell = context.obj
    from producers.plot.series import pick, titled

    form = _form(out)
    twice = [job for job, count in Counter(jobs).items() if count > 1]
    if twice:
        raise InvalidError(f"{twice[0]} is named twice", code="TAPE-1010", field="JOB", hint="name each job once")
    axis, labels, wanted = look.axis(), look.labels(jobs), list(dict.fromkeys(look.metric or ["loss"]))
    with shell.client(broker=False) as client:
        found = {job: _records(shell, client, job, timed=axis == "time") for job in jobs}
    series = [
        _smoothed(pick(job, label, found[job], metric, axis), look.smooth)
        for metric in wanted
        for job, label in zip(jobs, labels, strict=True)
    ]
    if out is not None and form is not None:
        _write(out, form, series, axis, look.title or titled(wanted, axis))
        shell.output.line({"file": str(out), "jobs": jobs, "metrics": wanted}, str(out))
    elif as_json or not shell.output.table:
        shell.output.format = Format.JSON if as_json else shell.output.format
        shell.output.rows(one.row(axis) for one in series)
    else:
        from producers.plot.text import draw

        console = shell.output.console()
        for line in draw(series, axis, width=console.width):
            console.print(line, no_wrap=True, overflow="crop")


def _form(out: Path | None) -> str | None:
    form = out.suffix.lower().removeprefix(".") if out is not None else None
    if form is not None and form not in FORMS:
        endings = ", ".join(f".{each}" for each in FORMS)
        raise InvalidError(f"{out} has no ending that says what to draw", code="TAPE-1010", field="--out",
                           hint=f"let it end in one of {endings}")  # fmt: skip
    if out is not None and not out.absolute().parent.is_dir():
        raise NotFoundError("there is no such folder", code="TAPE-2003", file=str(out.absolute().parent))
    return form


def _smoothed(series: Series, weight: float) -> Series:
    from dataclasses import replace

    from producers.plot.series import smoothed

    # validations are far apart, and each is a mean already: a running mean of them would lag behind the truth
    wanted = weight > 0 and not series.metric.startswith("valid_")
    return replace(series, smooth=smoothed(series.y, weight)) if wanted else series


def _write(out: Path, form: str, series: list[Series], axis: Axis, title: str) -> None:
    if form == "html":
        from producers.plot.page import draw as page

        out.write_text(page(series, axis, title=title), encoding="utf-8")
    else:
        from producers.plot.figure import draw

        out.write_bytes(draw(series, axis, title=title, form=form))


def _records(shell: Shell, client: Client, job: str, *, timed: bool) -> list[dict[str, Any]]:
    """A job's metrics. Raises `NotFoundError` where nobody knows of the job (TAPE-2002), or it has none (TAPE-2001)."""
    from producers.plot.read import joined, of_artifact, of_checkpoint, of_events

    outcome = client.outcome(job)
    whole = of_artifact(shell.blobs, outcome) if outcome is not None and not timed else None
    if whole:
        return whole
    kept = [] if timed else of_checkpoint(shell.blobs, job) or []
    events: list[Event] = []
    try:
        events = _events(shell, client, job)
    except UnavailableError:
        if not kept:
            raise
        shell.output.note(f"the broker does not answer: {job} is drawn as far as its last checkpoint")
    found = joined(kept, of_events(events))
    if found:
        return found
    if outcome is None and not events:
        raise NotFoundError("no event tells of this job", code="TAPE-2002", job=job)
    what = outcome.kind if outcome is not None else events[0].kind
    told = "no times: its events are gone" if timed and outcome is not None else "no metrics: it told of no step"
    raise NotFoundError(f"the job ({what}) has {told}", code="TAPE-2001", job=job, hint=f"see tape watch {job}")


def _events(shell: Shell, client: Client, job: str) -> list[Event]:
    if shell.ports is None:
        shell.refused()
    return list(client.scan(client.job(job).log.since, job=job))
