"""Fixtures of the unit tests: a model so small that it is made in a second."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

TEXTS = tuple(
    f"Headline: {who} profit {how} in the {when} quarter\nSentiment: {mood}"
    for who in ("Harrowgate", "Velmora", "Quillon", "Brastow")
    for how, mood in (("rises", "good"), ("falls", "bad"), ("soars", "good"), ("sinks", "bad"))
    for when in ("first", "second")
)


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """32 short lines, each a headline and its mood."""
    return TEXTS


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with a tokenizer made from the texts and random weights; skips without torch, but not where CI is set."""
    # looked for and not imported: how torch's threads wait is settled before its import
    if find_spec("torch") is None and not os.environ.get("CI"):
        pytest.skip("the llm extra is not installed")
    from workers.llm.bases import tiny

    return tiny(tmp_path_factory.mktemp("cache"), TEXTS, steps=0, threads=1)
