"""`tape config show`: what the settings are and where each came from."""

from __future__ import annotations

import os
from typing import Any

import typer

from producers.cli.shell import Shell


def add(app: typer.Typer) -> None:
    """Add the command."""
    family = typer.Typer(help="The settings.")
    family.callback()(lambda: None)  # without it, Typer takes a family of one command for that command
    family.command()(show)
    app.add_typer(family, name="config")


def show(context: typer.Context) -> None:
    """Print every setting, secrets masked, and whether an option, the environment or the profile set it."""
    shell: Shell = context.obj
    rows = [
        {
            "setting": f"TAPE_{name.upper()}",
            "value": _masked(getattr(shell.settings, name)),
            "from": _origin(shell, name),
        }
        for name in type(shell.settings).model_fields
    ]
    shell.output.rows(rows, ("setting", "value", "from"))


def _masked(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)  # a secret's text is its mask


def _origin(shell: Shell, name: str) -> str:

    if shell.given.get(name) is not None:
        return "option"
    if os.environ.get(f"TAPE_{name.upper()}"):
        return "environment"
    return "profile" if name in profile(shell) else "default"


def profile(shell: Shell) -> dict[str, Any]:
    """Return what the profile that `tape up` wrote holds; nothing when there is none."""
    import json

    from wire.settings import PROFILE

    path = shell.settings.home / PROFILE
    return dict(json.loads(path.read_text())) if path.exists() else {}
