"""`tape store start|stop|status|build|logs`: a native MinIO or SeaweedFS."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit
from producers.cli.shell import Shell

if TYPE_CHECKING:
    from wire.store import NativeStore, StoreStatus


class Engine(StrEnum):
    """The stores that run natively."""

    MINIO = "minio"
    SEAWEEDFS = "seaweedfs"


Chosen = Annotated[
    Engine | None, typer.Option("--engine", help="Which store; default: the one that the settings lead to, else minio.")
]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="A native object store on this machine.")
    for command in (start, stop, status, build, logs):
        family.command()(command)
    app.add_typer(family, name="store")


def native(shell: Shell, engine: str, *, port: int | None = None) -> NativeStore:
    """Return the native store of this home."""
    from wire.store import NativeStore

    return NativeStore(shell.settings.home, shell.settings.cache, engine=engine, port=port)


def known(home: Path) -> list[Engine]:
    """Return the native stores that this home ever had: asking one for its status would make its folder."""
    return [engine for engine in Engine if (home / engine.value / "state.json").exists()]


def meant(shell: Shell) -> Engine:
    """Return the store that is meant where none is named: the settings' one, else the only one there ever was here."""
    found = known(shell.settings.home)
    named = [one for one in found if native(shell, one.value).status().url == shell.settings.store_url]
    return named[0] if named else found[0] if len(found) == 1 else Engine.MINIO


def start(
    context: typer.Context,
    engine: Chosen = None,
    port: Annotated[int | None, typer.Option(help="Where to listen; default 9000 if it is free.")] = None,
) -> None:
    """Start the store if it does not run, and wait until a signed write goes through."""
    shell: Shell = context.obj
    engine = engine or meant(shell)
    found = native(shell, engine, port=port).start()
    shell.output.record(row(found))
    shell.output.next(f"tape up --store {engine.value}")


def stop(context: typer.Context, engine: Chosen = None) -> None:
    """Stop the store; its objects stay."""
    shell: Shell = context.obj
    store = native(shell, engine or meant(shell))
    ran = store.status().running
    store.stop()
    shell.output.record({**row(store.status()), "stopped": ran})


def status(context: typer.Context, engine: Chosen = None) -> int:
    """Tell whether the store runs and where; exit code 69 when it does not."""
    shell: Shell = context.obj
    found = native(shell, engine or meant(shell)).status()
    shell.output.record(row(found))
    return Exit.OK if found.running else Exit.UNAVAILABLE


def build(
    context: typer.Context, engine: Annotated[Engine, typer.Option("--engine", help="Which store.")] = Engine.MINIO
) -> None:
    """Get the store's program: MinIO is built once with Go (about ten minutes on two cores)."""
    shell: Shell = context.obj
    program = native(shell, engine).build(shell.output.note)
    shell.output.record({"engine": engine.value, "program": str(program)})


def logs(
    context: typer.Context,
    engine: Chosen = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="The last ones.")] = 50,
) -> None:
    """Print the last lines of the store's log."""
    shell: Shell = context.obj
    shell.output.text(native(shell, engine or meant(shell)).logs(lines))


def row(found: StoreStatus) -> dict[str, Any]:
    """Return a store's status as plain data, without its secret."""
    return {
        "running": found.running,
        "engine": found.engine,
        "url": found.url,
        "pid": found.pid,
        "home": str(found.home),
        "log": str(found.log),
    }
