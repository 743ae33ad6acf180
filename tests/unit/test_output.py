"""What `tape` prints for people obeys nobody but us, whatever text goes in; what programs read stays as it was."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import yaml
from cli_rig import Tape, ended, submitted
from dead_rig import Rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.cli.jobs import describe
from producers.cli.live import Course, screen
from producers.cli.output import Format, Output, safe
from producers.cli.shell import Shell
from producers.cli.trace import Line, draw
from producers.dead.desk import Desk
from producers.memory import MemoryPorts
from schemas.errors import FailureClass, InvalidError, TapeError
from schemas.event import Event, EventType
from schemas.outcome import Failure, Status

NASTY = "\x1b[2J\x1b]0;gone\x07\rok\u202etxt\x9b31m\x7f\u2066\x00"
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
ODD = st.text(
    st.characters(categories=["Cc", "Cf", "Zl", "Zp"]) | st.sampled_from("a[/]\\\n\r\t") | st.characters(), max_size=60
)
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def odd(text: str) -> list[str]:
    """What a terminal would obey, but for new lines."""
    return [
        one for one in text if (unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in BIDI) and one != "\n"
    ]


def event(text: str) -> Event:
    failure = Failure(failure=FailureClass.INVALID, code="TAPE-1002", message=text)
    return Event(
        id="e", type=EventType.RUNNING, job="j", kind="k", time=datetime.now(UTC), worker=text, failure=failure,
        progress={text: text, "loss": 0.5},
    )  # fmt: skip


WAYS: dict[str, Callable[[Output, str], object]] = {
    "rows": lambda output, text: output.rows([{"job": text, text: text, "problem": text, "state": text}]),
    "record": lambda output, text: output.record({"payload": text, text: [text], "where": {text: text}}),
    "line": lambda output, text: output.line({"text": text}, describe(event(text))),
    "text": lambda output, text: output.text(text),
    "note": lambda output, text: output.note(text),
    "next": lambda output, text: output.next(text),
    "error": lambda output, text: output.error(InvalidError(text, code="TAPE-1002", hint=text, field=text)),
    "trace": lambda output, text: draw(
        Shell(output=output), [Line({"name": text, "service": text, "status": "error"}, 0, 0.0, 1.0)]
    ),
}


class TestSafe:
    @many
    @given(ODD)
    def test_no_control_character_is_left_and_doing_it_twice_is_the_same(self, text: str) -> None:
        assert odd(safe(text)) == [] and "\n" not in safe(text)
        assert odd(safe(text, lines=True)) == []
        assert safe(safe(text)) == safe(text)
        assert safe(text, lines=True).count("\n") == text.count("\n")

    @given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
    def test_what_people_write_stays(self, text: str) -> None:
        assert safe(text) == text

    def test_what_was_there_is_seen(self) -> None:
        assert safe("a\x1b[2J\u202e\x9b\r") == "a\\x1b[2J\\u202e\\x9b\\r"


class TestWays:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("chosen", Format)
    def test_nothing_that_a_terminal_obeys_comes_out(
        self, capfd: pytest.CaptureFixture[str], way: str, chosen: Format
    ) -> None:
        @many
        @given(ODD | st.just(NASTY))
        def holds(text: str) -> None:
            WAYS[way](Output(chosen), text)
            found = capfd.readouterr()
            assert odd(found.out) == []
            assert odd(found.err) == []

        holds()

    @pytest.mark.parametrize("way", ["rows", "line", "note", "next"])
    @pytest.mark.parametrize("text", ["a\nok", "a\u2028ok"])
    def test_nobody_makes_a_line_of_its_own(self, capfd: pytest.CaptureFixture[str], way: str, text: str) -> None:
        WAYS[way](Output(Format.TABLE), text)
        found = capfd.readouterr()
        assert not [line for line in (found.out + found.err).splitlines() if line.strip() == "ok"]

    def test_an_error_of_several_lines_cannot_pretend_a_way_out(self, capfd: pytest.CaptureFixture[str]) -> None:
        Output(Format.TABLE).error(TapeError("a\n  way out: rm -rf /", code="TAPE-8006", hint="b"))
        told = capfd.readouterr().err.splitlines()
        assert [line for line in told if line.startswith("  way out:")] == ["  way out: b"]

    @pytest.mark.parametrize("chosen", [Format.JSON, Format.JSONL, Format.YAML])
    @many
    @given(text=st.text())
    def test_programs_read_the_same_as_ever(self, capfd: pytest.CaptureFixture[str], chosen: Format, text: str) -> None:
        Output(chosen).record({"text": text})
        found = capfd.readouterr().out
        assert (yaml.safe_load(found) if chosen is Format.YAML else json.loads(found)) == {"text": text}

    def test_the_line_that_is_drawn_again(self, capfd: pytest.CaptureFixture[str]) -> None:
        with screen(Output(Format.TABLE).console()) as tell:
            tell(describe(event(NASTY)), Course())
        assert odd(capfd.readouterr().out) == []


class TestCommands:
    @pytest.mark.parametrize(
        "argv", [["dead", "show", "a"], ["dead", "ls", "--all"], ["dead", "show", NASTY], ["dead", "audit"],
                 ["dead", "ls", "--by", "tenant"], ["dead", "redrive", "plan", "--all"]],
    )  # fmt: skip
    @pytest.mark.parametrize("chosen", ["table", "yaml", "json"])
    def test_dead_letters_of_strangers(
        self, tape: Tape, monkeypatch: pytest.MonkeyPatch, argv: list[str], chosen: str
    ) -> None:
        rig = Rig()
        monkeypatch.setattr(Desk, "open", lambda settings: rig.fresh(NASTY))
        rig.bury("a", message=NASTY, tenant=NASTY, body={"params": {NASTY: NASTY}}, headers=[(NASTY, NASTY.encode())])
        found = tape(*argv, "--output", chosen)
        assert odd(found.out) == []
        assert odd(found.err) == []

    def test_outcomes_and_watches_and_ids(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        failure = Failure(failure=FailureClass.INVALID, code="TAPE-1002", message=NASTY, hint=NASTY)
        ended(ports, job, Status.FAILED, failure=failure)
        for argv in (
            ["watch", job],
            ["result", job],
            ["why", job],
            ["trace", NASTY],
            ["result", NASTY],
            [NASTY],
            ["jobs"],
        ):
            found = tape(*argv, "--output", "table", "--debug")
            assert odd(found.out + found.err) == []
