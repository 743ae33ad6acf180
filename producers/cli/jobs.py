"""`tape watch`, `tape result`, `tape jobs` and `tape cancel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit, exit_of
from producers.cli.output import styled
from producers.cli.parse import duration, moment
from producers.cli.shell import Shell
from schemas.errors import NotFoundError, TapeError, TimeoutExceeded

if TYPE_CHECKING:
    from producers.client import Client
    from producers.fold import View
    from producers.handle import JobHandle
    from schemas.event import Event, State
    from schemas.outcome import Outcome

COLUMNS = ("job", "kind", "state", "code", "seconds", "attempt", "submitted", "worker")

Job = Annotated[str, typer.Argument(help="The job's id.")]
Since = Annotated[str | None, typer.Option(help="Look at events from then on: 1h, 2d or an ISO time.")]
Timeout = Annotated[str | None, typer.Option(help="How long to wait at most, e.g. 10m.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (watch, result, jobs, cancel):
        app.command()(command)


def watch(context: typer.Context, job: Job, since: Since = None, timeout: Timeout = None) -> int:
    """Print a job's events as they come, those of the past first, until it ends; a terminal draws how far it is."""
    shell: Shell = context.obj
    limit = duration(timeout, "--timeout").total_seconds() if timeout else None
    with shell.client() as client:
        handle = client.job(job, since=moment(since, "--since") if since else None)
        if (state := handle.state()) is None:
            shell.output.note("no event tells of this job yet; waiting for one")
        if pause := _paused(client, job, state):
            shell.output.note(f"it is {pause}; `tape resume {job}` lets it go on")
        if reason := _cancelled(client, job, state):
            shell.output.note(f"it was cancelled ({reason}) and has not stopped yet; `tape why {job}` says more")
        last = _drawn(shell, handle, limit) if shell.output.live else _printed(shell, handle, limit)
        shell.output.next(f"tape result {job}")
        return Exit.OK if last is not None and last.type == "succeeded" else Exit.JOB


def _printed(shell: Shell, handle: JobHandle, limit: float | None) -> Event | None:
    last: Event | None = None
    for event in handle.watch(limit):
        if not (shell.output.table and _again(last, event)):
            shell.output.line(event.model_dump(mode="json", exclude_none=True), describe(event))
        last = event
    return last


def _drawn(shell: Shell, handle: JobHandle, limit: float | None) -> Event | None:
    """The steps of a training are a line that changes, everything else stays to be read."""
    from producers.cli.live import Course, screen

    course, last = Course(), None
    with screen(shell.output.console()) as draw:
        for event in handle.watch(limit):
            draw("" if course.take(event.progress) or _again(last, event) else describe(event), course)
            last = event
    return last


def _again(before: Event | None, event: Event) -> bool:
    """Whether a worker has only looked at a paused job once more."""
    rests = event.failure is not None and event.failure.code == "TAPE-3011"
    return rests and before is not None and before.failure == event.failure


def result(
    context: typer.Context,
    job: Job,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job ends.")] = False,
    timeout: Timeout = None,
    since: Since = None,
) -> int:
    """Print a job's outcome; exit code 6 unless it succeeded, 7 when it has not ended."""
    shell: Shell = context.obj
    limit = duration(timeout, "--timeout").total_seconds() if timeout else None
    with shell.client() as client:
        handle = client.job(job, since=moment(since, "--since") if since else None)
        state = handle.state()
        if state is None and not wait:
            raise _missing(job)
        from schemas.event import FINAL

        if pause := _paused(client, job, state):
            if not wait:
                raise TimeoutExceeded(f"the job is {pause}", code="TAPE-7002", job=job, hint=f"tape resume {job}")
            shell.output.note(f"the job is {pause}; `tape resume {job}` lets it go on")
        if state not in FINAL and not wait:
            raise TimeoutExceeded(
                f"the job is {state}", code="TAPE-7002", job=job, hint=f"wait for it: tape result {job} --wait"
            )
        return show(shell, handle.result(limit))


def jobs(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="Look at events from then on: 1h, 2d or an ISO time.")] = "1h",
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only jobs of this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest ones.")] = 50,
) -> None:
    """List jobs, newest last, as the events of the time since tell of them."""
    shell: Shell = context.obj
    from producers.fold import fold
    from schemas.errors import InvalidError
    from schemas.event import State

    unknown = sorted(set(state or []) - set(State))
    if unknown:
        raise InvalidError(
            f"{unknown[0]!r} is no state", code="TAPE-1010", field="--state", hint=f"use one of {', '.join(State)}"
        )
    with shell.client() as client:
        views = fold(client.scan(moment(since, "--since")))
    found = [view for view in views.values() if _wanted(view, state, kind, tenant)]
    found.sort(key=lambda view: view.updated)
    shell.output.rows((view.row() for view in found[-limit:]), COLUMNS)
    if len(found) > limit:
        shell.output.note(f"{len(found) - limit} older jobs left out; raise --limit")
    if not found:
        shell.output.note(f"no jobs since {since}; widen --since")


def cancel(
    context: typer.Context,
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="The jobs' ids.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept in the outcome.")] = "cancelled on request",
) -> int:
    """Ask every worker to stop these jobs; exit code 8 when that went wrong for some of them."""
    return each(context.obj, jobs, lambda shell, client, job: _cancel(shell, client, job, reason))


def each(shell: Shell, jobs: Sequence[str], work: Callable[[Shell, Client, str], None]) -> int:
    """Do something with each of these jobs; return the exit code that tells how that went."""
    failed: list[TapeError] = []
    with shell.client() as client:
        for job in jobs:
            try:
                work(shell, client, job)
            except TapeError as error:
                shell.output.error(error)
                failed.append(error)
    if failed:
        return Exit.PARTLY if len(failed) < len(jobs) else exit_of(failed[0])
    return Exit.OK


def finish(shell: Shell, handle: JobHandle, timeout: float | None) -> None:
    """Wait for a job's outcome, its events told on stderr meanwhile, and print it."""
    try:
        for event in handle.watch(timeout):
            shell.output.note(describe(event, markup=False))
    except KeyboardInterrupt:
        shell.output.next(f"tape watch {handle.id}  (the job goes on)", f"tape cancel {handle.id}")
        raise
    raise typer.Exit(show(shell, handle.result(timeout)))


def show(shell: Shell, outcome: Outcome) -> int:
    """Print an outcome; return the exit code that tells of it."""
    row: dict[str, Any] = outcome.model_dump(mode="json", exclude_none=True)
    if shell.output.table:
        row = {key: value for key, value in row.items() if key not in {"schema_version", "artifacts", "failure"}}
        row |= {
            f"artifact {item.name}": f"{item.uri} ({item.files} files, {item.size:,} bytes)"
            for item in outcome.artifacts
        }
        if outcome.failure is not None:
            failure = outcome.failure
            row |= {"code": failure.code, "failure": failure.message, "way out": failure.hint}
            row |= {"where": failure.place} if failure.place else {}
    shell.output.record(row)
    if outcome.status == "succeeded":
        if outcome.artifacts:
            shell.output.next(f"tape get {outcome.job} FOLDER")
        return Exit.OK
    shell.output.next(f"tape trace {outcome.job}")
    return Exit.JOB


def describe(event: Event, *, markup: bool = True) -> str:
    """Return one line for people that tells of an event."""
    from rich.markup import escape

    name = f"{event.type.value:<10}"
    parts = [
        event.time.astimezone().strftime("%H:%M:%S"),
        styled(event.type.value).replace(event.type.value, name) if markup else name,
    ]
    if event.attempt:
        parts.append(f"attempt {event.attempt}")
    if event.worker:
        parts.append(f"on {event.worker}")
    if event.progress:
        parts.append(" ".join(f"{key}={_short(value)}" for key, value in event.progress.items()))
    if event.failure:
        parts.append(f"{event.failure.code} {event.failure.message}")
    told = [escape(part) if markup else part for part in parts[2:]]
    return "  ".join([*parts[:2], *told])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _wanted(view: View, states: list[str] | None, kind: str | None, tenant: str | None) -> bool:
    return (not states or view.state in states) and kind in (None, view.kind) and tenant in (None, view.tenant)


def _cancel(shell: Shell, client: Client, job: str, reason: str) -> None:
    from schemas.event import FINAL, State

    state = client.cancel(job, reason)  # before anything else: it must not wait for what is known of the job
    asked = state not in FINAL or state is State.CANCELLED
    told = f"{job}  {state}" if asked else f"{job}  ended already: {state}"
    shell.output.line({"job": job, "state": state, "asked": asked}, told if state else f"{job}  not seen yet")
    if state in (State.QUEUED, State.RUNNING):
        shell.output.note(f"it is told to stop; should that take more than some seconds: tape why {job}")
    if state is None:
        told = "no event tells of this job; should it come, it will not run"
        raise NotFoundError(told, code="TAPE-2002", job=job)


def _paused(client: Client, job: str, state: State | None) -> str:
    """Who paused the job, in words; "" where it does not wait for that, or nobody can tell."""
    with suppress(TapeError):
        if state == "postponed" and (pause := client.paused(job)) is not None:
            return f"paused by {pause.by}"
    return ""


def _cancelled(client: Client, job: str, state: State | None) -> str:
    """Why the job was cancelled, if it goes on all the same; "" where nobody did, or nobody can tell."""
    from schemas.event import FINAL

    with suppress(TapeError):
        if state is not None and state not in FINAL and (order := client.cancelled(job)) is not None:
            return order.reason
    return ""


def _missing(job: str) -> NotFoundError:
    return NotFoundError("no event tells of this job", code="TAPE-2002", job=job)
