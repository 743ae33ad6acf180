"""`tape put` and `tape get`: files into the store and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from producers.cli.shell import Shell

if TYPE_CHECKING:
    from schemas.artifact import Artifact
    from schemas.outcome import Outcome


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
    reference: Annotated[str, typer.Argument(help="blob:NAME, or JOB, or JOB/ARTIFACT.")],
    to: Annotated[Path, typer.Argument(help="The local file, or the folder of a job's artifacts.")],
) -> None:
    """Download one object to a file, or a job's artifacts to a folder; every byte is verified."""
    shell: Shell = context.obj
    from wire.blobs import open_store

    if reference.startswith("blob:"):
        blob = open_store(shell.settings).fetch(reference.removeprefix("blob:"), to)
        shell.output.record({"file": str(to), "size": blob.size, "sha256": blob.sha256})
        return
    from wire.blobs.manifest import materialise

    job, _, name = reference.partition("/")
    with shell.client(broker=False) as client:
        for artifact in _artifacts(client.outcome(job), job, name):
            folder = to if name else _within(to, artifact.name)
            materialise(open_store(shell.settings), artifact, folder)
            row = {"artifact": artifact.name, "folder": str(folder), "files": artifact.files, "size": artifact.size}
            shell.output.line({**row, "uri": artifact.uri, "sha256": artifact.sha256}, f"{artifact.name}  {folder}")


def _artifacts(outcome: Outcome | None, job: str, name: str) -> list[Artifact]:
    from schemas.errors import NotFoundError

    if outcome is None:
        raise NotFoundError("the store has no outcome of this job", code="TAPE-2001", job=job)
    found = [artifact for artifact in outcome.artifacts if name in ("", artifact.name)]
    if not found:
        known = ", ".join(artifact.name for artifact in outcome.artifacts) or "none"
        raise NotFoundError(
            f"the job has no artifact {name!r}" if name else "the job has no artifacts",
            code="TAPE-2001", job=job, hint=f"its artifacts: {known}",
        )  # fmt: skip
    return found


def _within(to: Path, name: str) -> Path:
    # The name was chosen by whoever ran the job; it must not choose where on this machine we write.
    from schemas.errors import JobError

    folder = to / name
    if not folder.resolve().is_relative_to(to.resolve()):
        raise JobError(f"the artifact's name {name!r} leads out of the folder", code="TAPE-6007", file=str(to))
    return folder
