"""`tape models [ls]`, `show`, `diff`, `promote`, `rollback`, `export`, `verify`, `gc` and `reproduce`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit
from producers.cli.options import Treatment, grouped
from producers.cli.parse import duration
from producers.cli.shell import Shell

if TYPE_CHECKING:
    from producers.models import Shelf
    from schemas.lineage import ModelVersion
    from schemas.outcome import Outcome
    from schemas.version import Move

COLUMNS = ("model", "version", "aliases", "method", "loss", "validation_loss", "created_at", "base", "data")
NESTED = ("request", "settings", "metrics", "versions")


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Models: what trainings registered, and which version is used.")
    family.callback(invoke_without_command=True)(_default)
    family.command(name="ls")(listed)
    for command in (show, diff, promote, rollback, export, verify, gc):
        family.command()(command)
    family.command()(grouped(reproduce))
    app.add_typer(family, name="models")


Version = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A version, an alias, or the newest.")]
Why = Annotated[str, typer.Option(help="Why; it is kept in the history.")]


@contextmanager
def _shelf(shell: Shell) -> Iterator[Shelf]:
    from producers.dead.desk import myself
    from producers.models import Shelf

    with shell.quiet(broker=False):
        yield Shelf(shell.blobs, myself())


def _default(context: typer.Context) -> None:
    """List the models, unless a command says otherwise."""
    if context.invoked_subcommand is None:
        listed(context)


def listed(
    context: typer.Context, name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None
) -> None:
    """List the versions, the newest of each name last."""
    shell: Shell = context.obj
    from producers.models import listed as rows

    with _shelf(shell) as shelf:
        found = rows(shelf, name)
    shell.output.rows(_short(shell, found), COLUMNS)
    if not found:
        shell.output.note("no model is registered")
        shell.output.next("tape submit training --set publish_as=NAME …")


def show(context: typer.Context, version: Version) -> None:
    """Show everything of a version: what it was made of, its files, and when aliases pointed to it."""
    shell: Shell = context.obj
    from producers.models import shown

    with _shelf(shell) as shelf:
        row = shown(shelf, version)
    shell.output.record(_pairs(row) if shell.output.table else row)
    name = f"{row['model']}@{row['version']}"
    shell.output.next(f"tape models promote {name} --to prod", f"tape models reproduce {name}")


def _short(shell: Shell, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What fits on a line of a table; all of it in other formats."""
    return [{key: _brief(value) for key, value in row.items()} for row in rows] if shell.output.table else rows


def _brief(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if not isinstance(value, str):
        return value
    named = re.sub(r"artifact:artifacts/(.+)/manifest\.?[0-9a-f]*\.json", r"artifact:\1", value)
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1…", named)


def _pairs(row: dict[str, Any]) -> dict[str, Any]:
    """Everything on lines of its own, for people."""
    found = {key: value for key, value in row.items() if key not in (*NESTED, "files", "history", "artifact")}
    found |= {"aliases": ", ".join(row["aliases"]), "artifact": row["artifact"]["uri"]}
    found |= {
        f"{part}.{key}": _brief(value) for part in NESTED for key, value in row[part].items() if value is not None
    }
    found |= {f"file {file['path']}": f"{file['sha256']}  {file['size']:,} bytes" for file in row["files"]}
    for move in row["history"]:
        told = f"{move['before'] or 'nothing'} → {move['after'] or 'nothing'} by {move['by']}"
        found[f"{move['alias']} at {move['time']}"] = told + (f": {move['why']}" if move["why"] else "")
    return found


def diff(
    context: typer.Context,
    one: Annotated[str, typer.Argument(metavar="A", help="A version, NAME@VERSION.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Say what differs between two versions: what was asked, of what, what it came to, and the files."""
    shell: Shell = context.obj
    with _shelf(shell) as shelf:
        a, b = shelf.registry.find(one), shelf.registry.find(other)
        rows = _differences(shelf, a, b)
    shell.output.note(f"a is {a.name}@{a.version}, b is {b.name}@{b.version}")
    shell.output.rows(_short(shell, rows), ("field", "a", "b", "change"))
    if a.version == b.version:
        shell.output.note("they are the same bytes")


def _differences(shelf: Shelf, one: ModelVersion, other: ModelVersion) -> list[dict[str, Any]]:
    from producers.models import differences, files

    return differences(one, other, (files(shelf.blobs, one), files(shelf.blobs, other)))


def promote(
    context: typer.Context,
    version: Version,
    to: Annotated[str, typer.Option(help="The alias: prod, canary, or a word of your own.")],
    why: Why = "",
    expect: Annotated[str | None, typer.Option(help="What it must point to now: a version, or none.")] = None,
) -> None:
    """Point an alias to a version, if it still points to what it did; its files must all be there."""
    shell: Shell = context.obj
    from producers.models import promote as move

    with _shelf(shell) as shelf:
        name, moved = move(shelf, version, to, why=why, expect=expect)
    _moved(shell, name, moved)
    if moved.before is not None and moved.before != moved.after:
        shell.output.next(f"tape models rollback {name} --alias {to}")


def rollback(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The model.")],
    alias: Annotated[str, typer.Option(help="Which alias.")] = "prod",
    why: Why = "",
) -> None:
    """Point an alias to what it was before; again and again it goes further back."""
    shell: Shell = context.obj
    from producers.models import rollback as move

    with _shelf(shell) as shelf:
        name, moved = move(shelf, name, alias, why=why)
    _moved(shell, name, moved)
    shell.output.next(f"tape models promote {name}@{moved.before} --to {alias}")


def _moved(shell: Shell, name: str, move: Move) -> None:
    row = {"model": name, **move.model_dump(mode="json")}
    shell.output.line(row, f"{name}@{move.alias}: {move.before or 'nothing'} → {move.after}")
    if move.before == move.after:
        shell.output.note("it pointed there already")


def export(
    context: typer.Context, version: Version, folder: Annotated[Path, typer.Argument(help="Empty, or not there yet.")]
) -> None:
    """Write a version's files into a folder; every byte is verified."""
    shell: Shell = context.obj
    from producers.models import export as write

    with _shelf(shell) as shelf:
        found = shelf.registry.find(version)
        fresh = write(shelf.blobs, found, folder)
    row = {"model": found.name, "version": found.version, "method": found.method, "folder": str(folder)}
    shell.output.record(row | {"files": found.artifact.files, "size": found.artifact.size})
    if not fresh:
        shell.output.note("it was there already")
    if found.method == "lora":
        shell.output.note(f"it is an adapter: it needs its base, {found.base}")


def verify(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="[NAME[@VERSION]]", help="One version.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every version of every model.")] = False,
) -> int:
    """Check every file of a version against its hash; exit code 1 when one is broken."""
    shell: Shell = context.obj
    from producers.models import every
    from producers.models import verify as check
    from schemas.errors import InvalidError

    if (version is None) is not all_:
        raise InvalidError("give a version, or --all", code="TAPE-1010", field="NAME", hint="tape models ls")
    count = 0
    with _shelf(shell) as shelf:
        versions, errors = every(shelf.registry) if version is None else ([shelf.registry.find(version)], [])
        for error in errors:
            shell.output.error(error)
        for found, number, broken in check(shelf.blobs, versions):
            row = {"model": found.name, "version": found.version, "status": "fail" if broken else "ok"}
            told = f"{'broken' if broken else 'ok':8}{found.name}@{found.version}"
            shell.output.line(row | {"files": number}, told)
            for one in broken:
                told = f"        {one.file}: {one.code} {one.problem}"
                more = {"file": one.file, "name": one.name, "code": one.code, "problem": one.problem}
                shell.output.line(row | more, told)
            count += len(broken)
    if count or errors:
        shell.output.note(f"{count} broken files, {len(errors)} models that cannot be read")
        return Exit.FAILURE
    shell.output.note(f"every byte of {len(versions)} versions is what it was")
    return Exit.OK


def gc(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None,
    keep: Annotated[int, typer.Option(min=0, help="The newest versions of each name that stay.")] = 5,
    older_than: Annotated[str | None, typer.Option(help="Only versions older than this, e.g. 30d.")] = None,
    outcomes: Annotated[
        bool, typer.Option("--outcomes", help="Also bytes that only the outcomes of their own jobs still name.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it is only shown.")] = False,
) -> None:
    """Remove versions that no alias needs, beyond the newest, and what nothing names any more."""
    shell: Shell = context.obj
    from producers.models import plan, sweep

    with _shelf(shell) as shelf:
        before = _before(shelf.now(), older_than) if older_than else None
        found = plan(shelf, name=name, keep=keep, before=before, outcomes=outcomes)
        if yes:
            found = sweep(shelf, found, outcomes=outcomes)
    shell.output.rows(
        ({"what": thing.what, "name": thing.name, "size": thing.size, "removed": yes} for thing in found.things),
        ("what", "name", "size"),
    )
    told = f"{len(found.versions)} versions, {found.size:,} bytes"
    shell.output.note(f"{told} {'were' if yes else 'would be'} removed")
    if found.held:
        more = "" if outcomes else "; --outcomes frees what only their own jobs' outcomes name"
        shell.output.note(f"{found.held:,} of their bytes are named elsewhere and stay{more}")
    if found.versions and not yes:
        shell.output.next("tape models gc --yes with the same options")


def _before(now: datetime, text: str) -> datetime:
    try:
        return now - duration(text, "--older-than")
    except OverflowError:
        from schemas.errors import InvalidError

        raise InvalidError(f"{text!r} is longer than there are years", code="TAPE-1010", field="--older-than") from None


def reproduce(
    context: typer.Context,
    version: Version,
    treatment: Treatment,
    as_: Annotated[str | None, typer.Option("--as", help="Register the result under another name.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and say whether it is the same bytes.")] = False,
    wait_timeout: Annotated[str | None, typer.Option(help="How long to wait at most.")] = None,
) -> int:
    """Submit the training that made a version again, its base and rows pinned to what was used."""
    shell: Shell = context.obj
    from producers.models import Shelf, request

    limit = duration(wait_timeout, "--wait-timeout").total_seconds() if wait_timeout else None
    options = treatment.read()
    with shell.client() as client:
        shelf = Shelf(shell.blobs)
        found = shelf.registry.find(version)
        for ref in (found.base, found.data, found.validation, found.teacher, found.tokenizer):
            if ref is not None and ref.startswith("file:"):
                shell.output.note(f"{ref} cannot be pinned: it is what the worker has there now")
        handle = client.submit(request(found, as_, **options))
        if wait:
            shell.output.note(f"submitted {handle.id}")
            return _judge(shell, shelf, found, handle.result(limit, raise_on_failure=True))
    shell.output.record({"job": handle.id, "reproduces": f"{found.name}@{found.version}", "as": as_ or found.name})
    shell.output.next(f"tape result {handle.id} --wait")
    return Exit.OK


def _judge(shell: Shell, shelf: Shelf, version: ModelVersion, outcome: Outcome) -> int:
    from producers.models import compared

    row = compared(version, outcome)
    shell.output.record(row)
    if row["identical"]:
        shell.output.note("byte-identical")
        return Exit.OK
    rows = _differences(shelf, version, shelf.registry.find(row["is"]))
    shell.output.note("not the same bytes; this differs:")
    shell.output.rows(_short(shell, rows), ("field", "a", "b", "change"))
    return Exit.FAILURE
