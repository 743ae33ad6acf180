"""Train, validation and test: which file is which, and rows held back where there is no file for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from schemas.errors import InvalidError, NotFoundError
from schemas.row import Row
from wire.rows.files import load

Split = Literal["train", "valid", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "valid", "test")
ALIASES: Final[dict[str, Split]] = {"dev": "valid", "validation": "valid", "eval": "valid"}
SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"})


def members(path: Path) -> dict[Split, list[Path]]:
    """Which files of a directory belong to which split, by name (`train.jsonl`, `formula_test.jsonl`); a file is
    a train split by itself, and so are the files of a directory that names none.

    Raises `NotFoundError` (TAPE-2003) where nothing is, or no data file is in it.
    """
    if path.is_file():
        return {"train": [path]}
    found = sorted(one for one in path.glob("*") if one.suffix.lower() in SUFFIXES) if path.is_dir() else []
    if not found:
        wanted = ", ".join(sorted(SUFFIXES))
        raise NotFoundError("there is no data file", code="TAPE-2003", file=str(path), hint=f"wanted: {wanted}")
    parts: dict[Split, list[Path]] = {}
    for file in found:
        last = file.stem.replace("-", "_").split("_")[-1].lower()
        for name in SPLITS:
            if ALIASES.get(last, last) == name:
                parts.setdefault(name, []).append(file)
    return parts if "train" in parts else {"train": found}


def splits(
    path: Path, *, recipe: str = "auto", valid: int = 0, test: int = 0, seed: int = 0, limit: int | None = None
) -> dict[Split, list[Row]]:
    """Read train, valid and test rows; a part that has no file of its own gets that many rows split off from train.

    `limit` bounds each part (spread over its files). Raises what `load` raises.
    """
    parts: dict[Split, list[Row]] = {}
    for part, found in members(path).items():
        share = None if limit is None else -(-limit // len(found))
        parts[part] = [row for member in found for row in load(member, recipe=recipe, limit=share)][:limit]
    wanted: tuple[tuple[Split, int], ...] = (("test", test), ("valid", valid))
    for name, count in wanted:
        if name not in parts and count:
            parts["train"], parts[name] = split(parts["train"], count, seed=seed)
    return {name: parts.get(name, []) for name in SPLITS}


def split(rows: Iterable[Row], count: int, *, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Split off about `count` rows, the same ones every time, rows with an equal prompt always together.

    Which side a row goes to depends on its prompt and the seed only, not on its place in the file.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        asked = json.dumps(row.prompt, sort_keys=True) if row.prompt else row.completion
        groups.setdefault(hashlib.sha256(f"{seed}:{asked}".encode()).hexdigest(), []).append(row)
    kept: list[Row] = []
    held: list[Row] = []
    for key in sorted(groups):
        (held if len(held) < count else kept).extend(groups[key])
    if not kept:
        raise InvalidError(
            f"{len(held)} rows are too few to hold {count} back", code="TAPE-1008", hint="hold fewer rows back"
        )
    return sorted(kept, key=lambda row: row.line), sorted(held, key=lambda row: row.line)
