"""Registered models as people use them: listed, compared, promoted, exported, verified, swept and made again."""

from producers.models.again import compared, request
from producers.models.compare import differences
from producers.models.shelf import Shelf, promote, rollback
from producers.models.sweep import Plan, Thing, plan, sweep
from producers.models.verify import Broken, every, export, files, verify
from producers.models.view import listed, shown

__all__ = [
    "Broken",
    "Plan",
    "Shelf",
    "Thing",
    "compared",
    "differences",
    "every",
    "export",
    "files",
    "listed",
    "plan",
    "promote",
    "request",
    "rollback",
    "shown",
    "sweep",
    "verify",
]
