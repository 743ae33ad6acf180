"""`tape pause` and `tape resume`: let jobs wait, and let them go on where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from producers.cli.jobs import each
from producers.cli.shell import Shell
from schemas.errors import NotFoundError

if TYPE_CHECKING:
    from producers.client import Client

Jobs = Annotated[list[str], typer.Argument(metavar="JOB...", help="The jobs' ids.")]
Reason = Annotated[str, typer.Option(help="Why; it is told with who asked for it.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pause, resume):
        app.command()(command)


def pause(context: typer.Context, jobs: Jobs, reason: Reason = "") -> int:
    """Let these jobs wait until they are resumed; no attempt is spent. Exit code 8: it went wrong for some of them.

    A running job is stopped. A training keeps a checkpoint and goes on from it; what keeps none begins anew.
    """
    return each(context.obj, jobs, lambda shell, client, job: _pause(shell, client, job, reason))


def resume(context: typer.Context, jobs: Jobs, reason: Reason = "") -> int:
    """Let paused jobs go on, within a minute; exit code 8 when that went wrong for some of them."""
    return each(context.obj, jobs, lambda shell, client, job: _resume(shell, client, job, reason))


def _pause(shell: Shell, client: Client, job: str, reason: str) -> None:
    from schemas.event import FINAL, State

    before = client.paused(job)
    state = client.pause(job, reason)
    told = f"ended already: {state}" if state in FINAL else f"{state}, paused" if state else "not seen yet"
    shell.output.line({"job": job, "state": state, "paused": state not in FINAL}, f"{job}  {told}")
    if state is None:
        raise NotFoundError("no event tells of this job; should it come, it will wait", code="TAPE-2002", job=job)
    if state in FINAL:
        return
    if before is not None:
        shell.output.note(f"it was paused already by {before.by}")
    elif state is State.RUNNING:
        shell.output.note("it is stopped now; a training goes on from its checkpoint, what keeps none begins anew")
    shell.output.next(f"tape resume {job}")


def _resume(shell: Shell, client: Client, job: str, reason: str) -> None:
    before = client.paused(job)
    state = client.resume(job, reason)
    told = "resumed" if before else "not paused"
    shell.output.line(
        {"job": job, "state": state, "resumed": before is not None}, f"{job}  {state or 'not seen'}, {told}"
    )
    if before is None and state is None:
        raise NotFoundError("no event tells of this job, and it is not paused", code="TAPE-2002", job=job)
    if before is not None:
        shell.output.next(f"tape watch {job}")
