"""`tape tenants [ls]`, `set` and `unset`: what each tenant may, and what its jobs have taken of that."""

from __future__ import annotations

from shlex import quote
from typing import Annotated, Any

import typer

from producers.cli.shell import Shell
from producers.cli.workers import lookout
from schemas.errors import InvalidError

COLUMNS = ("tenant", "weight", "in_flight", "running", "rate", "burst", "waiting", "who", "time")
NONE = "none"


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Tenants: their share of a lane, and how many of their jobs may run and start.")
    family.callback(invoke_without_command=True)(_default)
    family.command(name="ls")(listed)
    family.command(name="set")(change)
    family.command(name="unset")(forget)
    app.add_typer(family, name="tenants")


Named = Annotated[str, typer.Argument(help="The tenant's name, as its jobs give it.")]


def _default(context: typer.Context) -> None:
    """List the tenants, unless a command says otherwise."""
    if context.invoked_subcommand is None:
        listed(context)


def listed(context: typer.Context) -> None:
    """List the tenants that have a weight or a quota, and how many of their jobs are in flight now."""
    shell: Shell = context.obj
    from producers.fleet import tenants

    with lookout(shell) as found:
        used = tenants(found)
    shell.output.rows([one.row() for one in used], COLUMNS)
    silent = [one.tenant.tenant for one in used if one.tenant.limited and one.tally is None]
    if silent:
        shell.output.note(f"the store does not say what is used of {len(silent)} quotas, first {silent[0]}")
    if not used:
        shell.output.note("no tenant has a weight or a quota: all share alike")
        shell.output.next("tape tenants set NAME --in-flight 4")


def change(
    context: typer.Context,
    name: Named,
    weight: Annotated[
        str | None, typer.Option(help="Its part of a lane beside others'; 1 where none is given.")
    ] = None,
    in_flight: Annotated[str | None, typer.Option(help="Jobs that may run at once, in the fleet; or none.")] = None,
    rate: Annotated[str | None, typer.Option(help="Jobs that may start a second, in the fleet; or none.")] = None,
    burst: Annotated[str | None, typer.Option(help="Jobs that may start at once after a pause; or none.")] = None,
) -> None:
    """Give a tenant a weight or a quota; what is not named stays. What is over it is postponed and never fails."""
    shell: Shell = context.obj
    from producers.dead.desk import myself
    from producers.fleet import Used, allow

    given = {"weight": weight, "in_flight": in_flight, "rate": rate, "burst": burst}
    changes: dict[str, Any] = {field: _read(field, text) for field, text in given.items() if text is not None}
    if not changes:
        raise InvalidError(
            "nothing to change", code="TAPE-1010", field="NAME", hint="give --in-flight, --rate or --weight"
        )
    with lookout(shell) as found:
        said = allow(found, name, changes, myself())
    row = Used(said, None).row()
    shell.output.record(
        {field: row[field] for field in ("tenant", "weight", "in_flight", "rate", "burst", "who", "time")}
    )
    shell.output.next("tape tenants", f"tape tenants unset {quote(name)}")


def forget(context: typer.Context, name: Named) -> None:
    """Take a tenant's weight and quota back: it shares like any other, and its jobs wait for nothing more."""
    shell: Shell = context.obj
    from producers.fleet import disallow

    with lookout(shell) as found:
        disallow(found, name)
    shell.output.note(f"nothing holds {name} back now")


def _read(field: str, text: str) -> float | int | None:
    """Read a number, or none. Raises `InvalidError` (TAPE-1010) that names the option."""
    option = f"--{field.replace('_', '-')}"
    whole = field in ("in_flight", "burst")
    if text == NONE and field != "weight":
        return None
    try:
        found = int(text) if whole else float(text)
        if found > 0 and found != float("inf"):
            return found
    except ValueError:
        pass
    wanted = ("a whole number" if whole else "a number") + " above 0" + ("" if field == "weight" else ", or none")
    raise InvalidError(f"{text!r} is not {wanted}", code="TAPE-1010", field=option)
