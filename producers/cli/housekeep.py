"""`tape housekeep`: delete from the job topics what every group has finished."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from producers.cli.parse import duration
from producers.cli.shell import Shell
from producers.cli.topics import Kinds

if TYPE_CHECKING:
    from schemas.errors import TapeError
    from wire.housekeeper import Deletion

COLUMNS = ("topic", "partition", "start", "before")


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(housekeep)


def housekeep(
    context: typer.Context,
    every: Annotated[str | None, typer.Option(help="Do it again and again, e.g. every 1m, until stopped.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")] = False,
    kind: Kinds = None,
) -> None:
    """Delete the job records that every group has finished, once."""
    shell: Shell = context.obj
    from producers.cli.submit import kinds
    from schemas.topics import Names, groups, movers
    from wire.housekeeper import Housekeeper

    settings = shell.settings
    names = Names(settings.prefix)
    wanted = [*groups(names, kinds(kind or []), settings.lock_ms), movers(names)]
    keeper = Housekeeper(settings, wanted, dry_run=dry_run)
    if every is None:
        deletions = keeper.sweep()
        shell.output.rows([asdict(deletion) for deletion in deletions], COLUMNS)
        shell.output.note(_told(deletions, dry_run))
        return

    def report(found: list[Deletion] | TapeError) -> None:
        if not isinstance(found, list):
            shell.output.error(found)
            return
        for deletion in found:
            shell.output.line(asdict(deletion), f"{deletion.topic}[{deletion.partition}] below {deletion.before}")

    keeper.run(threading.Event(), every_s=duration(every, "--every").total_seconds(), report=report)


def _told(deletions: list[Deletion], dry_run: bool) -> str:
    records = sum(deletion.before - deletion.start for deletion in deletions)
    return f"{'would delete' if dry_run else 'deleted'} {records:,} finished records"
