"""Fixtures of all tests: one native broker per session, settings of one's own per test."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fleet import Fleet

    from wire.broker import NativeBroker, Runtime
    from wire.settings import Settings

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()


def pytest_configure(config: pytest.Config) -> None:
    # kafka-python reads its message definitions through a call that Python 3.11 deprecates and 3.13 takes back.
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")
    # A shell starts what runs in the background deaf to Ctrl-C, and so would be everything that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def jars() -> Runtime:
    """The JDK and Kafka's jars, resolved once into the cache; skips without a JDK, but not where CI is set."""
    from schemas.errors import SetupError
    from wire.broker import resolve

    try:
        return resolve(CACHE)
    except SetupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def broker(jars: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeBroker]:
    """One native broker for the whole session; it dies with the session, however that ends."""
    from wire.broker import NativeBroker

    assert jars.java
    native = NativeBroker(tmp_path_factory.mktemp("broker"), CACHE)
    native.start(tie=True)
    yield native
    native.stop(grace_s=5)


@pytest.fixture
def settings(tmp_path: Path, broker: NativeBroker) -> Settings:
    """Settings that reach the session's broker, with a prefix no other test has and a store folder of their own."""
    from wire.settings import Settings

    return Settings(
        home=tmp_path,
        cache=CACHE,
        prefix=f"t{uuid.uuid4().hex[:8]}.",
        kafka_url=broker.status().url,
        partitions=4,
        store_url=f"dir:{tmp_path / 'store'}",
    )


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """Real workers on the session's broker, ended with the test."""
    from fleet import Fleet

    with Fleet(settings, tmp_path) as made:
        yield made
