"""Fixtures of the unit tests: the command line in memory, and a model so small that it is made in a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_rig import Tape

    from producers import Client
    from producers.memory import MemoryPorts

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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `tape` keeps its things, on a wide terminal and with no other setting from outside."""
    for name in [name for name in os.environ if name.startswith("TAPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TAPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def ports() -> MemoryPorts:
    """A queue in memory."""
    from producers.memory import MemoryPorts

    return MemoryPorts()


@pytest.fixture
def client(ports: MemoryPorts) -> Iterator[Client]:
    """A client of the queue in memory, quick to ask again."""
    from producers import Client
    from wire.settings import Settings

    with Client(settings=Settings(), ports=ports) as client:
        client.feed._backoff_s = 0.01
        yield client


@pytest.fixture
def tape(home: Path, ports: MemoryPorts, capfd: pytest.CaptureFixture[str]) -> Tape:
    """Run `tape` in this process on the queue in memory, or on `outside`, and return what it printed."""
    from cli_rig import Result

    from producers.cli import main

    def run(*argv: str, outside: MemoryPorts | None = ports) -> Result:
        capfd.readouterr()
        code = main(argv, ports=outside)
        found = capfd.readouterr()
        return Result(code, found.out, found.err)

    return run


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a training is told, however fast they go."""
    monkeypatch.setattr("workers.llm.watch.TELL_S", 0.0)
