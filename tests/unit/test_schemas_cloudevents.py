"""The CloudEvents SDK as referee: it reads what we write, and we read what it writes, in both modes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.http import CloudEvent as OldEvent
from cloudevents.v1.kafka import conversion as old
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime, TypeAdapter

from schemas.codec import Envelope, decode, encode, parse_object

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
ATTRIBUTES = {"specversion", "id", "type", "source", "subject", "time", "datacontenttype", "dataschema", "data"}
names = st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(
    lambda name: name not in ATTRIBUTES | {"partitionkey", "traceparent", "tracestate"}
)
extensions = st.dictionaries(names, words, max_size=3)
contents = st.dictionaries(
    words, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words | st.lists(words), max_size=4
)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=zones)  # noqa: DTZ001 - bounds are naive


def same_moment(text: str | None, moment: datetime | None) -> bool:
    if text is None or moment is None:
        return text is moment
    return bool(TypeAdapter(AwareDatetime).validate_python(text) == moment)


@given(words, words, words, st.none() | words, st.none() | times, extensions, contents)
def test_the_sdk_reads_what_we_write(
    identity: str, kind: str, source: str, subject: str | None, time: datetime | None, more: dict[str, str], data: Any
) -> None:
    value = json.dumps(data).encode()
    written = Envelope(
        identity, kind, source, value, subject, time.isoformat() if time else None, "application/json", more
    )
    message = binding.KafkaMessage(dict(encode(written)), None, value)
    read = binding.from_kafka(message, JSONFormat(), CloudEvent)
    assert (read.get_id(), read.get_type(), read.get_source(), read.get_subject()) == (identity, kind, source, subject)
    assert read.get_datacontenttype() == "application/json"
    assert read.get_data() == data
    assert time is None or read.get_time() == time
    assert {name: read.get_extension(name) for name in more} == more


def event_of(subject: str | None, time: datetime, more: dict[str, str], data: Any) -> CloudEvent:
    attributes = {"id": "ключ 7", "type": "tape.request.echo.v1", "source": "/bureau/é", "time": time, **more}
    attributes |= {"datacontenttype": "application/json", "dataschema": "urn:tickertape:schema:job:v1"}
    return CloudEvent(attributes | ({"subject": subject} if subject else {}), data)


@pytest.mark.parametrize("write", [binding.to_binary, binding.to_structured])
@given(st.none() | words, times, extensions, contents)
def test_we_read_what_the_sdk_writes(
    write: Any, subject: str | None, time: datetime, more: dict[str, str], data: dict[str, Any]
) -> None:
    message = write(event_of(subject, time, more, data), JSONFormat())
    read = decode(message.value, message.headers.items())
    assert (read.id, read.type, read.source) == ("ключ 7", "tape.request.echo.v1", "/bureau/é")
    assert read.subject == subject
    assert same_moment(read.time, time)
    assert read.content_type == "application/json"
    assert read.extensions == more | {"dataschema": "urn:tickertape:schema:job:v1"}
    assert parse_object(read.data) == data


@given(contents)
def test_both_modes_of_one_event_are_one_envelope(data: dict[str, Any]) -> None:
    event = event_of("job-7", datetime(2026, 1, 2, tzinfo=UTC), {"expirytime": "2026-01-03T00:00:00Z"}, data)
    one, other = (write(event, JSONFormat()) for write in (binding.to_binary, binding.to_structured))
    read = [decode(message.value, message.headers.items()) for message in (one, other)]
    assert [parse_object(envelope.data) for envelope in read] == [data, data]
    assert replace(read[0], data=b"") == replace(read[1], data=b"")


def test_bytes_of_the_sdk_arrive_as_base64() -> None:
    event = event_of(None, datetime(2026, 1, 2, tzinfo=UTC), {}, b'{"params":{}}')
    message = binding.to_structured(event, JSONFormat())
    assert "data_base64" in json.loads(message.value)
    assert decode(message.value, message.headers.items()).data == b'{"params":{}}'


def test_text_of_the_sdk_arrives_as_its_characters() -> None:
    event = CloudEvent({"type": "t", "source": "/s", "datacontenttype": "text/plain"}, '{"params":{}}')
    message = binding.to_structured(event, JSONFormat())
    assert decode(message.value, message.headers.items()).data == b'{"params":{}}'


@given(contents)
def test_the_sdk_of_version_1_is_read_in_binary_mode(data: dict[str, Any]) -> None:
    attributes = {"id": "7", "type": "t", "source": "/s", "datacontenttype": "application/json", "region": "eu"}
    message = old.to_binary(OldEvent(attributes, data))
    read = decode(message.value, message.headers.items())
    assert (read.id, read.type, read.source, read.extensions) == ("7", "t", "/s", {"region": "eu"})
    assert parse_object(read.data) == data


def test_the_sdk_of_version_1_writes_structured_values_that_nobody_can_tell_apart() -> None:
    """It names the data's type where the binding wants the event format's (§3.3.1): refused, and the fault is named."""
    attributes = {"id": "7", "type": "t", "source": "/s", "datacontenttype": "application/json"}
    message = old.to_structured(OldEvent(attributes, {}))
    assert message.headers == {"content-type": b"application/json"}
    with pytest.raises(Exception, match="TAPE-1004 the CloudEvents attribute specversion is missing"):
        decode(message.value, message.headers.items())
    mended = [("content-type", b"application/cloudevents+json")]
    assert decode(message.value, mended).id == "7"
