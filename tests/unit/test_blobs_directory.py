"""The directory store: atomic under kill, honest about damage, tidy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import wire
from schemas.errors import AuthError, ConflictError, InvalidError, JobError, NotFoundError, UnavailableError
from wire.blobs import directory, open_store
from wire.blobs.directory import Directory
from wire.blobs.memory import Memory
from wire.blobs.port import ABSENT, Blobs
from wire.settings import Settings

KILLED = """
import sys, threading
from pathlib import Path
from wire.blobs.directory import Directory
class Endless:
    def read(self, size):
        print("reading", flush=True)
        if self.given:
            threading.Event().wait()
        self.given = True
        return b"x" * size
    given = False
Directory(Path(sys.argv[1])).put("half", Endless())
"""


@pytest.fixture
def store(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "store")


def data_files(store: Directory) -> list[Path]:
    return sorted(path for path in (store.root / "data").glob("*/*"))


def age(path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(path, (past, past), follow_symlinks=False)


def test_writer_killed_in_the_middle_leaves_nothing_visible(store: Directory) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(wire.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root)], stdout=subprocess.PIPE, text=True, env=env
    ) as writer:
        assert writer.stdout is not None
        assert [writer.stdout.readline() for _ in range(2)] == ["reading\n"] * 2
        writer.send_signal(signal.SIGKILL)
    assert list(store.list()) == []
    with pytest.raises(NotFoundError):
        store.stat("half")
    assert store.create("half", b"whole").size == 5
    (left,) = (store.root / "tmp").iterdir()
    assert store.sweep() == 0, "a young temporary file may belong to a writer at work"
    age(left, 2 * directory.DAY_S)
    Directory(store.root)
    assert list((store.root / "tmp").iterdir()) == []
    assert store.read("half") == b"whole"


@pytest.mark.parametrize("step", ["_keep", "_point"])
def test_failure_at_any_step_leaves_the_old_object(
    store: Directory, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store.put("x", b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, step, fail)
    for name in ("x", "new"):
        with pytest.raises(UnavailableError, match="free some space") as caught:
            store.put(name, b"new")
        assert caught.value.code == "TAPE-5002"
    monkeypatch.undo()
    assert [(blob.name, store.read(blob.name)) for blob in store.list()] == [("x", b"old")]
    assert list((store.root / "tmp").iterdir()) == []
    for path in data_files(store):
        age(path, 100)
    assert store.sweep(older_s=10) == (2 if step == "_point" else 0)
    assert store.read("x") == b"old"


def test_failing_source_leaves_nothing(store: Directory) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.put("x", Broken())  # type: ignore[arg-type]
    assert list(store.list()) == []
    assert list((store.root / "tmp").iterdir()) == []


def test_flipped_bit_is_found(store: Directory, tmp_path: Path) -> None:
    store.put("x", bytes(5000))
    (path,) = data_files(store)
    with path.open("r+b") as file:
        file.seek(4000)
        file.write(b"\x01")
    for call in (lambda: store.read("x"), lambda: store.fetch("x", tmp_path / "copy")):
        with pytest.raises(JobError) as caught:
            call()
        assert caught.value.code == "TAPE-6007"
    assert not (tmp_path / "copy").exists()
    store.put("x", bytes(5000))
    assert store.read("x") == bytes(5000), "storing it again mends it"


def test_truncated_and_lost_data_are_found(store: Directory) -> None:
    store.put("x", b"0123456789")
    (path,) = data_files(store)
    os.truncate(path, 5)
    with pytest.raises(JobError, match="TAPE-6007"):
        store.read("x")
    path.unlink()
    for call in (store.read, store.stat):
        with pytest.raises(JobError, match="its data is gone"):
            call("x")
    assert list(store.list()) == []
    store.delete("x")
    with pytest.raises(NotFoundError):
        store.stat("x")


def test_nothing_is_left_of_what_was_replaced_or_deleted(store: Directory) -> None:
    made = store.create("a/b/c", b"1")
    made = store.replace("a/b/c", b"2", made.etag)
    store.put("a/b/c", b"3")
    assert len(data_files(store)) == 1
    store.delete("a/b/c")
    assert data_files(store) == []
    assert list((store.root / "objects").iterdir()) == []


def test_sweep_keeps_every_object(store: Directory) -> None:
    for index in range(5):
        store.put(f"n{index}/x", b"%d" % index)
    for path in data_files(store):
        age(path, 10 * directory.DAY_S)
    assert store.sweep() == 0
    assert len(list(store.list())) == 5


def test_same_bytes_written_again_have_another_etag(store: Directory) -> None:
    first = store.put("x", b"a")
    store.put("x", b"b")
    third = store.put("x", b"a")
    assert (first.sha256, first.etag != third.etag) == (third.sha256, True)
    with pytest.raises(ConflictError):
        store.replace("x", b"zombie", first.etag)


def test_name_cannot_be_an_object_and_a_folder(store: Directory) -> None:
    store.put("a/b", b"1")
    store.put("c", b"2")
    for name in ("a", "c/d", "c/d/e"):
        for expect in (None, ABSENT):
            with pytest.raises(InvalidError, match="part of it"):
                store.put(name, b"3", expect=expect)
    assert store.read("a/b") + store.read("c") == b"12"
    assert list(store.list("c/d")) == []


def test_what_is_no_object_is_left_alone(store: Directory) -> None:
    (store.root / "objects" / "README").write_text("put here by hand")
    assert list(store.list()) == []
    with pytest.raises(NotFoundError):
        store.read("README")
    with pytest.raises(InvalidError):
        store.put("README", b"")


def test_link_cannot_lead_out_of_the_store(store: Directory, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (store.root / "objects" / "x").symlink_to(tmp_path / "secret")
    with pytest.raises(JobError, match="its data is gone"):
        store.read("x")


def test_denied_and_failing_disks_are_told_apart(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: OSError) -> Any:
        def raise_it(*_: Any) -> BinaryIO:
            raise error

        return raise_it

    store.put("x", b"1")
    monkeypatch.setattr(store, "_open", refuse(PermissionError(13, "Permission denied", "x")))
    with pytest.raises(AuthError) as caught:
        store.read("x")
    assert caught.value.code == "TAPE-4003"
    monkeypatch.setattr(store, "_open", refuse(OSError(5, "Input/output error")))
    with pytest.raises(UnavailableError, match="check the store's disk"):
        store.read("x")


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidError):
        Directory(tmp_path / "file")


def test_write_survives_neighbours_that_take_the_folder_away(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    make, taken = directory._make, []

    def make_and_lose(folder: Path) -> None:
        make(folder)
        if folder.name == "shared" and len(taken) < 3:
            taken.append(folder)
            folder.rmdir()

    monkeypatch.setattr(directory, "_make", make_and_lose)
    store.put("shared/x", b"1")
    assert len(taken) == 3
    assert store.read("shared/x") == b"1"


def test_reader_keeps_what_it_opened(store: Directory) -> None:
    store.put("x", b"old")
    with store.get("x") as reader:
        store.put("x", b"new!")
        assert reader.read() == b"old"


def test_read_looks_again_when_replaced_between_two_looks(store: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("x", b"old")
    looked, look = [], store._target

    def replaced_after_the_look(link: Path) -> Path | None:
        target = look(link)
        if not looked:
            looked.append(target)
            store.put("x", b"new")
        return target

    monkeypatch.setattr(store, "_target", replaced_after_the_look)
    assert store.read("x") == b"new"


PART = st.text(st.characters(exclude_characters="/\\", exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
NAME = st.lists(PART.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map("/".join)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=NAME, data=st.binary(max_size=50))
def test_any_good_name_is_kept(store: Directory, name: str, data: bytes) -> None:
    made = store.put(name, data)
    assert [blob for blob in store.list(name) if blob.name == name] == [made]
    assert store.read(name) == data
    store.delete(name)
    assert list(store.list()) == []


class Twins(RuleBasedStateMachine):
    """Directory and memory answer alike whatever is done to them."""

    names = st.sampled_from(["a", "b/c", "b/d", "e"])
    data = st.binary(max_size=3)

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[Blobs] = [Memory(), Directory(Path(tempfile.mkdtemp(dir=self.root)))]

    def both(self, call: Any) -> None:
        answers = []
        for store in self.stores:
            try:
                answers.append(call(store))
            except (ConflictError, NotFoundError) as error:
                answers.append(error.code)
        assert answers[0] == answers[1]

    @rule(name=names, data=data)
    def put(self, name: str, data: bytes) -> None:
        self.both(lambda store: store.put(name, data).sha256)

    @rule(name=names, data=data)
    def create(self, name: str, data: bytes) -> None:
        self.both(lambda store: store.create(name, data).size)

    @rule(name=names, data=data, stale=st.booleans())
    def replace(self, name: str, data: bytes, stale: bool) -> None:
        self.both(lambda store: store.replace(name, data, "stale" if stale else store.stat(name).etag).size)

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.both(lambda store: store.delete(name))

    @rule(name=names)
    def read(self, name: str) -> None:
        self.both(lambda store: store.read(name))

    @invariant()
    def alike(self) -> None:
        for prefix in ("", "b", "b/"):
            self.both(lambda store, prefix=prefix: [(blob.name, blob.sha256) for blob in store.list(prefix)])


def test_directory_and_memory_are_twins(tmp_path: Path) -> None:
    machine = type("RootedTwins", (Twins,), {"root": tmp_path}).TestCase
    machine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
    machine("runTest").debug()


def test_a_store_that_is_away_is_an_outage_and_never_begun_anew(tmp_path: Path) -> None:
    """An empty store in the place of an unmounted one would know of no outcome, and let jobs run again."""
    held = Settings(home=tmp_path / "home", store_url=f"dir:{tmp_path / 'store'}")
    store = open_store(held)
    store.put("runs/j/outcome.json", b"{}")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    calls: list[Callable[[], object]] = [
        lambda: store.read("runs/j/outcome.json"),
        lambda: store.stat("runs/k/outcome.json"),
        lambda: list(store.list("runs/")),
        lambda: store.put("x", b"1"),
        lambda: store.delete("runs/j/outcome.json"),
        lambda: open_store(held),
    ]
    for call in calls:
        with pytest.raises(UnavailableError) as caught:
            call()
        assert caught.value.code == "TAPE-5002"
        assert not (tmp_path / "store").exists(), "nothing was put in its place"
    with pytest.raises(UnavailableError, match="there is no store any more") as caught:
        open_store(held)
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert store.read("runs/j/outcome.json") == open_store(held).read("runs/j/outcome.json") == b"{}"

    (tmp_path / "store").rename(tmp_path / "elsewhere")
    [note] = (tmp_path / "home" / "stores").iterdir()
    assert str(note) in (caught.value.hint or ""), "the way out"
    note.unlink()
    assert list(open_store(held).list()) == []


def test_a_store_whose_place_something_else_takes_is_no_fault_of_a_job(tmp_path: Path) -> None:
    held = Settings(home=tmp_path / "home", store_url=f"dir:{tmp_path / 'store'}")
    store = open_store(held)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").touch()
    for call in (lambda: store.put("x", b"1"), lambda: store.read("x"), lambda: open_store(held)):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert caught.value.code == "TAPE-5002"
