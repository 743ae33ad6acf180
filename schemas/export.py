"""The contract as files: JSON Schema, AsyncAPI and the generated pages of `docs/`; the same bytes for the same code.

Source: JSON Schema 2020-12, AsyncAPI 3.0 (as JSON, which the specification allows).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from schemas.artifact import Artifact, Manifest
from schemas.claim import Claim
from schemas.control import Breaker, Cancel, Drain, Pause, Presence, Resume, Tenant
from schemas.dead import DeadLetter, Fate
from schemas.errors import NotFoundError
from schemas.event import Event
from schemas.job import PARAMS, Job
from schemas.lineage import ModelVersion
from schemas.outcome import Failure, Outcome
from schemas.quota import Tally
from schemas.recur import Fired, Recurring
from schemas.redrive import Line, Redrive

MESSAGES: dict[str, type[BaseModel]] = {
    "job": Job,
    **PARAMS,
    "event": Event,
    "outcome": Outcome,
    "failure": Failure,
    "manifest": Manifest,
    "artifact": Artifact,
    "deadletter": DeadLetter,
    "fate": Fate,
    "redrive": Redrive,
    "redriveline": Line,
    "cancel": Cancel,
    "pause": Pause,
    "resume": Resume,
    "breaker": Breaker,
    "drain": Drain,
    "presence": Presence,
    "tenant": Tenant,
    "recurring": Recurring,
    "fired": Fired,
    "claim": Claim,
    "tally": Tally,
    "modelversion": ModelVersion,
}
"""Every message by the name of its schema file."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a message of `MESSAGES`, as a reader checks it."""
    found = MESSAGES[name].model_json_schema()
    return {"$schema": DIALECT, "$id": f"urn:tickertape:schema:{name}:v1", **found}


def text(content: dict[str, Any]) -> str:
    """Return the one JSON text by which these files are written."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def render() -> dict[str, str]:
    """Return the text of every generated file by its path below `docs/`."""
    from schemas import asyncapi, pages

    files = {f"schemas/{name}.v1.json": text(schema(name)) for name in MESSAGES}
    made = {"asyncapi.json": text(asyncapi.document()), "states.md": pages.states(), "errors.md": pages.errors()}
    return files | made


def export(directory: Path) -> list[Path]:
    """Write every generated file below `directory` (the project's `docs`) and return their paths."""
    written = []
    for name, content in render().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written


def stale(directory: Path) -> list[str]:
    """Return the names of the files below `directory` that differ from the code, are missing or are left over.

    Raises `NotFoundError` (TAPE-2003) if the directory does not exist.
    """
    if not directory.is_dir():
        raise NotFoundError("there is no such directory of documents", code="TAPE-2003", file=str(directory))
    wanted = render()
    found = [name for name, content in wanted.items() if _read(directory / name) != content]
    over = [f"schemas/{path.name}" for path in (directory / "schemas").glob("*.json")]
    return sorted(found + [name for name in over if name not in wanted])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
