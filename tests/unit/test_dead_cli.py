"""`tape dead`, as a person at 3 am and as a script; the queue is in memory."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cli_rig import Tape
from dead_rig import Rig

from producers.cli.exits import Exit
from producers.dead.desk import Desk
from producers.fleet import Lookout
from producers.redrive.pace import Pace
from schemas.event import EventType


@pytest.fixture
def rig(home: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig()
    monkeypatch.setattr(Desk, "open", lambda settings: rig.fresh("eve@desk"))
    return rig


@pytest.fixture
def tape(tape: Tape) -> Tape:
    return partial(tape, "dead")


def fill(rig: Rig) -> None:
    for number in range(6):
        rig.bury(f"job-{number}", code="TAPE-6003" if number < 4 else "TAPE-5002")
    rig.bury("train-1", "training", body={"params": {"base": "builtin:b"}, "tenant": "acme"})


def hostile(rig: Rig, fields: set[str], text: str) -> None:
    """Write a letter that nobody checked, with this text in these fields."""
    rig.bury("b")
    first = dict(rig.entries(rig.names.dead("inference"))[-1].headers)
    told = json.loads(first.pop("tape-dead-json") or b"")
    if "code" in fields:  # which the JSON may not hold
        first["tape-dead-code"] = text.encode()
    else:
        first["tape-dead-json"] = json.dumps(told | dict.fromkeys(fields, text)).encode()
    rig.append(rig.names.dead("inference"), b"b", json.dumps({"tenant": text}).encode(), list(first.items()))


class TestLook:
    def test_ls_is_json_in_a_pipe_and_a_table_on_request(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        found = tape("ls", "--code", "TAPE-6003")
        assert (found.code, len(found.rows)) == (Exit.OK, 5)
        assert found.rows[0]["class"] == "resource"
        assert "next: tape dead ls --by code" in found.err
        table = tape("ls", "--output", "table").out
        assert table.split("\n", 1)[0].split()[:4] == ["JOB", "KIND", "CODE", "CLASS"]
        assert "out of memory" in table

    def test_ls_by_code(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        first, second = tape("ls", "--by", "code").rows
        assert (first["code"], first["letters"], first["kinds"]) == ("TAPE-6003", 5, "inference, training")
        assert (second["code"], second["problem"]) == ("TAPE-5002", "the store does not answer")
        for by in ("class", "kind", "tenant", "model", "status"):
            assert sum(row["letters"] for row in tape("ls", "--all", "--by", by).rows) == 7

    @pytest.mark.parametrize("fields", [{"job"}, {"kind"}, {"code"}, {"tenant"}, {"code", "tenant"}, {"job", "kind"}])
    def test_a_hostile_letter_leaves_the_others_readable(
        self, rig: Rig, tape: Tape, monkeypatch: pytest.MonkeyPatch, fields: set[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "160")
        job, long = "01a1fd8b-e27a-79e8-9618-4d19f7350748", "y\x1b[2J\n" + "z" * 5_000
        rig.bury(job)
        hostile(rig, fields, long)
        table = tape("ls", "--all", "--output", "table").out
        (line,) = [line for line in table.splitlines() if job in line]
        assert {"inference", "TAPE-6003", "resource"} <= set(line.split())
        assert ("…" in table, "\x1b" in table, len(table.splitlines()) < 12) == (True, False, True)
        assert all(long in [row[field] for row in tape("ls", "--all").rows] for field in fields), "JSON is whole"
        for by in ("code", "tenant", "kind"):
            groups = tape("ls", "--all", "--by", by)
            assert by not in fields or long in [row[by] for row in groups.rows]
            assert tape("ls", "--all", "--by", by, "--output", "table").out.count("z") < 200

    def test_ls_of_nothing(self, rig: Rig, tape: Tape) -> None:
        found = tape("ls")
        assert (found.code, found.out) == (Exit.OK, "")
        assert "no dead letters" in found.err
        assert tape("ls", "--output", "table").code == Exit.OK

    def test_limit(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        found = tape("ls", "--limit", "2")
        assert len(found.rows) == 2
        assert "the newest 2 are shown" in found.err

    @pytest.mark.parametrize(
        ("argv", "code", "told"),
        [
            (["ls", "--by", "colour"], Exit.USAGE, "use one of code, class"),
            (["ls", "--class", "bad"], Exit.USAGE, "crashed, dependency"),
            (["ls", "--text", "/(/"], Exit.USAGE, "no regular expression"),
            (["ls", "--attempt", "x"], Exit.USAGE, ">=3"),
            (["ls", "--since", "yesterday"], Exit.USAGE, "--since"),
            (["ls", "--until", "1h", "--older", "1h"], Exit.USAGE, "--older"),
            (["ls", "--kind", "nonsense"], Exit.NOT_FOUND, "tape.dead.inference"),
            (["ls", "--kind", "a", "--topic", "b"], Exit.USAGE, "--topic"),
            (["show", "nobody"], Exit.NOT_FOUND, "TAPE-2005"),
            (["show", "tape.dead.inference/0/9"], Exit.NOT_FOUND, "TAPE-2005"),
            (["discard", "--reason", "x"], Exit.USAGE, "every dead letter"),
            (["discard", "nobody", "--reason", "x"], Exit.NOT_FOUND, "tape dead ls --all"),
            (["discard", "--text", "", "--reason", "x"], Exit.USAGE, "every dead letter"),
            (["import", "none.jsonl", "--reason", "x"], Exit.NOT_FOUND, "TAPE-2003"),
            (["redrive", "plan"], Exit.USAGE, "TAPE-1010 this would plan for every dead letter there is"),
            (["redrive", "plan", "", "--model", "", "--since", ""], Exit.USAGE, "or say --all"),
            (["redrive", "plan", "--all", "--code", "TAPE-6003"], Exit.USAGE, "contradict"),
            (["redrive", "run", "nobody"], Exit.NOT_FOUND, "TAPE-2006"),
            (["redrive", "status", "../x"], Exit.NOT_FOUND, "TAPE-2006"),
            (["redrive", "halt", "nobody"], Exit.NOT_FOUND, "TAPE-2006"),
            (["redrive", "plan", "--all", "--patch", "none.json"], Exit.NOT_FOUND, "TAPE-2003"),
        ],
    )
    def test_mistakes_are_told_with_a_way_out(
        self, rig: Rig, tape: Tape, argv: list[str], code: Exit, told: str
    ) -> None:
        found = tape(*argv)
        assert (found.code, found.out) == (code, "")
        assert told in found.err
        assert "way out:" in found.err

    def test_show(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        found = tape("show", "job-0")
        assert found.row["job"] == "job-0"
        assert json.loads(found.row["value"])["params"]["model"] == "builtin:m"
        assert "next: tape dead redrive plan job-0" in found.err
        people = tape("show", "job-0", "--output", "table").out
        assert "use a smaller batch, or a bigger machine" in people
        tape("discard", "job-0", "--reason", "no", "--yes")
        assert "--undo" in tape("show", "job-0").err


class TestDecide:
    def test_discard_and_undo_and_audit(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        assert tape("discard", "--code", "TAPE-5002", "--reason", "x", "--dry-run").row == {
            "would_discard": 2, "codes": {"TAPE-5002": 2},
        }  # fmt: skip
        refused = tape("discard", "--code", "TAPE-5002", "--reason", "x")
        assert (refused.code, "--yes" in refused.err) == (Exit.USAGE, True)
        assert tape("discard", "--code", "TAPE-5002", "--reason", "old", "--yes").row["discarded"] == 2
        assert len(tape("ls").rows) == 5
        assert len(tape("ls", "--all").rows) == 7
        assert len(tape("ls", "--status", "discarded").rows) == 2
        first, second = tape("audit").rows
        assert (first["by"], first["became"], first["reason"]) == ("eve@desk", "discarded", "old")
        assert {first["job"], second["job"]} == {"job-4", "job-5"}
        assert tape("discard", "job-4", "--undo", "--reason", "oh", "--yes").row["restored"] == 1
        assert len(tape("ls").rows) == 6
        assert tape("audit", "--by", "bob").out == ""

    def test_what_was_decided_is_told_as_such(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        assert "none of them is discarded" in tape("discard", "job-0", "--undo", "--reason", "no", "--yes").err
        tape("discard", "job-0", "--reason", "no", "--yes")
        again = tape("discard", "job-0", "--reason", "no", "--yes")
        assert (again.code, again.out) == (Exit.NOT_FOUND, "")
        assert "TAPE-2005 already discarded" in again.err
        assert "--undo" in again.err
        assert "no such letters" in tape("discard", "nobody", "--reason", "no", "--yes").err

    def test_names_are_quoted_in_what_to_do_next(self, rig: Rig, tape: Tape, tmp_path: Path) -> None:
        fill(rig)
        file = tmp_path / "my letters.jsonl"
        assert f"next: tape dead import '{file}' --reason WHY" in tape("export", "--file", str(file)).err

    def test_export_mend_import(self, rig: Rig, tape: Tape, tmp_path: Path) -> None:
        fill(rig)
        file = tmp_path / "out.jsonl"
        assert tape("export", "--kind", "inference", "--file", str(file)).code == Exit.OK
        assert len(tape("export").rows) == 7
        file.write_text(file.read_text().replace('\\"hi\\"', '\\"ho\\"', 1))
        found = tape("import", str(file), "--reason", "mended", "--yes")
        assert (found.code, found.row["sent"], found.row["mended"]) == (Exit.OK, 6, 1)
        again = tape("import", str(file), "--reason", "mended", "--yes")
        assert (again.code, again.row["sent"]) == (Exit.INVALID, 0)
        assert sum(rig.moved().values()) == 6

    def test_a_file_that_cannot_be_written_is_named(self, rig: Rig, tape: Tape, tmp_path: Path) -> None:
        fill(rig)
        for path in (tmp_path, tmp_path / "none" / "out"):
            found = tape("export", "--file", str(path))
            assert (found.code, found.out) == (Exit.NOT_FOUND, "")
            assert f"TAPE-2003 {path} cannot be written: " in found.err

    def test_an_export_of_what_is_not_there_fails(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        found = tape("export", "nobody")
        assert found.code == Exit.NOT_FOUND and "TAPE-2005" in found.err and "nobody" in found.err
        assert len(tape("export", "nobody", "job-0").rows) == 1

    def test_what_to_do_next_names_the_other_topic(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        topic = "tape.dead.inference"
        found = tape("ls", "--topic", topic)
        assert f"next: tape dead ls --by code --topic {topic}" in found.err
        shown = next(line for line in found.err.splitlines() if "tape dead show" in line).partition("tape dead ")[2]
        told = tape(*shown.split())
        assert told.code == Exit.OK
        assert f"tape dead redrive plan {told.row['job']} --topic {topic}" in told.err


class TestRedrive:
    def test_plan_run_status_ls(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        plan = tape("redrive", "plan", "--code", "TAPE-6003", "--reason", "bigger machines")
        name = plan.row["id"]
        assert (plan.row["letters"], plan.row["kinds"]) == (5, {"inference": 4, "training": 1})
        assert plan.row["estimate"] == {"gpu_seconds": None, "letters": 0, "kinds": 0, "unknown": 5}
        people = tape("redrive", "plan", "--code", "TAPE-6003", "--output", "table").out
        assert "unknown (5 unknown)" in people
        assert "5 TAPE-6003" in people
        assert f"next: tape dead redrive run {name} --canary 3" in plan.err
        assert rig.moved() == {}
        assert tape("redrive", "resume", name).code == Exit.INVALID
        done = tape("redrive", "run", name)
        assert (done.code, done.row["state"], done.row["moved"]) == (Exit.OK, "done", 5)
        assert "done: 5 of 5 moved" in done.err
        assert "5 of those it moved have not ended yet" in done.err
        assert f"next: tape dead redrive status {name}" in done.err
        rig.tell("job-0", EventType.DEAD)
        seen = tape("redrive", "status", name)
        assert (seen.row["moved"], seen.row["ended"], seen.row["failures"]) == (5, 1, ["job-0"])
        assert [note["what"].split(":")[0] for note in seen.row["notes"]] == ["planned 5 letters", "began", "done"]
        assert sorted(row["letters"] for row in tape("redrive", "ls").rows) == [5, 5]
        assert "nothing is moved twice" in tape("redrive", "run", name).err
        assert sum(rig.moved().values()) == 5
        assert {row["redrive"] for row in tape("audit").rows} == {name}
        assert "job-0" in tape("redrive", "status", name, "--output", "table").out

    def test_a_canary_that_nobody_takes_is_told_as_such_and_goes_on_by_the_same_command(
        self, rig: Rig, tape: Tape, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Lookout, "open", lambda settings: Lookout.memory(rig.log, rig.names, now=lambda: rig.time))
        fill(rig)
        name = tape("redrive", "plan", "--code", "TAPE-6003").row["id"]
        command = ("redrive", "run", name, "--canary", "3", "--canary-timeout")
        late = tape(*command, "0")
        assert late.code == Exit.TIMEOUT and "TAPE-7002 the canary has not ended within 0 s, 3 to go" in late.err
        assert "job-0: No worker for the kind 'inference' is running." in late.err
        assert sum(rig.moved().values()) == 3
        for job in rig.moved():
            rig.tell(job, EventType.SUCCEEDED)
        done = tape(*command, "60")
        assert (done.code, done.row["state"], sum(rig.moved().values())) == (Exit.OK, "done", 5)

    def test_a_plan_with_jobs_that_killed_their_workers_warns(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        assert "careful" not in tape("redrive", "plan", "--all").err
        rig.bury("killer", code="TAPE-6002")
        assert "careful: 1 of them killed their workers" in tape("redrive", "plan", "--all").err

    def test_a_job_that_has_ended_since_stays(self, rig: Rig, tape: Tape) -> None:
        for number in range(4):
            rig.bury(f"job-{number}")
        rig.time += timedelta(seconds=1)
        rig.tell("job-0", EventType.SUCCEEDED)
        rig.tell("job-1", EventType.RUNNING)
        rig.tell("job-2", EventType.SUCCEEDED)
        rig.tell("job-2", EventType.DEAD)
        found = tape("redrive", "plan", "--all")
        assert (found.row["letters"], found.row["skipped"]) == (3, {"its job has ended since": 1})
        lines = rig.desk.blobs.read(f"redrives/{found.row['id']}/plan.jsonl").splitlines()
        told = {line["job"]: (line.get("skip"), line.get("detail")) for line in map(json.loads, lines)}
        assert told["job-0"] == ("its job has ended since", "succeeded")

    def test_an_end_before_the_death_says_nothing(self, rig: Rig, tape: Tape) -> None:
        rig.tell("job-0", EventType.SUCCEEDED)
        rig.time += timedelta(seconds=1)
        rig.bury("job-0")
        assert tape("redrive", "plan", "--all").row["letters"] == 1

    def test_a_plan_for_nothing_is_not_kept(self, rig: Rig, tape: Tape) -> None:
        found = tape("redrive", "plan", "--all")
        assert (found.code, found.row["letters"], found.row["id"]) == (Exit.OK, 0, None)
        assert "no letter matches: no plan was kept, so there is no id to run" in found.err
        rig.bury("often", replays=3)
        assert "all were skipped: no plan was kept" in tape("redrive", "plan", "--all").err
        assert "no redrives yet" in tape("redrive", "ls").err

    def test_a_halt_that_could_not_come_is_refused(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        name = tape("redrive", "plan", "--all").row["id"]
        refused = tape("redrive", "run", name, "--halt-above", "0")
        assert (refused.code, "TAPE-1010" in refused.err, "--canary 5" in refused.err) == (Exit.USAGE, True, True)
        assert rig.moved() == {}
        assert tape("redrive", "run", name, "--halt-above", "0", "--rate", "500").row["moved"] == 7

    def test_where_letters_go_is_told_before_and_after(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        plan = tape("redrive", "plan", "--all")
        assert plan.row["targets"] == {"tape.jobs.inference.bulk": 6, "tape.jobs.training.bulk": 1}
        assert tape("redrive", "status", plan.row["id"]).row["targets"] == plan.row["targets"]
        told = "6 tape.jobs.inference.bulk, 1 tape.jobs.training.bulk"
        assert told in tape("redrive", "status", plan.row["id"], "--output", "table").out
        assert told in tape("redrive", "plan", "--all", "--output", "table").out

    def test_a_halted_one_says_so_by_its_exit_code(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        name = tape("redrive", "plan", "--all").row["id"]
        assert tape("redrive", "halt", name, "--reason", "wait").row["state"] == "halted"
        refused = tape("redrive", "run", name)
        assert (refused.code, f"tape dead redrive resume {name}" in refused.err) == (Exit.INVALID, True)
        assert tape("redrive", "status", name).code == Exit.PARTLY
        assert tape("redrive", "resume", name).row["moved"] == 7

    def test_jobs_that_ended_before_a_halt_are_not_called_open_after_it(self, rig: Rig, tape: Tape) -> None:
        fill(rig)
        name = rig.plan().redrive.plan.id
        assert rig.runner(name, Pace(canary=3), sleep=rig.play(lambda job: EventType.DEAD)).run().failed == 3
        rig.sleep(60)
        done = tape("redrive", "resume", name, "--canary", "0")
        assert (done.row["moved"], "4 of those it moved have not ended yet" in done.err) == (7, True)

    def test_a_patch_that_nothing_takes(self, rig: Rig, tape: Tape, tmp_path: Path) -> None:
        fill(rig)
        patch = tmp_path / "patch.json"
        patch.write_text('[{"op": "replace", "path": "/params/prompt", "value": "x"}]')
        found = tape("redrive", "plan", "--all", "--patch", str(patch))
        assert (found.row["letters"], found.row["skipped"]) == (6, {"the patch does not apply": 1})
        patch.write_text('[{"op": "explode", "path": "/a"}]')
        refused = tape("redrive", "plan", "--all", "--patch", str(patch))
        assert (refused.code, "TAPE-1012" in refused.err) == (Exit.INVALID, True)

    def test_a_topic_of_another_system(self, rig: Rig, tape: Tape) -> None:
        rig.log.create("orders", 1)
        rig.log.create("orders-dlt", 1)
        rig.append("orders-dlt", b"k", b"v", [("kafka_dlt-original-topic", b"orders"),
                   ("kafka_dlt-exception-fqcn", b"com.acme.Slow")])  # fmt: skip
        assert tape("ls", "--topic", "orders-dlt").row["code"] == "Slow"
        name = tape("redrive", "plan", "--topic", "orders-dlt").row["id"]
        done = tape("redrive", "run", name, "--canary", "1")
        told = "1 of those it moved went to other systems' topics; their outcomes are not followed"
        assert (done.row["moved"], told in done.err, "not ended yet" in done.err) == (1, True, False)
        assert told in tape("redrive", "status", name).err
        assert "not ended yet" not in tape("redrive", "run", name).err
        assert len(rig.entries("orders")) == 1
        assert tape("ls", "--topic", "orders-dlt").out == ""
