"""Where a share group stands in its topics, asked over one link (DescribeShareGroupOffsets, KIP-932; ListOffsets)."""

from __future__ import annotations

from collections.abc import Sequence

from kafka import errors as kafka_errors

from producers.fleet.facts import Standing
from schemas.errors import NotFoundError
from wire.follow.offsets import EARLIEST, LATEST, list_offsets, partitions
from wire.kafka import Link, mapped
from wire.settings import Settings
from wire.share.messages import DescribeShareGroupOffsetsRequest


def standing(settings: Settings, group: str, topics: Sequence[str]) -> list[Standing]:
    """Return start, end and lag of every partition; topics that do not exist are left out.

    A partition that the group never read begins where its log does, and its lag is unknown. Raises
    `UnavailableError` (TAPE-5001, 5005), `AuthError`.
    """
    with Link(settings, name="tape-standing") as link:
        parts: dict[str, list[int]] = {}
        for topic in topics:
            try:
                parts[topic] = link.run(partitions, link, topic)
            except NotFoundError:
                continue
        told = _told(link, group, parts) if parts else {}
        found = []
        for topic, wanted in parts.items():
            starts = link.run(list_offsets, link, topic, dict.fromkeys(wanted, EARLIEST))
            ends = link.run(list_offsets, link, topic, dict.fromkeys(wanted, LATEST))
            for part in wanted:
                start, lag = told.get((topic, part), (-1, -1))
                found.append(Standing(topic, part, max(start, starts[part]), ends[part], lag if start >= 0 else -1))
        return found


def _told(link: Link, group: str, parts: dict[str, list[int]]) -> dict[tuple[str, int], tuple[int, int]]:
    kind = DescribeShareGroupOffsetsRequest.DescribeShareGroupOffsetsRequestGroup
    asked = [
        kind.DescribeShareGroupOffsetsRequestTopic(topic_name=topic, partitions=wanted)
        for topic, wanted in parts.items()
    ]
    request = DescribeShareGroupOffsetsRequest(groups=[kind(group_id=group, topics=asked)], min_version=1)
    [found] = link.call(request, link.coordinator(group)).groups
    error = kafka_errors.for_code(found.error_code)
    if error is kafka_errors.GroupIdNotFoundError:  # nobody ever took a job of this kind
        return {}
    if found.error_code:
        raise mapped(error(found.error_message), group=group)
    return {
        (topic.topic_name, part.partition_index): (part.start_offset, part.lag)
        for topic in found.topics
        for part in topic.partitions
        if not part.error_code
    }
