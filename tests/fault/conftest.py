"""Fixtures of the fault tests: brokers of a test's own, to be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wire.broker import NativeBroker, Runtime

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()


def _running(folder: Path, nodes: int) -> Iterator[NativeBroker]:
    from wire.broker import NativeBroker

    native = NativeBroker(folder, CACHE, nodes=nodes)
    native.start(tie=True)
    yield native
    native.stop(grace_s=2)


@pytest.fixture
def single(tmp_path: Path, jars: Runtime) -> Iterator[NativeBroker]:
    """One broker that a test may kill."""
    assert jars.java
    yield from _running(tmp_path, 1)


@pytest.fixture
def three(tmp_path: Path, jars: Runtime) -> Iterator[NativeBroker]:
    """A cluster of three brokers, each of which a test may kill."""
    assert jars.java
    yield from _running(tmp_path, 3)
