"""The command line itself: exit codes, options, what people type, help and bugs; the queue is in memory."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_rig import Tape

from producers.cli import hoist
from producers.cli.exits import EXITS, MEANINGS, Exit, exit_of
from producers.cli.parse import duration, moment, parameters
from producers.memory import MemoryPorts
from schemas import errors
from schemas.errors import InvalidError, TapeError, UnavailableError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("home")


class TestExits:
    def test_every_branch_of_the_tree_has_an_exit(self) -> None:
        tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TapeError)}
        assert tree == set(EXITS)

    def test_the_documented_table_is_this_one(self) -> None:
        page = (ROOT / "docs" / "cli.md").read_text()
        table = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", page, re.MULTILINE))
        assert table == {str(int(code)): meaning for code, meaning in MEANINGS.items()}

    def test_every_exit_has_a_meaning(self) -> None:
        assert set(MEANINGS) == set(Exit)

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (InvalidError("x", code="TAPE-1010"), 2),
            (InvalidError("x", code="TAPE-1007"), 2),
            (InvalidError("x", code="TAPE-1001"), 5),
            (errors.NotFoundError("x"), 3),
            (errors.AuthError("x"), 4),
            (errors.ConflictError("x"), 5),
            (errors.JobError("x"), 6),
            (errors.TimeoutExceeded("x"), 7),
            (UnavailableError("x"), 69),
            (errors.SetupError("x"), 69),
            (TapeError("x", code="TAPE-8006"), 1),
        ],
    )
    def test_errors_become_exits(self, error: TapeError, code: int) -> None:
        assert exit_of(error) == code


class TestLine:
    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            (["jobs", "--output", "json", "--since", "1h"], ["--output", "json", "jobs", "--since", "1h"]),
            (["jobs", "--output=json", "--debug"], ["--output=json", "--debug", "jobs"]),
            (["--no-color", "worker", "--output", "x"], ["--no-color", "worker", "--output", "x"]),
            (["submit", "k", "--", "--debug"], ["submit", "k", "--", "--debug"]),
            (["cancel", "worker", "--debug"], ["--debug", "cancel", "worker"]),
            (["jobs", "--output"], ["--output", "jobs"]),
        ],
    )
    def test_options_of_tape_may_stand_anywhere(self, given: list[str], wanted: list[str]) -> None:
        assert hoist(given) == wanted

    @pytest.mark.parametrize(
        ("argv", "named"),
        [
            (("nonsense",), "nonsense"),
            (("jobs", "--limit", "x"), "--limit"),
            (("submit",), "kind"),
            (("jobs", "--bogus"), "--bogus"),
            (("broker",), "Missing command"),
            (("jobs", "--since", "soon"), "soon"),
            (("jobs", "--state", "lost"), "lost"),
            (("submit", "inference", "--set", "x"), "--set"),
            (("submit", "inference", "--label", "=y"), "--label"),
            (("--output", "xml", "jobs"), "--output"),
        ],
    )
    def test_a_wrong_line_is_a_matter_of_usage(self, tape: Tape, argv: tuple[str, ...], named: str) -> None:
        found = tape(*argv)
        assert found.code == Exit.USAGE
        assert "TAPE-1010" in found.err
        assert named in found.err
        assert "way out:" in found.err
        assert found.out == ""

    def test_nothing_prints_the_help(self, tape: Tape) -> None:
        found = tape()
        assert found.code == Exit.USAGE
        assert "submit" in found.out

    def test_the_version(self, tape: Tape) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", tape("--version").out)

    def test_help_is_quick_and_light(self) -> None:
        script = (
            "import sys; from producers.cli import main; main(['--help']);"
            "heavy = {'kafka', 'minio', 'pydantic', 'rich.console', 'opentelemetry', 'structlog', 'torch', 'yaml'};"
            "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
        )
        begun = time.monotonic()
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert found.stderr.strip() == "[]"
        assert time.monotonic() - begun < 3  # 0.2 s on an idle machine; this one may be busy

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_shells_complete(self, tape: Tape, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("_TAPE_COMPLETE", f"source_{shell}")
        with pytest.raises(SystemExit) as left:
            tape()
        assert left.value.code == 0

    def test_a_bug_has_a_code_too(self, tape: Tape, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ports, "scan", lambda *_: 1 / 0)
        found = tape("jobs")
        assert found.code == Exit.FAILURE
        assert "TAPE-8006 ZeroDivisionError" in found.err
        assert "Traceback" not in found.err
        assert "Traceback" in tape("jobs", "--debug").err

    def test_ctrl_c(self, tape: Tape, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ports, "scan", interrupted)
        assert tape("jobs").code == Exit.INTERRUPTED

    def test_a_wrong_setting(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TAPE_KAFKA_ULR", "x")
        found = tape("jobs")
        assert found.code == Exit.USAGE
        assert "TAPE-1007" in found.err
        assert "TAPE_KAFKA_ULR" in found.err


class TestRecur:
    def test_a_kind_that_no_topic_serves_is_refused_as_submit_does(self, tape: Tape) -> None:
        found = tape("recur", "add", "nightly", "--kind", "nokind", "--cron", "0 9 * * *", "--params", "{}")
        assert (found.code, found.out) == (Exit.INVALID, "")
        assert "TAPE-1003" in found.err
        assert "known: evaluation, indexing, inference, training" in found.err


class TestParse:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("2d", 172_800), ("1.5m", 90), ("7", 7), ("1w", 604_800)]
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert duration(text, "--x").total_seconds() == seconds

    @pytest.mark.parametrize(
        "text", ["99999999999d", "9" * 400, "9" * 400 + "d", "36526d", "1e300", "inf", "-1e300", "nan", "soon"]
    )
    def test_what_no_clock_can_tell_is_a_wrong_duration(self, text: str) -> None:
        for read in (duration, moment):
            with pytest.raises(InvalidError) as caught:
                read(text, "--start-in")
            assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1010", "--start-in")

    @pytest.mark.parametrize("text", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
    def test_what_utc_has_no_date_for_is_a_wrong_moment(self, text: str) -> None:
        with pytest.raises(InvalidError) as caught:
            moment(text, "--since")
        assert caught.value.code == "TAPE-1010"

    def test_moments(self) -> None:
        assert moment("2026-01-02", "--x") == datetime(2026, 1, 2, tzinfo=UTC)
        assert moment("2026-01-02T03:00+01:00", "--x") == datetime(2026, 1, 2, 2, tzinfo=UTC)
        assert timedelta(minutes=59) < datetime.now(UTC) - moment("1h", "--x") < timedelta(minutes=61)

    def test_parameters_are_put_together(self, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        path.write_text('{"base": "b", "lora": {"alpha": 2}}')
        found = parameters(f"@{path}", ["lora.rank=4", "data=blob:x", 'labels=["a"]', "new.deep.er=true"])
        assert found == {
            "base": "b",
            "lora": {"alpha": 2, "rank": 4},
            "data": "blob:x",
            "labels": ["a"],
            "new": {"deep": {"er": True}},
        }

    def test_a_field_of_no_object(self) -> None:
        with pytest.raises(InvalidError) as caught:
            parameters('{"a": 1}', ["a.b=2"])
        assert caught.value.code == "TAPE-1010"

    def test_stdin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
        assert parameters("-", []) == {"a": 1}


class TestTrace:
    @pytest.fixture
    def spans(self, home: Path) -> list[dict[str, Any]]:
        def span(name: str, id_: str, parent: str | None, start: int, end: int, **more: Any) -> dict[str, Any]:
            return {
                "name": name, "trace_id": "t1", "span_id": id_, "parent_id": parent, "start_ns": start * 1_000_000,
                "end_ns": end * 1_000_000, "service": "client", "status": "unset", "attributes": {}, **more,
            }  # fmt: skip

        found = [
            span("store.put", "c", "b", 60, 70, status="error"),
            span("tape.submit", "a", None, 0, 10, attributes={"tape.job": "j1"}),
            span("tape.run", "b", "a", 20, 100, service="worker"),
            span("later", "d", "gone", 90, 3_000),
            span("other", "x", None, 0, 1, trace_id="t2", attributes={"tape.job": "j2"}),
        ]
        folder = home / "traces"
        folder.mkdir(parents=True)
        half = len(found) // 2
        for index, part in enumerate((found[:half], found[half:])):
            lines = [json.dumps(entry) for entry in part]
            (folder / f"s-{index}.jsonl").write_text("\n".join(lines) + '\n{"name": "cut sh')
        return found

    def test_the_tree_is_in_order(self, tape: Tape, spans: Any) -> None:
        rows = tape("trace", "j1").rows
        assert [(row["name"], row["depth"]) for row in rows] == [
            ("tape.submit", 0),
            ("tape.run", 1),
            ("store.put", 2),
            ("later", 0),
        ]
        assert (rows[1]["offset_ms"], rows[1]["duration_ms"]) == (20, 80)

    def test_the_picture(self, tape: Tape, spans: Any) -> None:
        lines = tape("trace", "j1", "--output", "table").out.splitlines()
        assert "    store.put ✗" in lines[3]
        assert "2.91 s" in lines[4]
        assert lines[4].rstrip().endswith("━" * 30)
        assert len({line.index("━") for line in lines[1:]}) >= 2
