"""Where to begin and where to end: offsets asked of the partitions' leaders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import errors as kafka_errors
from kafka.protocol.consumer import ListOffsetsRequest
from kafka.protocol.metadata import MetadataRequest
from kafka.structs import TopicPartition

from wire.follow.port import Since, milliseconds, unknown
from wire.kafka import Link, mapped

LATEST, EARLIEST = -1, -2
COMMITTED = 1
PAUSE_S = 0.05


async def partitions(link: Link, topic: str) -> list[int]:
    """Return a topic's partitions, and have its metadata kept fresh. Raises `NotFoundError` (TAPE-2004)."""
    wanted = [MetadataRequest.MetadataRequestTopic(name=topic, topic_id=None)]
    found = (await link.ask(MetadataRequest(topics=wanted, allow_auto_topic_creation=False))).topics[0]
    error = kafka_errors.for_code(found.error_code)
    if error in {kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError}:
        raise unknown(topic)
    if found.error_code:
        raise mapped(error(topic), topic=topic)
    await link.manager.cluster.add_topic(topic)
    return sorted(partition.partition_index for partition in found.partitions)


async def ends(link: Link, topic: str, wanted: Sequence[int]) -> dict[int, int]:
    """Return the offset after the last committed record of each partition."""
    return await list_offsets(link, topic, dict.fromkeys(wanted, LATEST))


async def starts(link: Link, topic: str, wanted: Sequence[int], since: Since) -> dict[int, int]:
    """Return the offset to begin at, for each partition."""
    if since == "end":
        return await ends(link, topic, wanted)
    if isinstance(since, Mapping):
        oldest = await list_offsets(link, topic, {part: EARLIEST for part in wanted if part not in since})
        return {part: since[part] if part in since else oldest[part] for part in wanted}
    if since == "start":
        return await list_offsets(link, topic, dict.fromkeys(wanted, EARLIEST))
    found = await list_offsets(link, topic, dict.fromkeys(wanted, milliseconds(since)))
    newer = [part for part, offset in found.items() if offset < 0]  # no record is that young
    return found | await ends(link, topic, newer)


async def list_offsets(link: Link, topic: str, moments: Mapping[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    until = time.monotonic() + link.timeout_s
    while len(found) < len(moments):
        trouble: Exception | None = None
        for node, parts in by_leader(link, topic, [part for part in moments if part not in found]).items():
            try:
                answer = await link.ask(_request(topic, {part: moments[part] for part in parts}), node)
            except kafka_errors.KafkaError as error:
                trouble = error
                continue
            for part in answer.topics[0].partitions:
                if part.error_code:
                    trouble = kafka_errors.for_code(part.error_code)(f"{topic}[{part.partition_index}]")
                else:
                    found[part.partition_index] = part.offset
        if len(found) < len(moments):
            trouble = trouble or kafka_errors.LeaderNotAvailableError(topic)
            if time.monotonic() >= until or not isinstance(trouble, kafka_errors.RetriableError):
                raise mapped(trouble, topic=topic) from trouble
            link.manager.cluster.request_update()
            await link.net.sleep(PAUSE_S)
    return found


def by_leader(link: Link, topic: str, parts: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for part in parts:
        leader = link.manager.cluster.leader_for_partition(TopicPartition(topic, part))
        if leader is not None and leader >= 0:
            found.setdefault(leader, []).append(part)
    return found


def _request(topic: str, moments: Mapping[int, int]) -> Any:
    kind = ListOffsetsRequest.ListOffsetsTopic
    wanted = [
        kind.ListOffsetsPartition(partition_index=part, current_leader_epoch=-1, timestamp=moment)
        for part, moment in moments.items()
    ]
    return ListOffsetsRequest(replica_id=-1, isolation_level=COMMITTED, topics=[kind(name=topic, partitions=wanted)])
