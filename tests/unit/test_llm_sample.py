"""The bundled sample: balanced, readable, and with nothing of the test in the training rows."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from schemas.row import Row
from wire.rows import load

SAMPLE = Path(__file__).parents[2] / "examples" / "headlines"
LABELS = {"positive", "negative", "neutral"}
SIZES = {"train": 240, "valid": 24, "test": 120}


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Row]]:
    """The rows of every split."""
    return {name: load(SAMPLE / f"{name}.jsonl") for name in SIZES}


def headline(row: Row) -> str:
    found = re.fullmatch(r"Headline: (.+)\nSentiment:", str(row.prompt))
    assert found, row.prompt
    return found[1]


def names(row: Row) -> set[str]:
    """The capitalised pairs in a headline: the company, and a few that are none."""
    return set(re.findall(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b", headline(row)))


def test_sizes_and_balance(parts: dict[str, list[Row]]) -> None:
    for name, rows in parts.items():
        assert len(rows) == SIZES[name]
        cells = Counter((row.fields["event"], row.completion) for row in rows)
        assert {label for _, label in cells} == LABELS
        assert len(cells) == 24 and set(cells.values()) == {SIZES[name] // 24}
    every = [row.id for rows in parts.values() for row in rows]
    assert len(set(every)) == len(every)


def test_no_headline_is_near_another_of_the_other_side(parts: dict[str, list[Row]]) -> None:
    held = [headline(row) for row in parts["test"]]
    for seen in (headline(row) for row in [*parts["train"], *parts["valid"]]):
        matcher = SequenceMatcher(b=seen.lower(), autojunk=False)
        for asked in held:
            matcher.set_seq1(asked.lower())
            near = matcher.real_quick_ratio() > 0.8 and matcher.quick_ratio() > 0.8 and matcher.ratio() > 0.8
            assert not near, (seen, asked)


def test_the_companies_of_the_test_are_unknown_to_train(parts: dict[str, list[Row]]) -> None:
    seen = set().union(*(names(row) for row in parts["train"]))
    assert not {name for row in parts["test"] for name in names(row)} & seen


def test_answers_stand_in_their_passages() -> None:
    rows = load(SAMPLE / "qa.jsonl")
    assert len(rows) == 40
    for row in rows:
        passage = str(row.prompt).split("\nQuestion:")[0]
        assert row.completion in passage and str(row.prompt).endswith("\nAnswer:")
