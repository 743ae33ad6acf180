"""CloudEvents 1.0 over Kafka: binary mode written, binary and structured mode read.

Source: CloudEvents 1.0.2, Kafka Protocol Binding §3 (headers `ce_*`, `content-type`, all plain UTF-8 without
percent-encoding; structured mode is a value of `application/cloudevents+json`) and JSON Format §3. W3C trace context
travels in the headers `traceparent` and `tracestate`; they win over the extensions of the same name, which tell where
the event began and not who sent it last.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

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
    """Return the headers of the binary mode; the record's value is `envelope.data`.

    Raises `InvalidError` (TAPE-1004) for a text that UTF-8 cannot hold, such as half of a surrogate pair.
    """
    try:
        return [(name, text.encode()) for name, text in _texts(envelope)]
    except UnicodeEncodeError as error:
        name = next(name for name, text in _texts(envelope) if text == error.object)
        raise InvalidError("a header is not valid Unicode", code="TAPE-1004", field=name) from error


def decode(value: bytes | None, headers: Iterable[Header]) -> Envelope:
    """Read a record's CloudEvent, in binary or structured mode; of repeated headers the last counts.

    Raises `InvalidError` that names the header or field: TAPE-1001 not JSON, TAPE-1004 incomplete envelope.
    """
    found = {name.lower(): raw for name, raw in headers if raw is not None}
    content_type = _text(found, "content-type") or JSON_TYPE
    media_type = content_type.split(";", 1)[0].strip().lower()
    if media_type == STRUCTURED_TYPE:
        return _structured(value, found)
    if media_type.startswith("application/cloudevents"):
        raise InvalidError(f"{media_type} is not read here", code="TAPE-1004", field="content-type")
    if value is None:
        raise InvalidError("the record has no value", code="TAPE-1001", field="value")
    attributes = {name[3:]: _text(found, name) or "" for name in found if name.startswith("ce_") and len(name) > 3}
    return _build(attributes, found, value, content_type)


_ATTRIBUTES = frozenset({"specversion", "id", "type", "source", "subject", "time"})
_TRACE = ("traceparent", "tracestate")


def _texts(envelope: Envelope) -> Iterator[tuple[str, str]]:
    yield "ce_specversion", SPEC
    yield "ce_id", envelope.id
    yield "ce_type", envelope.type
    yield "ce_source", envelope.source
    yield "content-type", envelope.content_type
    if envelope.subject is not None:
        yield "ce_subject", envelope.subject
    if envelope.time is not None:
        yield "ce_time", envelope.time
    for name, text in envelope.extensions.items():
        yield (name if name in _TRACE else f"ce_{name}"), text


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
    attributes: dict[str, str] = {}
    for name, content in event.items():
        if content is None or name in {"data", "data_base64", "datacontenttype"}:
            continue
        if name in _ATTRIBUTES and not isinstance(content, str):
            raise InvalidError("a CloudEvents attribute is not a string", code="TAPE-1004", field=name)
        attributes[name] = content if isinstance(content, str) else _compact(content)
    content_type = event.get("datacontenttype") or JSON_TYPE
    if not isinstance(content_type, str):
        raise InvalidError("a CloudEvents attribute is not a string", code="TAPE-1004", field="datacontenttype")
    return _build(attributes, found, _data(event, content_type), content_type)


def _data(event: dict[str, Any], content_type: str) -> bytes:
    if event.get("data_base64") is not None:
        try:
            return base64.b64decode(event["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise InvalidError("data_base64 is not base64", code="TAPE-1004", field="data_base64") from error
    if "data" not in event:
        raise InvalidError("the CloudEvent has no data", code="TAPE-1004", field="data")
    data = event["data"]
    if isinstance(data, str) and not re.match(r"[^;]*[/+]json\s*(;|$)", content_type, re.IGNORECASE):
        return data.encode()  # JSON Format §3.1: a string that is not JSON stands for its own characters
    return _compact(data).encode()


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _build(attributes: dict[str, str], found: dict[str, bytes], data: bytes, content_type: str) -> Envelope:
    for name in ("specversion", "id", "type", "source"):
        if not attributes.get(name):
            raise InvalidError(f"the CloudEvents attribute {name} is missing", code="TAPE-1004", field=f"ce_{name}")
    if attributes["specversion"] != SPEC:
        raise InvalidError(
            f"CloudEvents {attributes['specversion']} is not read here", code="TAPE-1004", field="ce_specversion"
        )
    extensions = {name: text for name, text in attributes.items() if name not in _ATTRIBUTES}
    extensions |= {name: _text(found, name) or "" for name in _TRACE if name in found}
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


_BOM = b"\xef\xbb\xbf"

_JSON_NAMES = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}


def parse_object(value: bytes | None) -> dict[str, Any]:
    """Return the JSON object that `value` holds, strictly by RFC 8259; a byte order mark is skipped.

    Of repeated names the last counts. Raises `InvalidError` (TAPE-1001) with line and column: not JSON, not UTF-8,
    half of a surrogate pair, NaN or infinity, nested deeper than the parser goes (about 200), or not an object.
    """
    text = (value or b"").removeprefix(_BOM)
    try:
        found = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise _not_json(str(error)) from None
    if not isinstance(found, dict):
        name = _JSON_NAMES[type(found)]
        raise InvalidError(f"the value is a JSON {name}, not an object", code="TAPE-1001")
    if b"Infinity" in to_json(found, inf_nan_mode="constants"):  # cheaper than to look at every number
        _refuse_infinite(found)
    return found


def _not_json(told: str) -> InvalidError:
    place = re.search(r"(.*) at line (\d+) column (\d+)$", told, re.DOTALL)
    if place is None:
        return InvalidError(f"the value is not JSON: {told}", code="TAPE-1001")
    line, column = int(place[2]), int(place[3])
    return InvalidError(f"the value is not JSON: {place[1]}", code="TAPE-1001", line=line, column=column)


def _refuse_infinite(found: dict[str, Any]) -> None:
    """A number such as 1e999 reads as infinity, which no JSON text can hold when it is written again."""
    rest: list[tuple[str, Any]] = [("", found)]
    while rest:
        path, item = rest.pop()
        if isinstance(item, dict):
            rest += [(f"{path}.{key}".lstrip("."), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            rest += [(f"{path}.{index}", inner) for index, inner in enumerate(item)]
        elif isinstance(item, float) and not math.isfinite(item):
            raise InvalidError("the number is too large", code="TAPE-1001", field=path)


def parse(model: type[M], value: bytes | dict[str, Any], **place: Any) -> M:
    """Read `value` as `model`. Raises `InvalidError` (TAPE-1001, 1002) that names every wrong field."""
    try:
        if isinstance(value, dict):
            return model.model_validate(value)
        parse_object(value)  # the model's own reader takes NaN and infinity where the type is open
        return model.model_validate_json(value.removeprefix(_BOM))
    except InvalidError as error:
        error.place |= place
        raise
    except ValidationError as error:
        raise _told(error, place) from None


def dump(message: BaseModel) -> bytes:
    """Return the message as UTF-8 JSON. Raises `InvalidError` (TAPE-1002) for content that JSON cannot hold."""
    try:
        return message.model_dump_json().encode()
    except (PydanticSerializationError, ValueError) as error:
        name = type(message).__name__
        raise InvalidError(f"{name} cannot be written as JSON: {error}", code="TAPE-1002", field=name) from None


def _told(error: ValidationError, place: dict[str, Any]) -> InvalidError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = "; ".join(f"{_path(item['loc'])}: {item['msg'].removeprefix('Value error, ')}" for item in problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return InvalidError(told + more, code="TAPE-1002", **{"field": _path(problems[0]["loc"]), **place})


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "value"


DEFAULT = "default"
_NAME = 128
"""Characters of the longest tenant's name."""


def tenant_of(value: bytes | None) -> str:
    """Return whose job a request is, as cheaply as that can be told; who cannot be told is `default`."""
    if value is None or (b"tenant" not in value and b"\\u00" not in value):
        return DEFAULT
    try:
        event = from_json(value.removeprefix(_BOM))
    except ValueError:
        return DEFAULT
    # In structured mode the request is within.
    data = event.get("data") if isinstance(event, dict) and "specversion" in event else event
    name = data.get("tenant") if isinstance(data, dict) else None
    return name if isinstance(name, str) and 0 < len(name) <= _NAME else DEFAULT
