"""Refuses changes of the contract that would break messages written or readers deployed before them.

Every accepted version of a schema is kept in `docs/schemas/history/NAME/N.json`, and a change is compared with all of
them (transitively): a job may lie in a topic for long, and an outcome in the store for good.

- The envelope (job, event, outcome, …) must hold both ways: today's code reads what every earlier version wrote, and
  every earlier version reads what today's code writes, because old and new workers run side by side.
- The parameters of a kind must hold backward: today's code reads every earlier request. They are closed, so that a
  typing slip is an error, and a worker that is older than a request says so (TAPE-1002) instead of guessing.

A changed default is not refused: it changes what a request means, not whether it can be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.codec import request_type
from schemas.contain import Gap, gaps
from schemas.errors import InvalidError, NotFoundError
from schemas.export import MESSAGES, schema, text
from schemas.job import PARAMS


@dataclass(frozen=True, slots=True)
class Problem:
    """One refused change: the schema, the field's path in it, what changed, and the way out."""

    schema: str
    path: str
    change: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.schema}: {self.path or 'the message'}: {self.change}; {self.way_out}"


def compare(name: str, old: dict[str, Any], new: dict[str, Any], version: int = 1) -> list[Problem]:
    """Return why the change of schema `name` from `old`, its version `version`, to `new` is refused."""
    found = [_problem(name, gap, version) for gap in gaps(old, new)]
    if name not in PARAMS:
        found += [_problem(name, gap, version, forward=True) for gap in gaps(new, old)]
    return found


def check(directory: Path) -> list[Problem]:
    """Return every incompatibility of the present code with the history below `directory` (the project's `docs`).

    Raises `NotFoundError` (TAPE-2003) without a history, `InvalidError` (TAPE-1001) for a damaged file of it.
    """
    found: list[Problem] = []
    for name, versions in _history(directory).items():
        if name not in MESSAGES:
            found.append(Problem(name, "", "the message is gone", "keep reading it; its records may still be there"))
            continue
        for number in sorted(versions):
            found += compare(name, versions[number], schema(name), number)
    return list(dict.fromkeys(found))


def unrecorded(directory: Path) -> list[str]:
    """Return the names of the schemas whose present form is not the last one in the history."""
    history = _history(directory)
    return [name for name in MESSAGES if _last(history.get(name, {})) != schema(name)]


def accept(directory: Path) -> list[Path]:
    """Record the present schemas as new versions in the history, where they changed; return the files written.

    Raises `InvalidError` (TAPE-1011) that lists every refused change; then nothing is written.
    """
    _root(directory).mkdir(parents=True, exist_ok=True)
    problems = check(directory)
    if problems:
        told = "\n".join(str(problem) for problem in problems)
        raise InvalidError(f"{len(problems)} changes would break old messages:\n{told}", code="TAPE-1011")
    history, written = _history(directory), []
    for name in unrecorded(directory):
        number = max(history.get(name, {}), default=0) + 1
        path = _root(directory) / name / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(schema(name)), encoding="utf-8")
        written.append(path)
    return written


def _problem(name: str, gap: Gap, version: int, forward: bool = False) -> Problem:
    old, new = (gap.wide, gap.narrow) if forward else (gap.narrow, gap.wide)
    change = f"{gap.subject} was {old} in version {version}, is {new}"
    if forward:
        who = "readers of that version would refuse it: keep it as it was, or add an optional field beside it"
    elif name in PARAMS:
        following = request_type(name).removesuffix("1") + "2"
        who = f"requests of that version would be refused: keep taking it, or make a new version, {following}"
    else:
        who = "messages of that version would be refused: keep taking it, or give the field a default"
    return Problem(name, gap.path, change, who)


def _root(directory: Path) -> Path:
    return directory / "schemas" / "history"


def _history(directory: Path) -> dict[str, dict[int, dict[str, Any]]]:
    root = _root(directory)
    if not root.is_dir():
        raise NotFoundError("there is no history of schemas", code="TAPE-2003", file=str(root))
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    return {folder.name: {int(path.stem): _load(path) for path in folder.glob("[0-9]*.json")} for folder in folders}


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidError(f"the recorded schema is not JSON: {error}", code="TAPE-1001", file=str(path)) from error
    return found


def _last(versions: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    return versions[max(versions)] if versions else None
