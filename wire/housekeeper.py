"""The housekeeper: deletes what every group has finished, so a queue that never grows old never grows big.

Accepted records stay in Kafka's log, and job topics have no retention by age, because that would delete what is not
done yet. A share group's start offset is the first record it has not finished, and so is what a consumer group has
committed; below the smallest of all the groups that read a partition, nobody needs anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kafka import errors as kafka_errors
from kafka.protocol.admin import DeleteRecordsRequest

from schemas.errors import TapeError
from schemas.topics import Group
from wire.follow.offsets import EARLIEST, by_leader, list_offsets, partitions
from wire.kafka import Link, mapped
from wire.settings import Settings
from wire.share.messages import DescribeShareGroupOffsetsRequest
from wire.transact.owners import committed

Place = tuple[str, int]

UNKNOWN = -1
"""What a group answers for a partition it has not begun to read."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was, or would be, deleted: the records of a partition from `start` to below `before`."""

    topic: str
    partition: int
    start: int
    before: int


def decide(groups: Mapping[str, Mapping[Place, int]], starts: Mapping[Place, int]) -> list[Deletion]:
    """Return what may go, in order: a pure function of what the groups have finished and where the logs begin.

    `groups` holds each group's start offsets for **every** partition it reads. A partition of which one group says
    nothing, or that no group reads, keeps everything.
    """
    found = []
    for place, start in sorted(starts.items()):
        finished = [offsets[place] for offsets in groups.values() if place in offsets]
        if finished and UNKNOWN < start < min(finished):
            found.append(Deletion(*place, start, min(finished)))
    return found


class Housekeeper:
    """Looks at the groups and deletes below them; `sweep` once, or `run` every so often until it is stopped."""

    def __init__(self, settings: Settings, groups: Sequence[Group], *, dry_run: bool = False) -> None:
        """Name every group that reads these topics: one that is left out may lose records it has not read."""
        self._settings = settings
        self._groups = tuple(groups)
        self._dry_run = dry_run

    def sweep(self) -> list[Deletion]:
        """Delete what every group has finished and return it; a dry run only tells.

        Raises `UnavailableError`, `AuthError`, `NotFoundError` (TAPE-2004).
        """
        with Link(self._settings, name="tape-housekeeper") as link:
            starts: dict[Place, int] = {}
            finished = {group.name: _finished(link, group) for group in self._groups}
            for topic in sorted({topic for group in self._groups for topic in group.topics}):
                parts = link.run(partitions, link, topic)
                found = link.run(list_offsets, link, topic, dict.fromkeys(parts, EARLIEST))
                starts |= {(topic, part): offset for part, offset in found.items()}
            wanted = decide(_complete(self._groups, starts, finished), starts)
            return wanted if self._dry_run else _delete(link, wanted)

    def run(
        self,
        stop: threading.Event,
        *,
        every_s: float = 30.0,
        report: Callable[[list[Deletion] | TapeError], None] | None = None,
    ) -> None:
        """Sweep every so many seconds until `stop` is set; a sweep that fails is reported and tried again."""
        while not stop.is_set():
            outcome: list[Deletion] | TapeError
            try:
                outcome = self.sweep()
            except TapeError as error:
                outcome = error
            if report is not None:
                report(outcome)
            stop.wait(every_s)


def _finished(link: Link, group: Group) -> dict[Place, int]:
    parts = {topic: link.run(partitions, link, topic) for topic in group.topics}
    if group.classic:
        return committed(link, group.name, [(topic, part) for topic, found in parts.items() for part in found])
    kind = DescribeShareGroupOffsetsRequest.DescribeShareGroupOffsetsRequestGroup
    asked = [
        kind.DescribeShareGroupOffsetsRequestTopic(topic_name=topic, partitions=wanted)
        for topic, wanted in parts.items()
    ]
    request = DescribeShareGroupOffsetsRequest(groups=[kind(group_id=group.name, topics=asked)], min_version=1)
    [found] = link.call(request, link.coordinator(group.name)).groups
    if found.error_code:
        raise mapped(kafka_errors.for_code(found.error_code)(found.error_message), group=group.name)
    return {
        (topic.topic_name, part.partition_index): UNKNOWN if part.error_code else part.start_offset
        for topic in found.topics
        for part in topic.partitions
    }


def _complete(
    groups: Iterable[Group], starts: Mapping[Place, int], finished: Mapping[str, Mapping[Place, int]]
) -> dict[str, dict[Place, int]]:
    # A group that reads a topic but says nothing of a partition has finished nothing of it.
    return {
        group.name: {
            place: finished.get(group.name, {}).get(place, UNKNOWN) for place in starts if place[0] in group.topics
        }
        for group in groups
    }


def _delete(link: Link, wanted: Sequence[Deletion]) -> list[Deletion]:
    done: list[Deletion] = []
    for topic in sorted({deletion.topic for deletion in wanted}):
        of_topic = {deletion.partition: deletion for deletion in wanted if deletion.topic == topic}
        for node, parts in by_leader(link, topic, list(of_topic)).items():
            kind = DeleteRecordsRequest.DeleteRecordsTopic
            asked = [kind.DeleteRecordsPartition(partition_index=part, offset=of_topic[part].before) for part in parts]
            request = DeleteRecordsRequest(
                topics=[kind(name=topic, partitions=asked)], timeout_ms=int(link.timeout_s * 1000)
            )
            for result in link.call(request, node).topics[0].partitions:
                if not result.error_code:
                    done.append(of_topic[result.partition_index])
                    continue
                error = kafka_errors.for_code(result.error_code)(f"{topic}[{result.partition_index}]")
                if not isinstance(error, kafka_errors.RetriableError):
                    raise mapped(error, topic=topic)
    return done
