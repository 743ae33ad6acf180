"""Topics and share groups as they should be: looked at first, changed only where they differ.

    plan = check(settings, topics(names), groups(names))     # reads only; this is the dry run
    apply(plan)                                              # creates, grows, configures; a second time does nothing

Partitions are never taken away and replicas never moved; such a difference is shown as drift and left to a human.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kafka import errors as kafka_errors
from kafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DescribeConfigsRequest,
    IncrementalAlterConfigsRequest,
)
from kafka.protocol.metadata import MetadataRequest

from schemas.errors import TimeoutExceeded
from schemas.topics import Group, Topic
from wire.kafka import Link, mapped
from wire.process import wait_until
from wire.settings import Settings

TOPIC, GROUP = 2, 32
_SET = 0
_RESOURCES = {"topic": TOPIC, "group": GROUP}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what is and what should be.

    `ok` nothing to do; `create` the topic is missing; `partitions` it has too few; `config` a setting differs;
    `drift` a difference that is not mended, with the reason in `note`.
    """

    kind: Literal["ok", "create", "partitions", "config", "drift"]
    resource: Literal["topic", "group"]
    name: str
    field: str = ""
    have: str | None = None
    want: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found, in the order of the wanted list; `pending` is what `apply` would change."""

    settings: Settings
    topics: tuple[Topic, ...]
    groups: tuple[Group, ...]
    changes: tuple[Change, ...]

    @property
    def pending(self) -> list[Change]:
        """The changes that `apply` makes."""
        return [change for change in self.changes if change.kind in {"create", "partitions", "config"}]

    @property
    def drift(self) -> list[Change]:
        """The differences that `apply` leaves alone."""
        return [change for change in self.changes if change.kind == "drift"]


def check(settings: Settings, topics: Sequence[Topic], groups: Sequence[Group] = ()) -> Plan:
    """Compare what is with what should be; changes nothing.

    Raises `UnavailableError` (TAPE-5001), `AuthError` (TAPE-4001, TAPE-4003).
    """
    with Link(settings, name="tape-topics") as link:
        return Plan(settings, tuple(topics), tuple(groups), tuple(_compare(link, settings, topics, groups)))


def apply(plan: Plan) -> list[Change]:
    """Make the pending changes, wait until they are in effect, and return them.

    Somebody else doing the same at the same time is no error. Raises `InvalidError` (TAPE-1007) for a setting the
    broker refuses, `TimeoutExceeded` (TAPE-7002) when they are not after the settings' timeout.
    """
    pending = plan.pending
    if not pending:
        return []
    with Link(plan.settings, name="tape-topics") as link:
        missing = {change.name for change in pending if change.kind == "create"}
        _create(link, plan, [topic for topic in plan.topics if topic.name in missing])
        _grow(link, [change for change in pending if change.kind == "partitions"])
        _configure(link, [change for change in pending if change.kind == "config"])
        _settle(link, plan)
    return pending


def ensure(settings: Settings, topics: Sequence[Topic], groups: Sequence[Group] = ()) -> list[Change]:
    """Check and apply in one step."""
    return apply(check(settings, topics, groups))


def _configs(settings: Settings, topic: Topic) -> dict[str, str]:
    return {"min.insync.replicas": str(max(1, settings.replication - 1)), **topic.configs}


def _compare(link: Link, settings: Settings, topics: Sequence[Topic], groups: Sequence[Group]) -> Iterable[Change]:
    found = _describe(link, [topic.name for topic in topics])
    have = _describe_configs(
        link, TOPIC, {topic.name: _configs(settings, topic) for topic in topics if topic.name in found}
    )
    for topic in topics:
        if topic.name not in found:
            yield Change("create", "topic", topic.name, want=f"{topic.partitions} partitions")
            continue
        changes = [*_shape(settings, topic, found[topic.name])]
        changes += _settings("topic", topic.name, have[topic.name], _configs(settings, topic))
        yield from changes or [Change("ok", "topic", topic.name)]
    have = _describe_configs(link, GROUP, {group.name: group.configs for group in groups})
    for group in groups:
        yield from _settings("group", group.name, have[group.name], group.configs) or [
            Change("ok", "group", group.name)
        ]


def _shape(settings: Settings, topic: Topic, partitions: Sequence[Any]) -> Iterable[Change]:
    have, replicas = len(partitions), min(len(partition.replica_nodes) for partition in partitions)
    if have < topic.partitions:
        yield Change("partitions", "topic", topic.name, "partitions", str(have), str(topic.partitions))
    elif have > topic.partitions:
        note = "partitions cannot be taken away; raise the setting, or make the topic anew"
        yield Change("drift", "topic", topic.name, "partitions", str(have), str(topic.partitions), note)
    if replicas != settings.replication:
        note = "replicas are not moved; reassign them with Kafka's own tools"
        yield Change("drift", "topic", topic.name, "replication", str(replicas), str(settings.replication), note)


def _settings(
    resource: Literal["topic", "group"], name: str, have: dict[str, str], want: dict[str, str]
) -> list[Change]:
    return [
        Change("config", resource, name, key, have.get(key), value)
        for key, value in sorted(want.items())
        if have.get(key) != value
    ]


def _describe(link: Link, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    wanted = [MetadataRequest.MetadataRequestTopic(name=name, topic_id=None) for name in names]
    answer = link.call(MetadataRequest(topics=wanted, allow_auto_topic_creation=False))
    found = {}
    for topic in answer.topics:
        error = kafka_errors.for_code(topic.error_code)
        if error is kafka_errors.UnknownTopicOrPartitionError:
            continue
        if topic.error_code and not issubclass(error, kafka_errors.RetriableError):
            raise mapped(error(topic.name), topic=topic.name)
        found[topic.name] = topic.partitions
    return found


def _describe_configs(link: Link, kind: int, wanted: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    if not wanted:
        return {}
    resource = DescribeConfigsRequest.DescribeConfigsResource
    asked = [
        resource(resource_type=kind, resource_name=name, configuration_keys=list(configs))
        for name, configs in wanted.items()
    ]
    answer = link.call(DescribeConfigsRequest(resources=asked, include_synonyms=False, include_documentation=False))
    found = {}
    for result in answer.results:
        _raise(result.error_code, result.error_message, resource=result.resource_name)
        found[result.resource_name] = {entry.name: entry.value for entry in result.configs if entry.value is not None}
    return found


def _create(link: Link, plan: Plan, missing: Sequence[Topic]) -> None:
    if not missing:
        return
    creatable = CreateTopicsRequest.CreatableTopic
    wanted = [
        creatable(
            name=topic.name,
            num_partitions=topic.partitions,
            replication_factor=plan.settings.replication,
            assignments=[],
            configs=[
                creatable.CreatableTopicConfig(name=key, value=value)
                for key, value in _configs(plan.settings, topic).items()
            ],
        )
        for topic in missing
    ]
    answer = link.call(CreateTopicsRequest(topics=wanted, timeout_ms=int(link.timeout_s * 1000), validate_only=False))
    for result in answer.topics:
        if kafka_errors.for_code(result.error_code) is not kafka_errors.TopicAlreadyExistsError:
            _raise(result.error_code, result.error_message, topic=result.name)


def _grow(link: Link, changes: Sequence[Change]) -> None:
    if not changes:
        return
    wanted = [
        CreatePartitionsRequest.CreatePartitionsTopic(name=change.name, count=int(change.want or 0), assignments=None)
        for change in changes
    ]
    request = CreatePartitionsRequest(topics=wanted, timeout_ms=int(link.timeout_s * 1000), validate_only=False)
    for result in link.call(request).results:
        _raise(result.error_code, result.error_message, topic=result.name)


def _configure(link: Link, changes: Sequence[Change]) -> None:
    by_resource: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        by_resource.setdefault((change.resource, change.name), []).append(change)
    if not by_resource:
        return
    resource = IncrementalAlterConfigsRequest.AlterConfigsResource
    wanted = [
        resource(
            resource_type=_RESOURCES[kind],
            resource_name=name,
            configs=[
                resource.AlterableConfig(name=change.field, config_operation=_SET, value=change.want)
                for change in found
            ],
        )
        for (kind, name), found in by_resource.items()
    ]
    for result in link.call(IncrementalAlterConfigsRequest(resources=wanted, validate_only=False)).responses:
        _raise(result.error_code, result.error_message, resource=result.resource_name)


def _settle(link: Link, plan: Plan) -> None:
    # The controller has decided, but each broker hears of it a moment later; a caller may publish only after that.
    def settled() -> bool:
        found = _describe(link, [topic.name for topic in plan.topics])
        led = all(partition.leader_id >= 0 for partitions in found.values() for partition in partitions)
        changes = _compare(link, plan.settings, plan.topics, plan.groups)
        return led and all(change.kind in {"ok", "drift"} for change in changes)

    if not wait_until(settled, deadline_s=link.timeout_s, every_s=0.02):
        raise TimeoutExceeded(
            f"the changes are not in effect after {link.timeout_s:g} s",
            code="TAPE-7002",
            topic=", ".join(sorted({change.name for change in plan.pending})),
            hint="look at the broker: `tape broker logs`",
        )


def _raise(code: int, message: str | None, **place: Any) -> None:
    if code:
        raise mapped(kafka_errors.for_code(code)(message), **place)
