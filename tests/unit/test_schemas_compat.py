"""A change that compat passes breaks no message; every kind of breaking change is refused by name.

The oracle is the `jsonschema` package: whatever is valid before must be valid after.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import compat, export
from schemas.compat import Problem, accept, check, compare, unrecorded
from schemas.contain import gaps
from schemas.errors import InvalidError, NotFoundError

DOCS = Path(__file__).parents[2] / "docs"
Schema = dict[str, Any]

# Random schemas of the subset that pydantic writes, and random messages of them.

scalars = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": st.integers(-3, 3),
            "maximum": st.integers(4, 9),
            "exclusiveMinimum": st.integers(-3, 3),
            "exclusiveMaximum": st.integers(5, 9),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")}, optional={"minLength": st.integers(0, 2), "maxLength": st.integers(2, 4)}
    ),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", "b", 1, 2, None, True]), min_size=1, unique=True)}),
    st.fixed_dictionaries({"const": st.sampled_from(["a", 1, True])}),
    st.just({"type": "string", "pattern": "^a*$"}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({}),
    st.just({"$ref": "#/$defs/Leaf"}),
)


def _object(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.builds(
        lambda properties, required, rest: {
            "type": "object",
            "properties": properties,
            "required": sorted(required & properties.keys()),
            **({} if rest is None else {"additionalProperties": rest}),
        },
        st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
        st.sets(st.sampled_from("xyz")),
        st.none() | st.just(False) | inner,
    )


def _array(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    limits = {"minItems": st.integers(0, 1), "maxItems": st.integers(1, 3)}
    return st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional=limits)


trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        _object(inner), _array(inner), st.builds(lambda of: {"anyOf": of}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=4,
)
whole = st.builds(lambda tree, leaf: tree | {"$defs": {"Leaf": leaf}}, trees, scalars.filter(lambda s: "$ref" not in s))

free = st.none() | st.booleans() | st.integers(-4, 10) | st.sampled_from([0.5, 3.5]) | st.text("ab", max_size=5)
TYPED = {
    "integer": st.integers(-4, 10),
    "number": st.integers(-4, 10) | st.sampled_from([0.5, 3.5]),
    "string": st.text("ab", max_size=5),
    "boolean": st.booleans(),
    "null": st.none(),
}


def messages(schema: Any, root: Schema) -> st.SearchStrategy[Any]:
    """Messages that are likely to be valid; the oracle sorts out the rest. Unnamed fields of open objects stay out."""
    if "$ref" in schema:
        return messages(root["$defs"]["Leaf"], root)
    if "anyOf" in schema:
        return st.one_of([messages(branch, root) for branch in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if schema.get("type") == "object":
        rest = schema.get("additionalProperties")
        named = {name: messages(inner, root) for name, inner in schema["properties"].items()}
        extra = {n: messages(rest, root) for n in "wxyz" if isinstance(rest, dict) and n not in named}
        needed = {name: named.pop(name) for name in schema["required"]}
        return st.fixed_dictionaries(needed, optional=named | extra)
    if schema.get("type") == "array":
        return st.lists(messages(schema["items"], root), max_size=3)
    return TYPED.get(schema.get("type"), free)


def replaced(draw: st.DrawFn, spot: Schema) -> None:
    for name in spot.keys() - {"$defs"}:
        del spot[name]
    spot.update(draw(scalars))


def loosened(draw: st.DrawFn, spot: Schema) -> None:
    del spot[draw(st.sampled_from(sorted(spot.keys() - {"$defs"})))]


def bumped(draw: st.DrawFn, spot: Schema) -> None:
    name = draw(st.sampled_from([name for name in spot if name.startswith(("min", "max", "exclusive"))]))
    spot[name] = max(0, spot[name] + draw(st.sampled_from([-1, 1])))


def limited(draw: st.DrawFn, spot: Schema) -> None:
    number = spot["type"] in {"integer", "number"}
    names = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"] if number else ["minLength", "maxLength"]
    spot[draw(st.sampled_from(names))] = draw(st.integers(1, 3))


def shrunk(draw: st.DrawFn, spot: Schema) -> None:
    name = draw(st.sampled_from([name for name in ("properties", "required", "enum", "anyOf") if spot.get(name)]))
    spot[name].pop(draw(st.sampled_from(list(spot[name]) if name == "properties" else range(len(spot[name])))))
    if not spot[name]:
        del spot[name]


def required(draw: st.DrawFn, spot: Schema) -> None:
    spot["required"] = sorted({*spot.get("required", ()), draw(st.sampled_from(sorted(spot["properties"])))})


def extended(draw: st.DrawFn, spot: Schema) -> None:
    spot["properties"].setdefault(draw(st.sampled_from("wxyz")), draw(scalars))


def closed(draw: st.DrawFn, spot: Schema) -> None:
    spot["additionalProperties"] = draw(st.just(False) | scalars)


def nullable(draw: st.DrawFn, spot: Schema) -> None:
    inner = {name: spot.pop(name) for name in sorted(spot.keys() - {"$defs"})}
    spot["anyOf"] = [inner, {"type": "null"}]


CHANGES: list[tuple[Callable[[st.DrawFn, Schema], None], Callable[[Schema], Any]]] = [
    (replaced, lambda spot: True),
    (loosened, lambda spot: spot.keys() - {"$defs"}),
    (bumped, lambda spot: any(name.startswith(("min", "max", "exclusive")) for name in spot)),
    (limited, lambda spot: spot.get("type") in {"integer", "number", "string"}),
    (shrunk, lambda spot: any(spot.get(name) for name in ("properties", "required", "enum", "anyOf"))),
    (required, lambda spot: spot.get("properties")),
    (extended, lambda spot: "properties" in spot),
    (closed, lambda spot: "properties" in spot),
    (nullable, lambda spot: "type" in spot),
]
"""What people do to a contract, and where each is possible."""


@st.composite
def mutations(draw: st.DrawFn, schema: Schema) -> Schema:
    """The schema with one or two small changes somewhere in it."""
    changed = copy.deepcopy(schema)
    for _ in range(draw(st.integers(1, 2))):
        change, possible = draw(st.sampled_from(CHANGES))
        spots = [spot for spot in _spots(changed) if possible(spot)]
        if spots:
            change(draw, draw(st.sampled_from(spots)))
    return changed


def _spots(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return
    yield schema
    yield from _spots(schema.get("items"))
    yield from _spots(schema.get("additionalProperties"))
    for inner in [*schema.get("properties", {}).values(), *schema.get("anyOf", []), *schema.get("$defs", {}).values()]:
        yield from _spots(inner)


def normal(schema: Any) -> Any:
    """Fill in what `messages` counts on after a mutation took it away."""
    for spot in _spots(schema):
        if spot.get("type") == "object":
            spot.setdefault("properties", {})
            spot["required"] = [name for name in spot.get("required", ()) if name in spot["properties"]]
        if spot.get("type") == "array":
            spot.setdefault("items", {})
    return schema


pairs = whole.flatmap(lambda old: st.tuples(st.just(old), mutations(old).map(normal)))


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(pairs, st.data())
def test_what_is_contained_by_proof_is_contained_in_fact(pair: tuple[Schema, Schema], data: st.DataObject) -> None:
    old, new = pair
    for narrow, wide in ((old, new), (new, old)):
        if gaps(narrow, wide):
            continue
        for message in data.draw(st.lists(messages(narrow, narrow), min_size=1, max_size=6)):
            if Draft202012Validator(narrow).is_valid(message):
                assert Draft202012Validator(wide).is_valid(message), (narrow, wide, message)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(whole)
def test_a_schema_contains_itself(schema: Schema) -> None:
    assert gaps(schema, copy.deepcopy(schema)) == []


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
    ("training", _set("method", enum=["lora", "full", "dora"])),
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


def test_limits_on_numbers_imply_one_another() -> None:
    def of(**limits: float) -> Schema:
        return {"type": "number", **limits}

    assert gaps(of(exclusiveMinimum=0), of(minimum=0)) == []
    assert gaps(of(minimum=0), of(exclusiveMinimum=0)) != []
    assert gaps(of(minimum=1), of(exclusiveMinimum=0)) == []
    assert gaps(of(maximum=1), of(exclusiveMaximum=2)) == []
    assert gaps(of(exclusiveMaximum=1), of(maximum=1)) == []
    assert gaps(of(maximum=1), of(exclusiveMaximum=1)) != []


def test_recursive_models_end() -> None:
    def tree(**node: Any) -> Schema:
        properties = {"next": {"$ref": "#/$defs/Node"}, **node}
        return {"$ref": "#/$defs/Node", "$defs": {"Node": {"type": "object", "properties": properties}}}

    assert gaps(tree(), tree()) == []
    assert {gap.path for gap in gaps(tree(a={"type": "string"}), tree(a={"type": "null"}))} == {"a", "next.a"}
    loop: Schema = {"$ref": "#/$defs/Loop", "$defs": {"Loop": {"$ref": "#/$defs/Loop"}}}
    assert gaps(loop, loop) == []
    assert gaps(loop, {"type": "string"}) != []


def test_what_is_not_understood_must_stay_the_same() -> None:
    beside = {"$defs": {"A": {"type": "string"}}, "$ref": "#/$defs/A", "minLength": 1}
    assert gaps(beside, copy.deepcopy(beside)) == []
    assert gaps(beside, beside | {"minLength": 0}) != []
    nested = {"$defs": {"A": {"type": "string"}}, "not": {"$ref": "#/$defs/A"}}
    assert gaps(nested, copy.deepcopy(nested)) == []
    assert gaps(nested, nested | {"$defs": {"A": {"type": "integer"}}}) != []
    assert gaps({"patternProperties": {"^a": {}}}, {"patternProperties": {"^b": {}}}) != []
    assert gaps({"contains": {"const": 1}, "minContains": 0}, {"contains": {"const": 1}}) != []
    assert gaps({"type": "array", "prefixItems": [{}], "items": False}, {"type": "array", "items": False}) != []
    assert gaps({"not": {}}, {"type": "string"}) == []


def test_a_closed_record_and_a_map() -> None:
    closed = {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": False}
    words = {"type": "object", "additionalProperties": {"type": "string"}}
    assert gaps(closed, words) == []
    assert [gap.path for gap in gaps(words, closed)] == [""]
    assert [gap.path for gap in gaps(words, {"type": "object", "properties": {"n": {"type": "null"}}})] == ["n"]
    assert [gap.path for gap in gaps({"type": "object"}, words)] == ["*"]


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
