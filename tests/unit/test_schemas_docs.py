"""The documents are what the code says, and today's code reads what every version wrote."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from pydantic import ValidationError

from schemas import asyncapi, codec, control, export, pages
from schemas.artifact import ArtifactFile
from schemas.control import Cancel
from schemas.dead import HEADER
from schemas.errors import CODES, NotFoundError
from schemas.event import TRANSITIONS, EventType, State
from schemas.job import PARAMS, Evaluation, Inference, Job
from schemas.topics import Names, topics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SAMPLES = sorted((ROOT / "tests" / "data" / "messages").glob("v*/*.json"))


# Generated files


def test_the_documents_are_equal_to_the_code() -> None:
    assert export.stale(DOCS) == [], "run `tape schemas export`"


def test_export_writes_the_same_bytes_again_and_stale_sees_every_difference(tmp_path: Path) -> None:
    first = {path: path.read_bytes() for path in export.export(tmp_path)}
    assert {path: path.read_bytes() for path in export.export(tmp_path)} == first
    assert export.stale(tmp_path) == []
    (tmp_path / "errors.md").write_text("old")
    (tmp_path / "states.md").write_bytes(b"\xff")
    (tmp_path / "asyncapi.json").unlink()
    (tmp_path / "schemas" / "gone.v1.json").write_text("{}")
    assert export.stale(tmp_path) == ["asyncapi.json", "errors.md", "schemas/gone.v1.json", "states.md"]
    with pytest.raises(NotFoundError):
        export.stale(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", export.MESSAGES)
def test_every_schema_is_json_schema_2020_12_and_names_itself(name: str) -> None:
    schema = export.schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:tickertape:schema:{name}:v1"
    assert schema["description"]


def test_the_pages_tell_every_code_state_event_and_transition() -> None:
    errors, states = pages.errors(), pages.states()
    for code, entry in CODES.items():
        assert f"| {code} | {entry.meaning} | {entry.failure} | {entry.severity} | {entry.hint} |" in errors
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", states, re.MULTILINE))
    assert drawn == {(state, after) for state in State for after in TRANSITIONS[state]}
    assert all(f"\n| {event} | " in states for event in EventType)


def test_the_protocol_page_names_what_the_code_names() -> None:
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    names = Names()
    told = [names.events, names.control, codec.STRUCTURED_TYPE, *(names.jobs(kind, "bulk") for kind in PARAMS)]
    told += [codec.request_type(kind) for kind in PARAMS] + [HEADER + name for name in asyncapi._DEAD]
    assert [name for name in told if name not in text] == []
    assert set(re.findall(r"TAPE-\d{4}", text)) <= CODES.keys()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / "protocol.md").read_text(encoding="utf-8"), re.DOTALL)


def _accepted(topic: str, value: bytes, headers: list[tuple[str, bytes]]) -> None:
    envelope = codec.decode(value, headers)
    kind, _ = Names().parse_jobs(topic)
    assert envelope.type == codec.request_type(kind)
    codec.parse(PARAMS[kind], codec.parse(Job, envelope.data).params)


def test_the_json_of_the_protocol_page_is_accepted() -> None:
    plain, structured = _blocks("json")
    codec.parse(Inference, codec.parse(Job, plain.encode()).params)
    headers = [("content-type", codec.STRUCTURED_TYPE.encode())]
    _accepted("tape.jobs.inference.bulk", structured.encode(), headers)


def test_the_kcat_lines_of_the_protocol_page_are_accepted() -> None:
    published = [line for block in _blocks("sh") for line in block.splitlines() if "kcat -P" in line]
    assert len(published) == 4
    for line in published:
        words = shlex.split(line)
        value, options = words[1].encode(), words[words.index("-P") + 1 :]
        given = list(zip(options[::2], options[1::2], strict=True))
        topic = dict(given)["-t"]
        headers = [(text.split("=", 1)[0], text.split("=", 1)[1].encode()) for flag, text in given if flag == "-H"]
        if topic == Names().control:
            said = control.read(value)
            assert said is not None
            assert control.key(said) == dict(given)["-k"]
        else:
            _accepted(topic, value, headers)


def test_the_python_of_the_protocol_page_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = mock.Mock()
    monkeypatch.setitem(sys.modules, "kafka", mock.Mock(KafkaProducer=lambda **_: producer))
    (code,) = _blocks("python")
    exec(code, {})
    (topic,), sent = producer.send.call_args
    _accepted(topic, sent["value"], sent["headers"])
    assert dict(sent["headers"])["ce_subject"] == sent["key"]


# AsyncAPI


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for inner in node.values() for found in _references(inner)]
    return [found for inner in node for found in _references(inner)] if isinstance(node, list) else []


def _at(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_the_asyncapi_document_is_whole() -> None:
    document = asyncapi.document()
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= document["info"].keys()
    assert all(_at(document, reference) for reference in _references(document))
    used = {reference for reference in _references(document) if reference.startswith("#/components/messages/")}
    assert {reference.rsplit("/", 1)[1] for reference in used} == document["components"]["messages"].keys()
    for operation in document["operations"].values():
        channel = operation["channel"]["$ref"]
        assert operation["action"] in {"send", "receive"}
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])
    reached = {operation["channel"]["$ref"] for operation in document["operations"].values()}
    assert reached == {f"#/channels/{name}" for name in document["channels"]}


def test_every_topic_is_a_channel_with_its_binding() -> None:
    channels = {channel["address"]: channel for channel in asyncapi.document()["channels"].values()}
    assert channels.keys() == {topic.name for topic in topics(Names())}
    for topic in topics(Names()):
        binding = channels[topic.name]["bindings"]["kafka"]
        assert (binding["topic"], binding["partitions"]) == (topic.name, topic.partitions)
        assert binding["topicConfiguration"].keys() == topic.configs.keys()
    assert channels["tape.control"]["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"] == ["compact"]


def test_the_asyncapi_schemas_accept_the_samples() -> None:
    document = asyncapi.document()
    seen = set()
    for path in SAMPLES:
        sample = json.loads(path.read_text(encoding="utf-8"))
        kind = sample.get("headers", {}).get("ce_type", "").split(".")
        if len(kind) != 4:
            continue
        name = f"{kind[1]}-{kind[2]}"
        seen.add(name)
        message = document["components"]["messages"][name]
        for schema, content in ((message["payload"], sample["value"]), (message["headers"], sample["headers"])):
            Draft7Validator(schema | {"components": document["components"]}).validate(content)
    assert seen == {f"event-{name}" for name in EventType} | {f"request-{kind}" for kind in PARAMS}


# Samples of every version


def _read(sample: dict[str, Any]) -> Any:
    value = json.dumps(sample["value"]).encode()
    model = export.MESSAGES[sample["schema"]]
    headers = [(name, text.encode()) for name, text in sample.get("headers", {}).items()]
    envelope = codec.decode(value, headers) if headers else None
    read: Any = codec.parse(model, envelope.data if envelope else value)
    if sample["schema"] == "job":
        assert envelope is not None
        kind, _ = Names().parse_jobs(sample["topic"])
        assert envelope.type == codec.request_type(kind)
        codec.parse(PARAMS[kind], read.params)
    elif envelope is not None:
        assert (envelope.type, envelope.subject) == (codec.event_type(read.type), read.job)
    return read


def _value(sample: dict[str, Any]) -> Any:
    """The message itself: a structured event has it in its `data`."""
    return sample["value"]["data"] if "specversion" in sample["value"] else sample["value"]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_sample_is_read_and_written_again(path: Path) -> None:
    sample = json.loads(path.read_text(encoding="utf-8"))
    read = _read(sample)
    assert codec.parse(type(read), codec.dump(read)) == read
    written = json.loads(codec.dump(read))
    value = _value(sample)
    assert value.keys() <= written.keys(), "a field of an old message is not read any more"


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_version_of_a_schema_takes_the_samples(path: Path) -> None:
    sample = json.loads(path.read_text(encoding="utf-8"))
    value = _value(sample)
    kind = sample["topic"].split(".")[2] if sample["schema"] == "job" else None
    for name, content in [(sample["schema"], value)] + ([(kind, value["params"])] if kind else []):
        versions = list((DOCS / "schemas" / "history" / name).glob("*.json"))
        assert versions, "run `tape schemas accept`"
        for version in versions:
            Draft202012Validator(json.loads(version.read_text(encoding="utf-8"))).validate(content)


def test_the_samples_show_every_message_kind_and_event() -> None:
    samples = [json.loads(path.read_text(encoding="utf-8")) for path in SAMPLES]
    assert {sample["schema"] for sample in samples} | PARAMS.keys() == export.MESSAGES.keys()
    assert {sample["value"]["type"] for sample in samples if sample["schema"] == "event"} == set(EventType)
    assert {sample["topic"].split(".")[2] for sample in samples if sample["schema"] == "job"} == PARAMS.keys()


def test_what_a_newer_version_adds_is_ignored_in_the_envelope() -> None:
    sample = json.loads((SAMPLES[0].parent / "cancel.json").read_text(encoding="utf-8"))["value"]
    newer = copy.deepcopy(sample) | {"by": "somebody", "schema_version": 2}
    assert codec.parse(Cancel, newer).job == sample["job"]


# Schema and model agree where the model has rules of its own


@given(st.text("ab./\\:C\n\u0001", max_size=8))
def test_paths_in_artifacts_stay_below_their_folder(path: str) -> None:
    content = {"path": path, "sha256": "0" * 64, "size": 0}
    schema = Draft202012Validator(ArtifactFile.model_json_schema())
    try:
        ArtifactFile.model_validate(content)
    except ValidationError:
        assert not schema.is_valid(content)
    else:
        assert schema.is_valid(content)
        parts = path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\\" not in path


inputs = {"prompt": st.none() | st.just("p"), "messages": st.none() | st.just([{"role": "user", "content": "c"}])}
inferences = st.fixed_dictionaries({"model": st.just("m")}, optional=inputs | {"data": st.none() | st.just("d")})
metrics = st.lists(st.sampled_from(["perplexity", "exact_match", "accuracy", "other"]), max_size=3)
evaluations = st.fixed_dictionaries(
    {"model": st.just("m"), "data": st.just("d")},
    optional={"metrics": metrics, "labels": st.none() | st.lists(st.just("a"), max_size=3)},
)


@pytest.mark.parametrize(("model", "contents"), [(Inference, inferences), (Evaluation, evaluations)])
@given(st.data())
def test_the_schema_tells_the_rules_of_the_model(model: Any, contents: Any, data: st.DataObject) -> None:
    content = data.draw(contents)
    try:
        model.model_validate(content)
        valid = True
    except ValidationError:
        valid = False
    assert Draft202012Validator(model.model_json_schema()).is_valid(content) is valid


# Purity


def test_the_contract_needs_the_standard_library_and_pydantic_only() -> None:
    modules = [f"schemas.{path.stem}" for path in (ROOT / "schemas").glob("*.py") if path.stem != "__init__"]
    code = (
        f"import sys; before = set(sys.modules)\nimport {', '.join(modules)}\n"
        "print(*(name.partition('.')[0] for name in sys.modules.keys() - before))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    allowed = {"schemas", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    foreign = {name for name in ran.stdout.split() if name not in sys.stdlib_module_names}
    assert {name for name in foreign if not name.startswith("_sysconfigdata")} <= allowed
