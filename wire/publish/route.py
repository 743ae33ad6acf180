"""What a publisher must ask the cluster: who am I, which partitions has a topic, how large may a record be."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka import errors as kafka_errors
from kafka.protocol.admin import DescribeConfigsRequest
from kafka.protocol.metadata import MetadataRequest
from kafka.protocol.producer import InitProducerIdRequest

from schemas.errors import AuthError, TapeError
from wire.kafka import Link, mapped
from wire.partition import partition_for
from wire.publish.lane import Identity, Lane, Record, builder
from wire.publish.port import no_partition, too_large

PAUSE_S = 0.05
UNKNOWN_S = 1.0
"""How long a topic may be unknown before that is believed: brokers hear of a new one a moment after its maker."""

DEFAULT_LIMIT = 1_048_588
BATCH_BYTES = 256 << 10
BATCH_HEADER = 61
_TOPIC = 2


class Route:
    """A topic's lanes, and the bytes of the largest batch it takes."""

    __slots__ = ("_next", "lanes", "limit", "topic")

    def __init__(self, topic: str, partitions: int, *, limit: int) -> None:
        self.topic = topic
        self.limit = limit
        self.lanes: list[Lane] = []
        self._next = 0
        self.grow(partitions)

    def grow(self, partitions: int) -> None:
        """Add lanes for partitions the topic has won since."""
        for partition in range(len(self.lanes), partitions):
            self.lanes.append(Lane(self.topic, partition, min(BATCH_BYTES, self.limit)))

    def check(self, record: Record) -> None:
        """Raise `InvalidError` (TAPE-1006) when the topic does not take a record of this size."""
        content = (record.key, record.value, record.headers)
        if DefaultRecordBatchBuilder.estimate_size_in_bytes(*content) <= self.limit:
            return  # the estimate is never too low
        size = BATCH_HEADER + builder(Identity(0, 0), 0, 1).size_in_bytes(0, record.timestamp_ms, *content)
        if size > self.limit:
            raise too_large(self.topic, size, self.limit)

    def lane(self, partition: int | None, key: bytes | None) -> Lane:
        """Return the lane of a record: the partition asked for, else its key's, else each in turn.

        Raises `InvalidError` (TAPE-1002) when the topic has no such partition.
        """
        if partition is None:
            if key is not None:
                return self.lanes[partition_for(key, len(self.lanes))]
            self._next = (self._next + 1) % len(self.lanes)
            return self.lanes[self._next]
        if not 0 <= partition < len(self.lanes):
            raise no_partition(self.topic, partition, len(self.lanes))
        return self.lanes[partition]


async def open_route(link: Link, topic: str, *, until: float) -> Route:
    """Ask for a topic until it is there with all its leaders, and have its metadata kept fresh from then on.

    Gives up at `until` (monotonic). Raises `NotFoundError` (TAPE-2004), `AuthError`, `UnavailableError` (TAPE-5003).
    """
    began = time.monotonic()
    while True:
        trouble = await _missing(link, topic)
        if trouble is None:
            break
        now = time.monotonic()
        patient = isinstance(trouble, kafka_errors.RetriableError | kafka_errors.UnknownBrokerIdError)
        unknown = isinstance(trouble, kafka_errors.UnknownTopicOrPartitionError)
        if not patient or now >= until or (unknown and now >= began + UNKNOWN_S):
            raise mapped(trouble, code="TAPE-5003", topic=topic) from trouble
        await link.net.sleep(PAUSE_S)
    limit = await _limit(link, topic)
    route = Route(topic, 0, limit=limit)

    def follow(cluster: Any) -> None:
        route.grow(len(cluster.partitions_for_topic(topic) or ()))

    follow(link.manager.cluster)
    link.manager.cluster.add_listener(follow)
    return route


async def _missing(link: Link, topic: str) -> Exception | None:
    try:
        wanted = [MetadataRequest.MetadataRequestTopic(name=topic, topic_id=None)]
        found = (await link.ask(MetadataRequest(topics=wanted, allow_auto_topic_creation=False))).topics[0]
        if found.error_code:
            return _error(found.error_code, topic)
        cluster = link.manager.cluster
        await cluster.add_topic(topic)
        if not cluster.partitions_for_topic(topic):
            await cluster.request_update()  # the answer was to a question asked before the topic was added
        return None if cluster.partitions_for_topic(topic) else kafka_errors.StaleMetadata(topic)
    except TapeError:
        raise
    except Exception as error:
        return error


async def _limit(link: Link, topic: str) -> int:
    # Not every account may read settings; Kafka's default is the best guess then, and the broker has the last word.
    resource = DescribeConfigsRequest.DescribeConfigsResource(
        resource_type=_TOPIC, resource_name=topic, configuration_keys=["max.message.bytes"]
    )
    request = DescribeConfigsRequest(resources=[resource], include_synonyms=False, include_documentation=False)
    with contextlib.suppress(kafka_errors.KafkaError, ValueError, IndexError):
        return int((await link.ask(request)).results[0].configs[0].value)
    return DEFAULT_LIMIT


async def identify(link: Link) -> Identity:
    """Ask for a producer's identity until there is one. Raises `AuthError` when we are not let in."""
    while True:
        try:
            answer = await link.ask(
                InitProducerIdRequest(
                    transactional_id=None, transaction_timeout_ms=60_000, producer_id=-1, producer_epoch=-1
                )
            )
            if not answer.error_code:
                return Identity(answer.producer_id, answer.producer_epoch)
            trouble = _error(answer.error_code, "InitProducerId")
        except Exception as error:
            trouble = error
        found = mapped(trouble)
        if isinstance(found, AuthError):
            raise found
        await link.net.sleep(PAUSE_S)


def _error(code: int, *about: Any) -> Exception:
    error: Exception = kafka_errors.for_code(code)(*about)
    return error
