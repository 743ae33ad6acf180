"""Exports: dead letters as JSON lines, every byte of them, to be read elsewhere, mended by hand and sent again."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from producers.dead.letter import Letter
from schemas import codec
from schemas.dead import Place
from schemas.errors import InvalidError
from schemas.topics import Names
from wire.follow import Received


def line(letter: Letter) -> dict[str, Any]:
    """Return a letter as one line of an export: the record verbatim, and what is known of it beside."""
    return {
        "letter": str(letter.place),
        "job": letter.job,
        "kind": letter.kind,
        "target": letter.origin.target,
        "key": pack(letter.record.key),
        "value": pack(letter.record.value),
        "sha256": digest(letter.record.value),
        "class": str(letter.origin.failure),
        "code": letter.origin.code,
        "message": letter.origin.message,
        "timestamp_ms": letter.record.timestamp_ms,
        "headers": [[name, pack(raw)] for name, raw in letter.record.headers],
    }


def parse(lines: Iterable[bytes], names: Names, file: str) -> Iterator[tuple[Letter, bool]]:
    """Yield the letters of an export, and whether somebody mended their value meanwhile.

    Raises `InvalidError` (TAPE-1008) with the line's number and field.
    """
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield _letter(codec.parse_object(text), names)
            except InvalidError as error:
                told, field = error.message, error.place.get("field")
                raise InvalidError(
                    told, code="TAPE-1008", hint=error.hint, file=file, line=number, field=field
                ) from None


def pack(raw: bytes | None) -> str | dict[str, str] | None:
    """Return bytes for JSON: text where they are UTF-8, else `{"base64": …}`."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def unpack(packed: object, field: str) -> bytes | None:
    """Return the bytes that `pack` was given. Raises `InvalidError` (TAPE-1002) for anything else."""
    if packed is None:
        return None
    if isinstance(packed, str):
        return packed.encode()
    if isinstance(packed, dict) and isinstance(packed.get("base64"), str):
        try:
            return base64.b64decode(packed["base64"], validate=True)
        except ValueError:
            pass
    raise InvalidError('neither text, {"base64": …} nor null', field=field, hint="export the letter again")


def digest(value: bytes | None) -> str | None:
    """Return the hash by which a mended value is known."""
    return None if value is None else hashlib.sha256(value).hexdigest()


def _letter(found: dict[str, Any], names: Names) -> tuple[Letter, bool]:
    text = found.get("letter")
    place = Place.parse(text) if isinstance(text, str) else None
    if place is None:
        raise InvalidError("no TOPIC/PARTITION/OFFSET", field="letter", hint="keep it as it was exported")
    headers = found.get("headers")
    if not isinstance(headers, list) or not all(_is_pair(pair) for pair in headers):
        raise InvalidError("the headers are no array of [name, value]", field="headers", hint="export the letter again")
    read = tuple((name, unpack(raw, f"headers.{name}")) for name, raw in headers)
    value = unpack(found.get("value"), "value")
    stamp = found.get("timestamp_ms")
    moment = stamp if isinstance(stamp, int) else 0
    record = Received(*place, unpack(found.get("key"), "key"), value, read, moment)
    letter = Letter.of(record, names)
    target = found.get("target")
    if isinstance(target, str) and target != letter.origin.target:  # somebody knows better than the headers
        letter.origin = replace(letter.origin, target=target)
    return letter, digest(value) != found.get("sha256")


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
