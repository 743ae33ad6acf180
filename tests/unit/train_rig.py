"""Rows that a tiny model learns in seconds, and what a training left."""

from __future__ import annotations

from pathlib import Path

from schemas.row import Row
from workers.llm import model as models

WORDS = {"rises": "good", "falls": "bad", "soars": "good", "sinks": "bad"}
ROWS = [
    Row(f"Headline: {who} profit {how}\nSentiment:", mood, f"{who}-{how}")
    for who in ("Harrowgate", "Velmora", "Quillon", "Brastow")
    for how, mood in WORDS.items()
]


def files(path: Path) -> dict[str, str]:
    """The hash of each file."""
    return {member.name: models.digest(member) for member in path.iterdir()}
