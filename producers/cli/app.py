"""The commands of `tape`, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from producers.cli import (
    broker,
    config,
    contract,
    data,
    dead,
    doctor,
    files,
    housekeep,
    jobs,
    models,
    pause,
    plot,
    recur,
    services,
    store,
    submit,
    tenants,
    topics,
    trace,
    why,
    worker,
    workers,
)
from producers.cli.output import Format, Output
from producers.cli.shell import Shell

FAMILIES = (
    submit,
    jobs,
    pause,
    dead,
    recur,
    plot,
    trace,
    why,
    worker,
    workers,
    tenants,
    models,
    services,
    doctor,
    files,
    data,
    broker,
    store,
    topics,
    housekeep,
    contract,
    config,
)


def build() -> typer.Typer:
    """Return the application."""
    app = typer.Typer(
        name="tape",
        help="An event-driven job queue for language-model work on Kafka share groups.",
        epilog="The options of `tape` itself may stand anywhere on the line. Start with `tape up`.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its imports alone take longer than the whole help page
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for family in FAMILIES:
        family.add(app)
    return app


def _root(
    context: typer.Context,
    output: Annotated[
        Format | None, typer.Option(help="How data is printed; default: table, or jsonl in a pipe.")
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")] = False,
    home: Annotated[Path | None, typer.Option(help="Where broker, store and profile live. [TAPE_HOME]")] = None,
    kafka_url: Annotated[str | None, typer.Option(help="Broker addresses. [TAPE_KAFKA_URL]")] = None,
    store_url: Annotated[str | None, typer.Option(help="The store's address. [TAPE_STORE_URL]")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    shell: Shell = context.obj
    shell.output = Output(output, color=False if no_color else None)
    shell.debug = debug
    shell.given = {"home": home, "kafka_url": kafka_url, "store_url": store_url}
    if version:
        from importlib.metadata import version as installed

        shell.output.text(installed("tickertape"))
    elif context.invoked_subcommand is None:
        shell.output.text(context.get_help())
        raise typer.Exit(2)
