"""`tape data`: what people read when their rows are wrong, and what is registered when they are right."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cli_rig import Tape
from models_rig import Stock, at

from producers.cli.exits import Exit
from producers.memory import MemoryPorts
from schemas.dataset import DatasetVersion
from wire.datasets import register
from wire.rows.check import Check

pytestmark = pytest.mark.usefixtures("home")
GOOD = [{"prompt": "2+2=", "completion": "4"}, {"prompt": "3+3=", "completion": "6"}]


def rows(path: Path, *records: Any) -> str:
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records) + b"\n")
    return str(path)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return rows(tmp_path / "good.jsonl", *GOOD)


def test_what_is_wrong_is_told_line_by_line_and_nothing_is_registered(tape: Tape, tmp_path: Path) -> None:
    bad = rows(tmp_path / "bad.jsonl", GOOD[0], b"{nope", {"prompt": "a"}, GOOD[0])
    for command in (["check", bad], ["add", bad, "--name", "sums"]):
        found = tape("data", *command, outside=None)
        assert [(row["line"], row["rule"], row["error"]) for row in found.rows] == [
            (2, "json", True), (3, "answer", True), (4, "duplicate", False),
        ]  # fmt: skip
        assert found.rows[0]["problem"] == "column 2 is not JSON: Expecting property name enclosed in double quotes"
        assert found.rows[1]["way_out"] == "add the answer, or leave the row out"
        assert found.code == Exit.INVALID
        assert "TAPE-1014 2 errors: 1 json, 1 answer" in found.err
        assert "file=bad.jsonl  line=2  field=line" in found.err
        assert "--fix" in found.err
    assert tape("data", "ls", outside=None).rows == []


def test_what_was_checked_is_what_is_proposed_to_add(tape: Tape, good: str, tmp_path: Path) -> None:
    assert f"tape data add {good} --name NAME" in tape("data", "check", good, outside=None).err
    held = rows(tmp_path / "held out.jsonl", {"prompt": "5+5=", "completion": "10"})
    last = rows(tmp_path / "test.jsonl", {"prompt": "6+6=", "completion": "12"})
    given = ("--validation", held, "--test", last, "--recipe", "prompt", "--longest", "99")
    told = tape("data", "check", good, *given, outside=None).err
    options = f"--validation '{held}' --test {last} --recipe prompt --longest 99"
    assert f"tape data add {good} {options} --name NAME" in told


def test_a_set_is_registered_listed_shown_and_taken_out(tape: Tape, good: str, tmp_path: Path) -> None:
    held = rows(tmp_path / "held.jsonl", {"prompt": "5+5=", "completion": "10"})
    added = tape("data", "add", good, "--name", "sums", "--test", held, outside=None)
    assert added.code == 0, added.err
    assert (added.row["name"], added.row["rows"], added.row["parts"]) == ("sums", 3, {"train": 2, "test": 1})
    assert "nothing is wrong" in added.err
    assert tape("data", "add", good, "--name", "sums", "--test", held, outside=None).row == added.row, "it is there"
    assert tape("data", "ls", outside=None).row["version"] == added.row["version"]
    assert tape("data", "ls", "sums", outside=None).row["version"] == added.row["version"]
    shown = tape("data", "show", "sums", outside=None).row
    assert shown["test"]["reference"] == f"dataset:sums@{added.row['version']}#test"
    taken = tape("data", "get", f"sums@{added.row['version'][:5]}", str(tmp_path / "out"), outside=None)
    assert [row["rows"] for row in taken.rows] == [2, 1]
    assert json.loads((tmp_path / "out" / "test.jsonl").read_text()) == {
        "id": "1",
        "prompt": "5+5=",
        "completion": "10",
    }


def test_a_mended_set_leaves_out_and_hides(tape: Tape, tmp_path: Path) -> None:
    bad = rows(tmp_path / "bad.jsonl", GOOD[0], b"{", {"text": "mail a.b@example.com"})
    added = tape(
        "data", "add", bad, "--name", "sums", "--fix", "--mask", "--report", str(tmp_path / "all"), outside=None
    )
    assert added.code == 0, added.err
    assert added.rows[-1]["left_out"] == {"json": 1, "personal": 1}
    assert [row["rule"] for row in added.rows[:-1]] == ["json"], "what was hidden needs no way out"
    assert [json.loads(line)["rule"] for line in (tmp_path / "all").read_text().splitlines()] == ["json", "personal"]
    tape("data", "get", "sums", str(tmp_path / "out"), outside=None)
    assert "mail [email]" in (tmp_path / "out" / "train.jsonl").read_text()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["check", "{tmp}/none.jsonl"], Exit.NOT_FOUND, "TAPE-2003 there is no such data file"),
        (["check", "{tmp}"], Exit.NOT_FOUND, "there is no data file"),
        (["check", "{good}", "--recipe", "soup"], Exit.USAGE, "no recipe is called 'soup'"),
        (["add", "{good}"], Exit.USAGE, "Missing option '--name'"),
        (["add", "{good}", "--name", "a/b"], Exit.USAGE, "'a/b' is no name"),
        (["add", "{cut}", "--name", "x", "--fix"], Exit.INVALID, "cut.csv cannot be read to its end: mend it"),
        (["add", "{empty}", "--name", "x", "--fix"], Exit.INVALID, "nothing is left of a part once it is mended"),
        (["add", "{good}", "--name", "x", "--report", "{tmp}/no/where"], Exit.USAGE, "cannot be written"),
        (["show", "nothing"], Exit.NOT_FOUND, "TAPE-2008 no dataset is called 'nothing'"),
        (["get", "nothing", "{tmp}/out"], Exit.NOT_FOUND, "TAPE-2008"),
        (["ls", "nothing"], Exit.NOT_FOUND, "TAPE-2008"),
    ],
)
def test_what_is_asked_wrongly(tape: Tape, good: str, tmp_path: Path, argv: list[str], code: Exit, words: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cut.csv").write_text('prompt,completion\na,b\n"open')
    (tmp_path / "data" / "empty.jsonl").write_text("{\n")
    (tmp_path / "folder").mkdir()
    places = {
        "tmp": str(tmp_path / "folder"), "good": good, "cut": str(tmp_path / "data" / "cut.csv"),
        "empty": str(tmp_path / "data" / "empty.jsonl"),
    }  # fmt: skip
    found = tape("data", *(part.format(**places) for part in argv), outside=None)
    assert words in found.err
    assert found.code == code


def test_a_folder_gives_its_parts(tape: Tape, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, record in zip(("train", "dev"), GOOD, strict=True):
        rows(tmp_path / "set" / f"{name}.jsonl", record)
    added = tape("data", "add", str(tmp_path / "set"), "--name", "sums", outside=None)
    assert added.row["parts"] == {"train": 1, "validation": 1}
    rows(tmp_path / "set" / "more_train.jsonl", GOOD[0])
    many = tape("data", "add", str(tmp_path / "set"), "--name", "sums", outside=None)
    assert "2 files of the folder could be the same part: more_train.jsonl, train.jsonl" in many.err


def test_a_job_is_submitted_for_the_very_rows(tape: Tape, ports: MemoryPorts, good: str) -> None:
    version = DatasetVersion.model_validate(_added(tape, ports, good))
    done = tape(
        "submit", "training", "--data", "dataset:sums", "--validation", "dataset:sums", "--set", "base=builtin:smollm2"
    )
    assert done.code == 0, done.err
    (record,) = ports.of("tape.jobs.training.bulk")
    params = json.loads(record.value or b"")["params"]
    pinned = f"dataset:sums@{version.version}"
    assert (params["data"], params["validation"]) == (f"{pinned}#train", f"{pinned}#train")
    assert f"dataset:sums is {pinned}#train" in done.err
    lost = tape("submit", "training", "--data", "dataset:other", "--set", "base=builtin:smollm2")
    assert (lost.code, "TAPE-2008" in lost.err) == (Exit.NOT_FOUND, True)
    assert len(ports.of("tape.jobs.training.bulk")) == 1


def test_every_version_that_a_request_names_is_written_into_it(tape: Tape, ports: MemoryPorts, good: str) -> None:
    rows = f"dataset:sums@{DatasetVersion.model_validate(_added(tape, ports, good)).version}"
    model = f"model:{at(Stock(ports.blobs).put(b'1', 'tiny', method='full'))}"
    asked = {
        "base": "model:tiny", "data": "blob:rows.jsonl", "validation": "dataset:sums", "teacher": "model:tiny",
        "method": "distill",
    }  # fmt: skip
    sets = [word for name, ref in asked.items() for word in ("--set", f"{name}={ref}")]
    expected = asked | {"base": model, "validation": f"{rows}#train", "teacher": model}
    shown = tape("submit", "training", "--dry-run", *sets)
    assert {name: shown.row["value"]["params"][name] for name in asked} == expected
    assert f"model:tiny is {model}" in shown.err
    keyed = tape("submit", "training", "--dry-run", "--key", "k", *sets)
    assert {name: keyed.row["value"]["params"][name] for name in asked} == asked, "the same key is the same request"
    later = tape("submit", "inference", "--dry-run", "--set", "model=model:later", "--set", "prompt=Hello")
    assert later.row["value"]["params"]["model"] == "model:later", "a job before this one may register it"
    assert "model:later is looked up when the job starts: no model is called 'later'" in later.err


def _added(tape: Tape, ports: MemoryPorts, good: str) -> Any:
    """Register a set in the store of the queue in memory."""
    with tempfile.TemporaryDirectory() as folder, Check(Path(folder)) as check:
        check.take("train", Path(good))
        report = check.finish()
        return register(
            ports.blobs, "sums", report, recipe="auto", by="me", now=datetime(2030, 1, 2, tzinfo=UTC)
        ).model_dump()
