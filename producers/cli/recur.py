"""`tape recur add|ls|rm`: jobs that are submitted again and again, by a cron expression."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.options import Params, Treatment, grouped
from producers.cli.shell import Shell
from schemas.errors import ConflictError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from schemas.recur import Fired, Recurring

COLUMNS = ("name", "cron", "timezone", "kind", "lane", "tenant", "last", "next")

Named = Annotated[str, typer.Argument(help="Its name.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Recurring jobs. Workers submit them; `python -m workers.delay` does nothing else.")
    family.command(name="add")(grouped(create))
    family.command(name="ls")(listed)
    family.command(name="rm")(remove)
    app.add_typer(family, name="recur")


@dataclass(frozen=True)
class When:
    """The moments at which it is submitted."""

    cron: Annotated[str, typer.Option(help="minute hour day month weekday, e.g. '0 9 * * MON-FRI'.")]
    timezone: Annotated[str, typer.Option(help="IANA name, e.g. Europe/Berlin.")] = "UTC"


def create(
    context: typer.Context,
    name: Named,
    kind: Annotated[str, typer.Option(help="training, evaluation, inference, indexing, or an installed kind.")],
    when: When,
    params: Params,
    treatment: Treatment,
    replace: Annotated[bool, typer.Option("--replace", help="Change it if it is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print it; add nothing.")] = False,
) -> None:
    """Add a recurring job. What falls due while no mover runs is submitted once, for its latest moment."""
    shell: Shell = context.obj
    from producers.request import Request, prepare
    from schemas import codec
    from schemas.recur import Recurring
    from schemas.topics import Names
    from wire.cron import Cron

    settings = shell.settings
    found, treated = params.read(), treatment.read()
    wanted = treated | {
        "name": name, "cron": when.cron, "timezone": when.timezone, "kind": kind, "params": found,
        "tenant": treatment.tenant or settings.tenant, "added_at": datetime.now(UTC),
    }  # fmt: skip
    template = codec.parse(Recurring, wanted)
    following = Cron(template.cron, template.timezone).after(template.added_at)
    checked = Request(kind, found, lane=treatment.lane)  # by the kind's own rules
    prepare(checked, Names(settings.prefix), tenant=template.tenant)
    if not dry_run:
        with shell.client() as client:
            client.known(kind)
        if not replace and name in _read(shell):
            raise ConflictError("there is a recurring job of this name", field=name, hint="add --replace to change it")
        _write(shell, [(name.encode(), codec.dump(template))])
    shell.output.record(_row(template, None, following))
    if not dry_run:
        shell.output.next("tape recur ls", f"tape recur rm {quote(name)}")


def listed(context: typer.Context) -> None:
    """List the recurring jobs, when each was submitted last, and when it is next."""
    shell: Shell = context.obj
    from wire.cron import Cron

    rows = []
    for name, (template, fired) in sorted(_read(shell).items()):
        last = max(template.added_at, fired.moment) if fired else template.added_at
        try:
            following = Cron(template.cron, template.timezone).after(last)
        except InvalidError as error:
            shell.output.note(f"{name}: {error.message}")
            following = None
        rows.append(_row(template, fired, following))
    shell.output.rows(rows, COLUMNS)
    shell.output.note(f"{len(rows)} recurring jobs")


def remove(context: typer.Context, name: Named) -> None:
    """Remove a recurring job; jobs that it has submitted go on."""
    shell: Shell = context.obj
    from schemas.recur import fired_key

    if name not in _read(shell):
        raise NotFoundError("there is no recurring job of this name", field=name, hint="see `tape recur ls`")
    _write(shell, [(name.encode(), None), (fired_key(name), None)])
    shell.output.note(f"removed {name}")


def _row(template: Recurring, fired: Fired | None, following: datetime | None) -> dict[str, Any]:
    told = template.model_dump(mode="json", exclude_none=True, exclude={"schema_version", "added_at"})
    return told | {"last": fired.moment if fired else None, "job": fired.job if fired else None, "next": following}


def _read(shell: Shell) -> dict[str, tuple[Recurring, Fired | None]]:
    from schemas import codec
    from schemas.recur import Fired, Recurring, name_of
    from schemas.topics import Names
    from wire.follow import KafkaFollower

    shell.refused()
    templates: dict[str, Recurring] = {}
    fired: dict[str, Fired] = {}
    for batch in KafkaFollower(shell.settings, name="tape-recur").read(Names(shell.settings.prefix).recurring):
        for record in batch:
            name, told = name_of(record.key)
            kept: dict[str, Any] = fired if told else templates
            try:
                kept[name] = codec.parse(Fired if told else Recurring, record.value) if record.value else None
            except InvalidError as error:
                shell.output.note(f"{name} cannot be read: {error}")
            if kept.get(name) is None:
                kept.pop(name, None)
    return {name: (template, fired.get(name)) for name, template in templates.items()}


def _write(shell: Shell, records: list[tuple[bytes, bytes | None]]) -> None:
    from schemas.topics import Names
    from wire.publish import KafkaPublisher

    publisher = KafkaPublisher(shell.settings, name="tape-recur")
    try:
        for key, value in records:
            # Template and last firing stand on one partition: the one that reads it is the one that fires.
            sent = publisher.publish(Names(shell.settings.prefix).recurring, key=key, value=value, partition=0)
            sent.result(30)
    finally:
        publisher.close(30)
