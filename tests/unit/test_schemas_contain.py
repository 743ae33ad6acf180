"""What is contained by proof is contained in fact; what cannot be proved is not.

The oracle is the `jsonschema` package: whatever is valid before must be valid after.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas.contain import gaps

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
