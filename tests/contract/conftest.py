"""Fixtures of the contract suites: a cluster or its twin, and native object stores that are gone with the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import SetupError
from wire.settings import Settings
from wire.store import NativeStore

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()


def _running(engine: str, folder: Path) -> Iterator[NativeStore]:
    native = NativeStore(folder, CACHE, engine=engine)
    try:
        native.start(tie=True)
    except SetupError as error:
        if error.code == "TAPE-8004" or os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield native
    native.stop(grace_s=0)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.slow])])
def cluster(request: pytest.FixtureRequest) -> Settings | None:
    """Run a test twice: in memory (None), and on the session's broker."""
    found: Settings | None = None if request.param == "memory" else request.getfixturevalue("settings")
    return found


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeStore]:
    """A MinIO of the session's own."""
    yield from _running("minio", tmp_path_factory.mktemp("minio"))


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeStore]:
    """A SeaweedFS of the session's own."""
    yield from _running("seaweedfs", tmp_path_factory.mktemp("seaweedfs"))
