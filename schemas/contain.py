"""Is every message of one JSON Schema a message of another? Answers yes only where it can be proved.

The subset that pydantic writes is understood (types, limits, enums, properties, items, unions, `$ref`); what is not
understood must be the same on both sides. Source: JSON Schema 2020-12.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

_NOTES = {"$schema", "$id", "$comment", "$defs", "title", "description", "default", "examples", "deprecated"} | {
    "readOnly",
    "writeOnly",
    "discriminator",
}
_TYPE_OF = {
    list: "array",
    bool: "boolean",
    int: "integer",
    type(None): "null",
    float: "number",
    dict: "object",
    str: "string",
}
_TYPES = tuple(_TYPE_OF.values())

_LOW = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_HIGH = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_PAIRS = {name: ends for ends in (_LOW[:2], _HIGH[:2]) for name in ends}
"""Plain and strict limit of numbers, by either name."""
_SAME = ("pattern", "format", "multipleOf", "uniqueItems", "not", "allOf", "oneOf", "propertyNames")
_GROUPS = (("if", "then", "else"), ("contains", "minContains", "maxContains"), ("prefixItems",))
_KNOWN = (
    _NOTES
    | {"type", "enum", "const", "anyOf", "$ref", "properties", "required", "additionalProperties", "items"}
    | set(_LOW + _HIGH + _SAME)
    | {name for group in _GROUPS for name in group}
)


@dataclass(frozen=True, slots=True)
class Gap:
    """One reason why a message of `narrow` may be no message of `wide`: where, what, and how it is in both."""

    path: str
    subject: str
    narrow: str
    wide: str


def gaps(narrow: Schema, wide: Schema) -> list[Gap]:
    """Return why some message of `narrow` may be refused by `wide`; none means that none is refused.

    Fields that a schema does not name are taken as absent where it leaves them open: only our own versions write
    there, and `compat` compares with every one of them.
    """
    return _Comparison(narrow, wide).gaps(narrow, wide, "")


@dataclass
class _Comparison:
    narrow: Schema
    wide: Schema
    busy: set[tuple[str, str]] = field(default_factory=set)

    def gaps(self, narrow: Any, wide: Any, path: str) -> list[Gap]:
        narrow, wide = _object(narrow), _object(wide)
        pair = (_key(narrow), _key(wide))
        if pair in self.busy:  # a recursive model: what is being proved may be assumed
            return []
        self.busy.add(pair)
        try:
            return self._gaps(_resolved(narrow, self.narrow), _resolved(wide, self.wide), path)
        finally:
            self.busy.discard(pair)

    def _gaps(self, narrow: Schema, wide: Schema, path: str) -> list[Gap]:
        if not set(wide) - _NOTES or narrow == {"not": {}}:
            return []
        strange = sorted((set(narrow) | set(wide)) - _KNOWN)
        if strange:
            same = self._same(_bare(narrow), _bare(wide))
            return [] if same else [Gap(path, strange[0], _short(_bare(narrow)), _short(_bare(wide)))]
        if "anyOf" in narrow:
            return self._every(narrow, wide, path)
        found = self._any(narrow, wide, path) if "anyOf" in wide else []
        found += self._kinds(narrow, wide, path)
        if found:
            return found
        found = [*self._values(narrow, wide, path), *self._limits(narrow, wide, path)]
        found += self._fields(narrow, wide, path) if "object" in _types(narrow) else []
        found += self._items(narrow, wide, path) if "array" in _types(narrow) else []
        return found

    def _every(self, narrow: Schema, wide: Schema, path: str) -> list[Gap]:
        """A union is contained if each of its branches is, or if what surrounds it is already."""
        around = {key: value for key, value in narrow.items() if key != "anyOf"}
        if set(around) - _NOTES and not self.gaps(around, wide, path):
            return []
        return [gap for branch in narrow["anyOf"] for gap in self.gaps(branch, wide, path)]

    def _any(self, narrow: Schema, wide: Schema, path: str) -> list[Gap]:
        """Something is contained in a union if one branch contains it; else the branch of its type tells why."""
        told: list[list[Gap]] = []
        own = self._own(narrow)
        for branch in wide["anyOf"]:
            found = self.gaps(narrow, branch, path)
            if not found:
                return []
            if own & self._own(branch):
                told.append(found)
        if told:
            return min(told, key=len)
        return [Gap(path, "type", _told(own), _told(kind for branch in wide["anyOf"] for kind in self._own(branch)))]

    def _own(self, branch: Any) -> set[str]:
        return set(_types(_resolved(_object(branch), self.wide)))

    def _kinds(self, narrow: Schema, wide: Schema, path: str) -> list[Gap]:
        lost = [kind for kind in _types(narrow) if kind not in _taken(wide)]
        if not lost:
            return []
        return [Gap(path, "type", _told(_types(narrow)), _told(_types(wide)))]

    def _values(self, narrow: Schema, wide: Schema, path: str) -> Iterator[Gap]:
        allowed = _enumerated(wide)
        if allowed is None:
            return
        given = _enumerated(narrow)
        if given is None:
            yield Gap(path, "value", "any", " or ".join(allowed))
        else:
            for key in sorted(given.keys() - allowed.keys()):
                yield Gap(path, f"value {key}", "taken", "refused")

    def _limits(self, narrow: Schema, wide: Schema, path: str) -> Iterator[Gap]:
        for name in _LOW + _HIGH:
            if name in wide and not _within(name, narrow, wide[name]):
                yield Gap(path, name, _short(narrow.get(name)), _short(wide[name]))
        for name in _SAME:
            if name in wide and not (name in narrow and self._same(narrow[name], wide[name])):
                yield Gap(path, name, _short(narrow.get(name)), _short(wide[name]))
        for group in _GROUPS:
            ours, theirs = ({name: of[name] for name in group if name in of} for of in (narrow, wide))
            if theirs and not self._same(ours, theirs):
                yield Gap(path, group[0], _short(ours or None), _short(theirs))

    def _fields(self, narrow: Schema, wide: Schema, path: str) -> Iterator[Gap]:
        ours, theirs = narrow.get("properties", {}), wide.get("properties", {})
        for name in wide.get("required", ()):
            if name not in narrow.get("required", ()):
                yield Gap(_join(path, name), "field", "optional", "required")
        rest, other = narrow.get("additionalProperties", True), wide.get("additionalProperties", True)
        for name, content in ours.items():
            if name in theirs:
                yield from self.gaps(content, theirs[name], _join(path, name))
            elif other is False and content is not False:
                yield Gap(_join(path, name), "field", "known", "refused")
            else:
                yield from self.gaps(content, other, _join(path, name))
        if isinstance(rest, dict):
            for name in theirs.keys() - ours.keys():
                yield from self.gaps(rest, theirs[name], _join(path, name))
        if other is False and rest is not False:
            yield Gap(path, "an unknown field", "ignored", "refused")
        elif rest is not False and other is not True:
            yield from self.gaps(rest, other, _join(path, "*"))

    def _items(self, narrow: Schema, wide: Schema, path: str) -> Iterator[Gap]:
        if "prefixItems" in narrow and "prefixItems" not in wide and "items" in wide:
            yield Gap(path, "prefixItems", _short(narrow["prefixItems"]), "none")
        elif "items" in wide:
            yield from self.gaps(narrow.get("items", True), wide["items"], f"{path}[]")

    def _same(self, one: Any, other: Any) -> bool:
        if _key(one) != _key(other):
            return False
        return '"$ref"' not in _key(one) or _key(self.narrow.get("$defs")) == _key(self.wide.get("$defs"))


def _object(schema: Any) -> Schema:
    if schema is True:
        return {}
    found: Schema = {"not": {}} if schema is False else schema
    return found


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Follow `$ref` into `$defs`; what stands beside it only adds notes, or the reference stays as it is."""
    seen: set[str] = set()
    while "$ref" in schema and schema["$ref"].startswith("#/$defs/") and schema["$ref"] not in seen:
        seen.add(schema["$ref"])
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        target = _object(root.get("$defs", {})[schema["$ref"].removeprefix("#/$defs/")])
        if set(beside) - _NOTES:
            return {"unresolved": [beside, target]}
        schema = target
    return {"unresolved": schema} if "$ref" in schema else schema


def _types(schema: Schema) -> list[str]:
    found = schema.get("type")
    if found is not None:
        return [found] if isinstance(found, str) else list(found)
    values = _enumerated(schema)
    if values is None:
        return list(_TYPES)
    return sorted({_TYPE_OF[type(value)] for value in values.values()})


def _taken(schema: Schema) -> set[str]:
    return set(_types(schema)) | ({"integer"} if "number" in _types(schema) else set())


def _enumerated(schema: Schema) -> dict[str, Any] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else {_key(value): value for value in values}


def _bare(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key not in _NOTES}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _within(name: str, narrow: Schema, bound: float) -> bool:
    """Does a limit of `narrow` imply `bound`? A strict and a plain limit on a number imply one another."""
    sign = 1 if name in _LOW else -1
    plain, strict = _PAIRS.get(name, (name, name))
    if strict in narrow and sign * narrow[strict] >= sign * bound:
        return True
    if plain not in narrow:
        return False
    return bool(sign * narrow[plain] > sign * bound or (name == plain and narrow[plain] == bound))


def _told(values: Iterable[str]) -> str:
    return " or ".join(sorted(set(values)))


def _short(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)[:80]
