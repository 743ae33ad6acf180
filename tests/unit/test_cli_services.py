"""`tape up`, `down`, `broker`, `store`, `topics` and `doctor` with services that only pretend."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from cli_rig import DRIFT, MISSING, Tape, bare, plan

import wire.broker
import wire.store
import wire.topics
from producers.cli import main
from producers.cli.exits import Exit
from schemas.errors import ConflictError, SetupError, UnavailableError
from wire.broker import BrokerStatus, NodeStatus
from wire.store import StoreStatus
from wire.topics import Change


class FakeBroker:
    """A native broker that starts at once; `trouble` is what its start raises."""

    running: ClassVar[set[str]] = set()
    trouble: BaseException | None = None
    log: ClassVar[list[str]] = []

    def __init__(self, home: Path, cache: Path, *, nodes: int = 1, port: int | None = None) -> None:
        self.home, self.nodes, self.port = home, nodes, port or 9092

    def start(self, *, progress: Callable[[str], None]) -> BrokerStatus:
        progress("formatting")
        self.log.append("broker start")
        if self.trouble is not None:
            raise self.trouble
        self.running.add("broker")
        return self.status()

    def stop(self) -> bool:
        self.log.append("broker stop")
        self.running.discard("broker")
        return True

    def status(self) -> BrokerStatus:
        up = "broker" in self.running
        nodes = tuple(
            NodeStatus(id=index + 1, running=up, pid=1, port=self.port + index, log=self.home / "log")
            for index in range(self.nodes)
        )
        url = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return BrokerStatus(running=up, url=url, cluster="c", version="4.3.1", home=self.home, nodes=nodes)

    def logs(self, lines: int, node: int) -> str:
        return f"{lines} lines of node {node}"


class FakeStore:
    """A native store that starts at once."""

    def __init__(self, home: Path, cache: Path, *, engine: str, port: int | None = None) -> None:
        usual = 9000 if engine == "minio" else 8333
        self.home, self.engine, self.port = home, engine, port or usual

    def start(self) -> StoreStatus:
        FakeBroker.log.append(f"{self.engine} start")
        FakeBroker.running.add(self.engine)
        (self.home / self.engine).mkdir(parents=True, exist_ok=True)
        (self.home / self.engine / "state.json").write_text("{}")
        return self.status()

    def stop(self) -> bool:
        FakeBroker.log.append(f"{self.engine} stop")
        FakeBroker.running.discard(self.engine)
        return True

    def status(self) -> StoreStatus:
        url = f"s3+http://127.0.0.1:{self.port}/tickertape"
        running = self.engine in FakeBroker.running
        return StoreStatus(self.engine, running, 1, "http://x", url, "ak", self.home, self.home / "log")

    def profile(self) -> dict[str, Any]:
        return {"store_url": self.status().url, "store_access_key": "ak", "store_secret_key": "hush"}

    def build(self, progress: Callable[[str], None]) -> Path:
        progress("compiling")
        return Path("bin/minio")

    def logs(self, lines: int) -> str:
        return f"{lines} lines"


@pytest.fixture(autouse=True)
def fakes(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(wire.broker, "NativeBroker", FakeBroker)
    monkeypatch.setattr(wire.store, "NativeStore", FakeStore)
    monkeypatch.setattr(wire.topics, "ensure", lambda *_: [])
    FakeBroker.running, FakeBroker.trouble, FakeBroker.log = set(), None, []
    yield FakeBroker.log


@pytest.fixture
def tape(tape: Tape) -> Tape:
    return bare(tape)


def profile(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "home" / "profile.json").read_text()))


class TestUp:
    def test_the_profile_leads_to_what_runs(self, tape: Tape, tmp_path: Path) -> None:
        found = tape("up")
        assert found.code == Exit.OK
        assert profile(tmp_path) == {
            "kafka_url": "127.0.0.1:9092",
            "replication": 1,
            "store_url": f"dir:{tmp_path / 'home' / 'store'}",
        }
        assert (tmp_path / "home" / "profile.json").stat().st_mode & 0o777 == 0o600
        assert "next: tape doctor" in found.err

    def test_a_store_and_three_nodes(self, tape: Tape, tmp_path: Path) -> None:
        found = tape("up", "--store", "minio", "--nodes", "3", "--port", "9500")
        assert profile(tmp_path)["kafka_url"] == "127.0.0.1:9500,127.0.0.1:9501,127.0.0.1:9502"
        assert profile(tmp_path)["replication"] == 3
        assert profile(tmp_path)["store_secret_key"] == "hush"
        assert "hush" not in json.dumps(found.rows) + found.err

    def test_again_keeps_the_store_of_last_time(self, tape: Tape, tmp_path: Path) -> None:
        tape("up", "--store", "seaweedfs")
        before = profile(tmp_path)
        assert tape("up").code == Exit.OK
        assert profile(tmp_path) == before

    def test_a_broker_that_does_not_start_leaves_nothing(self, tape: Tape, tmp_path: Path, fakes: list[str]) -> None:
        FakeBroker.trouble = SetupError("no JDK", code="TAPE-8001")
        found = tape("up", "--store", "minio")
        assert found.code == Exit.UNAVAILABLE
        assert "TAPE-8001" in found.err
        assert "apt-get install openjdk" in found.err
        assert FakeBroker.running == set()
        assert not (tmp_path / "home" / "profile.json").exists()
        assert fakes == ["minio start", "broker start", "broker stop", "minio stop"]

    def test_ctrl_c_leaves_nothing(self, tape: Tape, tmp_path: Path) -> None:
        FakeBroker.trouble = KeyboardInterrupt()
        assert tape("up", "--store", "minio").code == Exit.INTERRUPTED
        assert FakeBroker.running == set()

    def test_what_ran_before_keeps_running(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        tape("up")

        def ensure(*_: object) -> None:
            raise UnavailableError("gone")

        monkeypatch.setattr(wire.topics, "ensure", ensure)
        assert tape("up").code == Exit.UNAVAILABLE
        assert FakeBroker.running == {"broker"}

    def test_a_port_in_use(self, tape: Tape) -> None:
        FakeBroker.trouble = ConflictError("port 9092 is in use by java (pid 1)", code="TAPE-3003", port=9092)
        found = tape("up")
        assert found.code == Exit.INVALID
        assert "TAPE-3003" in found.err
        assert "port=9092" in found.err

    def test_a_store_that_was_moved_away_is_told(self, tape: Tape, tmp_path: Path) -> None:
        url = tape("up").row["store_url"]
        store = Path(url.removeprefix("dir:"))
        assert "away" not in tape("up").err
        store.rename(tmp_path / "elsewhere")
        again = tape("up")
        assert again.code == Exit.OK and "the store is away, and jobs wait for it: TAPE-5002" in again.err
        assert not store.exists(), "and it is not begun anew"

    def test_an_environment_that_wins_is_told(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TAPE_KAFKA_URL", "elsewhere:9092")
        assert "TAPE_KAFKA_URL is set and wins" in tape("up").err


class TestDown:
    def test_it_stops_both(self, tape: Tape, tmp_path: Path) -> None:
        tape("up", "--store", "minio")
        found = tape("down")
        assert found.rows[0]["stopped"] == ["broker", "minio"]
        assert FakeBroker.running == set()
        assert not (tmp_path / "home" / "profile.json").exists()

    def test_nothing_to_stop(self, tape: Tape) -> None:
        found = tape("down")
        assert (found.code, found.rows[0]["stopped"]) == (Exit.OK, [])


class TestBroker:
    def test_start_status_stop(self, tape: Tape) -> None:
        assert tape("broker", "status").code == Exit.UNAVAILABLE
        found = tape("broker", "start", "--port", "9200")
        assert found.rows[0]["url"] == "127.0.0.1:9200"
        assert tape("broker", "status").code == Exit.OK
        assert tape("broker", "stop").rows[0]["stopped"] is True

    def test_logs(self, capfd: pytest.CaptureFixture[str]) -> None:
        main(["broker", "logs", "-n", "3", "--node", "2"])
        assert capfd.readouterr().out == "3 lines of node 2\n"


class TestStore:
    def test_start_status_stop(self, tape: Tape) -> None:
        assert tape("store", "status").code == Exit.UNAVAILABLE
        assert tape("store", "start", "--engine", "seaweedfs").rows[0]["engine"] == "seaweedfs"
        assert tape("store", "status", "--engine", "seaweedfs").code == Exit.OK
        assert tape("store", "stop", "--engine", "seaweedfs").rows[0]["stopped"] is True

    def test_where_none_is_named_the_installations_own_is_meant(self, tape: Tape, fakes: list[str]) -> None:
        tape("up", "--store", "seaweedfs")
        stopped = tape("store", "stop").row
        assert (stopped["engine"], stopped["stopped"]) == ("seaweedfs", True)
        assert tape("store", "status").code == Exit.UNAVAILABLE
        assert tape("store", "start").row["engine"] == "seaweedfs"
        assert tape("store", "status").row["engine"] == "seaweedfs"
        assert "minio start" not in fakes
        tape("down")
        assert tape("store", "start").row["engine"] == "seaweedfs", "there never was another"

    def test_of_two_that_there_were_the_settings_name_one(
        self, tape: Tape, fakes: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tape("store", "start", "--engine", "minio")
        tape("up", "--store", "seaweedfs")
        assert tape("store", "stop").row["engine"] == "seaweedfs"
        assert tape("store", "stop", "--engine", "minio").row["engine"] == "minio"
        monkeypatch.setenv("TAPE_STORE_URL", "s3+http://127.0.0.1:9000/tickertape")
        assert tape("store", "start").row["engine"] == "minio"

    def test_build_and_logs(self, tape: Tape, capfd: pytest.CaptureFixture[str]) -> None:
        found = tape("store", "build")
        assert found.rows == [{"engine": "minio", "program": "bin/minio"}]
        assert "compiling" in found.err
        main(["store", "logs", "-n", "3"])
        assert capfd.readouterr().out == "3 lines\n"


class TestTopics:
    def test_a_dry_run_changes_nothing(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        applied: list[object] = []
        monkeypatch.setattr(wire.topics, "check", lambda *_: plan(MISSING, DRIFT))
        monkeypatch.setattr(wire.topics, "apply", lambda found: applied.append(found) or found.pending)
        found = tape("topics", "apply", "--dry-run")
        assert [row["kind"] for row in found.rows] == ["create", "drift"]
        assert "would change: 1" in found.err
        assert applied == []
        assert "changed: 1" in tape("topics", "apply").err
        assert len(applied) == 1

    def test_a_list_that_differs_is_a_failure(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire.topics, "check", lambda *_: plan(MISSING))
        assert tape("topics", "ls").code == Exit.FAILURE
        monkeypatch.setattr(wire.topics, "check", lambda *_: plan(Change("ok", "topic", "x")))
        assert tape("topics", "ls").code == Exit.OK

    def test_further_kinds_are_wanted_too(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted: list[str] = []

        def check(_settings: object, topics: Any, _groups: object) -> SimpleNamespace:
            wanted.extend(topic.name for topic in topics)
            return plan()

        monkeypatch.setattr(wire.topics, "check", check)
        tape("topics", "ls", "--kind", "translation")
        assert {"tape.jobs.translation.bulk", "tape.jobs.training.interactive"} <= set(wanted)


class TestHousekeep:
    @pytest.fixture
    def keeper(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        import wire.housekeeper
        from wire.housekeeper import Deletion

        made: list[Any] = []

        class Keeper:
            def __init__(self, _settings: object, groups: Any, *, dry_run: bool) -> None:
                made.append((dry_run, {group.name for group in groups}))

            def sweep(self) -> list[Deletion]:
                return [Deletion("tape.jobs.inference.bulk", 0, 3, 1003)]

            def run(self, _stop: object, *, every_s: float, report: Callable[[Any], None]) -> None:
                made.append(every_s)
                report(self.sweep())
                report(UnavailableError("gone"))

        monkeypatch.setattr(wire.housekeeper, "Housekeeper", Keeper)
        return made

    def test_once(self, tape: Tape, keeper: list[Any]) -> None:
        found = tape("housekeep", "--dry-run", "--kind", "translation")
        assert found.rows == [{"topic": "tape.jobs.inference.bulk", "partition": 0, "start": 3, "before": 1003}]
        assert "would delete 1,000 finished records" in found.err
        ((dry_run, groups),) = keeper
        assert dry_run
        assert {"tape.translation", "tape.training"} <= groups

    def test_again_and_again(self, tape: Tape, keeper: list[Any]) -> None:
        found = tape("housekeep", "--every", "1m")
        assert keeper[1] == 60
        assert len(found.rows) == 1
        assert "TAPE-5001 gone" in found.err


class TestRefused:
    def test_a_broker_that_is_not_there_is_told_at_once(self, tape: Tape) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        found = tape("jobs", "--kafka-url", f"127.0.0.1:{port}")
        assert found.code == Exit.UNAVAILABLE
        assert "TAPE-5001 no broker there: Connection refused" in found.err
