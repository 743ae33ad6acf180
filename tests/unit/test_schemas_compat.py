"""Every kind of breaking change of the contract is refused by name, against every version there was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import compat, export
from schemas.compat import Problem, accept, check, compare, unrecorded
from schemas.errors import InvalidError, NotFoundError

DOCS = Path(__file__).parents[2] / "docs"
Schema = dict[str, Any]
REAL = {name: export.schema(name) for name in export.MESSAGES}


@pytest.mark.parametrize("name", REAL)
def test_an_unchanged_message_is_compatible_with_itself(name: str) -> None:
    assert compare(name, REAL[name], copy.deepcopy(REAL[name])) == []


def _set(name: str, **content: Any) -> Callable[[Schema], None]:
    return lambda schema: schema["properties"][name].update(content)


def _drop(name: str, *, of: str = "properties") -> Callable[[Schema], None]:
    return lambda schema: schema[of].remove(name) if isinstance(schema[of], list) else schema[of].pop(name)


def _swap(name: str, content: Any) -> Callable[[Schema], None]:
    return lambda schema: schema["properties"].__setitem__(name, content)


def _require(name: str) -> Callable[[Schema], None]:
    return lambda schema: schema["required"].append(name)


def _enum(definition: str, *, more: str | None = None, less: str | None = None) -> Callable[[Schema], None]:
    def change(schema: Schema) -> None:
        values = schema["$defs"][definition]["enum"]
        if more:
            values.append(more)
        if less:
            values.remove(less)

    return change


BREAKING = [
    ("event", _require("worker"), "worker", "field was optional in version 1, is required"),
    ("event", _drop("job", of="required"), "job", "field was required in version 1, is optional"),
    ("event", _set("attempt", minimum=1), "attempt", "minimum was 0 in version 1, is 1"),
    ("event", _set("attempt", maximum=9), "attempt", "maximum was none in version 1, is 9"),
    ("event", lambda s: s["properties"]["attempt"].pop("minimum"), "attempt", "minimum was 0 in version 1, is none"),
    ("event", _set("id", maxLength=36), "id", "maxLength was none in version 1, is 36"),
    ("event", _set("id", pattern="^a"), "id", 'pattern was none in version 1, is "^a"'),
    ("event", _set("id", type="integer"), "id", "type was string in version 1, is integer"),
    ("event", _swap("worker", {"type": "string"}), "worker", "type was null in version 1, is string"),
    ("event", _swap("id", {}), "id", "type was string in version 1, is array or boolean or"),
    ("event", _enum("EventType", more="paused"), "type", 'value "paused" was refused in version 1, is taken'),
    ("event", _enum("EventType", less="dead"), "type", 'value "dead" was taken in version 1, is refused'),
    ("event", _set("time", format="date"), "time", 'format was "date-time" in version 1, is "date"'),
    ("event", _set("labels", additionalProperties={"type": "integer"}), "labels.*", "type was string in version 1"),
    ("event", lambda s: s.update(additionalProperties=False), "", "an unknown field was ignored in version 1, is ref"),
    ("event", _swap("labels", False), "labels", "not was none in version 1, is {}"),
    ("outcome", _enum("FailureClass", more="bored"), "failure.failure", 'value "bored" was refused in version 1'),
    ("manifest", _set("files", items={"type": "string"}), "files[]", "type was object in version 1, is string"),
    ("artifact", _set("sha256", pattern="^x$"), "sha256", 'pattern was "^[0-9a-f]{64}$" in version 1, is "^x$"'),
    ("cancel", _set("action", const="stop"), "action", 'value "cancel" was taken in version 1, is refused'),
    ("job", _set("labels", maxProperties=3), "labels", "maxProperties was 32 in version 1, is 3"),
    ("training", _drop("limit"), "limit", "field was known in version 1, is refused"),
    ("training", _require("seed"), "seed", "field was optional in version 1, is required"),
    ("training", _set("batch_size", minimum=2), "batch_size", "minimum was 1 in version 1, is 2"),
    ("training", lambda s: s["$defs"]["Lora"]["properties"].pop("rank"), "lora.rank", "field was known in version 1"),
    ("training", _set("method", enum=["full"]), "method", 'value "lora" was taken in version 1, is refused'),
    ("inference", lambda s: s.update(oneOf=[]), "", "oneOf was"),
    ("inference", lambda s: s.update(dependentRequired={"a": ["b"]}), "", "dependentRequired was"),
    ("evaluation", lambda s: s.update(then=False), "", "if was"),
]


@pytest.mark.parametrize(("name", "change", "path", "told"), BREAKING, ids=lambda of: of if isinstance(of, str) else "")
def test_a_breaking_change_is_refused_by_name(name: str, change: Any, path: str, told: str) -> None:
    changed = copy.deepcopy(REAL[name])
    change(changed)
    problems = compare(name, REAL[name], changed)
    assert [problem for problem in problems if problem.path == path and problem.change.startswith(told)], problems
    assert all(problem.schema == name and problem.way_out for problem in problems)


HARMLESS = [
    ("event", _swap("reason", {"type": "string", "default": ""})),
    ("event", lambda s: s["properties"].pop("lane")),
    ("event", _set("id", description="other words", title="T", examples=["a"])),
    ("event", lambda s: s["$defs"]["Artifact"]["properties"].update(note={"type": "string"})),
    ("training", _swap("patience", {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None})),
    ("training", lambda s: s["properties"]["method"]["enum"].append("dora")),
    ("training", _set("batch_size", minimum=0)),
    ("training", lambda s: s["properties"]["learning_rate"].pop("exclusiveMinimum")),
    ("training", _swap("learning_rate", {"type": "number", "minimum": 0})),
    ("training", _swap("seed", {"type": "number"})),
    ("training", _drop("data", of="required")),
    ("training", _set("learning_rate", default=1.0)),
    ("inference", lambda s: s.pop("oneOf")),
    ("inference", _swap("n", {"type": "integer"})),
    ("indexing", lambda s: s.update(additionalProperties=True)),
]


@pytest.mark.parametrize(("name", "change"), HARMLESS)
def test_a_harmless_change_passes(name: str, change: Any) -> None:
    changed = copy.deepcopy(REAL[name])
    change(changed)
    assert changed != REAL[name]
    assert compare(name, REAL[name], changed) == []


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    accept(tmp_path)
    return tmp_path


def _store(docs: Path, name: str, number: int, schema: Schema) -> None:
    path = docs / "schemas" / "history" / name / f"{number}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(schema))


def test_the_present_code_keeps_every_recorded_version_readable() -> None:
    assert check(DOCS) == []
    assert unrecorded(DOCS) == [], "run `tape schemas accept`"


def test_accept_records_once(docs: Path) -> None:
    assert accept(docs) == []
    assert sorted(path.name for path in (docs / "schemas" / "history").iterdir()) == sorted(export.MESSAGES)


def test_a_compatible_change_becomes_the_next_version(docs: Path) -> None:
    older = copy.deepcopy(REAL["event"])
    del older["properties"]["labels"]
    _store(docs, "event", 1, older)
    assert check(docs) == []
    assert unrecorded(docs) == ["event"]
    assert [path.name for path in accept(docs)] == ["2.json"]
    assert unrecorded(docs) == []


def test_every_earlier_version_counts_and_nothing_is_written_when_refused(docs: Path) -> None:
    first = copy.deepcopy(REAL["event"])
    first["properties"]["labels"] = {"type": "string"}
    _store(docs, "event", 1, first)
    second = copy.deepcopy(first)
    del second["properties"]["labels"]  # the field rests for a version, and comes back as something else
    _store(docs, "event", 2, second)
    problems = check(docs)
    assert {(problem.schema, problem.path) for problem in problems} == {("event", "labels")}
    assert all("version 1" in problem.change for problem in problems)
    with pytest.raises(InvalidError, match="labels: type was string in version 1, is object") as caught:
        accept(docs)
    assert caught.value.code == "TAPE-1011"
    assert not (docs / "schemas" / "history" / "event" / "3.json").exists()


def test_a_message_that_is_gone_is_a_problem(docs: Path) -> None:
    _store(docs, "receipt", 1, {})
    assert [(problem.schema, problem.change) for problem in check(docs)] == [("receipt", "the message is gone")]


def test_a_missing_history_and_a_damaged_one_are_told(tmp_path: Path, docs: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        check(tmp_path / "elsewhere")
    assert missing.value.code == "TAPE-2003"
    (docs / "schemas" / "history" / "job" / "2.json").write_text("{")
    with pytest.raises(InvalidError, match=r"2\.json") as damaged:
        check(docs)
    assert damaged.value.code == "TAPE-1001"


def test_a_problem_reads_as_a_sentence() -> None:
    problem = Problem("event", "", "an unknown field was ignored in version 1, is refused", "keep it")
    assert str(problem) == "event: the message: an unknown field was ignored in version 1, is refused; keep it"
    assert compat.compare("training", REAL["training"], {"type": "null"})[0].way_out.endswith(
        "tape.request.training.v2"
    )
