"""The AsyncAPI 3.0 document: channels are topics, operations are what a Tickertape installation does with them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from schemas import codec, dead
from schemas.control import ACTIONS
from schemas.delays import WHEELS
from schemas.event import EventType
from schemas.export import MESSAGES
from schemas.job import PARAMS, Lane
from schemas.past import DUE, TARGET
from schemas.topics import UNKNOWN, Names, Topic, topics

BINDING = "0.5.0"
"""Version of the AsyncAPI Kafka binding."""

_DEAD = {
    "job": "the job's id",
    "kind": "the job's kind",
    "topic": "where the original was",
    "partition": "where the original was",
    "offset": "where the original was",
    "attempts": "how often it was delivered",
    "worker": "who gave it up",
    "time": "when, RFC 3339",
    "class": "the failure's class",
    "code": "the failure's code, see errors.md",
    "message": "the failure's text",
    "json": "all of it: a `DeadLetter` as JSON",
}
"""The headers of a dead letter, without `dead.HEADER`, and what they hold."""

_VERDICT = "who is to blame, where that was judged: poison (the job), outage (the world) or none (nobody yet)"


def document() -> dict[str, Any]:
    """Return the whole document, the same for the same code."""
    names = Names()
    return {
        "asyncapi": "3.0.0",
        "id": "urn:tickertape",
        "info": {
            "title": "Tickertape",
            "version": "1.0.0",
            "description": "Jobs for language models over Apache Kafka share groups. Topics carry the prefix `tape.` "
            "unless the installation sets another. A kind that a package adds has job and dead-letter topics of the "
            "same form. How to publish from any language: protocol.md.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": codec.JSON_TYPE,
        "servers": {"kafka": _server()},
        "channels": {_identity(topic.name, names): _channel(topic, names) for topic in topics(names)},
        "operations": _operations(names),
        "components": {"schemas": _schemas(), "messages": _messages()},
    }


def _server() -> dict[str, Any]:
    bootstrap = {"default": "127.0.0.1:9092", "description": "TAPE_KAFKA_URL of the installation"}
    return {"host": "{bootstrap}", "protocol": "kafka", "variables": {"bootstrap": bootstrap}}


def _identity(topic: str, names: Names) -> str:
    return topic.removeprefix(names.prefix).replace(".", "-")


def _carried(topic: str, names: Names) -> list[str]:
    """The names of the messages that a topic carries."""
    carried = {names.events: [f"event-{name}" for name in EventType], names.letters: ["fate"]}
    carried |= {names.control: [*ACTIONS], names.recurring: ["recurring", "fired"]}
    carried |= {names.retry(delay): ["delayed"] for delay in WHEELS}
    carried |= {names.dead(kind): ["deadletter"] for kind in (*PARAMS, UNKNOWN)}
    return carried[topic] if topic in carried else [f"request-{names.parse_jobs(topic)[0]}"]


def _channel(topic: Topic, names: Names) -> dict[str, Any]:
    configs: dict[str, Any] = {name: int(value) for name, value in topic.configs.items() if value.lstrip("-").isdigit()}
    configs |= {name: value.split(",") for name, value in topic.configs.items() if name not in configs}
    return {
        "address": topic.name,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _carried(topic.name, names)},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": configs,
                "bindingVersion": BINDING,
            }
        },
    }


def _operations(names: Names) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in PARAMS:
        group = {"kafka": {"groupId": {"type": "string", "const": names.group(kind)}, "bindingVersion": BINDING}}
        for lane in Lane:
            summary = f"A worker of the share group takes {lane.value} {kind} jobs."
            operation = _operation("receive", names.jobs(kind, lane), summary, names)
            found[f"take-{kind}-{lane.value}"] = operation | {"bindings": group}
        summary = f"A {kind} job that needs a human, byte for byte, with the reason in its headers."
        found[f"bury-{kind}"] = _operation("send", names.dead(kind), summary, names)
    told = "Every transition of every job, and its progress; the last event of a job holds the outcome."
    found["tell"] = _operation("send", names.events, told, names)
    told = "What became of a dead letter, in one transaction with the redriven job; the audit trail."
    found["decide"] = _operation("send", names.letters, told, names)
    summary = "A record that does not tell its kind, byte for byte, with the reason in its headers."
    found["bury-unknown"] = _operation("send", names.dead(UNKNOWN), summary, names)
    for delay in WHEELS:
        told = f"The mover takes records that wait in {delay} and writes them to the next topic in one transaction."
        group = {"kafka": {"groupId": {"type": "string", "const": names.mover}, "bindingVersion": BINDING}}
        found[f"move-{delay}"] = _operation("receive", names.retry(delay), told, names) | {"bindings": group}
    found["recur"] = _operation("receive", names.recurring, "The mover submits recurring jobs.", names)
    found["obey"] = _operation(
        "receive", names.control, "Cancellations, pauses, breakers, drains and quotas, read by every worker.", names
    )
    found["present"] = _operation("send", names.control, "Every worker says now and then that it is there.", names)
    return found


def _operation(action: str, topic: str, summary: str, names: Names) -> dict[str, Any]:
    channel = f"#/channels/{_identity(topic, names)}"
    carried = [{"$ref": f"{channel}/messages/{name}"} for name in _carried(topic, names)]
    return {"action": action, "channel": {"$ref": channel}, "summary": summary, "messages": carried}


def _messages() -> dict[str, Any]:
    found: dict[str, Any] = {}
    job = {"$ref": "#/components/schemas/Job"}
    for kind, model in PARAMS.items():
        payload = {"allOf": [job, {"properties": {"params": {"$ref": f"#/components/schemas/{model.__name__}"}}}]}
        headers = _headers(codec.request_type(kind), **_REQUEST)
        found[f"request-{kind}"] = _message(f"A request for a job of the kind {kind}.", headers, payload)
    for name in EventType:
        body = [{"$ref": "#/components/schemas/Event"}, {"properties": {"type": {"const": name.value}}}]
        found[f"event-{name}"] = _message(
            f"A job's event: {name}.", _headers(codec.event_type(name), **_SUBJECT), {"allOf": body}
        )
    found["deadletter"] = _message(
        "The original record: its own key, value and headers, and why it is dead.",
        _texts({dead.HEADER + name: what for name, what in _DEAD.items()}, {dead.DISPOSITION: _VERDICT}),
        {"description": "the original value, whatever it was"},
    )
    found["fate"] = _message(
        "What became of a dead letter.",
        {"type": "object"},
        {"$ref": "#/components/schemas/Fate"},
        key="TOPIC/PARTITION/OFFSET of the letter",
    )
    waits = {DUE: "not before this moment, in milliseconds of the epoch", TARGET: "the job topic it goes to then"}
    found["delayed"] = _message(
        "A request that waits: its own key, value and headers, and until when.",
        _texts(waits),
        {"description": "the original value, whatever it was"},
    )
    template, fired = {"$ref": "#/components/schemas/Recurring"}, {"$ref": "#/components/schemas/Fired"}
    anything = {"type": "object"}
    found["recurring"] = _message("A job that is submitted again and again.", anything, template, key="its name")
    found["fired"] = _message("The last moment for which it was submitted.", anything, fired, key="NAME/fired")
    found["cancel"] = _message(
        "Stop a job.", {"type": "object"}, {"$ref": "#/components/schemas/Cancel"}, key="the id of the job to stop"
    )
    pause, resume = {"$ref": "#/components/schemas/Pause"}, {"$ref": "#/components/schemas/Resume"}
    found["pause"] = _message("A job shall wait until it is resumed.", anything, pause, key="pause/JOB")
    found["resume"] = _message("A job shall wait no more.", anything, resume, key="pause/JOB")
    breaker, drain = {"$ref": "#/components/schemas/Breaker"}, {"$ref": "#/components/schemas/Drain"}
    found["breaker"] = _message("What became of a breaker.", anything, breaker, key="breaker:DEPENDENCY")
    found["drain"] = _message("A worker shall end its work.", anything, drain, key="drain:WORKER")
    here = {"$ref": "#/components/schemas/Presence"}
    found["presence"] = _message("A worker is there.", anything, here, key="worker:WORKER")
    tenant = {"$ref": "#/components/schemas/Tenant"}
    found["tenant"] = _message("A tenant's weight and quota.", anything, tenant, key="tenant:NAME")
    return found


def _texts(told: dict[str, str], perhaps: dict[str, str] | None = None) -> dict[str, Any]:
    """Headers of which each must be there, but for some."""
    properties = {name: {"type": "string", "description": what} for name, what in (told | (perhaps or {})).items()}
    return {"type": "object", "required": sorted(told), "properties": properties}


def _message(
    summary: str, headers: dict[str, Any], payload: dict[str, Any], key: str = "the job's id"
) -> dict[str, Any]:
    binding = {"key": {"type": "string", "description": key}, "bindingVersion": BINDING}
    return {"summary": summary, "headers": headers, "payload": payload, "bindings": {"kafka": binding}}


_SUBJECT = {"ce_subject": "the job's id"}
_REQUEST = {
    "ce_subject": "the job's id; without it the record's key, else derived from ce_source and ce_id",
    "ce_expirytime": "RFC 3339; the job is not started after it (CloudEvents expirytime); `expires_at` wins",
}


def _headers(kind: str, **more: str) -> dict[str, Any]:
    """The headers of the CloudEvents binary mode; all values are UTF-8 text."""
    told = {
        "ce_id": "unique per ce_source",
        "ce_source": "a URI reference: who wrote it",
        **more,
        "ce_time": "RFC 3339",
        "traceparent": "W3C trace context",
        "tracestate": "W3C trace context",
    }
    properties: dict[str, Any] = {
        "ce_specversion": {"type": "string", "const": codec.SPEC},
        "ce_type": {"type": "string", "const": kind},
        "content-type": {"type": "string", "default": codec.JSON_TYPE},
    }
    properties |= {name: {"type": "string", "description": what} for name, what in told.items()}
    return {
        "type": "object",
        "required": ["ce_specversion", "ce_id", "ce_type", "ce_source"],
        "properties": properties,
    }


def _schemas() -> dict[str, Any]:
    models = [(model, "validation") for model in MESSAGES.values()]
    _, found = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = found["$defs"]
    return {name: _without_discriminator(schemas[name]) for name in sorted(schemas)}


def _without_discriminator(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "discriminator"}
