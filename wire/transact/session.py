"""One transactional producer's talk with the cluster (KIP-98, KIP-360, KIP-447), on the link's thread only.

Every transaction: its partitions are announced to the coordinator of the name, the batches go to the leaders, the
offsets to the group's coordinator, and one last request ends it. After trouble the transaction is aborted and the
producer takes up a new epoch, so nothing that is still on its way from before can count.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import errors as kafka_errors
from kafka.protocol.metadata import FindCoordinatorRequest
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from schemas.errors import TapeError, UnavailableError
from wire.kafka import Link, mapped
from wire.publish.lane import Identity
from wire.transact.batch import Batch, Builder, produce
from wire.transact.port import Member, Outgoing, fenced, moved_on

Place = tuple[str, int]

GROUP, TRANSACTION = 0, 1
PAUSE_S, MOMENT_S = 0.05, 0.005
ANSWER_S = 5.0
RECOVER_S = 2.0
UNKNOWN_S = 1.0
"""How long a leader may not know a topic before that is believed: a new one takes a moment to get around."""
_VERSION = 3
"""The newest version of the coordinators' requests without KIP-890's second part, which kafka-python does not drive."""

_FENCED = (
    kafka_errors.ProducerFencedError,
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.InvalidProducerIdMappingError,
)
_MOVED_ON = (
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.RebalanceInProgressError,
)
_ELSEWHERE = (
    kafka_errors.NotCoordinatorError,
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.RequestTimedOutError,
    kafka_errors.UnknownBrokerIdError,
)


def patient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    return isinstance(error, kafka_errors.RetriableError | kafka_errors.UnknownBrokerIdError)


class Session:
    """A name's holder at the coordinator, and the transaction it has open."""

    def __init__(self, link: Link, name: str, *, transaction_s: float) -> None:
        self._link, self._name = link, name
        self._transaction_ms = int(transaction_s * 1000)
        self._identity = Identity(-1, -1)
        self._builder = Builder(link)
        self._nodes: dict[tuple[int, str], int] = {}
        self._ongoing = False
        self._clean = False

    async def begin(self, until: float) -> None:
        """Become the holder: the first time whoever held the name is fenced; later, what was left open is aborted."""
        if self._ongoing:
            with contextlib.suppress(kafka_errors.InvalidTxnStateError):  # nothing open, or committed after all
                await self._end(False, until)
            self._ongoing = False
        request = InitProducerIdRequest(
            transactional_id=self._name,
            transaction_timeout_ms=self._transaction_ms,
            producer_id=self._identity.id,
            producer_epoch=self._identity.epoch,
            max_version=4,
        )
        answer = await self._ask(TRANSACTION, self._name, request, lambda found: [found.error_code], until)
        self._identity = Identity(answer.producer_id, answer.producer_epoch)
        self._builder.forget()
        self._clean = True

    async def commit(
        self, records: Sequence[Outgoing], offsets: Mapping[Place, int], group: Member | None, until: float
    ) -> None:
        """Do one transaction; see `Transactor.commit`."""
        try:
            if not self._clean:
                await self.begin(until)
            batches = await self._builder.build(records, self._identity, until)
            self._clean, self._ongoing = False, True
            if batches:
                await self._announce({batch.place for batch in batches}, until)
                await self._produce(batches, until)
            if offsets and group is not None:
                await self._offsets(offsets, group, until)
        except Exception as error:
            raise await self._told(error, group) from error
        try:
            await self._end(True, until)
        except Exception as error:
            if not patient(error):
                raise await self._told(error, group) from error
            raise UnavailableError(
                "the end of a transaction was not confirmed", code="TAPE-5003", transactor=self._name
            ) from error
        self._clean, self._ongoing = True, False
        self._builder.count(batches)

    async def _told(self, error: Exception, group: Member | None) -> TapeError:
        """Undo what is open, as far as that goes quickly, and return our error."""
        if isinstance(error, _FENCED):
            return fenced(self._name)
        if not self._clean:
            try:
                await self.begin(time.monotonic() + RECOVER_S)
            except _FENCED:
                return fenced(self._name)
            except Exception:
                self._nodes.clear()  # the next commit begins with this
        if isinstance(error, _MOVED_ON) and group is not None:
            return moved_on(group.group)
        return mapped(error, transactor=self._name)

    async def _announce(self, places: Iterable[Place], until: float) -> None:
        topics: dict[str, list[int]] = {}
        for topic, partition in sorted(places):
            topics.setdefault(topic, []).append(partition)
        kind = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic
        request = AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=self._name,
            v3_and_below_producer_id=self._identity.id,
            v3_and_below_producer_epoch=self._identity.epoch,
            v3_and_below_topics=[kind(name=topic, partitions=parts) for topic, parts in topics.items()],
            max_version=_VERSION,
        )

        def codes(answer: Any) -> list[int]:
            found = [
                part.partition_error_code
                for topic in answer.results_by_topic_v3_and_below
                for part in topic.results_by_partition
            ]
            # One refused partition leaves the others unattempted, which says less than the refusal.
            return sorted(found, key=lambda code: code == kafka_errors.OperationNotAttemptedError.errno)

        await self._ask(TRANSACTION, self._name, request, codes, until)

    async def _produce(self, batches: Sequence[Batch], until: float) -> None:
        rounds = max(batch.round for batch in batches) + 1
        for number in range(rounds):  # a request takes one batch of a partition
            left = [batch for batch in batches if batch.round == number]
            began = time.monotonic()
            while left:
                left, trouble = await produce(self._link, self._name, left, min(ANSWER_S, until - began))
                if trouble is None:
                    continue
                now = time.monotonic()
                unknown = isinstance(trouble, kafka_errors.UnknownTopicOrPartitionError) and now >= began + UNKNOWN_S
                if not patient(trouble) or now >= until or unknown:
                    self._builder.forget_topics()
                    raise trouble
                self._link.manager.cluster.request_update()
                await self._link.net.sleep(PAUSE_S)

    async def _offsets(self, offsets: Mapping[Place, int], group: Member, until: float) -> None:
        add = AddOffsetsToTxnRequest(
            transactional_id=self._name,
            producer_id=self._identity.id,
            producer_epoch=self._identity.epoch,
            group_id=group.group,
            max_version=_VERSION,
        )
        await self._ask(TRANSACTION, self._name, add, lambda found: [found.error_code], until)
        kind = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic
        topics: dict[str, list[Any]] = {}
        for (topic, partition), offset in offsets.items():
            topics.setdefault(topic, []).append(
                kind.TxnOffsetCommitRequestPartition(
                    partition_index=partition,
                    committed_offset=offset,
                    committed_leader_epoch=-1,
                    committed_metadata=group.note,
                )
            )
        commit = TxnOffsetCommitRequest(
            transactional_id=self._name,
            group_id=group.group,
            producer_id=self._identity.id,
            producer_epoch=self._identity.epoch,
            generation_id=group.generation,
            member_id=group.name,
            group_instance_id=group.instance,
            topics=[kind(name=topic, partitions=parts) for topic, parts in topics.items()],
            min_version=_VERSION,
            max_version=_VERSION,
        )

        def codes(answer: Any) -> list[int]:
            return [part.error_code for topic in answer.topics for part in topic.partitions]

        await self._ask(GROUP, group.group, commit, codes, until)

    async def _end(self, committed: bool, until: float) -> None:
        request = EndTxnRequest(
            transactional_id=self._name,
            producer_id=self._identity.id,
            producer_epoch=self._identity.epoch,
            committed=committed,
            max_version=_VERSION,
        )
        await self._ask(TRANSACTION, self._name, request, lambda found: [found.error_code], until)

    async def _ask(self, kind: int, key: str, request: Any, codes: Callable[[Any], Iterable[int]], until: float) -> Any:
        """Ask a coordinator until it agrees, refuses for good, or time is up."""
        while True:
            try:
                answer = await self._answer(kind, key, request, until)
                code = next((code for code in codes(answer) if code), 0)
                if not code:
                    return answer
                trouble: Exception = kafka_errors.for_code(code)(type(request).__name__)
            except kafka_errors.KafkaError as error:
                trouble = error
            if not patient(trouble) or time.monotonic() >= until:
                raise trouble
            if isinstance(trouble, kafka_errors.ConcurrentTransactionsError):
                await self._link.net.sleep(MOMENT_S)  # the transaction before is still being written down
                continue
            if isinstance(trouble, _ELSEWHERE) or not isinstance(trouble, kafka_errors.BrokerResponseError):
                self._nodes.pop((kind, key), None)
            await self._link.net.sleep(PAUSE_S)

    async def _answer(self, kind: int, key: str, request: Any, until: float) -> Any:
        limit = max(0.1, min(ANSWER_S, until - time.monotonic()))
        node = self._nodes.get((kind, key))
        if node is None:
            find = FindCoordinatorRequest(key=key, key_type=kind, coordinator_keys=[key])
            answer = await self._link.ask(find, None, limit)
            found = answer.coordinators[0] if answer.coordinators else answer
            if found.error_code:
                raise kafka_errors.for_code(found.error_code)(found.error_message)
            node = self._nodes[kind, key] = int(found.node_id)
        return await self._link.ask(request, node, limit)
