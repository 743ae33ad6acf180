"""Registered data sets on every store: what is registered is what was checked, and is found by reference."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_blobs import blobs  # noqa: F401 - a fixture

from schemas.dataset import DatasetVersion, Rule
from schemas.errors import InvalidError, JobError, NotFoundError
from wire import datasets
from wire.blobs import Blobs
from wire.blobs.manifest import blob_name
from wire.rows import load
from wire.rows.check import Check

NOW = datetime(2030, 1, 2, 9, tzinfo=UTC)
TRAIN = '{"prompt": "2+2=", "completion": "4"}\n{"prompt": "3+3=", "completion": "6"}\n'
HELD = "prompt,completion\n5+5=,10\n"


def add(
    store: Blobs, folder: Path, train: str, *, at: int = 0, fix: bool = False, name: str = "sums"
) -> DatasetVersion:
    work = folder / f"work-{at}-{name}"
    work.mkdir()
    (folder / "train.jsonl").write_text(train)
    (folder / "held.csv").write_text(HELD)
    with Check(work) as check:
        check.take("train", folder / "train.jsonl")
        check.take("test", folder / "held.csv")
        report = check.finish()
        fixed = check.fix() if fix else None
        now = NOW + timedelta(seconds=at)
        return datasets.register(store, name, report, recipe="auto", by="me", now=now, fixed=fixed)


def test_a_version_follows_from_its_rows(blobs: Blobs, tmp_path: Path) -> None:  # noqa: F811
    first = add(blobs, tmp_path, TRAIN)
    assert add(blobs, tmp_path, "\n" + TRAIN.replace('": "', '":"'), at=5) != first, (
        "the lines are others, so the ids are"
    )
    again = add(blobs, tmp_path, TRAIN.replace('": "', '":"'), at=9)
    assert again == first, "the same rows, written in another way, are the same version"
    assert (first.parts["train"].rows, first.parts["test"].rows, first.parts["test"].source) == (2, 1, "held.csv")
    assert (first.warnings, first.fixed, first.report) == ({}, {}, None)
    assert datasets.registry(blobs).names() == ["sums"]


def test_a_part_is_found_and_fetched_by_reference(blobs: Blobs, tmp_path: Path) -> None:  # noqa: F811
    version = add(blobs, tmp_path, TRAIN)
    for reference, part, wanted in [
        ("dataset:sums", "train", "train"),
        ("dataset:sums", "validation", "train"),
        ("dataset:sums#test", "train", "test"),
        (f"dataset:sums@{version.version[:6]}", "test", "test"),
    ]:
        found, named = datasets.find(blobs, reference, part=part)
        assert (found, named) == (version, wanted)
    pinned = datasets.pinned(version, "test")
    assert pinned == f"dataset:sums@{version.version}#test"
    path = datasets.fetch(blobs, version.parts["test"], tmp_path / "cache")
    assert [(row.prompt, row.completion) for row in load(path)] == [("5+5=", "10")]
    path.write_text("rot")
    assert datasets.fetch(blobs, version.parts["test"], tmp_path / "cache").read_text() != "rot"
    with pytest.raises(NotFoundError, match="has no part 'valid'") as lost:
        datasets.find(blobs, "dataset:sums#valid", part="train")
    assert lost.value.hint == "it has train, test"
    with pytest.raises(NotFoundError, match="no dataset is called 'other'"):
        datasets.find(blobs, "dataset:other", part="train")


def test_bytes_that_changed_in_the_store_are_refused(blobs: Blobs, tmp_path: Path) -> None:  # noqa: F811
    version = add(blobs, tmp_path, TRAIN)
    blobs.put(blob_name(version.parts["train"].sha256), b"rot")
    with pytest.raises(JobError) as broken:
        datasets.fetch(blobs, version.parts["train"], tmp_path / "cache")
    assert broken.value.code == "TAPE-6007"


def test_errors_are_not_registered_and_what_was_mended_is_told(blobs: Blobs, tmp_path: Path) -> None:  # noqa: F811
    bad = TRAIN + "{\n" + '{"prompt": "5+5=", "completion": "10"}\n' + '{"prompt": "2+2=", "completion": "5"}\n' + TRAIN
    with pytest.raises(InvalidError) as refused:
        add(blobs, tmp_path, bad)
    assert refused.value.code == "TAPE-1014"
    with pytest.raises(NotFoundError):
        datasets.find(blobs, "dataset:sums", part="train")
    fixed = add(blobs, tmp_path, bad, at=1, fix=True)
    assert fixed.fixed == {Rule.JSON: 1, Rule.LEAK: 1, Rule.DUPLICATE: 2}
    assert fixed.warnings == {Rule.CONFLICT: 1}, "nobody can mend that but the one who knows"
    assert fixed.report is not None
    assert blobs.read(blob_name(fixed.report)).count(b"\n") == 5
    with pytest.raises(InvalidError):
        add(blobs, tmp_path, "{\n", at=2, fix=True)
