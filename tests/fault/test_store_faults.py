"""A store that dies in the middle: the error is ours, nothing half-written is seen, and work goes on after."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import SetupError, UnavailableError
from wire.blobs import Blobs, open_store
from wire.blobs.port import CHUNK
from wire.blobs.s3 import PART
from wire.process import wait_until
from wire.settings import Settings
from wire.store import NativeStore

pytestmark = [pytest.mark.slow, pytest.mark.store]

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()
DATA = random.Random(3).randbytes(4 * PART)


@pytest.fixture
def native(tmp_path: Path) -> Iterator[NativeStore]:
    store = NativeStore(tmp_path, CACHE)
    try:
        store.start(tie=True)
    except SetupError as error:
        if error.code != "TAPE-8005" or os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield store
    store.stop(grace_s=0)


@pytest.fixture
def blobs(native: NativeStore) -> Blobs:
    return open_store(Settings(**native.profile()))


def kill(native: NativeStore) -> None:
    pid = native.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not native.status().running, deadline_s=10)


class Deadly(io.BytesIO):
    """Kills the store when it is read beyond a point."""

    def __init__(self, data: bytes, native: NativeStore, at: int) -> None:
        super().__init__(data)
        self.native = native
        self.at = at

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.tell() >= self.at and self.native.status().running:
            kill(self.native)
        return data


def test_store_killed_in_the_middle_of_an_upload(native: NativeStore, blobs: Blobs) -> None:
    blobs.put("old", b"old")
    digest = hashlib.sha256(DATA).hexdigest()
    for name in ("old", "new"):
        with pytest.raises(UnavailableError) as caught:
            blobs.put(name, Deadly(DATA, native, at=2 * PART), sha256=digest)
        assert caught.value.code == "TAPE-5002"
        native.start(tie=True)
        assert [blob.name for blob in blobs.list()] == ["old"]
        assert blobs.read("old") == b"old"
    assert blobs.put("new", DATA, sha256=digest).size == len(DATA)
    assert blobs.read("new", sha256=digest) == DATA


def test_store_killed_in_the_middle_of_a_download(native: NativeStore, blobs: Blobs, tmp_path: Path) -> None:
    blobs.put("x", DATA)
    with blobs.get("x") as reader:
        assert reader.read(CHUNK) == DATA[:CHUNK]
        kill(native)
        with pytest.raises(UnavailableError) as caught:
            while reader.read(CHUNK):
                pass
    assert caught.value.code == "TAPE-5002"
    with pytest.raises(UnavailableError):
        blobs.fetch("x", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_store_restarted_in_the_middle_of_a_download_is_not_noticed(native: NativeStore, blobs: Blobs) -> None:
    blobs.put("x", DATA)
    with blobs.get("x") as reader:
        pieces = [reader.read(CHUNK)]
        kill(native)
        native.start(tie=True)
        while piece := reader.read(CHUNK):
            pieces.append(piece)
    assert b"".join(pieces) == DATA


def test_bytes_altered_behind_the_stores_back_are_found(native: NativeStore, blobs: Blobs) -> None:
    blobs.put("x", DATA)
    parts = [path for path in (native.folder / "data" / "tickertape" / "x").rglob("part.*") if path.is_file()]
    assert parts
    with parts[0].open("r+b") as file:
        file.seek(PART // 2)
        file.write(bytes(64))
    arrived = 0
    with pytest.raises((UnavailableError,)) as caught, blobs.get("x") as reader:
        while piece := reader.read(CHUNK):
            arrived += len(piece)
    assert caught.value.code == "TAPE-5002"
    assert arrived < len(DATA)
