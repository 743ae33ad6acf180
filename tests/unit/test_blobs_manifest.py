"""Artifacts: sent once, named last, verified file by file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import Artifact
from schemas.errors import InvalidError, JobError, NotFoundError, UnavailableError
from wire.blobs import Blob, Source
from wire.blobs.manifest import blob_name, materialise, publish, read_manifest
from wire.blobs.memory import Memory

FILES: dict[str, Path | bytes] = {"config.json": b"{}", "deep/er/weights.bin": bytes(100), "copy": b"{}", "empty": b""}
WHO = {"job": "j1", "kind": "training", "name": "adapter"}


class Recording(Memory):
    """A store that remembers what was put, in order, and fails when told."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []
        self.gets: list[str] = []
        self.fail_at: int | None = None

    def put(self, name: str, source: Source, **given: Any) -> Blob:
        if len(self.puts) == self.fail_at:
            raise UnavailableError("gone", code="TAPE-5002")
        blob = super().put(name, source, **given)
        self.puts.append(name)
        return blob

    def get(self, name: str, **given: Any) -> Any:
        self.gets.append(name)
        return super().get(name, **given)


@pytest.fixture
def store() -> Recording:
    return Recording()


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_directory_goes_round(store: Recording, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path, data in FILES.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)  # type: ignore[arg-type]
    artifact = publish(store, source, **WHO, metadata={"loss": 0.5})
    assert (artifact.name, artifact.files, artifact.size) == ("adapter", 4, 104)
    assert artifact.uri == "artifact:artifacts/j1/adapter/manifest.json"
    assert hashlib.sha256(store.read(artifact.uri.removeprefix("artifact:"))).hexdigest() == artifact.sha256
    manifest = materialise(store, artifact, tmp_path / "copy")
    assert written(tmp_path / "copy") == FILES
    assert [file.path for file in manifest.files] == sorted(FILES)
    assert (manifest.job, manifest.kind, manifest.metadata) == ("j1", "training", {"loss": 0.5})
    assert manifest == read_manifest(store, artifact)


def test_blobs_go_once_and_the_manifest_last(store: Recording) -> None:
    first = publish(store, FILES, **WHO)
    assert len(store.puts) == 4, "two files of the same bytes are one blob"
    assert store.puts[-1].endswith("manifest.json")
    assert {name.split("/")[0] for name in store.puts[:-1]} == {"blobs"}
    store.puts.clear()
    assert publish(store, FILES, **WHO) == first
    assert store.puts == []
    assert publish(store, FILES, job="j2", kind="training", name="adapter").uri != first.uri
    assert len(store.puts) == 1


@pytest.mark.parametrize("fail_at", range(4))
def test_interrupted_publication_is_no_artifact(store: Recording, fail_at: int) -> None:
    store.fail_at = fail_at
    with pytest.raises(UnavailableError):
        publish(store, FILES, **WHO)
    assert list(store.list("artifacts/")) == []
    store.fail_at = None
    assert publish(store, FILES, **WHO).files == 4
    assert len(store.puts) == 4, "what was sent before is not sent again"


def test_half_a_blob_is_sent_again(store: Recording) -> None:
    store.put(blob_name(hashlib.sha256(b"whole").hexdigest()), b"who")
    artifact = publish(store, {"x": b"whole"}, **WHO)
    assert read_manifest(store, artifact).files[0].size == 5
    assert store.read(store.puts[1]) == b"whole"


def test_second_attempt_never_alters_the_first(store: Recording, tmp_path: Path) -> None:
    first = publish(store, {"x": b"first"}, **WHO)
    second = publish(store, {"x": b"second"}, **WHO)
    again = publish(store, {"x": b"second"}, **WHO)
    assert second == again
    assert first.uri != second.uri
    for artifact, data in ((first, b"first"), (second, b"second")):
        materialise(store, artifact, tmp_path / data.decode())
        assert (tmp_path / data.decode() / "x").read_bytes() == data


def test_file_that_changes_while_published_is_refused(
    store: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "source" / "x"
    path.parent.mkdir()
    path.write_bytes(b"before")
    stat = store.stat

    def changed(name: str) -> Blob:
        path.write_bytes(b"after!")
        return stat(name)

    monkeypatch.setattr(store, "stat", changed)
    with pytest.raises(JobError) as caught:
        publish(store, tmp_path / "source", **WHO)
    assert caught.value.code == "TAPE-6007"
    assert list(store.list()) == []


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a//b", "a\\b", "C:x"])
def test_paths_that_lead_out_are_refused(store: Recording, path: str) -> None:
    with pytest.raises(InvalidError, match="cannot be in an artifact"):
        publish(store, {path: b"x"}, **WHO)
    assert list(store.list("artifacts/")) == []


def test_nothing_to_publish_is_told(store: Recording, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for files in ({}, tmp_path / "empty"):
        with pytest.raises(InvalidError, match="no file"):
            publish(store, files, **WHO)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    for files in (tmp_path / "none", tmp_path / "file", {"x": tmp_path / "none"}):
        with pytest.raises(NotFoundError) as caught:
            publish(store, files, **WHO)  # type: ignore[arg-type]
        assert caught.value.code == "TAPE-2003"


def test_metadata_that_is_not_json_is_told(store: Recording) -> None:
    with pytest.raises(InvalidError, match="metadata"):
        publish(store, FILES, **WHO, metadata={"x": object()})


def test_metadata_with_no_number_is_still_json(store: Recording) -> None:
    artifact = publish(store, FILES, **WHO, metadata={"loss": math.nan})
    data = store.read(artifact.uri.removeprefix("artifact:"))
    json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("cached", [False, True])
def test_lost_and_altered_blobs_are_found(store: Recording, tmp_path: Path, cached: bool) -> None:
    artifact = publish(store, {"a": b"aaaa", "b": b"bbbb"}, **WHO)
    cache = tmp_path / "cache" if cached else None
    name = blob_name(hashlib.sha256(b"bbbb").hexdigest())
    store.put(name, b"bbbX")
    with pytest.raises(JobError) as caught:
        materialise(store, artifact, tmp_path / "out", cache=cache)
    assert caught.value.code == "TAPE-6007"
    store.delete(name)
    with pytest.raises(NotFoundError, match="b of the artifact"):
        materialise(store, artifact, tmp_path / "out", cache=cache)
    assert written(tmp_path / "out") == {"a": b"aaaa"}
    store.put(name, b"bbbb")
    store.gets.clear()
    materialise(store, artifact, tmp_path / "out", cache=cache)
    assert written(tmp_path / "out") == {"a": b"aaaa", "b": b"bbbb"}
    assert store.gets[1:] == [name], "what was there and right is not read again"


def test_altered_manifest_is_found(store: Recording, tmp_path: Path) -> None:
    artifact = publish(store, FILES, **WHO)
    name = artifact.uri.removeprefix("artifact:")
    store.put(name, store.read(name).replace(b"config", b"gifnoc"))
    with pytest.raises(JobError) as caught:
        materialise(store, artifact, tmp_path)
    assert caught.value.code == "TAPE-6007"
    store.delete(name)
    with pytest.raises(NotFoundError):
        materialise(store, artifact, tmp_path)


def forged(store: Recording, data: bytes) -> Artifact:
    store.put("m.json", data)
    digest = hashlib.sha256(data).hexdigest()
    return Artifact(uri="artifact:m.json", name="x", sha256=digest, size=0, files=0)


def test_what_is_no_manifest_is_told(store: Recording, tmp_path: Path) -> None:
    for data in (b"", b"[]", b'{"files": [{"path": "../x", "sha256": "", "size": 1}]}'):
        with pytest.raises(JobError, match="not a manifest"):
            materialise(store, forged(store, data), tmp_path)
    with pytest.raises(InvalidError, match="not the address"):
        read_manifest(store, Artifact(uri="file:x", name="x", sha256="0" * 64, size=0, files=0))


def test_link_in_the_directory_leads_nobody_out(store: Recording, tmp_path: Path) -> None:
    artifact = publish(store, {"sub/x": b"1"}, **WHO)
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(JobError, match="leads out"):
        materialise(store, artifact, tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []


def test_cache_is_used_and_not_trusted(store: Recording, tmp_path: Path) -> None:
    artifact = publish(store, FILES, **WHO)
    cache = tmp_path / "cache"
    materialise(store, artifact, tmp_path / "one", cache=cache)
    store.gets.clear()
    materialise(store, artifact, tmp_path / "two", cache=cache)
    assert len(store.gets) == 1, "only the manifest is read"
    assert written(tmp_path / "two") == FILES
    assert (tmp_path / "two" / "copy").stat().st_mode & 0o222 == 0
    for path in (cache / "blobs").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.chmod(0o644)
            path.write_bytes(b"x" * path.stat().st_size)
    materialise(store, artifact, tmp_path / "three", cache=cache)
    assert written(tmp_path / "three") == FILES


def test_cache_on_another_file_system_is_copied_from(
    store: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    artifact = publish(store, FILES, **WHO)
    monkeypatch.setattr(os, "link", refuse)
    materialise(store, artifact, tmp_path / "out", cache=tmp_path / "cache")
    assert written(tmp_path / "out") == FILES


def test_files_of_others_are_left_alone(store: Recording, tmp_path: Path) -> None:
    artifact = publish(store, {"x": b"1"}, **WHO)
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "x").write_text("stale")
    materialise(store, artifact, tmp_path)
    assert written(tmp_path) == {"x": b"1", "notes": b"mine"}
