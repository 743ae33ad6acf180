"""`tape schemas export|check` and `tape errors`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from producers.cli.exits import Exit
from producers.cli.shell import Shell

Docs = Annotated[Path, typer.Argument(help="The project's folder of documents.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="The contract as JSON Schema and AsyncAPI.")
    for command in (export, check, accept):
        family.command()(command)
    app.add_typer(family, name="schemas")
    app.command()(errors)


def export(context: typer.Context, docs: Docs = Path("docs")) -> None:
    """Write JSON Schemas, the AsyncAPI document and the generated pages."""
    shell: Shell = context.obj
    from schemas.export import export as write

    shell.output.rows([{"file": str(path)} for path in write(docs)])


def check(context: typer.Context, docs: Docs = Path("docs")) -> int:
    """Refuse a change that breaks old messages, and documents that differ from the code; exit code 5 then."""
    shell: Shell = context.obj
    from schemas.compat import check as compare
    from schemas.compat import unrecorded
    from schemas.export import stale

    rows = [
        {"schema": problem.schema, "path": problem.path, "problem": problem.change, "way_out": problem.way_out}
        for problem in compare(docs)
    ]
    rows += [
        {"schema": name, "path": "", "problem": "its present form is not recorded", "way_out": "tape schemas accept"}
        for name in unrecorded(docs)
    ]
    rows += [
        {"schema": name, "path": "", "problem": "differs from the code", "way_out": "tape schemas export"}
        for name in stale(docs)
    ]
    shell.output.rows(rows, ("schema", "path", "problem", "way_out"))
    shell.output.note(f"{len(rows)} problems" if rows else "old messages stay readable; the documents are up to date")
    return Exit.INVALID if rows else Exit.OK


def accept(context: typer.Context, docs: Docs = Path("docs")) -> None:
    """Record the present schemas as new versions; refused when they break old messages (TAPE-1011)."""
    shell: Shell = context.obj
    from schemas.compat import accept as record

    shell.output.rows([{"file": str(path)} for path in record(docs)])


Exceptions = Annotated[bool, typer.Option("--exceptions", help="What foreign exceptions become, first match first.")]


def errors(
    context: typer.Context,
    code: Annotated[str | None, typer.Argument(help="One code.")] = None,
    exceptions: Exceptions = False,
) -> None:
    """List every error code: what it means, how it is classed, the way out."""
    shell: Shell = context.obj
    from schemas.errors import CODES, NotFoundError
    from schemas.foreign import FOREIGN

    if code is not None and code not in CODES:
        raise NotFoundError(f"{code} is no error code", code="TAPE-1010", hint="`tape errors` lists them")
    if exceptions:
        rows = [row.flat() for row in FOREIGN if code in (None, row.code)]
        shell.output.rows(rows, ("exception", "when", "code", "class", "device"))
        return
    rows = [
        {
            "code": name,
            "meaning": entry.meaning,
            "class": entry.failure.value,
            "severity": entry.severity.value,
            "way_out": entry.hint,
        }
        for name, entry in CODES.items()
        if code in (None, name)
    ]
    shell.output.rows(rows, ("code", "meaning", "class", "severity", "way_out"))
    shell.output.next(f"tape errors {code} --exceptions" if code else "tape errors --exceptions")
