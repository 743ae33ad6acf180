"""A whole worker on twins: its threads, its two pools, its drain, its health."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from worker_twin import NAMES, Entry, Say, events, kind, request, waiting

from schemas.control import Cancel
from schemas.errors import AuthError, ConflictError, TapeError, UnavailableError
from schemas.outcome import Succeeded
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher, Sent
from wire.settings import Settings
from wire.share import Listener, MemoryLog, MemoryShareConsumer, OffsetRange, ShareError
from wire.share.errors import (
    AuthenticationError,
    AuthorizationError,
    ConfigError,
    SessionLostError,
    UnsupportedError,
)
from wire.share.locks import GroupConfig
from workers import __main__ as command
from workers import worker as module
from workers.context import Context
from workers.control import Controls
from workers.health import Health
from workers.kinds import Kind
from workers.queues import mapped
from workers.worker import Options, Worker


class Rig:
    """A worker on a log in memory, run in a thread."""

    def __init__(
        self, tmp_path: Path, *kinds: Kind, own_store: bool = False, publisher: Any = MemoryPublisher, **options: Any
    ) -> None:
        self.log = MemoryLog()
        self.store = Memory()
        self.control = Controls()
        self.members: list[MemoryShareConsumer] = []
        self.kinds = {entry.name: entry for entry in kinds}
        for topic in (NAMES.events, *(NAMES.dead(name) for name in self.kinds)):
            self.log.create(topic)
        self.worker = Worker(
            Settings(home=tmp_path, prefix=NAMES.prefix, store_url=f"dir:{tmp_path / 'store'}"),
            Options(kinds=tuple(self.kinds), **options),
            kinds=self.kinds,
            consume=self.consume,
            publisher=publisher(self.log),
            store=None if own_store else self.store,
            control=self.control,
        )
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def consume(
        self, topic: str, group: str, light: bool, ready: Callable[[], None], listener: Listener
    ) -> MemoryShareConsumer:
        self.log.create(topic)
        config = GroupConfig(delivery_limit=10)
        self.members.append(
            MemoryShareConsumer([topic], group, self.log, config=config, on_ready=ready, listener=listener)
        )
        return self.members[-1]

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.failure = error

    @contextmanager
    def running(self) -> Iterator[Rig]:
        self.thread.start()
        try:
            yield self
        finally:
            self.worker.drain()
            self.worker.drain()
            self.join()

    def join(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive(), "the worker did not end"

    def send(self, job: str, name: str = "say", lane: str = "bulk", **fields: Any) -> None:
        key, value, headers = request(job, name, **fields)
        self.log.append(NAMES.jobs(name, lane), key, value, headers)

    def wait(self, good: Callable[[], bool]) -> None:
        with self.log.changed:
            assert self.log.changed.wait_for(good, 20), events(self.log)

    def ended(self) -> dict[str, str]:
        return {event.job: event.type.value for event in events(self.log) if event.outcome is not None}

    def lag(self) -> int:
        groups = [
            (NAMES.group(name), NAMES.jobs(name, lane)) for name in self.kinds for lane in ("bulk", "interactive")
        ]
        return sum(self.log.group(group).describe(topic, 0)[1] for group, topic in groups)


def light(handler: Any = lambda *_: Succeeded(), name: str = "say") -> Kind:
    return kind(handler, name, isolation="thread")


def test_jobs_of_both_lanes_run_and_are_settled(tmp_path: Path) -> None:
    with Rig(tmp_path, light(), light(name="shout"), slots=2).running() as rig:
        for number in range(20):
            rig.send(f"a{number}", "say", "interactive")
            rig.send(f"b{number}", "shout", "bulk")
        rig.wait(lambda: len(rig.ended()) == 40)
        rig.wait(lambda: rig.lag() == 0)
    assert rig.failure is None
    assert set(rig.ended().values()) == {"succeeded"}
    assert all(not member._group.members for member in rig.members)


def test_a_drain_lets_the_running_job_end_and_gives_back_the_rest(tmp_path: Path) -> None:
    going, free = threading.Event(), threading.Event()

    def handler(*_: object) -> Succeeded:
        going.set()
        waiting(free, "the end")
        return Succeeded()

    rig = Rig(tmp_path, light(handler))
    for number in range(3):
        rig.send(f"j{number}")
    rig.thread.start()
    waiting(going, "the first job")
    rig.worker.drain()
    rig.wait(lambda: rig.log.group(NAMES.group("say")).state(NAMES.jobs("say", "bulk"), 0).locked() == 1)
    free.set()
    rig.join()
    assert rig.failure is None
    assert rig.ended() == {"j0": "succeeded"}
    assert rig.lag() == 2


def test_a_second_drain_hands_running_jobs_back(tmp_path: Path) -> None:
    going = threading.Event()

    def handler(context: Context, _: Say) -> Succeeded:
        going.set()
        while True:
            context.check()
            threading.Event().wait(0.01)

    rig = Rig(tmp_path, light(handler))
    rig.send("j")
    rig.thread.start()
    waiting(going, "the job")
    rig.worker.drain()
    rig.worker.drain()
    rig.join()
    assert rig.ended() == {}
    assert rig.lag() == 1
    assert [event.failure.code for event in events(rig.log) if event.failure] == ["TAPE-3004"]


def test_a_store_that_stays_down_cannot_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.1)
    refused = threading.Event()

    class Down(Memory):
        def get(self, *_: Any, **__: Any) -> Any:
            refused.set()
            raise UnavailableError("down", code="TAPE-5002")

    class Quiet:
        """A runner that starts no process."""

        def __init__(self, *_: object, **__: object) -> None: ...
        def warm(self) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(module, "ChildRunner", Quiet)
    rig = Rig(tmp_path, kind(), grace_s=0.05)
    rig.worker._store = Down()
    rig.send("j")
    rig.thread.start()
    waiting(refused, "the store's refusal")
    rig.worker.drain()
    rig.join()
    assert rig.failure is None
    assert rig.ended() == {}
    assert rig.lag() == 1, "the job was lost"


def test_a_cancellation_reaches_a_running_job(tmp_path: Path) -> None:
    going = threading.Event()

    def handler(context: Context, _: Say) -> Succeeded:
        going.set()
        while True:
            context.check()
            threading.Event().wait(0.01)

    with Rig(tmp_path, light(handler)).running() as rig:
        rig.send("j")
        waiting(going, "the job")
        message = Cancel(job="j", reason="enough", time="2026-01-01T00:00:00Z")  # type: ignore[arg-type]
        rig.control.apply(Entry(b"j", message.model_dump_json().encode()))
        rig.wait(lambda: rig.ended() == {"j": "cancelled"})


def test_a_broker_restart_is_survived(tmp_path: Path) -> None:
    going, free = threading.Event(), threading.Event()

    def handler(*_: object) -> Succeeded:
        going.set()
        waiting(free, "the end")
        return Succeeded()

    with Rig(tmp_path, light(handler)).running() as rig:
        rig.send("j")
        waiting(going, "the job")
        rig.log.group(NAMES.group("say")).restart()
        free.set()
        rig.wait(lambda: rig.lag() == 0)
    ids = {event.id for event in events(rig.log) if event.outcome is not None}
    assert len(ids) == 1


def test_once_ends_by_itself_after_one_job(tmp_path: Path) -> None:
    rig = Rig(tmp_path, light(), light(name="shout"), limit=1, slots=4)
    for number in range(3):
        rig.send(f"a{number}", "say")
        rig.send(f"b{number}", "shout")
    rig.thread.start()
    rig.join()
    assert len(rig.ended()) == 1
    assert rig.lag() == 5


def test_an_idle_worker_ends_by_itself(tmp_path: Path) -> None:
    rig = Rig(tmp_path, light(), idle_s=0.0)
    rig.thread.start()
    rig.join()
    assert rig.failure is None


def test_health_tells_live_ready_and_busy(tmp_path: Path) -> None:
    going, free = threading.Event(), threading.Event()

    def handler(*_: object) -> Succeeded:
        going.set()
        waiting(free, "the end")
        return Succeeded()

    def get(path: str) -> tuple[int, dict[str, Any]]:
        assert rig.worker.health is not None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{rig.worker.health.port}/{path}", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    with Rig(tmp_path, light(handler), slots=3, health_port=0).running() as rig:
        rig.send("j")
        waiting(going, "the job")
        assert get("live")[0] == 200
        assert get("ready") == (200, {"ok": True, "kinds": ["say"], "draining": False, "device": None})
        assert get("busy") == (200, {"ok": True, "held": 1, "slots": 3, "waiting": 0})
        rig.worker.drain()
        assert get("ready")[0] == 503
        free.set()


def test_a_taken_port_is_found_before_anything_else_is_opened(tmp_path: Path) -> None:
    taken = Health({})
    try:
        with pytest.raises(ConflictError):
            Worker(
                Settings(home=tmp_path, kafka_url="127.0.0.1:1"),
                Options(kinds=("say",), health_port=taken.port),
                kinds={"say": light()},
            )
    finally:
        taken.stop()


@pytest.mark.parametrize(
    ("error", "ours", "code"),
    [
        (AuthenticationError("no"), AuthError, "TAPE-4001"),
        (AuthorizationError("no"), AuthError, "TAPE-4003"),
        (UnsupportedError("old"), UnavailableError, "TAPE-5005"),
        (ConfigError("odd"), UnavailableError, "TAPE-5001"),
    ],
)
def test_a_fatal_error_of_the_group_ends_the_worker_as_one_of_ours(
    tmp_path: Path, error: ShareError, ours: type[TapeError], code: str
) -> None:
    assert (type(mapped(error)), mapped(error).code) == (ours, code)
    rig = Rig(tmp_path, light())

    def refuse(*_: object) -> list[Any]:
        raise error

    rig.members[0].poll = refuse  # type: ignore[method-assign, assignment]
    rig.thread.start()
    rig.join()
    assert isinstance(rig.failure, ours)
    assert rig.failure.code == code


def test_trouble_in_the_group_is_logged_and_losses_reach_the_loop(tmp_path: Path) -> None:
    rig = Rig(tmp_path, light())
    listener = rig.members[0]._listener
    listener.on_error(SessionLostError("gone"))
    listener.on_lost([OffsetRange("t", 0, 3, 5)], SessionLostError("gone"))
    assert list(rig.worker.loop._lost) == [("t", 0, 3), ("t", 0, 4), ("t", 0, 5)]


def test_the_store_is_opened_when_first_asked_for_and_stands_behind_its_breaker(tmp_path: Path) -> None:
    store = Rig(tmp_path, light(), own_store=True).worker.store()
    assert not (tmp_path / "store").exists()
    store.put("x", b"1")
    assert (tmp_path / "store").exists()
    rmtree(tmp_path / "store")
    codes = []
    for _ in range(6):
        with pytest.raises(TapeError) as caught:
            store.put("x", b"1")
        codes.append(caught.value.code)
    assert codes == ["TAPE-5002"] * 5 + ["TAPE-5010"]


class Command:
    """A worker as the command sees one."""

    health: Any = None
    error: TapeError | None = None

    def __init__(self, settings: Settings, options: Options) -> None:
        Command.settings, Command.options = settings, options  # type: ignore[attr-defined]

    def drain(self, *_: object) -> None: ...

    def run(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def commanded(monkeypatch: pytest.MonkeyPatch) -> type[Command]:
    monkeypatch.setattr(module, "Worker", Command)
    monkeypatch.setattr("wire.telemetry.configure", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(Command, "error", None)
    monkeypatch.setattr(Command, "health", None)
    return Command


def test_the_command_hands_its_options_to_the_worker(commanded: Any, tmp_path: Path) -> None:
    arguments = ["--kinds", "echo, echo,training", "--slots", "3", "--lanes", "bulk", "--grace", "2", "--once"]
    arguments += ["--idle-exit", "4", "--health-port", "0", "--home", str(tmp_path)]
    assert command.main(arguments) == 0
    assert commanded.settings.home == tmp_path
    assert commanded.options == Options(
        kinds=("echo", "training"),
        slots=3,
        lanes=("bulk",),
        grace_s=2.0,
        health_port=0,
        limit=1,
        idle_s=4.0,
        housekeep_s=60.0,
    )


def test_the_command_tells_a_worker_s_error_and_where_its_health_is(
    commanded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commanded, "error", AuthError("no", code="TAPE-4001"))
    monkeypatch.setattr(commanded, "health", type("Health", (), {"port": 123}))
    assert command.main(["--home", str(tmp_path)]) == 4
    err = capsys.readouterr().err
    assert "http://127.0.0.1:123/live" in err
    assert "TAPE-4001" in err


def test_a_worker_goes_by_the_broker_s_clock(tmp_path: Path) -> None:
    """What it puts off is due by it: two hours of a wrong clock would be two hours of waiting."""
    behind = timedelta(hours=2)

    class Dating(MemoryPublisher):
        def publish(self, topic: str, **fields: Any) -> Future[Sent]:
            future: Future[Sent] = Future()
            place = super().publish(topic, **fields).result(0)
            dated = topic == NAMES.control
            future.set_result(place._replace(at_ms=int((time.time() - 7200) * 1000) if dated else None))
            return future

    rig = Rig(tmp_path, kind(), publisher=Dating)
    rig.log.create(NAMES.control)
    with rig.running():
        rig.send("j")
        rig.wait(lambda: "j" in rig.ended())
    [end] = [event for event in events(rig.log) if event.outcome is not None]
    assert end.outcome is not None
    for told in (end.time, end.started_at, end.outcome.finished_at):
        assert told is not None
        assert abs(datetime.now(UTC) - behind - told) < timedelta(seconds=30)
