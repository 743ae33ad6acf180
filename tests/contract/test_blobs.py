"""What every store promises, held against memory, the directory, MinIO and SeaweedFS."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import random
import threading
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError
from wire.blobs import ABSENT, Blobs, open_store
from wire.blobs.memory import Memory
from wire.blobs.port import CHUNK, CONDITIONAL_BYTES
from wire.settings import Settings

NATIVE = [pytest.mark.slow, pytest.mark.store]
ENGINES = [
    "memory",
    "directory",
    pytest.param("minio", marks=NATIVE),
    pytest.param("seaweedfs", marks=NATIVE),
]
BIG = CONDITIONAL_BYTES + 3 * CHUNK + 17  # two parts over S3


class Trickle(io.RawIOBase):
    """A stream that cannot be rewound and gives a little at a time, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, 70_000) if size > 0 else size)


def address(engine: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    if engine == "directory":
        return {"store_url": f"dir:{request.getfixturevalue('tmp_path') / 'store'}"}
    native = request.getfixturevalue(engine).profile()
    return {**native, "store_url": f"{native['store_url']}/{uuid.uuid4().hex}"}


@pytest.fixture(params=ENGINES)
def blobs(request: pytest.FixtureRequest) -> Blobs:
    return Memory() if request.param == "memory" else open_store(Settings(**address(request.param, request)))


@lru_cache(maxsize=8)
def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.slow
@pytest.mark.store
@pytest.mark.parametrize("engine", ["minio", "seaweedfs"])
def test_a_machine_two_hours_ahead_is_understood(
    engine: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Settings(**address(engine, request))
    monkeypatch.setattr("minio.time.utcnow", lambda: datetime.now(UTC) + timedelta(hours=2))
    wrong = open_store(place)
    wrong.create("a", b"1")
    assert wrong.read("a") == b"1"
    assert wrong.stat("a").size == 1
    monkeypatch.undo()
    assert wrong.read("a") == b"1", "the clock was set right"


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    """Run `work(0..count-1)` in threads that start together; errors of our own are results."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = work(index)
        except ConflictError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, BIG])
@pytest.mark.parametrize("form", ["bytes", "path", "file", "stream"])
def test_what_goes_in_comes_out(blobs: Blobs, tmp_path: Path, size: int, form: str) -> None:
    data = noise(size)
    path = tmp_path / "source"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    with path.open("rb") as file:
        sources = {"bytes": data, "path": path, "file": file, "stream": Trickle(data)}
        blob = blobs.put("a/b.bin", sources[form])  # type: ignore[arg-type]
    assert (blob.name, blob.size, blob.sha256) == ("a/b.bin", size, digest)
    assert blob.etag
    assert blobs.read("a/b.bin") == data
    assert blobs.stat("a/b.bin") == blob
    assert blobs.fetch("a/b.bin", tmp_path / "new" / "copy") == blob
    assert (tmp_path / "new" / "copy").read_bytes() == data


def test_file_is_taken_from_where_it_stands(blobs: Blobs) -> None:
    stream = io.BytesIO(b"header|body")
    stream.seek(7)
    assert blobs.put("x", stream).size == 4
    assert blobs.read("x") == b"body"


@pytest.mark.parametrize("size", [5, BIG])
def test_put_of_other_content_than_announced_leaves_nothing(blobs: Blobs, size: int) -> None:
    blobs.put("kept", b"before")
    for name in ("fresh", "kept"):
        for source in (noise(size), Trickle(noise(size))):
            with pytest.raises(JobError) as caught:
                blobs.put(name, source, sha256=hashlib.sha256(b"other").hexdigest())  # type: ignore[arg-type]
            assert caught.value.code == "TAPE-6007"
    assert blobs.read("kept") == b"before"
    assert [blob.name for blob in blobs.list()] == ["kept"]


def test_put_with_the_right_hash_passes(blobs: Blobs) -> None:
    for name, size in (("small", 9), ("big", BIG)):
        data = noise(size)
        digest = hashlib.sha256(data).hexdigest()
        assert blobs.put(name, data, sha256=digest).sha256 == digest


@pytest.mark.parametrize("size", [1, 100, CHUNK * 2 + 5])
def test_wrong_bytes_never_arrive_whole(blobs: Blobs, tmp_path: Path, size: int) -> None:
    blobs.put("x", noise(size))
    wanted = hashlib.sha256(b"something else").hexdigest()
    arrived = 0
    with blobs.get("x", sha256=wanted) as reader, pytest.raises(JobError) as caught:
        while piece := reader.read(1000):
            arrived += len(piece)
    assert caught.value.code == "TAPE-6007"
    assert arrived < size
    with blobs.get("x", sha256=wanted) as reader, pytest.raises(JobError):
        reader.read(size)  # all there is, without asking for the end
    (tmp_path / "held").write_bytes(b"held")
    for path in (tmp_path / "held", tmp_path / "new"):
        with pytest.raises(JobError):
            blobs.fetch("x", path, sha256=wanted)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "store") == ["held"]
    assert (tmp_path / "held").read_bytes() == b"held"


def test_missing_objects_are_named(blobs: Blobs, tmp_path: Path) -> None:
    blobs.put("folder/object", b"1")
    for name in ("nothing", "folder", "no/such/thing"):
        for call in (blobs.stat, blobs.get, blobs.read, blobs.link, lambda n: blobs.fetch(n, tmp_path / "f")):
            with pytest.raises(NotFoundError, match=name) as caught:
                call(name)
            assert caught.value.code == "TAPE-2001"
        blobs.delete(name)
    assert blobs.read("folder/object") == b"1"


def test_source_that_is_no_file_is_named(blobs: Blobs, tmp_path: Path) -> None:
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError) as caught:
            blobs.put("x", source)
        assert caught.value.code == "TAPE-2003"


def test_put_replaces_and_delete_removes(blobs: Blobs) -> None:
    first = blobs.put("a/x", b"one")
    second = blobs.put("a/x", b"two!")
    assert first.etag != second.etag
    assert (blobs.read("a/x"), blobs.stat("a/x").size) == (b"two!", 4)
    blobs.delete("a/x")
    blobs.delete("a/x")
    assert list(blobs.list()) == []
    assert blobs.create("a/x", b"three").size == 5


def test_list_is_by_prefix(blobs: Blobs) -> None:
    names = ["a", "ab/c", "ab-c", "ab/c.d/e", "b/1", "b/10", "b/2", "é/x", "z z"]
    for name in reversed(names):
        blobs.put(name, name.encode())

    def listed(prefix: str = "") -> list[str]:
        return sorted(blob.name for blob in blobs.list(prefix))

    assert listed() == sorted(names)
    assert listed("ab") == ["ab-c", "ab/c", "ab/c.d/e"]
    assert listed("b/1") == ["b/1", "b/10"]
    assert listed("nothing/") == []
    assert [(blob.name, blob.size) for blob in blobs.list("é/")] == [("é/x", 4)]


def test_created_once(blobs: Blobs) -> None:
    made = blobs.create("claim", b"mine")
    with pytest.raises(ConflictError) as caught:
        blobs.create("claim", b"late")
    assert caught.value.code == "TAPE-3001"
    assert blobs.stat("claim").etag == made.etag
    assert blobs.read("claim") == b"mine"


def test_replaced_only_if_unchanged(blobs: Blobs) -> None:
    made = blobs.create("claim", b"epoch 1")
    second = blobs.replace("claim", b"epoch 2", made.etag)
    assert second.etag != made.etag
    for etag in (made.etag, "0" * 32):
        with pytest.raises(ConflictError) as caught:
            blobs.replace("claim", b"zombie", etag)
        assert caught.value.code == "TAPE-3002"
    assert blobs.read("claim") == b"epoch 2"
    assert blobs.replace("claim", b"epoch 3", blobs.stat("claim").etag).size == 7


def test_replacing_what_went_away_is_a_conflict(blobs: Blobs) -> None:
    made = blobs.create("claim", b"mine")
    blobs.delete("claim")
    with pytest.raises(ConflictError) as caught:
        blobs.replace("claim", b"back", made.etag)
    assert caught.value.code == "TAPE-3002"
    assert list(blobs.list()) == []


def test_conditional_write_is_small(blobs: Blobs) -> None:
    assert blobs.create("most", bytes(CONDITIONAL_BYTES)).size == CONDITIONAL_BYTES
    with pytest.raises(InvalidError, match="at most"):
        blobs.put("more", bytes(CONDITIONAL_BYTES + 1), expect=ABSENT)
    assert [blob.name for blob in blobs.list()] == ["most"]


def test_of_sixteen_creators_one_wins(blobs: Blobs) -> None:
    assert blobs.atomic_create
    for round_ in range(5):
        name = f"race/{round_}"
        results = at_once(lambda index, name=name: blobs.create(name, b"%d" % index), 16)  # type: ignore[misc]
        winners = [index for index, result in enumerate(results) if not isinstance(result, Exception)]
        assert len(winners) == 1
        assert {error.code for error in results if isinstance(error, ConflictError)} == {"TAPE-3001"}
        assert blobs.read(name) == b"%d" % winners[0]


def test_no_increment_is_lost(blobs: Blobs) -> None:
    blobs.create("counter", b"0")

    def increment(_: int) -> None:
        for _ in range(5):
            while True:
                with blobs.get("counter") as reader:
                    value, etag = int(reader.read()), reader.blob.etag
                try:
                    blobs.replace("counter", b"%d" % (value + 1), etag)
                    break
                except ConflictError:
                    continue

    at_once(increment, 8)
    assert blobs.read("counter") == b"40"


def test_readers_see_one_version_whole(blobs: Blobs) -> None:
    def version(letter: bytes) -> bytes:
        return letter * (CHUNK + 1)

    blobs.put("x", version(b"a"))
    done = threading.Event()
    seen: Counter[bytes] = Counter()
    failures: list[Exception] = []

    def read() -> None:
        try:
            while not done.is_set():
                data = blobs.read("x")
                assert data == version(data[:1])
                seen[data[:1]] += 1
        except Exception as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for letter in b"bcdefghij":
        blobs.put("x", version(bytes([letter])))
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert sum(seen.values()) >= 3
    assert blobs.read("x") == version(b"j")


NAMES = [
    "é/漢字/🙂",
    "a b+c&d=e?f#g%20",
    "x" * 255,
    "/".join(["é" * 100] * 4),
    "a/.hidden",
    "-",
    "a..b/c...",
    "~",
    "a:b*'\"<>|",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names_are_kept_as_they_are(blobs: Blobs, name: str) -> None:
    made = blobs.create(name, name.encode())
    assert blobs.read(name) == name.encode()
    assert [(blob.name, blob.etag) for blob in blobs.list()] == [(name, made.etag)]
    assert [blob.name for blob in blobs.list(name)] == [name]
    assert blobs.replace(name, b"2", made.etag).size == 1
    blobs.delete(name)
    assert list(blobs.list()) == []


BAD = ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b", "a\nb", "a\\b", "\x7f", "x" * 256, "é" * 128]
BAD += ["/".join(["x" * 100] * 9), "\ud800"]


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_bad_names_are_refused_everywhere(blobs: Blobs, tmp_path: Path, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: blobs.put(name, b""),
        lambda: blobs.create(name, b""),
        lambda: blobs.replace(name, b"", "e"),
        lambda: blobs.get(name),
        lambda: blobs.stat(name),
        lambda: blobs.delete(name),
        lambda: blobs.link(name),
        lambda: blobs.fetch(name, tmp_path / "x"),
    ]
    for call in calls:
        with pytest.raises(InvalidError) as caught:
            call()
        str(caught.value).encode()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../b", "..", "a//", "\0", "\udfff"])
def test_bad_prefixes_are_refused(blobs: Blobs, prefix: str) -> None:
    with pytest.raises(InvalidError):
        list(blobs.list(prefix))


def test_an_object_is_no_folder_of_others_or_both_live(blobs: Blobs) -> None:
    blobs.put("a/b", b"1")
    try:
        blobs.put("a", b"2")
        assert blobs.read("a") == b"2"
    except InvalidError:
        pass
    assert blobs.read("a/b") == b"1"


def test_reader_is_a_standard_stream(blobs: Blobs) -> None:
    blobs.put("x.jsonl", b'{"a": 1}\n{"a": 2}\n', content_type="application/jsonl")
    with blobs.get("x.jsonl") as reader:
        assert reader.blob.size == 18
        assert [json.loads(line) for line in io.TextIOWrapper(reader)] == [{"a": 1}, {"a": 2}]


def test_readers_that_stop_early_do_no_harm(blobs: Blobs) -> None:
    blobs.put("x", noise(3 * CHUNK))
    for _ in range(40):
        with blobs.get("x") as reader:
            assert len(reader.read(10)) == 10
    assert blobs.read("x") == noise(3 * CHUNK)


def test_link_reads_without_credentials(blobs: Blobs) -> None:
    if isinstance(blobs, Memory):
        assert blobs.put("x", b"1") and blobs.link("x") == "memory:x"
        return
    blobs.put("a/ü x.txt", b"linked")
    url = blobs.link("a/ü x.txt", 60)
    assert url.startswith(("file://", "http://"))
    with urllib.request.urlopen(url, timeout=10) as response:
        assert response.read() == b"linked"


def compete(given: dict[str, Any], worker: int, barrier: Any, results: Any) -> None:
    store = open_store(Settings(**given))
    store.stat("ready")
    won = []
    barrier.wait(60)
    for index in range(25):
        try:
            store.create(f"race/{index}", b"%d" % worker)
            won.append(index)
        except ConflictError:
            pass
    results.put((worker, won))


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_of_four_processes_one_wins(engine: str, request: pytest.FixtureRequest) -> None:
    given = address(engine, request)
    store = open_store(Settings(**given))
    store.put("ready", b"")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=compete, args=(given, index, barrier, results)) for index in range(4)]
    for worker in workers:
        worker.start()
    won = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert sorted(index for indices in won.values() for index in indices) == list(range(25))
    for worker_, indices in won.items():
        for index in indices:
            assert store.read(f"race/{index}") == b"%d" % worker_
