"""`tape broker start|stop|status|logs`: the native Apache Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.exits import Exit
from producers.cli.shell import Shell

if TYPE_CHECKING:
    from wire.broker import BrokerStatus, NativeBroker

Nodes = Annotated[int, typer.Option(min=1, max=3, help="Nodes of the cluster: 1, or 3 to rehearse failures.")]
Port = Annotated[int | None, typer.Option(help="Where to listen; default 9092 if it is free.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="The native Apache Kafka on this machine.")
    for command in (start, stop, status, logs):
        family.command()(command)
    app.add_typer(family, name="broker")


def native(shell: Shell, *, nodes: int | None = None, port: int | None = None) -> NativeBroker:
    """Return the native broker of this home; without `nodes`, of as many as it has."""
    from wire.broker import NativeBroker

    settings = shell.settings
    found = NativeBroker(settings.home, settings.cache, port=port)
    size = nodes or len(found.status().nodes) or 1
    return NativeBroker(settings.home, settings.cache, nodes=size, port=port)


def start(context: typer.Context, nodes: Nodes = 1, port: Port = None) -> None:
    """Start the broker if it does not run, and wait until it answers."""
    shell: Shell = context.obj
    found = native(shell, nodes=nodes, port=port).start(progress=shell.output.note)
    shell.output.record(row(found))
    shell.output.next("tape topics apply", f"export TAPE_KAFKA_URL={found.url}")


def stop(context: typer.Context) -> None:
    """Stop the broker; its records stay."""
    shell: Shell = context.obj
    broker = native(shell)
    ran = broker.status().running
    broker.stop()
    shell.output.record({**row(broker.status()), "stopped": ran})


def status(context: typer.Context) -> int:
    """Tell what runs and where; exit code 69 when the broker does not run."""
    shell: Shell = context.obj
    found = native(shell).status()
    shell.output.record(row(found))
    if found.running:
        return Exit.OK
    shell.output.next("tape broker start")
    return Exit.UNAVAILABLE


def logs(
    context: typer.Context,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="The last ones.")] = 50,
    node: Annotated[int, typer.Option(min=1, help="Whose log.")] = 1,
) -> None:
    """Print the last lines of the broker's log."""
    shell: Shell = context.obj
    shell.output.text(native(shell).logs(lines, node))


def row(found: BrokerStatus) -> dict[str, Any]:
    """Return a broker's status as plain data."""
    return {
        "running": found.running,
        "url": found.url,
        "version": found.version,
        "home": str(found.home),
        "nodes": [{"id": node.id, "running": node.running, "pid": node.pid, "port": node.port} for node in found.nodes],
    }
