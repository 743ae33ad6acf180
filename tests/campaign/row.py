"""What a row is: a fault, how it is made, and what must hold beyond what the oracle says of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from schemas.ids import uuid7
from tests.campaign.proxy import Proxy
from tests.campaign.stage import Scene, Stage


@dataclass(frozen=True)
class Facts:
    """What a row measured: seconds until work went on, and a note for the table."""

    recovery_s: float | None = None
    note: str = ""


Run = Callable[[Stage, Scene], Facts]
Where = Callable[[Stage, str], AbstractContextManager[Scene]]


@dataclass(frozen=True)
class Row:
    """One line of the list of faults.

    `sizes`: how much of the fault there is in ten minutes, and at night, when it is what the list asks for. `weaker`
    says what the list names and this machine does otherwise. A `quiet` row mostly waits: it runs beside others.
    """

    number: int
    fault: str
    inject: str
    run: Run
    where: Where
    sizes: tuple[str, str] | None = None
    weaker: str = ""
    quiet: bool = False

    def scene(self, stage: Stage) -> AbstractContextManager[Scene]:
        """Set the row's scene."""
        return self.where(stage, f"r{self.number}-{uuid7()[-6:]}")


def plain(stage: Stage, name: str) -> AbstractContextManager[Scene]:
    """Three brokers with three replicas, MinIO as the store."""
    return stage.scene(name, **stage.everything())


def brief_locks(stage: Stage, name: str) -> AbstractContextManager[Scene]:
    """The same, with locks of two seconds."""
    return stage.scene(name, lock_ms=2_000, **stage.everything())


def alone(stage: Stage, name: str) -> AbstractContextManager[Scene]:
    """One broker, so that its end is the end of all; locks of two seconds, MinIO as the store."""
    return stage.scene(name, lock_ms=2_000, **stage.everything() | {"broker": "one", "replication": 1})


def single(stage: Stage, name: str) -> AbstractContextManager[Scene]:
    """One broker, MinIO as the store."""
    return stage.scene(name, **stage.everything() | {"broker": "one", "replication": 1})


def local(stage: Stage, name: str) -> AbstractContextManager[Scene]:
    """Three brokers, a directory as the store: its files can be reached behind its back."""
    return stage.scene(name, broker="three", replication=3)


@contextmanager
def shaky_store(stage: Stage, name: str) -> Iterator[Scene]:
    """MinIO behind a proxy; the oracle takes the same way, when all is over."""
    settings, proxy = stage.before_store()
    with proxied(stage.scene(name, **stage.everything() | settings), proxy) as scene:
        yield scene


@contextmanager
def shaky_broker(stage: Stage, name: str) -> Iterator[Scene]:
    """A broker behind a proxy."""
    broker, proxy = stage.behind()
    try:
        settings = stage.everything() | {"kafka_url": f"127.0.0.1:{proxy.port}", "replication": 1}
        with proxied(stage.scene(name, **settings), proxy) as scene:
            yield scene
    finally:
        proxy.__exit__()
        broker.stop(grace_s=0)


PROXIES: dict[str, Proxy] = {}


@contextmanager
def proxied(inner: AbstractContextManager[Scene], proxy: Proxy) -> Iterator[Scene]:
    """Tell the scene's row which proxy is its."""
    with inner as scene:
        PROXIES[scene.settings.prefix] = proxy
        try:
            yield scene
        finally:
            proxy.set("pass")


def proxy_of(scene: Scene) -> Proxy:
    """Return the proxy of a scene."""
    return PROXIES[scene.settings.prefix]


def row(
    number: int,
    fault: str,
    inject: str,
    where: Where = plain,
    *,
    sizes: tuple[str, str] | None = None,
    weaker: str = "",
    quiet: bool = False,
) -> Callable[[Run], Row]:
    """Make a row of a function."""
    return lambda run: Row(number, fault, inject, run, where, sizes, weaker, quiet)
