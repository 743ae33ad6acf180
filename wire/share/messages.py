"""The share-group messages as kafka-python classes, made from the definitions in `resources/`.

Every request asks for the first version that has renewal and the record limit; a broker that lacks it is refused by
kafka-python with IncompatibleBrokerVersion, which becomes `UnsupportedError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from kafka.protocol.api_message import ApiMessage
from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest

from . import ranges

RESOURCES = f"{__package__}.resources"

NO_ID = UUID(int=0)
TopicPartition = tuple[UUID, int]
"""A partition by topic id and index: what the share protocol speaks in."""

Acks = Mapping[TopicPartition, Mapping[int, int]]
"""Acknowledgement types by partition and offset."""


class ShareGroupHeartbeatRequest(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Join (epoch 0), stay (epoch n) or leave (epoch -1) a share group."""


class ShareGroupHeartbeatResponse(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """The member's epoch and, when it changed, its assignment."""


class ShareFetchRequest(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Acquire records from one leader, with acknowledgements on board."""


class ShareFetchResponse(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Acquired records and the fate of the acknowledgements."""


class ShareAcknowledgeRequest(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Acknowledgements alone."""


class ShareAcknowledgeResponse(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """The fate of acknowledgements."""


class ShareGroupDescribeRequest(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Ask for a group's state and members."""


class ShareGroupDescribeResponse(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """A group's state and members."""


class DescribeShareGroupOffsetsRequest(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Ask for start offsets and lag."""


class DescribeShareGroupOffsetsResponse(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Start offsets and lag."""


class AlterShareGroupOffsetsRequest(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """Move start offsets of an empty group."""


class AlterShareGroupOffsetsResponse(ApiMessage, load_json=RESOURCES):  # type: ignore[misc,call-arg]
    """What became of the move."""


def heartbeat(group: str, member: str, epoch: int, rack: str | None, topics: Sequence[str] | None) -> Any:
    """A heartbeat; topics are sent with the first one only."""
    return ShareGroupHeartbeatRequest(
        group_id=group,
        member_id=member,
        member_epoch=epoch,
        rack_id=rack,
        subscribed_topic_names=None if topics is None else list(topics),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """What a ShareFetch asks for."""

    group: str
    member: str
    epoch: int
    max_wait_ms: int
    max_bytes: int
    max_records: int
    batch_size: int
    mode: int
    added: frozenset[TopicPartition] = frozenset()
    forgotten: frozenset[TopicPartition] = frozenset()
    acks: Acks = field(default_factory=dict)


def fetch(plan: Fetch) -> Any:
    """A ShareFetch that adds and drops partitions of its session and carries acknowledgements."""
    topic = ShareFetchRequest.FetchTopic
    partition = topic.FetchPartition
    topics = [
        topic(
            topic_id=topic_id,
            partitions=[
                partition(
                    partition_index=index,
                    acknowledgement_batches=_batches(partition.AcknowledgementBatch, plan.acks.get((topic_id, index))),
                )
                for index in indexes
            ],
        )
        for topic_id, indexes in by_topic(plan.added.union(plan.acks)).items()
    ]
    forgotten = [
        ShareFetchRequest.ForgottenTopic(topic_id=topic_id, partitions=indexes)
        for topic_id, indexes in by_topic(plan.forgotten).items()
    ]
    return ShareFetchRequest(
        group_id=plan.group,
        member_id=plan.member,
        share_session_epoch=plan.epoch,
        max_wait_ms=plan.max_wait_ms,
        min_bytes=1,
        max_bytes=plan.max_bytes,
        max_records=plan.max_records,
        batch_size=plan.batch_size,
        share_acquire_mode=plan.mode,
        is_renew_ack=False,
        topics=topics,
        forgotten_topics_data=forgotten,
        min_version=2,
    )


def acknowledge(group: str, member: str, epoch: int, acks: Acks, *, renew: bool) -> Any:
    """A ShareAcknowledge; `renew` says that renewals are among the acknowledgements."""
    topic = ShareAcknowledgeRequest.AcknowledgeTopic
    partition = topic.AcknowledgePartition
    return ShareAcknowledgeRequest(
        group_id=group,
        member_id=member,
        share_session_epoch=epoch,
        is_renew_ack=renew,
        topics=[
            topic(
                topic_id=topic_id,
                partitions=[
                    partition(
                        partition_index=index,
                        acknowledgement_batches=_batches(partition.AcknowledgementBatch, acks[topic_id, index]),
                    )
                    for index in indexes
                ],
            )
            for topic_id, indexes in by_topic(acks).items()
        ],
        min_version=2,
    )


def _batches(cls: Any, acks: Mapping[int, int] | None) -> list[Any]:
    return [
        cls(first_offset=first, last_offset=last, acknowledge_types=types)
        for first, last, types in ranges.encode(acks or {})
    ]


def by_topic(partitions: Iterable[TopicPartition]) -> dict[UUID, list[int]]:
    """Partition indexes by topic id."""
    grouped: dict[UUID, list[int]] = {}
    for topic_id, index in partitions:
        grouped.setdefault(topic_id, []).append(index)
    return grouped


def find_coordinator(group: str) -> Any:
    """Ask which broker coordinates the group."""
    return FindCoordinatorRequest(key=group, key_type=0, coordinator_keys=[group])


def metadata(topics: Iterable[UUID | str]) -> Any:
    """Ask for ids, names and leaders of topics known by id or by name; never creates a topic."""
    entry = MetadataRequest.MetadataRequestTopic
    return MetadataRequest(
        topics=[
            entry(topic_id=NO_ID, name=topic) if isinstance(topic, str) else entry(topic_id=topic, name=None)
            for topic in topics
        ],
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
        min_version=12,
    )
