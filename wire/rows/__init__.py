"""Rows: files of examples in many shapes, read as streams and checked; the parts of a data set."""

from wire.rows.files import load, read, records
from wire.rows.parts import Split, members, split, splits
from wire.rows.recipes import RECIPES
from wire.rows.shapes import Bad

__all__ = [
    "RECIPES",
    "Bad",
    "Split",
    "load",
    "members",
    "read",
    "records",
    "split",
    "splits",
]
