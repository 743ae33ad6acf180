"""CloudEvents 1.0 over Kafka: binary mode written, binary and structured mode read.

Source: CloudEvents 1.0.2, Kafka Protocol Binding §3 (headers `ce_*`, `content-type`; structured mode is a value of
`application/cloudevents+json`). W3C trace context travels in the headers `traceparent` and `tracestate`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import InvalidError

SPEC = "1.0"
JSON_TYPE = "application/json"
STRUCTURED_TYPE = "application/cloudevents+json"

Header = tuple[str, bytes | None]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A CloudEvent's attributes, and its data as bytes."""

    id: str
    type: str
    source: str
    data: bytes
    subject: str | None = None
    time: str | None = None
    content_type: str = JSON_TYPE
    extensions: dict[str, str] = field(default_factory=dict)


def request_type(kind: str) -> str:
    """Return the `ce_type` of a request for a job of this kind."""
    return f"tape.request.{kind}.v1"


def event_type(name: str) -> str:
    """Return the `ce_type` of a lifecycle event."""
    return f"tape.event.{name}.v1"


def encode(envelope: Envelope) -> list[tuple[str, bytes]]:
    """Return the headers of the binary mode; the record's value is `envelope.data`."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", envelope.id.encode()),
        ("ce_type", envelope.type.encode()),
        ("ce_source", envelope.source.encode()),
        ("content-type", envelope.content_type.encode()),
    ]
    if envelope.subject is not None:
        headers.append(("ce_subject", envelope.subject.encode()))
    if envelope.time is not None:
        headers.append(("ce_time", envelope.time.encode()))
    for name, value in envelope.extensions.items():
        bare = name in {"traceparent", "tracestate"}
        headers.append((name if bare else f"ce_{name}", value.encode()))
    return headers


def decode(value: bytes | None, headers: Iterable[Header]) -> Envelope:
    """Read a record's CloudEvent, in binary or structured mode.

    Raises `InvalidError` that names the header or field: TAPE-1001 not JSON, TAPE-1004 incomplete envelope.
    """
    found = {name.lower(): raw for name, raw in headers if raw is not None}
    content_type = _text(found, "content-type") or JSON_TYPE
    if content_type.split(";", 1)[0].strip().lower() == STRUCTURED_TYPE:
        return _structured(value, found)
    attributes: dict[str, str] = {}
    extensions: dict[str, str] = {}
    for name in found:
        if name.startswith("ce_"):
            text = _text(found, name)
            assert text is not None
            bare = name[3:]
            (attributes if bare in _ATTRIBUTES else extensions)[bare] = text
        elif name in {"traceparent", "tracestate"}:
            extensions[name] = _text(found, name) or ""
    if value is None:
        raise InvalidError("the record has no value", code="TAPE-1001", field="value")
    return _build(attributes, extensions, value, content_type)


_ATTRIBUTES = frozenset({"specversion", "id", "type", "source", "subject", "time"})


def _text(found: dict[str, bytes], name: str) -> str | None:
    raw = found.get(name)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidError("a header is not UTF-8", code="TAPE-1004", field=name) from error


def _structured(value: bytes | None, found: dict[str, bytes]) -> Envelope:
    event = parse_object(value)
    data = _data(event)
    extensions = {
        name: text if isinstance(text, str) else json.dumps(text)
        for name, text in event.items()
        if name not in _ATTRIBUTES | {"data", "data_base64", "datacontenttype", "dataschema"}
    }
    for name in ("traceparent", "tracestate"):
        if name in found:
            extensions.setdefault(name, _text(found, name) or "")
    attributes: dict[str, str] = {}
    for name in _ATTRIBUTES & event.keys():
        if not isinstance(event[name], str):
            raise InvalidError("a CloudEvents attribute is not a string", code="TAPE-1004", field=name)
        attributes[name] = event[name]
    content_type = event.get("datacontenttype", JSON_TYPE)
    return _build(attributes, extensions, data, content_type if isinstance(content_type, str) else JSON_TYPE)


def _data(event: dict[str, Any]) -> bytes:
    if "data_base64" in event:
        try:
            return base64.b64decode(event["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise InvalidError("data_base64 is not base64", code="TAPE-1004", field="data_base64") from error
    if "data" not in event:
        raise InvalidError("the CloudEvent has no data", code="TAPE-1004", field="data")
    return json.dumps(event["data"], ensure_ascii=False, separators=(",", ":")).encode()


def _build(attributes: dict[str, str], extensions: dict[str, str], data: bytes, content_type: str) -> Envelope:
    for name in ("specversion", "id", "type", "source"):
        if not attributes.get(name):
            raise InvalidError(f"the CloudEvents attribute {name} is missing", code="TAPE-1004", field=f"ce_{name}")
    if attributes["specversion"] != SPEC:
        raise InvalidError(
            f"CloudEvents {attributes['specversion']} is not read here", code="TAPE-1004", field="ce_specversion"
        )
    return Envelope(
        id=attributes["id"],
        type=attributes["type"],
        source=attributes["source"],
        data=data,
        subject=attributes.get("subject"),
        time=attributes.get("time"),
        content_type=content_type,
        extensions=extensions,
    )


def parse_object(value: bytes | None) -> dict[str, Any]:
    """Return the JSON object that `value` holds. Raises `InvalidError` (TAPE-1001) with line and column."""
    try:
        found = json.loads(value or b"")
    except UnicodeDecodeError as error:
        raise InvalidError("the value is not UTF-8", code="TAPE-1001", offset_bytes=error.start) from error
    except json.JSONDecodeError as error:
        raise InvalidError(
            f"the value is not JSON: {error.msg}", code="TAPE-1001", line=error.lineno, column=error.colno
        ) from error
    except RecursionError as error:
        raise InvalidError("the JSON is nested too deeply", code="TAPE-1001") from error
    if not isinstance(found, dict):
        raise InvalidError(f"the value is a JSON {type(found).__name__}, not an object", code="TAPE-1001")
    return found


def parse(model: type[M], value: bytes | dict[str, Any], **place: Any) -> M:
    """Read `value` as `model`. Raises `InvalidError` (TAPE-1001, 1002) that names every wrong field."""
    try:
        return model.model_validate_json(value) if isinstance(value, bytes) else model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = problems[0]
        if first["type"] == "json_invalid":
            raise InvalidError(f"the value is not JSON: {first['msg']}", code="TAPE-1001", **place) from None
        told = "; ".join(f"{_path(item['loc'])}: {item['msg'].removeprefix('Value error, ')}" for item in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        field = _path(first["loc"])
        raise InvalidError(told + more, code="TAPE-1002", field=field, **place) from None


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "value"
