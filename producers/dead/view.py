"""One dead letter as a person reads it: what is wrong first, then its story, then its content."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from producers.dead import origin
from producers.dead.export import pack
from producers.dead.letter import Letter
from schemas.dead import ORIGINAL
from schemas.errors import CODES
from schemas.past import OWN

MENDED = "mended from"


def people(letter: Letter, limit: int) -> dict[str, Any]:
    """Return labelled lines; of texts at most `limit` characters."""
    told = letter.origin.letter
    failure = told.failure if told else None
    entry = CODES.get(letter.origin.code)
    found: dict[str, Any] = {
        "job": letter.job,
        "status": letter.status,
        "kind": letter.kind,
        "failure": f"{letter.origin.code} ({letter.origin.failure}) {letter.origin.message}",
        "way out": (failure.hint if failure and failure.hint else "") or (entry.hint if entry else ""),
        "where": failure.place if failure else {},
        "verdict": told.disposition if told else None,
        "died": _time(letter.died_at),
        "first failed": _time(told.first_failed_at) if told and told.first_failed_at else None,
        "tries": letter.attempts,
        "replays": letter.replays,
        "worker": letter.origin.who,
        "tenant": letter.tenant,
        "model": letter.model,
        "gpu seconds": letter.gpu_seconds,
        "trace": told.trace if told else None,
        "dead record": letter.origin.place,
        "letter": str(letter.place),
        "written by": None if letter.origin.dialect is origin.Dialect.TICKERTAPE else letter.origin.dialect.value,
    }
    for one in letter.past.tries:
        spent = "" if one.spent else "  (not counted)"
        found[f"try {one.attempt}"] = f"{_time(one.ended_at)}  {one.worker}  {one.code} {one.message}{spent}"
    if letter.fate is not None:
        fate = letter.fate
        why = f": {fate.reason}" if fate.reason else ""
        how = f" to {fate.target}, redrive {fate.redrive or 'by hand'}" if fate.target else ""
        found[fate.became.value] = f"{_time(fate.time)} by {fate.by}{how}{why}"
    kept = [(name, raw) for name, raw in origin.original(letter.record.headers) if name not in OWN]
    found |= {MENDED if name == ORIGINAL else f"header {name}": _text(raw, 400) for name, raw in kept}
    found["payload"] = _payload(letter, limit)
    found["detail"] = (letter.origin.detail or "")[-limit:]
    return {name: value for name, value in found.items() if value not in (None, "", {})}


def _payload(letter: Letter, limit: int) -> str:
    text = json.dumps(letter.body, indent=2, ensure_ascii=False) if letter.body else _text(letter.record.value, limit)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters; `tape dead export` has all)"


def _text(raw: bytes | None, limit: int) -> str:
    packed = pack(raw)
    if packed is None:
        return "(null)"
    return packed[:limit] if isinstance(packed, str) else f"base64 {packed['base64'][:limit]}"


def _time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
