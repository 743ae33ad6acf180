"""Real MinIO and SeaweedFS under our own supervision, and what large objects cost in memory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wire
from schemas.errors import AuthError, SetupError, UnavailableError
from wire.blobs import open_store
from wire.process import wait_until
from wire.settings import Settings
from wire.store import NativeStore

pytestmark = [pytest.mark.slow, pytest.mark.store]

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()

LARGE = """
import json, sys
from pathlib import Path
from wire.blobs import open_store
from wire.settings import Settings

def peak():  # not ru_maxrss: a child inherits its parent's
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

store = open_store(Settings(**json.loads(sys.argv[1])))
source, copy = Path(sys.argv[2]), Path(sys.argv[3])
store.put("warm", b"x"); store.read("warm")
before = peak()
put = store.put("large", source)
with source.open("rb") as file:
    store.put("given", file, sha256=put.sha256)
store.fetch("large", copy)
print(json.dumps({"before": before, "grown": peak() - before, "sha256": put.sha256}))
"""


@pytest.fixture(params=["minio", "seaweedfs"])
def native(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NativeStore]:
    store = NativeStore(tmp_path / "home", CACHE, engine=request.param)
    try:
        store.engine.find(CACHE)
    except SetupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield store
    store.stop(grace_s=0)


def reached(native: NativeStore, **other: Any) -> Settings:
    return Settings(**{**native.profile(), **other})


def test_kept_through_an_unclean_stop(native: NativeStore) -> None:
    started = time.monotonic()
    status = native.start(tie=True)
    assert time.monotonic() - started < 15
    open_store(reached(native)).put("kept/object", b"safe")
    assert status.pid is not None
    os.kill(status.pid, signal.SIGKILL)
    assert wait_until(lambda: not native.status().running, deadline_s=10)
    with pytest.raises(UnavailableError):
        open_store(reached(native))
    again = native.start(tie=True)
    assert (again.url, again.access_key) == (status.url, status.access_key)
    assert open_store(reached(native)).read("kept/object") == b"safe"
    assert native.stop() is True
    assert native.start(tie=True).running
    assert open_store(reached(native)).read("kept/object") == b"safe"


def test_only_its_own_credentials_open_it(native: NativeStore) -> None:
    native.start(tie=True)
    for other in ({"store_access_key": "nobody"}, {"store_secret_key": "guess-guess"}):
        with pytest.raises(AuthError) as caught:
            open_store(reached(native, **other))
        assert caught.value.code == "TAPE-4002"
    with pytest.raises(AuthError):
        open_store(Settings(store_url=native.status().url))


@pytest.mark.parametrize("engine", ["directory", "minio"])
def test_large_objects_cost_little_memory(engine: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(200):
            piece = os.urandom(1 << 20)
            digest.update(piece)
            file.write(piece)
    native = NativeStore(tmp_path / "home", CACHE)
    given: dict[str, Any] = {"store_url": f"dir:{tmp_path / 'store'}"}
    try:
        if engine == "minio":
            native.start(tie=True)
            given = native.profile()
        env = {**os.environ, "PYTHONPATH": str(Path(wire.__file__).parents[1])}
        answer = subprocess.run(
            [sys.executable, "-c", LARGE, json.dumps(given), str(source), str(tmp_path / "copy")],
            capture_output=True,
            text=True,
            check=True,
            env=env,
        )
    finally:
        native.stop(grace_s=0)
    found = json.loads(answer.stdout)
    assert found["sha256"] == digest.hexdigest()
    assert found["grown"] < (16 if engine == "directory" else 80), found
    with (tmp_path / "copy").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
