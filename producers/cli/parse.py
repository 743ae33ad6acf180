"""What people type, read: durations, moments, parameters, pairs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from schemas.errors import InvalidError, NotFoundError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = timedelta(days=36_525)
"""A hundred years: what is longer is a slip, and clocks and waits overflow."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def duration(text: str, option: str) -> timedelta:
    """Read `90s`, `30m`, `1h30m`, `2d`, `1w` or a number of seconds.

    Raises `InvalidError` (TAPE-1010) for anything else, and for more than a hundred years.
    """
    parts = _DURATION.findall(text)
    try:
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        else:
            seconds = float(text)
        found = timedelta(seconds=seconds)
    except OverflowError:
        found = timedelta.max
    except ValueError:
        raise _wrong(option, text, "a duration such as 90s, 30m, 1h or 2d") from None
    if abs(found) > _LONGEST:
        raise _wrong(option, text, "a duration of at most a hundred years")
    return found


def moment(text: str, option: str) -> datetime:
    """Read a duration before now, or an ISO 8601 time (in UTC unless it says otherwise)."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC) - duration(text, option)
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise _wrong(option, text, "a time within the years 1 to 9999 in UTC") from None


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Read `key=value` texts."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise _wrong(option, text, "key=value")
        found[key] = value
    return found


def parameters(source: str | None, sets: Sequence[str]) -> dict[str, Any]:
    """Read a job's parameters: JSON text, `@FILE`, or `-` for stdin, and then each `--set key=value` over it.

    A value is JSON where it can be read as such, else text; dots reach into objects (`lora.rank=4`). Raises
    `InvalidError` (TAPE-1001 with line and column), `NotFoundError` (TAPE-2003).
    """
    from schemas.codec import parse_object

    found: dict[str, Any] = {}
    if source is not None:
        text, place = _source(source)
        try:
            found = parse_object(text)
        except InvalidError as error:
            raise InvalidError(error.message, code=error.code, **{**error.place, **place}) from None
    for path, value in pairs(sets, "--set").items():
        _put(found, path, _value(value))
    return found


def _source(source: str) -> tuple[bytes, dict[str, str]]:
    if source == "-":
        return sys.stdin.buffer.read(), {"file": "stdin"}
    if not source.startswith("@"):
        return source.encode(), {"field": "--params"}
    path = Path(source[1:])
    try:
        return path.read_bytes(), {"file": str(path)}
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}", code="TAPE-2003", file=str(path)) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(found: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        inner = found.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise _wrong("--set", path, f"a field, and {folder!r} is no object")
        found = inner
    found[last] = value


def _wrong(option: str, text: str, wanted: str) -> InvalidError:
    return InvalidError(f"{text!r} is not {wanted}", code="TAPE-1010", field=option)
