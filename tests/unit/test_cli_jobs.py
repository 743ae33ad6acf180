"""The commands that submit, watch, list and explain jobs; the queue is in memory."""

from __future__ import annotations

import json
import re
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_rig import PARAMS, Tape, ended, submitted, told

from producers.cli.exits import Exit
from producers.memory import MemoryPorts
from schemas import codec
from schemas.errors import CODES, AuthError, TapeError, UnavailableError
from schemas.event import EventType
from schemas.foreign import FOREIGN
from schemas.ids import uuid7
from schemas.outcome import Failure, Outcome, Status, outcome_name
from wire.blobs.directory import Directory
from wire.blobs.manifest import publish

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("home")


class TestSubmit:
    def test_the_job_is_on_stdout_and_the_rest_is_not(self, tape: Tape, ports: MemoryPorts) -> None:
        found = tape("submit", "inference", "--params", PARAMS, "--lane", "interactive", "--label", "a=b")
        assert found.code == Exit.OK
        (row,) = found.rows
        (record,) = ports.of("tape.jobs.inference.interactive")
        assert record.key == row["job"].encode()
        assert json.loads(record.value or b"")["labels"] == {"a": "b"}
        assert f"next: tape watch {row['job']}" in found.err

    def test_treatment(self, tape: Tape, ports: MemoryPorts) -> None:
        submitted(
            tape, "--timeout", "2m", "--expires-in", "1h", "--max-attempts", "2", "--tenant", "acme", "--key", "k"
        )
        value = json.loads(ports.of("tape.jobs.inference.bulk")[0].value or b"")
        assert (value["timeout_s"], value["max_attempts"], value["tenant"], value["key"]) == (120, 2, "acme", "k")
        assert datetime.fromisoformat(value["expires_at"]) > datetime.now(UTC) + timedelta(minutes=59)

    @pytest.mark.parametrize("status", [Status.CANCELLED, Status.SUCCEEDED, Status.FAILED])
    def test_a_key_whose_job_has_ended_says_so(self, tape: Tape, ports: MemoryPorts, status: Status) -> None:
        job = submitted(tape, "--key", "k")
        again = tape("submit", "inference", "--params", PARAMS, "--key", "k")
        assert "run it again" not in again.err
        assert f"next: tape watch {job}" in again.err
        found = Outcome(job=job, kind="inference", status=status, attempt=1, worker="w",
                        finished_at=datetime(2030, 1, 2, 10, tzinfo=timezone(timedelta(hours=1))))  # fmt: skip
        ports.blobs.create(outcome_name(job), codec.dump(found))
        told = tape("submit", "inference", "--params", PARAMS, "--key", "k")
        assert (told.code, told.row["job"]) == (Exit.OK, job)
        note = f"the job of this key ended as {status.value} at 2030-01-02 09:00:00 UTC and is not run again"
        assert note in told.err
        assert "give another --key" in told.err
        assert (f"next: tape result {job}" in told.err, "tape watch" in told.err) == (True, False)
        assert len(ports.of("tape.jobs.inference.bulk")) == 2

    def test_times_that_contradict_each_other_are_refused(self, tape: Tape, ports: MemoryPorts) -> None:
        refused = tape("submit", "inference", "--params", PARAMS, "--start-in", "30s", "--expires-in", "5s")
        assert (refused.code, "TAPE-1002" in refused.err, "--start-in" in refused.err) == (Exit.INVALID, True, True)
        far = tape("submit", "inference", "--params", PARAMS, "--start-in", "99999999999d")
        assert (far.code, "TAPE-1010" in far.err, "field=--start-in" in far.err) == (Exit.USAGE, True, True)
        assert ports.of("tape.jobs.inference.bulk") == []

    def test_a_local_file_is_uploaded(self, tape: Tape, ports: MemoryPorts, tmp_path: Path) -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"text": "x"}\n')
        found = tape("submit", "training", "--set", "base=builtin:b", "--data", str(rows), "--validation", "blob:v")
        params = json.loads(ports.of("tape.jobs.training.bulk")[0].value or b"")["params"]
        assert params["data"].startswith("blob:uploads/")
        assert params["validation"] == "blob:v"
        assert ports.blobs.read(params["data"].removeprefix("blob:")) == rows.read_bytes()
        assert found.code == Exit.OK

    def test_a_dry_run_sends_nothing(self, tape: Tape, ports: MemoryPorts, tmp_path: Path) -> None:
        (row,) = tape("submit", "training", "--set", "base=b", "--data", str(tmp_path / "rows.jsonl"), "--dry-run").rows
        assert row["topic"] == "tape.jobs.training.bulk"
        assert row["value"]["params"]["base"] == "b"
        assert row["headers"]["ce_type"] == "tape.request.training.v1"
        assert ports.records == []

    def test_waiting_prints_the_outcome(self, tape: Tape, ports: MemoryPorts) -> None:
        publish = ports.publish

        def and_end(message: Any) -> Any:
            future = publish(message)
            if ".jobs." not in message.topic:
                told(ports, message.key, EventType.RUNNING, attempt=1, worker="w", progress={"loss": 0.12345})
                ended(ports, message.key, result={"text": "yes"})
            return future

        ports.publish = and_end  # type: ignore[method-assign]
        found = tape("submit", "inference", "--params", PARAMS, "--wait")
        assert found.code == Exit.OK
        assert found.rows[0]["result"] == {"text": "yes"}
        assert "loss=0.1235" in found.err

    def test_waiting_for_too_long(self, tape: Tape) -> None:
        found = tape("submit", "inference", "--params", PARAMS, "--wait", "--wait-timeout", "0.05")
        assert found.code == Exit.TIMEOUT
        assert "TAPE-7002" in found.err


class TestBadInput:
    """The list of the issue, each with its code and its exit."""

    @pytest.mark.parametrize(
        ("argv", "code", "exit_", "named"),
        [
            (("submit", "translation", "--params", "{}"), "TAPE-1003", 5, "inference"),
            (("submit", "inference", "--params", '{"model": \n x}'), "TAPE-1001", 5, "line=2  column=2"),
            (("submit", "inference", "--params", "[1]"), "TAPE-1001", 5, "JSON array"),
            (("submit", "inference", "--params", '{"model": 3, "prompt": "x"}'), "TAPE-1002", 5, "field=model"),
            (("submit", "inference", "--params", '{"model": "m"}'), "TAPE-1002", 5, "prompt, messages and data"),
            (("submit", "inference", "--params", PARAMS, "--lane", "fast"), "TAPE-1002", 5, "field=lane"),
            (("submit", "inference", "--params", "@nowhere.json"), "TAPE-2003", 3, "nowhere.json"),
            (("submit", "training", "--set", "base=b", "--data", "nowhere.jsonl"), "TAPE-2003", 3, "nowhere.jsonl"),
            (("put", "nowhere"), "TAPE-2003", 3, "nowhere"),
            (("watch", "0000", "--timeout", "0.1s"), "TAPE-7002", 7, "job=0000"),
            (("result", "0000"), "TAPE-2002", 3, "job=0000"),
            (("trace", "0000"), "TAPE-2002", 3, "job=0000"),
            (("errors", "TAPE-0000"), "TAPE-1010", 2, "TAPE-0000"),
        ],
    )
    def test_it_is_named(
        self, tape: Tape, ports: MemoryPorts, argv: tuple[str, ...], code: str, exit_: int, named: str
    ) -> None:
        found = tape(*argv)
        assert found.code == exit_
        assert found.err.startswith(f"{code} ") or f"\n{code} " in found.err
        assert named in found.err
        assert "Traceback" not in found.err
        assert found.out == ""
        assert ports.records == []

    def test_a_job_nobody_told_of_is_cancelled_all_the_same(self, tape: Tape, ports: MemoryPorts) -> None:
        found = tape("cancel", "job-1")
        assert found.code == Exit.NOT_FOUND
        assert "no event tells of this job; should it come, it will not run" in found.err
        (record,) = ports.of("tape.control")
        assert record.key == b"job-1"

    def test_the_file_of_bad_json_is_named(self, tape: Tape, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        path.write_text('{\n"a": 1,\n}')
        found = tape("submit", "inference", "--params", f"@{path}")
        assert "line=3" in found.err
        assert str(path) in found.err

    @pytest.mark.parametrize(
        ("failure", "exit_"),
        [(UnavailableError("no broker"), 69), (AuthError("refused", code="TAPE-4001"), 4)],
    )
    def test_a_broker_that_is_not_there_or_refuses(
        self, tape: Tape, ports: MemoryPorts, failure: TapeError, exit_: int
    ) -> None:
        ports.failure = failure
        for argv in (("jobs",), ("submit", "inference", "--params", PARAMS), ("cancel", uuid7())):
            found = tape(*argv)
            assert (found.code, failure.code in found.err) == (exit_, True)


class TestJobs:
    def test_a_list(self, tape: Tape, ports: MemoryPorts) -> None:
        first, second = submitted(tape), submitted(tape, "--tenant", "acme")
        told(ports, first, EventType.RUNNING, attempt=1, worker="w1")
        ended(ports, first)
        rows = {row["job"]: row for row in tape("jobs").rows}
        assert rows[first]["state"] == "succeeded"
        assert rows[first]["worker"] == "w"
        assert rows[second]["state"] == "queued"
        assert [row["job"] for row in tape("jobs", "--state", "queued").rows] == [second]
        assert [row["job"] for row in tape("jobs", "--tenant", "acme").rows] == [second]
        assert tape("jobs", "--kind", "training").rows == []

    def test_the_newest_are_shown(self, tape: Tape) -> None:
        jobs = [submitted(tape) for _ in range(4)]
        found = tape("jobs", "--limit", "2")
        assert [row["job"] for row in found.rows] == jobs[2:]
        assert "2 older jobs left out" in found.err

    @pytest.mark.parametrize("form", ["table", "json", "jsonl", "yaml"])
    def test_formats(self, tape: Tape, form: str) -> None:
        job = submitted(tape)
        out = tape("jobs", "--output", form).out
        if form == "table":
            assert out.splitlines()[0].split()[:4] == ["JOB", "KIND", "STATE", "TRY"]
            assert job in out
        else:
            read = {"json": json.loads, "yaml": yaml.safe_load, "jsonl": lambda text: [json.loads(text)]}[form]
            assert read(out)[0]["job"] == job

    def test_no_escape_codes_in_a_pipe(self, tape: Tape) -> None:
        submitted(tape)
        assert "\x1b" not in tape("jobs", "--output", "table", "--no-color").out

    def test_no_jobs(self, tape: Tape) -> None:
        found = tape("jobs", "--output", "table")
        assert found.code == Exit.OK
        assert "widen --since" in found.err


class TestWatch:
    def test_events_come_in_order(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        told(ports, job, EventType.RUNNING, attempt=1, worker="w")
        ended(ports, job)
        found = tape("watch", job)
        assert [row["type"] for row in found.rows] == ["queued", "running", "succeeded"]
        assert found.code == Exit.OK

    def test_people_read_lines(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        failure = Failure(failure="invalid", code="TAPE-1008", message="[line] 3")
        ended(ports, job, Status.FAILED, failure=failure)
        told(ports, job, EventType.RUNNING)
        found = tape("watch", job, "--output", "table", "--since", "1h")
        assert found.code == Exit.JOB
        assert re.search(r"\d\d:\d\d:\d\d  failed      attempt 1  on w", found.out)

    def test_it_ends_in_time(self, tape: Tape) -> None:
        assert tape("watch", submitted(tape), "--timeout", "0.05").code == Exit.TIMEOUT


class TestResult:
    def test_an_outcome(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        ended(ports, job, result={"text": "yes"})
        found = tape("result", job)
        assert (found.code, found.rows[0]["result"]) == (Exit.OK, {"text": "yes"})

    def test_a_failure(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        failure = Failure(failure="invalid", code="TAPE-1008", message="a bad line", hint="mend it", place={"line": 3})
        ended(ports, job, Status.FAILED, failure=failure)
        found = tape("result", job, "--output", "table")
        assert found.code == Exit.JOB
        for text in ("TAPE-1008", "a bad line", "mend it", '"line": 3'):
            assert text in found.out

    def test_artifacts_are_named(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        artifact = {"uri": "artifact:a/b", "name": "adapter", "sha256": "0" * 64, "size": 1234, "files": 2}
        ended(ports, job, artifacts=[artifact])
        assert "artifact:a/b (2 files, 1,234 bytes)" in tape("result", job, "--output", "table").out

    def test_it_has_not_ended(self, tape: Tape) -> None:
        found = tape("result", submitted(tape))
        assert found.code == Exit.TIMEOUT
        assert "the job is queued" in found.err
        assert "--wait" in found.err

    def test_waiting_has_an_end(self, tape: Tape) -> None:
        assert tape("result", submitted(tape), "--wait", "--timeout", "0.05").code == Exit.TIMEOUT


class TestCancel:
    def test_it_is_asked_for(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        found = tape("cancel", job, "--reason", "enough")
        assert found.rows == [{"job": job, "state": "cancelled", "asked": True}]
        assert json.loads(ports.of("tape.control")[0].value or b"")["reason"] == "enough"

    def test_one_that_goes_on_all_the_same_is_told_as_such(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        told(ports, job, EventType.RUNNING, attempt=1, worker="w1")
        found = tape("cancel", job, "--reason", "a slip")
        assert found.rows == [{"job": job, "state": "running", "asked": True}]
        assert f"should that take more than some seconds: tape why {job}" in found.err
        assert "cancelled (a slip) and has not stopped yet" in tape("watch", job, "--timeout", "0.2").err
        ended(ports, job)
        assert "has not stopped" not in tape("watch", job).err

    def test_an_ended_job_is_left_alone(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        ended(ports, job)
        assert tape("cancel", job).rows == [{"job": job, "state": "succeeded", "asked": False}]
        assert not [one for one in ports.of("tape.events") if b'"cancelled"' in (one.value or b"")]

    def test_it_needs_no_store(self, tape: Tape, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch) -> None:
        job = submitted(tape)

        def away(*_: object, **__: object) -> None:
            raise UnavailableError("the store does not answer", code="TAPE-5002")

        for name in ("put", "get", "stat"):
            monkeypatch.setattr(ports.blobs, name, away)
        found = tape("cancel", job)
        assert (found.code, found.rows) == (0, [{"job": job, "state": "queued", "asked": True}])
        assert ports.of("tape.control")[0].key == job.encode()

    def test_a_store_that_hangs_keeps_nobody(
        self, tape: Tape, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, over = submitted(tape), threading.Event()
        monkeypatch.setattr("producers.client.LOOK_S", 0.05)
        monkeypatch.setattr(ports.blobs, "put", lambda *_, **__: over.wait(30))
        found = tape("cancel", job)
        over.set()
        assert found.rows == [{"job": job, "state": "queued", "asked": True}]

    def test_some_of_them(self, tape: Tape) -> None:
        found = tape("cancel", "no/id", submitted(tape))
        assert found.code == Exit.PARTLY
        assert len(found.rows) == 1


class TestOthers:
    def test_files_go_in_and_come_out(self, tape: Tape, home: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text("{}\n")
        reference = tape("put", str(path), outside=None).rows[0]["reference"]
        found = tape("get", reference, str(tmp_path / "b.jsonl"), outside=None)
        assert found.rows[0]["size"] == 3
        assert (tmp_path / "b.jsonl").read_text() == "{}\n"
        assert tape("get", "blob:nothing", str(tmp_path / "c"), outside=None).code == Exit.NOT_FOUND

    def test_artifacts_come_out(self, tape: Tape, home: Path, tmp_path: Path) -> None:
        store = Directory(home / "store")
        made = {
            name: publish(store, {"a.txt": name.encode()}, job="j", kind="training", name=name) for name in ("x", "y")
        }
        outcome = Outcome(
            job="j", kind="training", status=Status.SUCCEEDED, attempt=1, worker="w", finished_at=datetime.now(UTC),
            artifacts=list(made.values()),
        )  # fmt: skip
        store.create("runs/j/outcome.json", outcome.model_dump_json().encode())
        assert len(tape("get", "j", str(tmp_path / "all"), outside=None).rows) == 2
        assert (tmp_path / "all" / "y" / "a.txt").read_text() == "y"
        assert tape("get", "j/x", str(tmp_path / "one"), outside=None).rows[0]["sha256"] == made["x"].sha256
        assert (tmp_path / "one" / "a.txt").read_text() == "x"
        wicked = outcome.model_copy(update={"artifacts": [made["x"].model_copy(update={"name": "../out"})]})
        store.create("runs/k/outcome.json", wicked.model_dump_json().encode())
        assert "TAPE-6007" in tape("get", "k", str(tmp_path / "all"), outside=None).err
        assert not (tmp_path / "out").exists()
        missing = tape("get", "j/z", str(tmp_path / "two"), outside=None)
        assert (missing.code, "its artifacts: x, y" in missing.err) == (Exit.NOT_FOUND, True)
        assert tape("get", "unknown", str(tmp_path / "two"), outside=None).code == Exit.NOT_FOUND

    def test_every_code_is_listed(self, tape: Tape) -> None:
        assert {row["code"] for row in tape("errors").rows} == set(CODES)
        assert len(tape("errors", "TAPE-5001").rows) == 1
        assert tape("errors", "--exceptions").rows == [row.flat() for row in FOREIGN]
        assert {row["code"] for row in tape("errors", "TAPE-6012", "--exceptions").rows} == {"TAPE-6012"}

    def test_settings_tell_where_they_come_from(self, tape: Tape, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from producers.cli.services import write_profile

        path = write_profile(home, {"store_url": "dir:/x", "store_secret_key": "hush"})
        assert path.stat().st_mode & 0o777 == 0o600
        monkeypatch.setenv("TAPE_TENANT", "acme")
        found = tape("config", "show", "--kafka-url", "b:1")
        rows = {row["setting"]: row for row in found.rows}
        assert rows["TAPE_STORE_URL"]["from"] == "profile"
        assert rows["TAPE_TENANT"] == {"setting": "TAPE_TENANT", "value": "acme", "from": "environment"}
        assert rows["TAPE_KAFKA_URL"] == {"setting": "TAPE_KAFKA_URL", "value": "b:1", "from": "option"}
        assert rows["TAPE_PREFIX"]["from"] == "default"
        assert "hush" not in found.out
        assert rows["TAPE_STORE_SECRET_KEY"]["value"] == "**********"

    def test_the_worker_is_another_program(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        import os

        called: list[Any] = []
        monkeypatch.setattr(os, "execve", lambda *args: called.append(args))
        tape("--kafka-url", "b:1", "worker", "--kinds", "echo", "--help", "--output", "x")
        ((program, argv, env),) = called
        assert program == sys.executable
        assert argv[1:] == ["-m", "workers", "--kinds", "echo", "--help", "--output", "x"]
        assert env["TAPE_KAFKA_URL"] == "b:1"

    def test_schemas(self, tape: Tape, tmp_path: Path) -> None:
        docs = tmp_path / "docs"
        assert tape("schemas", "check", str(docs)).code == Exit.NOT_FOUND
        docs.mkdir()
        assert tape("schemas", "accept", str(docs)).code == Exit.OK
        found = tape("schemas", "check", str(docs))
        assert found.code == Exit.INVALID
        assert {row["way_out"] for row in found.rows} == {"tape schemas export"}
        assert tape("schemas", "export", str(docs)).code == Exit.OK
        assert tape("schemas", "check", str(docs)).code == Exit.OK
