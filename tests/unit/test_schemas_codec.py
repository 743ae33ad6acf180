"""The codec reads what strangers write: right, or refused with a code; never another exception."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from schemas import codec
from schemas.codec import Envelope, decode, dump, encode, parse, parse_object
from schemas.errors import CODES, InvalidError
from schemas.export import MESSAGES
from schemas.job import Evaluation, Indexing, Inference, Job, Training
from schemas.outcome import Succeeded

NEEDED = [("ce_specversion", b"1.0"), ("ce_id", b"7"), ("ce_type", b"tape.request.echo.v1"), ("ce_source", b"/desk")]
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
names = st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(
    lambda name: name not in {"specversion", "id", "type", "source", "subject", "time", "datacontenttype", "data"}
)
envelopes = st.builds(
    Envelope,
    id=words,
    type=words,
    source=words,
    data=st.binary(),
    subject=st.none() | words,
    time=st.none() | words,
    extensions=st.dictionaries(names, words, max_size=4),
)


def structured(**event: Any) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "7", "type": "t", "source": "/s"} | event).encode()


@given(envelopes)
def test_binary_mode_round_trips(envelope: Envelope) -> None:
    assert decode(envelope.data, encode(envelope)) == envelope


@given(envelopes)
def test_header_names_are_read_in_any_case_and_null_headers_are_absent(envelope: Envelope) -> None:
    headers = [(name.upper(), value) for name, value in encode(envelope)]
    assert decode(envelope.data, [*headers, ("ce_extra", None), ("ce_", b"x"), ("other", b"\xff")]) == envelope


def test_of_repeated_headers_the_last_counts() -> None:
    assert decode(b"{}", [*NEEDED, ("ce_id", b"8")]).id == "8"


def test_transport_trace_context_wins_over_the_extension() -> None:
    both = [*NEEDED, ("traceparent", b"now"), ("ce_traceparent", b"then")]
    assert decode(b"{}", both).extensions == decode(b"{}", reversed(both)).extensions == {"traceparent": "now"}
    read = decode(structured(data={}, traceparent="then"), [*STRUCTURED, ("traceparent", b"now")])
    assert read.extensions == {"traceparent": "now"}


def test_structured_extensions_become_text_and_nulls_are_absent() -> None:
    read = decode(structured(data={"a": "é"}, subject=None, n=7, b=True, dataschema="/x", gone=None), STRUCTURED)
    assert read.extensions == {"n": "7", "b": "true", "dataschema": "/x"}
    assert read.subject is None
    assert read.data == '{"a":"é"}'.encode()


@pytest.mark.parametrize(
    ("content_type", "data"),
    [("application/json", b'"{}"'), ("application/vnd.x+json; v=1", b'"{}"'), ("text/plain", b"{}")],
)
def test_a_structured_string_is_json_only_where_the_type_says_so(content_type: str, data: bytes) -> None:
    read = decode(structured(data="{}", datacontenttype=content_type), STRUCTURED)
    assert (read.data, read.content_type) == (data, content_type)


@given(st.binary())
def test_structured_base64(data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    assert decode(structured(data_base64=encoded), STRUCTURED).data == data


@pytest.mark.parametrize(
    ("value", "headers", "code", "field"),
    [
        (b"{}", NEEDED[1:], "TAPE-1004", "ce_specversion"),
        (b"{}", [*NEEDED[:1], *NEEDED[2:]], "TAPE-1004", "ce_id"),
        (b"{}", [*NEEDED[:2], *NEEDED[3:]], "TAPE-1004", "ce_type"),
        (b"{}", NEEDED[:3], "TAPE-1004", "ce_source"),
        (b"{}", [*NEEDED, ("ce_id", b"")], "TAPE-1004", "ce_id"),
        (b"{}", [*NEEDED, ("ce_specversion", b"0.3")], "TAPE-1004", "ce_specversion"),
        (b"{}", [*NEEDED, ("ce_subject", b"\xff")], "TAPE-1004", "ce_subject"),
        (b"{}", [*NEEDED, ("traceparent", b"\xff")], "TAPE-1004", "traceparent"),
        (b"{}", [*NEEDED, ("content-type", b"\xff")], "TAPE-1004", "content-type"),
        (b"{}", [*NEEDED, ("content-type", b"application/cloudevents+avro")], "TAPE-1004", "content-type"),
        (b"[]", [("content-type", b"application/cloudevents-batch+json")], "TAPE-1004", "content-type"),
        (None, NEEDED, "TAPE-1001", "value"),
        (None, STRUCTURED, "TAPE-1001", None),
        (b"[]", STRUCTURED, "TAPE-1001", None),
        (structured(), STRUCTURED, "TAPE-1004", "data"),
        (structured(id=7, data={}), STRUCTURED, "TAPE-1004", "id"),
        (structured(datacontenttype=7, data={}), STRUCTURED, "TAPE-1004", "datacontenttype"),
        (structured(data_base64="*"), STRUCTURED, "TAPE-1004", "data_base64"),
        (structured(data_base64=7), STRUCTURED, "TAPE-1004", "data_base64"),
        (structured(data_base64="é"), STRUCTURED, "TAPE-1004", "data_base64"),
    ],
)
def test_a_bad_envelope_is_refused_by_name(value: bytes | None, headers: Any, code: str, field: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        decode(value, headers)
    assert (caught.value.code, caught.value.place.get("field")) == (code, field)


def test_encode_refuses_half_a_surrogate_pair() -> None:
    with pytest.raises(InvalidError) as caught:
        encode(Envelope(id="\ud800", type="t", source="s", data=b""))
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1004", "ce_id")


CORPUS = [
    b"",
    b" ",
    b"null",
    b"[]",
    b'"text"',
    b"true",
    b"7",
    b"{",
    b"{} {}",
    b"{'a':1}",
    b'{"a":1,}',
    b'{"params":{"x":NaN}}',
    b'{"params":{"x":-Infinity}}',
    b'{"params":{"x":1e999}}',
    b'{"params":{"x":[1,{"y":-1E+400}]}}',
    b'{"params":{"x":' + b"9" * 400 + b".5}}",
    b'{"params":{"x":' + b"9" * 5000 + b"}}",
    b'{"params":{"x":"\\ud800"}}',
    b'{"params":{"\\udc00":1}}',
    b'{"params":{"x":"\xed\xa0\x80"}}',
    b'{"params":{"x":"\xff"}}',
    b'{"params":{"x":"\x01"}}',
    b'{"params":' * 50_000,
    b"[" * 100_000,
    b'{"params":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
    '{"params":{}}'.encode("utf-16"),
    b"\x00" * 64,
]


@pytest.mark.parametrize("value", CORPUS, ids=lambda value: repr(value[:24]))
def test_what_is_not_a_json_object_is_refused_as_such(value: bytes) -> None:
    for read in (parse_object, lambda text: parse(Job, text), lambda text: decode(text, STRUCTURED)):
        with pytest.raises(InvalidError) as caught:
            read(value)
        assert caught.value.code == "TAPE-1001"
        assert str(caught.value).isprintable()


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_read_or_refused(value: bytes) -> None:
    for read in (parse_object, lambda text: parse(Job, text), lambda text: decode(text, STRUCTURED)):
        try:
            read(value)
        except InvalidError as error:
            assert error.code in CODES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted({*Job.model_fields, *Inference.model_fields})), json_values), st.data())
@example({"params": {"x": float("inf")}}, None)
def test_wrong_types_are_refused_and_what_is_read_can_be_written(fields: dict[str, Any], data: Any) -> None:
    value = json.dumps(fields).encode()
    for model in (Job, Training, Evaluation, Inference, Indexing):
        try:
            read: Any = parse(model, value)
        except InvalidError as error:
            assert error.code in {"TAPE-1001", "TAPE-1002"}
        else:
            assert parse(model, dump(read)) == read


def test_numbers_that_only_look_odd_pass() -> None:
    value = b'{"params":{"a":1e5,"b":[1.5E+10,{"c":2}],"d":"NaN","e":' + b"9" * 310 + b"}}"
    assert parse(Job, value).params["b"] == [1.5e10, {"c": 2}]


def test_a_number_too_large_is_named() -> None:
    with pytest.raises(InvalidError) as caught:
        parse(Job, b'{"params":{"x":[1,{"y":1e999}]}}', topic="t")
    assert caught.value.place == {"field": "params.x.1.y", "topic": "t"}


def test_a_byte_order_mark_is_skipped() -> None:
    value = b'\xef\xbb\xbf{"params":{}}'
    assert parse_object(value) == {"params": {}}
    assert parse(Job, value) == Job(params={})


def test_the_place_of_a_syntax_error_is_told() -> None:
    with pytest.raises(InvalidError) as caught:
        parse(Job, b'{"params": {},\n  "labels" 7}', topic="tape.jobs.echo.bulk")
    assert caught.value.place == {"line": 2, "column": 12, "topic": "tape.jobs.echo.bulk"}
    assert str(caught.value).startswith("TAPE-1001 the value is not JSON: expected `:` [line=2 column=12 topic=")


@pytest.mark.parametrize(
    ("model", "fields", "field", "told"),
    [
        (Job, {}, "params", "params: Field required"),
        (Job, {"params": []}, "params", "params: Input should be an object"),
        (Job, {"params": {}, "timeout_s": 0}, "timeout_s", "timeout_s: Input should be greater than 0"),
        (Job, {"params": {}, "labels": {"a": 1}}, "labels.a", "labels.a: Input should be a valid string"),
        (
            Job,
            {"params": {}, "expires_at": "2030-01-01T00:00:00"},
            "expires_at",
            "expires_at: Input should have timezone info",
        ),
        (
            Job,
            {"params": {}, "not_before": "9999-12-31T23:59:59-14:00"},
            "not_before",
            "not_before: the date is not within the years 1 to 9999 in UTC",
        ),
        (Training, {"base": "b", "data": "d", "stepz": 3}, "stepz", "stepz: Extra inputs are not permitted"),
        (
            Training,
            {"base": "b", "data": "d", "lora": {"rank": 0}},
            "lora.rank",
            "lora.rank: Input should be greater than or equal to 1",
        ),
        (
            Training,
            {"base": "b", "data": "d", "validation_steps": 5},
            "validation_steps",
            "validation_steps: it needs `validation`, the rows to validate on",
        ),
        (
            Training,
            {"base": "b", "data": "d", "validation": "v", "patience": 2},
            "patience",
            "patience: it counts validations: it needs `validation_steps`",
        ),
        (
            Training,
            {"base": "b", "data": "d", "learning_rate": 5},
            "learning_rate",
            "learning_rate: Input should be less than 1",
        ),
        (
            Training,
            {"base": "b", "data": "d", "learning_rate": 1e30},
            "learning_rate",
            "learning_rate: Input should be less than 1",
        ),
        (Training, {"base": "b", "data": "d", "seed": -1}, "seed", "seed: Input should be from 0 to 4294967295"),
        (Training, {"base": "b", "data": "d", "seed": 2**32}, "seed", "seed: Input should be from 0 to 4294967295"),
        (
            Inference,
            {"model": "m", "prompt": "p", "stop": ["\n", ""]},
            "stop",
            "stop: an empty text would end every answer; leave it out",
        ),
        (
            Inference,
            {"model": "m", "prompt": "p", "seed": 10**20, "temperature": 1},
            "seed",
            "seed: Input should be from -9223344366821 to 18446688729347",
        ),
        (
            Evaluation,
            {"model": "m", "data": "d", "metrics": ["accuracy"]},
            "value",
            "value: the metric `accuracy` needs `labels`, the closed set of answers",
        ),
        (
            Inference,
            {"model": "m", "prompt": "p", "data": "d"},
            "value",
            "value: give exactly one of prompt, messages and data; got prompt and data",
        ),
        (Inference, {"model": "m"}, "value", "value: give exactly one of prompt, messages and data; got none"),
        (
            Inference,
            {"model": "m", "messages": [{"role": "judge", "content": ""}]},
            "messages.0.role",
            "messages.0.role: Input should be 'system', 'user' or 'assistant'",
        ),
        (
            Indexing,
            {"documents": ["d"], "encoder": "e", "index": "i", "chunk_tokens": 16, "overlap_tokens": 16},
            "value",
            "value: overlap_tokens must be smaller than chunk_tokens",
        ),
        (
            Indexing,
            {"documents": [], "encoder": "e", "index": "../i"},
            "documents",
            "documents: List should have at least 1 item after validation, not 0; "
            "index: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'",
        ),
    ],
)
def test_wrong_fields_are_named_in_so_many_words(model: Any, fields: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(model, json.dumps(fields).encode(), kind="k")
    assert (caught.value.code, caught.value.message) == ("TAPE-1002", told)
    assert caught.value.place == {"field": field, "kind": "k"}


def test_many_wrong_fields_are_bounded() -> None:
    with pytest.raises(InvalidError, match=r"; and 3 more \["):
        parse(Job, {"params": {}, "labels": {str(number): 7 for number in range(8)}})


@pytest.mark.parametrize("content", ["\ud800", b"\xff", object()])
def test_what_json_cannot_hold_is_refused_when_written(content: object) -> None:
    with pytest.raises(InvalidError, match="Succeeded cannot be written as JSON") as caught:
        dump(Succeeded(result={"x": content}))
    assert caught.value.code == "TAPE-1002"


def test_types_of_events() -> None:
    assert codec.request_type("training") == "tape.request.training.v1"
    assert codec.event_type("queued") == "tape.event.queued.v1"


DATES = [
    (model, name)
    for model in MESSAGES.values()
    for name, field in model.model_fields.items()
    if "datetime" in str(field.annotation).lower()
]


@pytest.mark.parametrize(("model", "field"), DATES)
def test_no_message_holds_a_date_that_utc_does_not_have(model: type[BaseModel], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({field: "9999-12-31T23:59:59-14:00"})
    (told,) = [item["msg"] for item in caught.value.errors() if item["loc"] == (field,)]
    assert told == "Value error, the date is not within the years 1 to 9999 in UTC"


@pytest.mark.parametrize("given", [12345, 1_790_000_000.5, "1790000000", " -1 ", True])
def test_a_number_is_no_date(given: object) -> None:
    """Whether it counts seconds or milliseconds only its writer knows."""
    with pytest.raises(InvalidError, match="a date is written as in 2026-03-01T12:00:00Z") as caught:
        codec.parse(Job, json.dumps({"params": {}, "not_before": given}).encode())
    assert "not_before" in str(caught.value)
