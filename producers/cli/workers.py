"""`tape workers [ls]` and `tape workers drain`: who works, what is away, and how a worker is sent home."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit
from producers.cli.parse import duration
from producers.cli.shell import Shell
from producers.cli.sieve import sure
from schemas.errors import InvalidError, NotFoundError, TimeoutExceeded

if TYPE_CHECKING:
    from producers.fleet import Fleet, Lookout, Seen

COLUMNS = ("worker", "host", "kinds", "slots", "status", "seen", "running")
AWAY = ("dependency", "breaker", "since", "until", "holder", "reason", "cause")
LOOK_S = 0.5
"""How often the fleet is looked at while somebody waits for it."""
SHOWN = 3
"""Running jobs of a worker that a table names."""
FORGOTTEN_S = 3_600.0
"""Workers that have been silent for longer are shown by `--all` only."""


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Workers: who is there, how busy, and how to send them home.")
    family.callback(invoke_without_command=True)(_default)
    family.command(name="ls")(listed)
    family.command()(drain)
    app.add_typer(family, name="workers")


Everyone = Annotated[bool, typer.Option("--all", help="Also those that have been silent for more than an hour.")]


def _default(context: typer.Context, everyone: Everyone = False) -> None:
    """List the workers, unless a command says otherwise."""
    if context.invoked_subcommand is None:
        listed(context, everyone)


def listed(context: typer.Context, everyone: Everyone = False) -> None:
    """List the workers, what they do, and what is away."""
    shell: Shell = context.obj
    with lookout(shell) as found:
        fleet = found.fleet()
    shown = [seen for seen in fleet.workers if everyone or seen.age_s <= FORGOTTEN_S]
    workers, away = [seen.row() for seen in shown], [_breaker(one) for one in fleet.breakers.values()]
    if shell.output.table:
        if workers:
            shell.output.rows([_short(row) for row in workers], COLUMNS)
        if away:
            shell.output.text("")
            shell.output.rows(away, AWAY)
    elif shell.output.format == "jsonl":
        shell.output.rows([*workers, *away])
    else:
        shell.output.record({"workers": workers, "breakers": away})
    if left := len(fleet.workers) - len(shown):
        shell.output.note(f"{left} more have been silent for over an hour; --all shows them")
    if not shown:
        shell.output.note("no worker is there")
        shell.output.next("tape worker --kinds KIND")
    for seen in shown:
        if seen.silent:
            shell.output.note(f"{seen.id} has been silent for {seen.age_s:.0f} s: it died, or cannot reach the broker")


def drain(
    context: typer.Context,
    workers: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The workers' ids.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every worker that is there.")] = False,
    reason: Annotated[str, typer.Option(help="Why; the workers log it.")] = "drained on request",
    wait: Annotated[str, typer.Option(help="How long to wait until they obey; 0: not at all.")] = "15s",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Let workers take nothing more, finish or hand back what they have, and end; the others take over."""
    shell: Shell = context.obj
    from datetime import UTC, datetime

    from schemas.control import Drain

    limit = duration(wait, "--wait").total_seconds()
    if bool(workers) == everyone:
        raise InvalidError("name workers, or say --all", code="TAPE-1010", field="ID", hint="`tape workers` lists them")
    with lookout(shell) as found:
        meant = _meant(found.fleet(), None if everyone else workers)
        if everyone and meant:
            sure(shell, yes, f"drain {len(meant)} workers")
        for seen in meant:
            found.publish(Drain(worker=seen.id, reason=reason, time=datetime.now(UTC)))
        asked = [seen.id for seen in meant if not seen.silent]
        statuses = _obeyed(found, asked, limit)
    for seen in meant:
        status = statuses.get(seen.id, "silent")
        shell.output.line({"worker": seen.id, "status": status}, f"{seen.id}  {status}")
        if status == "silent":
            shell.output.note(f"{seen.id} has been silent for {seen.age_s:.0f} s; it obeys if it ever comes back")
    if not meant:
        shell.output.note("no worker is there")
    late = [name for name, status in statuses.items() if status == "asked"]
    if late and limit:
        raise TimeoutExceeded(
            f"{len(late)} of {len(meant)} workers did not answer within {limit:g} s", code="TAPE-7002",
            workers=", ".join(late), hint="the order stands; look again with `tape workers`",
        )  # fmt: skip
    shell.output.next("tape workers")
    return Exit.OK


@contextmanager
def lookout(shell: Shell) -> Iterator[Lookout]:
    """Open the lookout with quiet logs. Raises `UnavailableError` (TAPE-5001) at once where no broker listens."""
    from producers.fleet import Lookout

    with shell.quiet(), closing(Lookout.open(shell.settings)) as found:
        yield found


def _meant(fleet: Fleet, names: Sequence[str] | None) -> list[Seen]:
    if names is None:
        return [seen for seen in fleet.workers if not seen.silent]
    found = {name: fleet.worker(name) for name in names}
    for name, seen in found.items():
        if seen is None:
            known = ", ".join(one.id for one in fleet.workers if not one.silent)
            hint = f"workers here: {known}" if known else "no worker is there"
            raise NotFoundError("no such worker", code="TAPE-2007", worker=name, hint=hint)
    return [seen for seen in found.values() if seen is not None]


def _obeyed(lookout: Lookout, names: Sequence[str], limit: float) -> dict[str, str]:
    """Wait until the workers drain or are gone; return what each does."""
    until = lookout.clock() + limit
    while True:
        fleet = lookout.fleet()
        found = {name: _status(fleet.worker(name)) for name in names}
        if "asked" not in found.values() or lookout.clock() >= until:
            return found
        lookout.sleep(LOOK_S)


def _status(seen: Seen | None) -> str:
    return "gone" if seen is None else "draining" if seen.presence.draining else "asked"


def _short(row: dict[str, Any]) -> dict[str, Any]:
    running, more = row["running"][:SHOWN], row["held"] - len(row["running"][:SHOWN])
    told = ", ".join(running) + (f" +{more}" if more > 0 else "")
    given = {"kinds": ", ".join(row["kinds"]), "slots": f"{row['busy']}/{row['slots']}", "running": told}
    return row | given | {"seen": f"{row['seen_s']:.0f} s ago"}


def _breaker(said: Any) -> dict[str, Any]:
    return {
        "dependency": said.dependency,
        "breaker": said.state.value,
        "since": said.since,
        "until": said.until,
        "holder": said.worker,
        "reason": said.reason,
        "cause": said.cause,
    }
