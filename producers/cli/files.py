"""`tape put` and `tape get`: files into the store and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from producers.cli.shell import Shell


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(put)
    app.command()(get)


def put(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Local files.")],
) -> None:
    """Upload files and print their blob: references; a file that is there already is not sent again."""
    shell: Shell = context.obj
    with shell.client(broker=False) as client:
        for path in files:
            reference = client.upload(path)
            shell.output.line({"file": path, "reference": reference}, reference)


def get(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(help="blob:NAME, or the name.")],
    to: Annotated[Path, typer.Argument(help="The local file; it appears when it is whole and verified.")],
) -> None:
    """Download one object of the store to a file."""
    shell: Shell = context.obj
    from wire.blobs import open_store

    blob = open_store(shell.settings).fetch(reference.removeprefix("blob:"), to)
    shell.output.record({"file": str(to), "size": blob.size, "sha256": blob.sha256})
