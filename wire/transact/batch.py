"""Transactional batches: records sorted by partition, built and numbered, and on their way to the leaders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import errors as kafka_errors
from kafka.protocol.producer import ProduceRequest
from kafka.structs import TopicPartition

from wire.kafka import Link
from wire.partition import partition_for
from wire.publish.lane import SEQUENCES, Identity, builder
from wire.publish.port import no_partition, too_large
from wire.publish.route import BATCH_BYTES, open_route
from wire.transact.port import Outgoing

_DUPLICATE = kafka_errors.DuplicateSequenceNumberError.errno


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition; batches of one partition go one `round` after the other."""

    place: tuple[str, int]
    round: int
    records: int
    data: bytes


class Builder:
    """Builds batches, and keeps count of what each partition has been sent in this epoch."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._limits: dict[str, int] = {}
        self._sequences: dict[tuple[str, int], int] = {}
        self._turn = 0

    def forget(self) -> None:
        """Count anew: the producer has a new epoch."""
        self._sequences.clear()

    def forget_topics(self) -> None:
        """Look topics up again before they are next written to."""
        self._limits.clear()

    def count(self, batches: Sequence[Batch]) -> None:
        """These are in the log now."""
        for batch in batches:
            self._sequences[batch.place] = (self._sequences.get(batch.place, 0) + batch.records) % SEQUENCES

    async def build(self, records: Sequence[Outgoing], identity: Identity, until: float) -> list[Batch]:
        """Return the records as batches; nothing is counted yet.

        Raises `InvalidError` (TAPE-1006, TAPE-1002), `NotFoundError` (TAPE-2004), `AuthError`, `UnavailableError`.
        """
        for topic in {record.topic for record in records} - self._limits.keys():
            self._limits[topic] = (await open_route(self._link, topic, until=until)).limit
        by_place: dict[tuple[str, int], list[Outgoing]] = {}
        for record in records:
            by_place.setdefault((record.topic, self._partition(record)), []).append(record)
        now_ms = int(time.time() * 1000)
        return [batch for place, found in by_place.items() for batch in self._batches(place, found, identity, now_ms)]

    def _partition(self, record: Outgoing) -> int:
        count = len(self._link.manager.cluster.partitions_for_topic(record.topic) or ())
        if record.partition is None:
            if record.key is not None:
                return partition_for(record.key, count)
            self._turn += 1
            return self._turn % count
        if not 0 <= record.partition < count:
            raise no_partition(record.topic, record.partition, count)
        return record.partition

    def _batches(
        self, place: tuple[str, int], records: Sequence[Outgoing], identity: Identity, now_ms: int
    ) -> list[Batch]:
        limit = self._limits[place[0]]
        sequence = self._sequences.get(place, 0)
        made: list[Batch] = []
        first = 0
        while first < len(records):
            space = builder(identity, sequence, min(BATCH_BYTES, limit), transactional=True)
            count = 0
            for record in records[first:]:
                moment = now_ms if record.timestamp_ms is None else record.timestamp_ms
                if space.append(count, moment, record.key, record.value, list(record.headers)) is None:
                    break
                count += 1
            data = bytes(space.build())
            if len(data) > limit:  # only a batch of one record can be: the first always fits
                raise too_large(place[0], len(data), limit)
            made.append(Batch(place, len(made), count, data))
            first += count
            sequence = (sequence + count) % SEQUENCES
        return made


async def produce(
    link: Link, name: str, batches: Sequence[Batch], timeout_s: float
) -> tuple[list[Batch], Exception | None]:
    """Send batches, at most one a partition, to their leaders; return those not taken, and why one of them was not."""
    nodes: dict[int, dict[tuple[str, int], Batch]] = {}
    left: list[Batch] = []
    for batch in batches:
        leader = link.manager.cluster.leader_for_partition(TopicPartition(*batch.place))
        if leader is None or leader < 0:
            left.append(batch)
        else:
            nodes.setdefault(leader, {})[batch.place] = batch
    trouble: Exception | None = kafka_errors.LeaderNotAvailableError() if left else None
    answers = []
    for node, wanted in nodes.items():
        try:
            await link.manager.get_connection(node)
            sent = link.manager.send(_request(name, wanted), node_id=node, request_timeout_ms=timeout_s * 1000)
            answers.append((wanted, sent))
        except kafka_errors.KafkaError as error:
            left, trouble = left + list(wanted.values()), error
    for wanted, sent in answers:
        try:
            answer = await sent
        except kafka_errors.KafkaError as error:
            left, trouble = left + list(wanted.values()), error
            continue
        for topic in answer.responses:
            for found in topic.partition_responses:
                batch = wanted.pop((topic.name, found.index))
                if found.error_code not in {0, _DUPLICATE}:
                    refusal = kafka_errors.for_code(found.error_code)(f"{topic.name}[{found.index}]")
                    trouble = _worse(trouble, refusal)
                    left.append(batch)
        left += wanted.values()
    return left, trouble


def _worse(one: Exception | None, other: Exception) -> Exception:
    # What cannot be mended by trying again must not hide behind what can.
    return other if one is None or isinstance(one, kafka_errors.RetriableError) else one


def _request(name: str, batches: Mapping[tuple[str, int], Batch]) -> Any:
    kind = ProduceRequest.TopicProduceData
    topics: dict[str, list[Any]] = {}
    for (topic, partition), batch in batches.items():
        topics.setdefault(topic, []).append(kind.PartitionProduceData(index=partition, records=batch.data))
    return ProduceRequest(
        transactional_id=name,
        acks=-1,
        timeout_ms=10_000,
        topic_data=[kind(name=topic, partition_data=parts) for topic, parts in topics.items()],
        max_version=11,  # from 12 on a produce request announces its partitions itself (KIP-890, part 2)
    )
