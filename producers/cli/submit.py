"""`tape submit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.options import Params, Treatment, grouped
from producers.cli.parse import duration
from producers.cli.shell import Shell

if TYPE_CHECKING:
    from producers.client import Client
    from producers.request import Request
    from schemas.outcome import Outcome

SCHEMES = ("blob:", "artifact:", "builtin:", "file:", "dataset:", "model:")


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(grouped(submit))


@dataclass(frozen=True)
class Given(Params):
    """A job's parameters, with the files among them."""

    data: Annotated[str | None, typer.Option(help="A local file, uploaded to the store; or a blob: reference.")] = None
    validation: Annotated[str | None, typer.Option(help="Like --data, for validation while training.")] = None


@dataclass(frozen=True)
class Once(Treatment):
    """How to treat a job that is submitted once."""

    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same job.")] = None
    expires_in: Annotated[str | None, typer.Option(help="Do not start it after this, e.g. 2h.")] = None
    start_in: Annotated[str | None, typer.Option(help="Do not start it before this, e.g. 8h.")] = None

    def read(self) -> dict[str, Any]:
        """Return it as fields of a request. Raises `InvalidError` (TAPE-1010) that names the wrong option."""
        now = datetime.now(UTC)
        return super().read() | {
            "key": self.key,
            "expires_at": now + duration(self.expires_in, "--expires-in") if self.expires_in else None,
            "not_before": now + duration(self.start_in, "--start-in") if self.start_in else None,
        }


def submit(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="training, evaluation, inference, indexing, or an installed kind.")],
    given: Given,
    treatment: Once,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome and print it.")] = False,
    wait_timeout: Annotated[str | None, typer.Option(help="How long to wait at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the record; send nothing.")] = False,
) -> None:
    """Submit a job; prints its id when the broker has it on disk."""
    shell: Shell = context.obj
    from producers.request import Request
    from wire.datasets import part_for

    found, options = given.read(), treatment.read()
    files = {name: text for name, text in (("data", given.data), ("validation", given.validation)) if text is not None}
    limit = duration(wait_timeout, "--wait-timeout").total_seconds() if wait_timeout else None
    with shell.client() as client:
        found |= {name: _reference(shell, client, text, dry_run, part_for(kind, name)) for name, text in files.items()}
        if treatment.key is None:  # the same key must be the same request, wherever a name has moved meanwhile
            found |= _versions(shell, client, kind, found)
        request = Request(kind, found, **options)
        if dry_run:
            _show(shell, client, request)
            return
        ended = _ended(client, request)
        handle = client.submit(request)
        if ended is not None:
            shell.output.note(
                f"the job of this key ended as {ended.status.value} at {ended.finished_at:%Y-%m-%d %H:%M:%S} UTC "
                "and is not run again; to run it again, give another --key"
            )
        if wait:
            from producers.cli.jobs import finish

            shell.output.note(f"submitted {handle.id}")
            finish(shell, handle, limit)
            return
        shell.output.record({"job": handle.id, "kind": kind, "lane": treatment.lane})
        shell.output.next(*([] if ended else [f"tape watch {handle.id}"]), f"tape result {handle.id} --wait")


def _ended(client: Client, request: Request) -> Outcome | None:
    """How the job ended that the request's key already is; None where there is none, or it may still run."""
    from schemas.ids import job_id

    if request.key is None:
        return None
    found = client.outcome(job_id(request.tenant or client.settings.tenant, request.key))
    return None if found is None else found.model_copy(update={"finished_at": found.finished_at.astimezone(UTC)})


def _reference(shell: Shell, client: Client, text: str, dry_run: bool, part: str) -> str:
    if text.startswith("dataset:"):
        pinned = client.pin(text, part=part)
        if pinned != text:
            shell.output.note(f"{text} is {pinned}")
        return pinned
    if text.startswith(SCHEMES):
        return text
    if dry_run:
        return f"blob:uploads/…/{Path(text).name}"
    reference = client.upload(text)
    shell.output.note(f"{text} is {reference}")
    return reference


def _versions(shell: Shell, client: Client, kind: str, params: dict[str, Any]) -> dict[str, str]:
    """Return what names of registered versions mean now; one that means nothing yet is left to the worker."""
    from schemas.errors import AuthError, NotFoundError, UnavailableError
    from schemas.job import PARAMS
    from schemas.lineage import USES
    from wire.datasets import part_for

    pinned = {}
    for name in USES if kind in PARAMS else ():
        text = params.get(name)
        if not isinstance(text, str) or not text.startswith(("dataset:", "model:")):
            continue
        try:
            pinned[name] = client.pin(text, part=part_for(kind, name))
        except (AuthError, NotFoundError, UnavailableError) as error:
            shell.output.note(f"{text} is looked up when the job starts: {error.message}")
            continue
        if pinned[name] != text:
            shell.output.note(f"{text} is {pinned[name]}")
    return pinned


def _show(shell: Shell, client: Client, request: Request) -> None:
    from producers.request import prepare

    message = prepare(request, client.names, tenant=client.settings.tenant).request
    headers = {name: value.decode() for name, value in message.headers}
    shell.output.record({"topic": message.topic, "key": message.key, "headers": headers, "value": _json(message.value)})


def _json(value: bytes) -> Any:
    import json

    return json.loads(value)


def kinds(extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the kinds this installation knows: those that ship, those of installed packages, and `extra`."""
    from importlib.metadata import entry_points

    from schemas.job import PARAMS

    installed = [point.name for point in entry_points(group="tickertape.kinds")]
    return tuple(dict.fromkeys([*PARAMS, *installed, *extra]))
