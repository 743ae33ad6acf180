"""`tape housekeep`: delete from the job topics what every group has finished."""

from __future__ import annotations

import typer


def add(app: typer.Typer) -> None:
    """Add the command."""
