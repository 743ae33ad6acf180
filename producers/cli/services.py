"""`tape up` and `tape down`: broker, store, topics and the profile that leads everything else to them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli import broker as brokers
from producers.cli import store as stores
from producers.cli.config import profile
from producers.cli.shell import Shell
from schemas.errors import TapeError

if TYPE_CHECKING:
    from wire.settings import Settings


class Choice(StrEnum):
    """Where objects are kept."""

    DIR = "dir"
    MINIO = "minio"
    SEAWEEDFS = "seaweedfs"


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)


def up(
    context: typer.Context,
    store: Annotated[
        Choice | None, typer.Option(help="Where objects are kept; default: as last time, else dir.")
    ] = None,
    nodes: brokers.Nodes = 1,
    port: brokers.Port = None,
) -> None:
    """Start what a queue needs on this machine, make its topics, and write the profile that other commands read.

    Doing it again starts what does not run and changes nothing else.
    """
    shell: Shell = context.obj
    started: list[Callable[[], Any]] = []
    try:
        values = _start(shell, store or _last(shell), nodes, port, started)
        settings = shell.settings.model_copy(update={**values, "kafka_security": "PLAINTEXT"})
        _topics(shell, settings)
        write_profile(shell.settings.home, values)
    except BaseException:
        # Nothing half done: what this command started is stopped again, what ran before keeps running.
        for stop in reversed(started):
            stop()
        raise
    _overridden(shell, values)
    _away(shell, settings)
    public = {key: value for key, value in values.items() if "key" not in key}
    shell.output.record({"running": True, **public, "home": str(shell.settings.home)})
    shell.output.next("tape doctor", "tape worker --kinds inference,training,evaluation", "tape down")


def _away(shell: Shell, settings: Settings) -> None:
    """Say that a store which nobody begins anew is not there: jobs will wait for it."""
    from wire.blobs import open_store

    if not settings.store_url.startswith("dir:"):
        return  # started just now, and waited for
    try:
        open_store(settings)
    except TapeError as error:
        shell.output.note(f"the store is away, and jobs wait for it: {error.code} {error.message}; {error.hint}")


def down(context: typer.Context) -> None:
    """Stop broker and store and forget the profile; records and objects stay for the next `tape up`."""
    shell: Shell = context.obj
    home = shell.settings.home
    stopped = []
    broker = brokers.native(shell)
    if broker.status().running or any(node.running for node in broker.status().nodes):
        broker.stop()
        stopped.append("broker")
    for engine in stores.known(home):
        native = stores.native(shell, engine)
        if native.status().running:
            native.stop()
            stopped.append(engine.value)
    (home / "profile.json").unlink(missing_ok=True)
    shell.output.record({"stopped": stopped, "home": str(home)})
    shell.output.next("tape up")


def write_profile(home: Path, values: dict[str, Any]) -> Path:
    """Write the profile in one step, for its owner's eyes only: it may hold the store's secret key."""
    from wire.settings import PROFILE

    home.mkdir(parents=True, exist_ok=True)
    path = home / PROFILE
    temporary = home / f".{PROFILE}.{secrets.token_hex(4)}"
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(values, file, indent=1)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _start(
    shell: Shell, store: Choice, nodes: int, port: int | None, started: list[Callable[[], Any]]
) -> dict[str, Any]:
    home = shell.settings.home
    values: dict[str, Any] = {"store_url": f"dir:{home / 'store'}"}
    if store is not Choice.DIR:
        native = stores.native(shell, store)
        if not native.status().running:
            shell.output.note(f"starting {store.value}")
            started.append(native.stop)
            native.start()
        values = native.profile()
    broker = brokers.native(shell, nodes=nodes, port=port)
    if not broker.status().running:
        shell.output.note("starting Apache Kafka")
        started.append(broker.stop)
    found = broker.start(progress=shell.output.note)
    return {"kafka_url": found.url, "replication": len(found.nodes), **values}


def _topics(shell: Shell, settings: Settings) -> None:
    from producers.cli.submit import kinds
    from schemas.topics import Names, groups, topics
    from wire.topics import ensure

    names, found = Names(settings.prefix), kinds()
    changes = ensure(settings, topics(names, found, settings.partitions), groups(names, found, settings.lock_ms))
    if changes:
        shell.output.note(f"topics and groups: {len(changes)} changes")


def _last(shell: Shell) -> Choice:
    url = profile(shell).get("store_url", "")
    for engine in stores.known(shell.settings.home):
        if stores.native(shell, engine).status().url == url:
            return Choice(engine.value)
    return Choice.DIR


def _overridden(shell: Shell, values: dict[str, Any]) -> None:
    for key, value in values.items():
        variable = f"TAPE_{key.upper()}"
        if os.environ.get(variable, str(value)) != str(value):
            shell.output.note(f"{variable} is set and wins over the profile; unset it to use what was started")
