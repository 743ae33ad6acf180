"""What the rows run on: brokers and a store that are started when first needed, and a scene of its own for each row."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fleet import Crew, Fleet

from schemas.errors import SetupError, TapeError
from tests.campaign.oracle import finals
from tests.campaign.proxy import Proxy
from wire.broker import NativeBroker
from wire.broker.config import Security
from wire.follow import KafkaFollower
from wire.process import free_port, wait_until
from wire.settings import Settings
from wire.store import NativeStore

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("heavy", "quick")
SITE = ROOT / "tests" / "campaign" / "site"


class NotRun(Exception):  # noqa: N818 - no error: this machine lacks what the row needs
    """The row cannot run here; says why."""


class Scene(Fleet):
    """One row's workers, jobs and topics."""

    def __enter__(self) -> Scene:
        super().__enter__()
        self.prepare(*KINDS)
        self.lives: dict[str, int] = {}
        return self

    def worker(self, *arguments: str, wait: bool = True, **env: str) -> Crew:
        """Start a worker of the campaign's kinds."""
        path = os.pathsep.join(map(str, (SITE, ROOT)))
        return self.start(*arguments, kinds=",".join(KINDS), wait=wait, **{"PYTHONPATH": path, **env})

    def workers(self, count: int, *arguments: str, **env: str) -> list[Crew]:
        """Start several workers at once, and wait until all are up."""
        crews = [self.worker(*arguments, wait=False, **env) for _ in range(count)]
        for crew in crews:
            assert wait_until(
                lambda crew=crew: crew.said("worker up") or crew.process.poll() is not None, deadline_s=60
            )
            # One that is armed may die at once: the last round's record was not acknowledged by whom it killed.
            assert crew.said("worker up"), crew.log.read_text()
        return crews

    def job(self, name: str, kind: str = "heavy", *, top: dict[str, Any] | None = None, **params: Any) -> None:
        """Send a job and wait for the broker's word; it leaves a mark when it starts."""
        self.submit(name, kind, params={"mark": str(self.folder / "marks"), **params}, **(top or {}))

    def many(self, count: int, name: str, kind: str, **fields: Any) -> None:
        """Send many at once, and wait for the broker's word on each."""
        self.submit(f"{name}-0", kind, **fields)
        sent = []
        for number in range(1, count):
            job = f"{name}-{number}"
            headers = {
                "ce_specversion": "1.0", "ce_id": job, "ce_source": "/desk", "ce_type": f"tape.request.{kind}.v1",
                "ce_subject": job,
            }  # fmt: skip
            told = self._producer.send(
                self.names.jobs(kind, "bulk"), key=job.encode(), value=json.dumps(fields).encode(),
                headers=[(field, text.encode()) for field, text in headers.items()],
            )  # fmt: skip
            sent.append((job, told))
        for job, told in sent:
            told.get(60)
            self.sent[job] = kind

    def jobs(self, count: int, name: str = "job", *, quick: int = 3, **params: Any) -> None:
        """Send many; every third is a light one."""
        for number in range(count):
            light = bool(quick) and number % quick == 0
            fields = {**params, "size": 0} if light else params
            self.job(f"{name}-{number}", "quick" if light else "heavy", **fields)

    def ends(self) -> int:
        """How many jobs have ended, as far as the brokers that are there can tell; asked again when none answers."""
        until = time.monotonic() + 30.0
        while True:
            try:
                return len({event.job for event in finals(self.settings)} & set(self.sent))
            except TapeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def wait(self, probe: Callable[[], object], why: str, deadline_s: float = 60.0, every_s: float = 0.05) -> float:
        """Wait until something holds; returns how long that took. It is the row's failure when it never does."""
        began = time.monotonic()
        assert wait_until(probe, deadline_s=deadline_s, every_s=every_s), f"{why} (after {deadline_s:g} s)"
        return time.monotonic() - began

    def next_end(self, deadline_s: float = 60.0) -> float:
        """Wait until one more job has ended; returns how long that took, 0 when none is left."""
        before = self.ends()
        if before == len(self.sent):
            return 0.0
        return self.wait(lambda: self.ends() > before, "no job ended", deadline_s, 0.1)

    def finish(self, deadline_s: float = 90.0) -> bool:
        """Wait until everything has ended; whether it has is the oracle's to judge."""
        every_s = 0.3 + len(self.sent) / 2_000  # to look is to read all events
        return wait_until(lambda: self.ends() == len(self.sent), deadline_s=deadline_s, every_s=every_s)

    def breakers(self) -> list[tuple[str, str]]:
        """What was said of breakers, in the log's order: the dependency and its state."""
        found = []
        with KafkaFollower(self.settings).read(self.names.control) as feed:
            for record in (record for batch in feed for record in batch):
                told = json.loads(record.value or b"{}")
                if "dependency" in told:
                    found.append((str(told["dependency"]), str(told["state"])))
        return found

    def said(self, text: str) -> bool:
        """Whether any worker's log has this."""
        return any(text in crew.log.read_text(errors="replace") for crew in self.crews)


class Stage:
    """The services of a campaign. A context manager: at its end nothing runs."""

    def __init__(self, folder: Path, cache: Path, *, nightly: bool) -> None:
        self.folder, self.cache, self.nightly = folder, cache, nightly
        self._undo = ExitStack()
        self._brokers: dict[str, NativeBroker] = {}
        self._store: NativeStore | None = None
        self._scenes: list[Scene] = []
        self._starting = threading.RLock()  # rows are played side by side

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for scene in self._scenes:  # those that a signal ended in the middle
            for crew in scene.crews:
                crew.process.kill()
        self._undo.close()

    def broker(self, name: str = "one") -> NativeBroker:
        """Return a broker: `one`, or `three` that form a cluster."""
        with self._starting:
            if name not in self._brokers:
                home = self.folder / f"broker-{name}-{time.monotonic_ns()}"
                made = NativeBroker(home, self.cache, nodes=3 if name == "three" else 1, port=free_port())
                made.start(tie=True)
                self._undo.callback(made.stop, grace_s=0)
                self._brokers[name] = made
            return self._brokers[name]

    def everything(self) -> dict[str, Any]:
        """Return the settings of a scene on three brokers and MinIO; on a directory where there is no MinIO."""
        try:
            store = self.store().profile()
        except NotRun:
            store = {}
        return {"broker": "three", "replication": 3, **store}

    def pick(self, scaled: float, full: float) -> float:
        """Return how much of a fault there is: all that the list asks for at night, else what ten minutes allow."""
        return full if self.nightly else scaled

    def guarded(self) -> tuple[str, dict[str, str]]:
        """Return a broker that asks who one is and has a list of rights: its inner address, where everybody may do
        everything, and a worker's environment, that of an account with rights of its own."""
        secret = {"worker": "secret-of-worker"}
        security = Security("SASL_PLAINTEXT", "SCRAM-SHA-256", users=secret)
        extra = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        home = self.folder / f"guarded-{time.monotonic_ns()}"
        made = NativeBroker(home, self.cache, port=free_port(), security=security, extra=extra)
        url = made.start(tie=True).url
        self._undo.callback(made.stop, grace_s=0)
        account = {
            "TAPE_KAFKA_URL": url, "TAPE_KAFKA_SECURITY": security.protocol, "TAPE_KAFKA_USERNAME": "worker",
            "TAPE_KAFKA_MECHANISM": "SCRAM-SHA-256", "TAPE_KAFKA_PASSWORD": secret["worker"],
        }  # fmt: skip
        return _places(made)["INTERNAL"], account

    def behind(self) -> tuple[NativeBroker, Proxy]:
        """Return a broker that clients reach only through a proxy."""
        port = free_port()
        proxy = self._undo.enter_context(Proxy(port))
        home = self.folder / f"behind-{time.monotonic_ns()}"
        first = NativeBroker(home, self.cache, port=port)
        first.start(tie=True)
        places = _places(first)
        first.stop(grace_s=5)
        extra = {"advertised.listeners": f"CLIENT://127.0.0.1:{proxy.port},INTERNAL://{places['INTERNAL']}"}
        made = NativeBroker(home, self.cache, port=port, extra=extra)
        made.start(tie=True)
        self._undo.callback(made.stop, grace_s=0)
        return made, proxy

    def store(self) -> NativeStore:
        """Return the MinIO. Raises `NotRun` where there is none."""
        with self._starting:
            if self._store is None:
                store = NativeStore(self.folder / "store", self.cache, port=free_port())
                try:
                    store.start(tie=True)
                except SetupError as error:
                    raise NotRun(f"no MinIO: {error}") from error
                self._undo.callback(store.stop, grace_s=0)
                self._store = store
            return self._store

    def before_store(self) -> tuple[dict[str, Any], Proxy]:
        """Return the settings of a store behind a proxy, and the proxy."""
        profile = self.store().profile()
        port = int(profile["store_url"].rsplit(":", 1)[1].split("/")[0])
        proxy = self._undo.enter_context(Proxy(port))
        return {**profile, "store_url": profile["store_url"].replace(f":{port}/", f":{proxy.port}/")}, proxy

    @contextmanager
    def scene(self, name: str, *, broker: str = "one", **given: Any) -> Iterator[Scene]:
        """Make a row's scene: a folder, a prefix and topics of its own."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        if "kafka_url" not in given:
            given["kafka_url"] = self.broker(broker).status().url
        if str(given.get("store_url", "")).startswith("s3+"):
            given["store_url"] += f"/{name}"
        fields = {
            "home": folder, "cache": self.cache, "prefix": f"{name}.", "partitions": 4,
            "store_url": f"dir:{folder / 'store'}", "lock_ms": 5_000,
        }  # fmt: skip
        with Scene(Settings(**{**fields, **given}), folder) as scene:
            self._scenes.append(scene)
            yield scene


def _places(broker: NativeBroker) -> dict[str, str]:
    """Return where a broker listens, by the name of the listener."""
    lines = next(broker.folder.rglob("*.properties")).read_text().splitlines()
    text = next(line for line in lines if line.startswith("listeners="))
    return dict(part.split("://") for part in text.removeprefix("listeners=").split(","))


__all__ = ["KINDS", "Crew", "NotRun", "Scene", "Stage"]
