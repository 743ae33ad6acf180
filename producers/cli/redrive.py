"""`tape dead redrive plan|run|resume|status|ls|halt`: dead letters sent back by plan."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit
from producers.cli.options import grouped
from producers.cli.shell import Shell
from producers.cli.sieve import Filters, desk
from schemas.errors import ConflictError, InvalidError

if TYPE_CHECKING:
    from producers.redrive.pace import Pace
    from schemas.redrive import Plan, Redrive

COLUMNS = ("id", "state", "letters", "moved", "ended", "failed", "created", "by", "reason")
SILENT = timedelta(seconds=30)
"""A runner that has not saved its state for so long is taken for dead."""
NOTE_S, STILL_S = 2.0, 30.0
"""How often a run tells how far it is, and that nothing has changed."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The redrive's id.")]


@dataclass(frozen=True)
class Pacing:
    """How fast a redrive goes, and when it stops."""

    canary: Annotated[int | None, typer.Option(min=0, help="Send so many first, and wait for their outcomes.")] = None
    rate: Annotated[float | None, typer.Option(min=0.01, help="Jobs a second at most.")] = None
    halt_above: Annotated[float | None, typer.Option(min=0, max=100, help="Halt when more % failed again. [20]")] = None
    canary_timeout: Annotated[
        str | None, typer.Option(help="Stop waiting for the canary after e.g. 2h. [none ran for 10m]")
    ] = None
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every job has ended; exit code 6 if some failed.")
    ] = False

    def read(self) -> Pace:
        """Return it as the runner takes it. Raises `InvalidError` (TAPE-1010)."""
        from producers.cli.parse import duration
        from producers.redrive.pace import Pace

        timeout = self.canary_timeout
        limit = duration(timeout, "--canary-timeout").total_seconds() if timeout else None
        return Pace(
            canary=self.canary, rate=self.rate, halt_above=self.halt_above, canary_timeout_s=limit, wait=self.wait
        )  # fmt: skip


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Send dead letters back by plan: a few first, each once, halted when they fail again.")
    family.command()(grouped(plan))
    for command in (run, resume, status, halt):
        family.command()(grouped(command))
    family.command(name="ls")(listed)
    app.add_typer(family, name="redrive")


def plan(
    context: typer.Context,
    patch: Annotated[Path | None, typer.Option(help="A JSON Patch (RFC 6902) that mends every payload.")] = None,
    max_replays: Annotated[int, typer.Option(min=1, help="Leave jobs that came back so often.")] = 3,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the audit trail.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every letter that waits, without any filter.")] = False,
    *,
    filters: Filters,
) -> None:
    """Say what would be sent back, what not and why, and what it may cost; nothing is moved. Prints the plan's id."""
    shell: Shell = context.obj
    from producers.redrive import state
    from producers.redrive.cost import costs
    from producers.redrive.ended import ended
    from producers.redrive.patch import Patch
    from producers.redrive.plan import Wish
    from producers.redrive.plan import plan as make

    chosen = filters.read()
    if chosen.everything and not everything:
        raise InvalidError(
            "this would plan for every dead letter there is", code="TAPE-1010", field="--all",
            hint="name jobs, or a filter such as --code TAPE-6003; or say --all, if you mean every one",
        )  # fmt: skip
    if everything and not chosen.everything:
        raise InvalidError("--all and a filter contradict each other", code="TAPE-1010", field="--all", hint="give one")
    mend = Patch.load(patch) if patch else None
    with desk(shell) as found:
        topics = chosen.topics(found)
        wish = Wish(
            chosen.filter, found.topics(), found.now(), found.who, patch=mend, max_replays=max_replays, reason=reason
        )
        letters = found.letters(topics, chosen.filter.since or "start")
        made, text = make(
            wish, letters, lambda kinds: costs(found.follower, found.names, kinds, found.now()),
            lambda jobs: ended(found, jobs),
        )  # fmt: skip
        if made.letters:
            state.create(found.blobs, made, text)
    row = made.model_dump(mode="json") | ({} if made.letters else {"id": None})
    shell.output.record(described(made) if shell.output.table else row)
    if not made.letters:
        why = "all were skipped" if made.skipped else "no letter matches"
        shell.output.note(f"nothing to send back, {why}: no plan was kept, so there is no id to run")
        shell.output.next("tape dead ls --all")
        return
    if made.classes.get("crashed"):
        shell.output.note(
            f"careful: {made.classes['crashed']:,} of them killed their workers; send one alone first, and watch it"
        )
    canary = min(made.letters, 10, max(3, made.letters // 100))
    shell.output.next(f"tape dead redrive run {made.id} --canary {canary} --rate 50 --halt-above 20")


def run(context: typer.Context, redrive: Id, pacing: Pacing) -> int:
    """Send a plan's letters back. Safe to run again after any crash; exit code 8 when it halted by itself."""
    return _run(context.obj, redrive, pacing.read(), resumed=False)


def resume(context: typer.Context, redrive: Id, pacing: Pacing) -> int:
    """Go on with a redrive that was halted, or whose runner died; what was moved is not moved again."""
    return _run(context.obj, redrive, pacing.read(), resumed=True)


def status(context: typer.Context, redrive: Id) -> int:
    """Tell how a redrive stands: moved, ended, failed again, and its diary; exit code 8 when it is halted."""
    shell: Shell = context.obj
    from producers.redrive import state
    from producers.redrive.survey import survey

    with desk(shell) as found:
        kept = state.load(found.blobs, redrive).redrive
        seen = survey(found, kept)
    if foreign := seen.moved - seen.tally.moved:
        shell.output.note(_unfollowed(foreign))
    row = told(kept) | {"moved": seen.moved, "ended": seen.tally.settled, "failed": seen.tally.failed}
    row |= {"targets": _counts(kept.plan.targets) if shell.output.table else kept.plan.targets}
    if shell.output.table:
        row |= {"again": ", ".join(seen.failures[:5])} if seen.failures else {}
        row |= {f"note {number}": f"{note.time:%m-%d %H:%M:%S} UTC  {note.by}  {note.what}"
                for number, note in enumerate(kept.notes, 1)}  # fmt: skip
    else:
        row |= {"failures": seen.failures, "notes": [note.model_dump(mode="json") for note in kept.notes]}
    shell.output.record(row)
    _next(shell, kept, seen.failures)
    return Exit.PARTLY if kept.phase == "halted" else Exit.OK


def listed(context: typer.Context, limit: Annotated[int, typer.Option(min=1, help="The newest ones.")] = 30) -> None:
    """List redrives, newest last."""
    shell: Shell = context.obj
    from producers.redrive import state

    with desk(shell) as found:
        rows = [told(one) for one in state.every(found.blobs)]
    shell.output.rows(rows[-limit:], COLUMNS)
    if not rows:
        shell.output.note("no redrives yet")
        shell.output.next("tape dead ls --by code", "tape dead redrive plan --code CODE")


def halt(
    context: typer.Context,
    redrive: Id,
    reason: Annotated[str, typer.Option(help="Why; it is kept in its diary.")] = "",
) -> None:
    """Stop a redrive within about a second, whoever runs it; `resume` goes on."""
    shell: Shell = context.obj
    from producers.redrive.state import halt as stop

    with desk(shell) as found:
        kept = stop(found.blobs, redrive, by=found.who, now=found.now(), reason=reason)
    shell.output.record(told(kept))
    shell.output.next(f"tape dead redrive resume {redrive}", f"tape dead redrive status {redrive}")


def described(plan: Plan) -> dict[str, Any]:
    """Return a plan as people read it before they say yes; what is empty is left out."""
    estimate = plan.estimate
    known = "unknown" if estimate.gpu_seconds is None else f"{estimate.gpu_seconds:,.0f}"
    basis = (
        (estimate.letters, "from their own attempts"), (estimate.kinds, "by their kind's mean"),
        (estimate.unknown, "unknown"),
    )  # fmt: skip
    told = ", ".join(f"{count:,} {what}" for count, what in basis if count)
    found = {
        "id": plan.id if plan.letters else None,
        "letters": plan.letters,
        "by code": plan.codes,
        "by class": plan.classes,
        "by kind": plan.kinds,
        "by target": plan.targets,
        "gpu seconds": f"{known} ({told})" if told else known,
        "skipped": plan.skipped,
        "patch": plan.patch,
        "max replays": plan.max_replays,
        "filters": plan.filters,
        "by": plan.by,
        "reason": plan.reason,
    }
    return {name: _counts(value) for name, value in found.items() if value not in (None, "", {})}


def told(redrive: Redrive) -> dict[str, Any]:
    """Return a redrive as a row."""
    return {
        "id": redrive.plan.id,
        "state": redrive.phase.value,
        "letters": redrive.plan.letters,
        "moved": redrive.moved,
        "left": redrive.left,
        "ended": redrive.settled,
        "failed": redrive.failed,
        "canary": redrive.canary,
        "rate": redrive.rate,
        "halt_above": redrive.halt_above,
        "created": redrive.plan.created_at.replace(microsecond=0),
        "updated": redrive.updated_at.replace(microsecond=0),
        "runner": redrive.runner,
        "by": redrive.plan.by,
        "reason": redrive.plan.reason,
    }


def _counts(value: Any) -> Any:
    """Counts by name as a person reads them; anything else as it is."""
    if isinstance(value, dict) and all(isinstance(count, int) for count in value.values()):
        return ", ".join(f"{count:,} {name}" for name, count in value.items())
    return value


def _run(shell: Shell, identity: str, pace: Pace, *, resumed: bool) -> int:
    from producers.dead.desk import SLACK
    from producers.fleet import Lookout, why
    from producers.redrive import state
    from producers.redrive.run import Runner
    from schemas.redrive import Phase

    with desk(shell) as found:
        kept = state.load(found.blobs, identity)
        phase = kept.redrive.phase
        if phase is Phase.HALTED and not resumed:
            hint = f"look at why first: tape dead redrive status {identity}; then tape dead redrive resume {identity}"
            raise ConflictError("the redrive is halted", code="TAPE-3007", redrive=identity, hint=hint)
        if phase is Phase.PLANNED and resumed:
            hint = f"tape dead redrive run {identity} --canary 5"
            raise ConflictError("the redrive was never begun", code="TAPE-3007", redrive=identity, hint=hint)
        if pace.halt_above is not None and not (pace.canary or pace.rate or kept.redrive.canary or kept.redrive.rate):
            raise InvalidError(
                "all letters would be moved before the first of their jobs has ended, and nothing be left to halt",
                code="TAPE-1010", field="--halt-above",
                hint="add --canary 5, whose outcomes are awaited, or --rate 10",
            )  # fmt: skip
        if phase is Phase.DONE:
            shell.output.note("it is done already; nothing is moved twice")
        with closing(Lookout.open(shell.settings)) as fleet:
            since = (kept.redrive.started_at or found.now()) - SLACK
            runner = Runner(
                found, kept, pace, report=_reporter(shell), say=shell.output.note,
                why=lambda job: why(fleet, job, since),
            )  # fmt: skip
            try:
                done = runner.run()
            except KeyboardInterrupt:
                shell.output.next(f"tape dead redrive resume {identity}", f"tape dead redrive status {identity}")
                raise
    shell.output.record(told(done))
    reasons = sorted(set(runner.left.values()))
    for reason in reasons[:5]:
        count = sum(why == reason for why in runner.left.values())
        shell.output.note(f"{count:,} left: {reason}")
    if done.phase is Phase.HALTED:
        shell.output.note(done.notes[-1].what)
    if runner.foreign:
        shell.output.note(_unfollowed(runner.foreign))
    if done.phase is Phase.DONE and runner.open:
        shell.output.note(
            f"{runner.open:,} of those it moved have not ended yet; nobody watches them, and nothing is left to halt"
        )
        shell.output.next(f"tape dead redrive status {identity}")
    _next(shell, done, [])
    if done.phase is Phase.HALTED:
        return Exit.PARTLY
    return Exit.JOB if pace.wait and done.failed else Exit.OK


def _unfollowed(count: int) -> str:
    return f"{count:,} of those it moved went to other systems' topics; their outcomes are not followed"


def _reporter(shell: Shell) -> Callable[[Redrive], None]:
    last: list[Redrive] = []

    def report(redrive: Redrive) -> None:
        before = last[0] if last else None
        if before is not None and before.phase == redrive.phase:
            same = (before.moved, before.settled, before.failed) == (redrive.moved, redrive.settled, redrive.failed)
            if (redrive.updated_at - before.updated_at).total_seconds() < (STILL_S if same else NOTE_S):
                return
        last[:] = [redrive]
        shell.output.note(
            f"{redrive.phase}: {redrive.moved:,} of {redrive.plan.letters:,} moved, {redrive.settled:,} ended, "
            f"{redrive.failed:,} failed again"
        )

    return report


def _next(shell: Shell, redrive: Redrive, failures: list[str]) -> None:
    name = redrive.plan.id
    if redrive.phase == "planned":
        shell.output.next(f"tape dead redrive run {name} --canary 5 --rate 50")
    elif redrive.phase == "halted":
        shell.output.next(
            *(f"tape dead show {quote(job)}" for job in failures[:1]), "tape dead ls --by code --since 1h",
            f"tape dead redrive resume {name}  (with the same plan; or make another)",
        )  # fmt: skip
    elif redrive.phase == "done":
        shell.output.next(f"tape dead show {quote(failures[0])}" if failures else "tape dead audit --since 1h")
    elif datetime.now(UTC) - redrive.updated_at > SILENT:
        shell.output.note(f"its runner {redrive.runner} has been silent for more than {SILENT.seconds} s")
        shell.output.next(f"tape dead redrive resume {name}")
    else:
        shell.output.next(f"tape dead redrive halt {name}")
