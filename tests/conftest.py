"""Fixtures of all tests: one native broker per session, settings of one's own per test."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import SetupError
from wire.broker import NativeBroker, Runtime, resolve
from wire.settings import Settings

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()


def missing(what: str) -> None:
    """Skip where a service cannot be had on a developer's machine; fail where it must be there."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def jars() -> Runtime:
    """The JDK and Kafka's jars, resolved once into the cache."""
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        missing("no JDK on this machine")
    try:
        return resolve(CACHE)
    except SetupError as error:
        missing(str(error))
        raise


@pytest.fixture(scope="session")
def broker(jars: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeBroker]:
    """One native broker for the whole session; it dies with the session, however that ends."""
    native = NativeBroker(tmp_path_factory.mktemp("broker"), CACHE)
    native.start(tie=True)
    try:
        yield native
    finally:
        native.stop(grace_s=5)


@pytest.fixture
def settings(tmp_path: Path, broker: NativeBroker) -> Settings:
    """Settings that reach the session's broker, with a prefix no other test has and a store folder of their own."""
    return Settings(
        home=tmp_path,
        cache=CACHE,
        prefix=f"t{uuid.uuid4().hex[:8]}.",
        kafka_url=broker.status().url,
        partitions=4,
        store_url=f"dir:{tmp_path / 'store'}",
    )
