"""All rows, the ones that matter most first: should time run out, they have run."""

from __future__ import annotations

from tests.campaign import links, lives, messages, stores
from tests.campaign.row import Row

BREAKERS = (1, 2)
"""These take down brokers that others need: they run before the others, and alone."""
FIRST = (1, 2, 3, 4, 5, 6, 9, 11, 13, 17, 18, 21, 22, 23, 24)
ROWS: list[Row] = sorted(
    [*links.ROWS, *lives.ROWS, *messages.ROWS, *stores.ROWS],
    key=lambda row: (FIRST.index(row.number) if row.number in FIRST else len(FIRST), row.number),
)

__all__ = ["BREAKERS", "ROWS", "Row"]
