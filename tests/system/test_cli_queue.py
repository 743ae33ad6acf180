"""The client and the command line on a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from producers import Client, Request
from producers.ports import Ports
from producers.request import event_message
from schemas.errors import InvalidError, NotFoundError, SetupError, TimeoutExceeded
from schemas.event import Event, EventType, State
from schemas.ids import derived_id, uuid7
from schemas.outcome import Outcome, Status
from schemas.topics import Names, groups, topics
from wire.broker import NativeBroker, Runtime, Security
from wire.process import free_port, wait_until
from wire.settings import Settings
from wire.store import NativeStore
from wire.topics import ensure

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
PARAMS = {"model": "builtin:m", "prompt": "hi"}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**more: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("TAPE_")}, **more}


def tape(*argv: str, cwd: Path, **env: str) -> Result:
    found = subprocess.run(
        [sys.executable, "-c", "import sys; from producers.cli import main; sys.exit(main())", *argv],
        capture_output=True, text=True, cwd=cwd, env=environment(**env), timeout=100, check=False,
    )  # fmt: skip
    return Result(found.returncode, found.stdout, found.stderr)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    names = Names(settings.prefix)
    ensure(settings, topics(names, partitions=settings.partitions), groups(names))
    return settings


@pytest.fixture
def worker(ready: Settings) -> Iterator[Worker]:
    ports = Ports(ready)
    yield Worker(ready, ports)
    ports.close()


@dataclass
class Worker:
    """Somebody who tells what became of jobs, as a worker would."""

    settings: Settings
    ports: Ports

    def tell(self, job: str, kind: EventType, **fields: Any) -> None:
        event = Event(id=uuid7(), type=kind, job=job, kind="inference", time=datetime.now(UTC), **fields)
        self.send(event)

    def end(self, job: str, **result: Any) -> None:
        now = datetime.now(UTC)
        outcome = Outcome(
            job=job, kind="inference", status=Status.SUCCEEDED, attempt=1, worker="w", finished_at=now, result=result
        )
        self.send(
            Event(
                id=derived_id(job, "outcome"),
                type=EventType.SUCCEEDED,
                job=job,
                kind="inference",
                time=now,
                attempt=1,
                worker="w",
                outcome=outcome,
            )
        )

    def send(self, event: Event) -> None:
        self.ports.publish(event_message(event, Names(self.settings.prefix).events)).result(20)


class TestClient:
    def test_a_job_from_end_to_end(self, ready: Settings, worker: Worker) -> None:
        with Client(settings=ready) as client:
            handle = client.submit("inference", PARAMS)
            watching = handle.watch(timeout=20)
            assert next(watching).type == EventType.QUEUED
            worker.tell(handle.id, EventType.RUNNING, attempt=1, worker="w")
            worker.end(handle.id, text="yes")
            worker.end(handle.id, text="yes")
            assert [event.type for event in watching] == [EventType.RUNNING, EventType.SUCCEEDED]
            assert handle.result(timeout=20).result == {"text": "yes"}
            assert handle.state() == State.SUCCEEDED
            with Client(settings=ready) as other:
                assert other.job(handle.id).state() == State.SUCCEEDED
                assert len(list(other.job(handle.id).watch(timeout=20))) == 3

    def test_many_jobs_share_one_follower(self, ready: Settings, worker: Worker) -> None:
        with Client(settings=ready) as client:
            requests = (Request("inference", {**PARAMS, "seed": index}) for index in range(300))
            handles = list(client.submit_many(requests, window=64))
            for handle in handles:
                worker.end(handle.id)
            assert {handle.result(timeout=30).job for handle in handles} == {handle.id for handle in handles}
            assert len([thread for thread in threading.enumerate() if thread.name == "tape-feed"]) == 1

    def test_an_unknown_kind_and_a_missing_topic(self, settings: Settings, ready: Settings) -> None:
        with Client(settings=ready) as client, pytest.raises(InvalidError) as caught:
            client.submit("nope", {})
        assert caught.value.code == "TAPE-1003"
        bare = settings.model_copy(update={"prefix": f"{settings.prefix}bare."})
        with Client(settings=bare) as client, pytest.raises(NotFoundError) as missing:
            client.submit("inference", PARAMS)
        assert missing.value.code == "TAPE-2004"

    def test_a_broker_that_comes_back(self, jars: Runtime, tmp_path: Path) -> None:
        cache = jars.libs.parents[2]
        native = NativeBroker(tmp_path / "own", cache)
        native.start(tie=True)
        try:
            settings = Settings(
                home=tmp_path, cache=cache, kafka_url=native.status().url, partitions=2,
                store_url=f"dir:{tmp_path / 'store'}",
            )  # fmt: skip
            names = Names(settings.prefix)
            ensure(settings, topics(names, partitions=2), groups(names))
            with Client(settings=settings) as client:
                handle = client.submit("inference", PARAMS)
                assert next(handle.watch(timeout=20)).type == EventType.QUEUED
                native.kill_node(1)
                with pytest.raises(TimeoutExceeded):
                    handle.result(timeout=0.5)
                native.start_node(1, tie=True)
                worker = Worker(settings, Ports(settings))
                worker.end(handle.id, text="back")
                worker.ports.close()
                assert handle.result(timeout=60).result == {"text": "back"}
        finally:
            native.stop(grace_s=5)


class TestCommands:
    @pytest.fixture
    def env(self, ready: Settings) -> dict[str, str]:
        return {
            "TAPE_HOME": str(ready.home),
            "TAPE_CACHE": str(ready.cache),
            "TAPE_KAFKA_URL": ready.kafka_url,
            "TAPE_PREFIX": ready.prefix,
            "TAPE_PARTITIONS": str(ready.partitions),
        }

    def test_a_job_from_end_to_end(self, env: dict[str, str], worker: Worker, tmp_path: Path) -> None:
        found = tape("submit", "inference", "--params", json.dumps(PARAMS), cwd=tmp_path, **env)
        assert found.code == 0, found.err
        job = found.rows[0]["job"]
        assert tape("jobs", cwd=tmp_path, **env).rows[0]["state"] == "queued"
        worker.end(job, text="yes")
        watched = tape("watch", job, "--timeout", "20s", cwd=tmp_path, **env)
        assert [row["type"] for row in watched.rows] == ["queued", "succeeded"]
        result = tape("result", job, "--wait", "--timeout", "20s", cwd=tmp_path, **env)
        assert (result.code, result.rows[0]["result"]) == (0, {"text": "yes"})
        rows = tape("trace", job, cwd=tmp_path, **env).rows
        assert rows[0]["name"] == "tape.submit"

    def test_a_job_that_nobody_runs_is_cancelled_at_once(self, env: dict[str, str], tmp_path: Path) -> None:
        job = tape("submit", "inference", "--params", json.dumps(PARAMS), cwd=tmp_path, **env).rows[0]["job"]
        found = tape("cancel", job, "--reason", "enough", cwd=tmp_path, **env)
        assert found.rows == [{"job": job, "state": "cancelled", "asked": True}]
        result = tape("result", job, cwd=tmp_path, **env)
        assert (result.code, result.rows[0]["status"]) == (6, "cancelled")
        assert [row["type"] for row in tape("watch", job, "--timeout", "20s", cwd=tmp_path, **env).rows] == [
            "queued", "cancelled",
        ]  # fmt: skip

    def test_topics_and_doctor(self, env: dict[str, str], tmp_path: Path) -> None:
        extra = ("--kind", "translation")
        planned = tape("topics", "apply", "--dry-run", *extra, cwd=tmp_path, **env).rows
        assert {row["name"].rpartition("jobs.")[2] for row in planned} >= {
            "translation.bulk",
            "translation.interactive",
        }
        assert len(tape("topics", "apply", *extra, cwd=tmp_path, **env).rows) == len(planned)
        assert tape("topics", "apply", *extra, cwd=tmp_path, **env).rows == []
        assert tape("topics", "ls", *extra, cwd=tmp_path, **env).code == 0
        found = tape("doctor", cwd=tmp_path, **env)
        status = {row["check"]: row["status"] for row in found.rows}
        assert (status["broker"], status["share groups"], status["topics"], status["store"]) == ("ok",) * 4


class TestBadInput:
    """What only a real process on a real machine can show."""

    def test_an_unreachable_broker(self, tmp_path: Path) -> None:
        found = tape("jobs", cwd=tmp_path, TAPE_KAFKA_URL=f"127.0.0.1:{free_port()}")
        assert (found.code, found.out) == (69, "")
        assert found.err.startswith("TAPE-5001 ")

    def test_an_unreachable_store(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        url = f"s3+http://127.0.0.1:{free_port()}/bucket"
        found = tape("put", "a", cwd=tmp_path, TAPE_STORE_URL=url, TAPE_KAFKA_URL="127.0.0.1:1")
        assert (found.code, found.out) == (69, "")
        assert found.err.startswith("TAPE-5002 ")

    @pytest.mark.store
    def test_wrong_credentials_of_the_store(self, tmp_path: Path) -> None:
        store = NativeStore(tmp_path / "own", tmp_path / "cache", engine="seaweedfs")
        try:
            url = store.start(tie=True).url
        except SetupError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        try:
            (tmp_path / "a").write_text("x")
            keys = {"TAPE_STORE_ACCESS_KEY": "somebody", "TAPE_STORE_SECRET_KEY": "wrong-secret"}
            found = tape("put", "a", cwd=tmp_path, TAPE_STORE_URL=url, **keys)
        finally:
            store.stop()
        assert (found.code, found.out) == (4, ""), found.err
        assert found.err.startswith("TAPE-4002 ")
        assert "wrong-secret" not in found.err

    def test_wrong_credentials(self, jars: Runtime, tmp_path: Path) -> None:
        cache = jars.libs.parents[2]
        security = Security("SASL_PLAINTEXT", "SCRAM-SHA-256", {"alice": "right"})
        native = NativeBroker(tmp_path / "own", cache, security=security)
        native.start(tie=True)
        try:
            found = tape(
                "jobs", cwd=tmp_path, TAPE_KAFKA_URL=native.status().url, TAPE_KAFKA_SECURITY="SASL_PLAINTEXT",
                TAPE_KAFKA_MECHANISM="SCRAM-SHA-256", TAPE_KAFKA_USERNAME="alice", TAPE_KAFKA_PASSWORD="wrong",
            )  # fmt: skip
        finally:
            native.stop(grace_s=5)
        assert (found.code, found.out) == (4, ""), found.err
        assert found.err.startswith("TAPE-4001 ")
        assert "wrong" not in found.err

    def test_no_jdk(self, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        found = tape("up", cwd=tmp_path, PATH=str(tmp_path / "bin"), JAVA_HOME="", TAPE_CACHE=str(tmp_path / "cache"))
        assert found.code == 69
        assert "TAPE-8001 " in found.err
        assert "openjdk" in found.err
        assert not (tmp_path / ".tape" / "profile.json").exists()

    def test_a_port_in_use(self, jars: Runtime, broker: NativeBroker, tmp_path: Path) -> None:
        port = broker.status().nodes[0].port
        found = tape("up", "--port", str(port), cwd=tmp_path, TAPE_CACHE=str(jars.libs.parents[2]))
        assert found.code == 5
        assert f"TAPE-3003 port {port} is in use" in found.err


class TestUp:
    def test_up_again_and_down(self, jars: Runtime, tmp_path: Path) -> None:
        env = {"TAPE_CACHE": str(jars.libs.parents[2]), "TAPE_PARTITIONS": "2"}
        try:
            first = tape("up", cwd=tmp_path, **env)
            assert first.code == 0, first.err
            url = first.rows[0]["kafka_url"]
            assert tape("up", cwd=tmp_path, **env).rows[0]["kafka_url"] == url
            found = tape("submit", "inference", "--params", json.dumps(PARAMS), cwd=tmp_path, **env)
            assert found.code == 0, found.err
            assert tape("broker", "status", cwd=tmp_path, **env).rows[0]["running"] is True
        finally:
            found = tape("down", cwd=tmp_path, **env)
        assert found.rows[0]["stopped"] == ["broker"]
        assert tape("broker", "status", cwd=tmp_path, **env).code == 69
        assert not (tmp_path / ".tape" / "profile.json").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_it_leaves_nothing(self, jars: Runtime, tmp_path: Path, number: signal.Signals) -> None:
        command = [sys.executable, "-c", "import sys; from producers.cli import main; sys.exit(main())", "up"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(TAPE_CACHE=str(jars.libs.parents[2])),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as up:  # fmt: skip
            assert wait_until(lambda: javas(tmp_path), deadline_s=30)
            up.send_signal(number)
            up.communicate(timeout=30)
        assert up.returncode == 130
        assert wait_until(lambda: not javas(tmp_path), deadline_s=10)
        assert not (tmp_path / ".tape" / "profile.json").exists()


def javas(home: Path) -> list[str]:
    """The processes that a broker of this home is made of."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "java" in command and str(home) in command:
                found.append(folder.name)
    return found
