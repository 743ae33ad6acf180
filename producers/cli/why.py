"""`tape why JOB`: one answer to the question why a job is not running."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from producers.cli.parse import moment
from producers.cli.shell import Shell
from producers.cli.workers import lookout


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(why)


def why(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="The job's id.")],
    since: Annotated[str | None, typer.Option(help="Look at events from then on: 1h, 2d or an ISO time.")] = None,
) -> None:
    """Say why a job is not running: what it waits for, its place in the line, and what to do."""
    shell: Shell = context.obj
    from producers import fleet

    with lookout(shell) as found:
        answer = fleet.why(found, job, moment(since, "--since") if since else None)
    if shell.output.table:
        shell.output.text(answer.detail)
        told: dict[str, Any] = {"state": answer.state, "blocker": answer.blocker, "position": answer.position}
        told |= {"expected start": answer.expected_start, **answer.facts}
        shell.output.record({name: value for name, value in told.items() if value not in (None, "", [])})
    else:
        shell.output.record(answer.row())
    shell.output.next(*answer.next)
