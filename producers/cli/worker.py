"""`tape worker`: becomes `python -m workers`."""

from __future__ import annotations

import os
import sys

import typer

from producers.cli.shell import Shell

ANY = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings=ANY, add_help_option=False)(worker)


def worker(context: typer.Context) -> None:
    """Run a worker: takes the arguments of `python -m workers` (`tape worker --help` lists them)."""
    shell: Shell = context.obj
    os.execve(sys.executable, [sys.executable, "-m", "workers", *context.args], shell.environment())  # noqa: S606
