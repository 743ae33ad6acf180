"""`tape topics apply|ls`: topics and share groups as they should be."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit
from producers.cli.shell import Shell

if TYPE_CHECKING:
    from wire.topics import Change, Plan

COLUMNS = ("kind", "resource", "name", "field", "have", "want", "note")

Kinds = Annotated[list[str] | None, typer.Option("--kind", help="A further kind; may be repeated.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Topics and share groups.")
    family.command()(apply)
    family.command(name="ls")(show)
    app.add_typer(family, name="topics")


def apply(
    context: typer.Context,
    kind: Kinds = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
) -> None:
    """Create and configure what is missing or differs; doing it again changes nothing."""
    shell: Shell = context.obj
    from wire.topics import apply as change

    plan = planned(shell, kind or [])
    changes = plan.pending if dry_run else change(plan)
    shell.output.rows([_row(entry) for entry in [*changes, *plan.drift]], COLUMNS)
    verb = "would change" if dry_run else "changed"
    shell.output.note(f"{verb}: {len(changes)}; drift left alone: {len(plan.drift)}")


def show(context: typer.Context, kind: Kinds = None) -> int:
    """Compare what is with what should be; exit code 1 when they differ."""
    shell: Shell = context.obj
    plan = planned(shell, kind or [])
    shell.output.rows([_row(entry) for entry in plan.changes], COLUMNS)
    if plan.pending:
        shell.output.next("tape topics apply")
    return Exit.FAILURE if plan.pending or plan.drift else Exit.OK


def planned(shell: Shell, extra: list[str]) -> Plan:
    """Compare the broker with what the kinds of this installation need."""
    from producers.cli.submit import kinds
    from schemas.topics import Names, groups, topics
    from wire.topics import check

    settings = shell.settings
    names, found = Names(settings.prefix), kinds(extra)
    wanted = topics(names, found, settings.partitions)
    return check(settings, wanted, groups(names, found, settings.lock_ms))


def _row(change: Change) -> dict[str, Any]:
    return asdict(change)
