"""Every recipe by name: the fields that show it, and how it reads a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.dataset import Rule
from schemas.errors import InvalidError
from schemas.row import Need, Row
from wire.rows import foreign
from wire.rows.shapes import Bad, Recipe, chat, pair, sort, whole

RECIPES: dict[str, tuple[frozenset[str], Recipe]] = {
    "chat": (frozenset({"messages"}), chat),
    "finqa": (frozenset({"question", "table"}), foreign.finqa),
    "finqa-pages": (frozenset({"qa", "table"}), foreign.finqa),
    "convfinqa": (frozenset({"doc", "dialogue"}), foreign.convfinqa),
    "tatqa": (frozenset({"paragraphs", "questions"}), foreign.tatqa),
    "finentity": (frozenset({"content", "annotations"}), foreign.finentity),
    "prompt": (frozenset({"prompt"}), pair("prompt", "completion")),
    "finlora": (frozenset({"context"}), pair("context", "target")),
    "text": (frozenset({"text"}), whole),
}
_ANSWER = {"chat": "messages", "finlora": "target", "finqa": "program", "finqa-pages": "qa.program"}


def known(recipe: str) -> str:
    """Return the name of a recipe, or `auto`. Raises `InvalidError` (TAPE-1010)."""
    if recipe != "auto" and recipe not in RECIPES:
        names = ", ".join(["auto", *RECIPES])
        raise InvalidError(f"no recipe is called {recipe!r}", code="TAPE-1010", field="recipe", hint=f"known: {names}")
    return recipe


def rows(record: object, line: int, recipe: str = "auto", need: Need = "completion") -> list[Row]:
    """Return the rows of a record: one, or one for each question in it. Raises `Bad`."""
    if not isinstance(record, dict):
        raise Bad("line", f"the line is {sort(record)}, not an object")
    name = recipe if recipe != "auto" else _shown(record)
    shown, read = RECIPES[name]
    for field in sorted(shown - record.keys()):
        raise Bad(field, f"`{field}` is missing", Rule.MISSING)
    identity = str(line if record.get("id") is None else record["id"])
    found: list[Row] = []
    for prompt, completion in read(record):
        if need == "completion" and completion is None:
            told = "the row asks and gives no answer to learn from or to compare with"
            raise Bad(_ANSWER.get(name, "completion"), told, Rule.ANSWER)
        found.append(Row(prompt, completion or "", identity, line, record))
    if len(found) > 1:
        return [Row(row.prompt, row.completion, f"{row.id}-{at}", line, record) for at, row in enumerate(found)]
    return found


def _shown(record: Mapping[str, Any]) -> str:
    for name, (shown, _) in RECIPES.items():
        if shown <= record.keys():
            return name
    has = ", ".join(sorted(map(str, record))[:6]) or "nothing"
    told = f"the row has {has}; wanted messages, or prompt and completion, or context and target, or text"
    raise Bad("line", told, Rule.MISSING)
