"""A broker of share groups in memory that answers the real requests: drives the engine without a socket.

It keeps sessions and epochs as strictly as a broker, acquires and settles on `SharePartition`s, and fails on order.
"""

from __future__ import annotations

import uuid
from collections import deque
from types import SimpleNamespace
from typing import Any

from kafka.record.memory_records import MemoryRecordsBuilder

from wire.share import errors, ranges
from wire.share.locks import GroupConfig, SharePartition

TOPIC_ID = uuid.UUID(int=7)


def records(values: list[bytes | None], base: int) -> bytes:
    """One plain batch of records; None leaves a hole, as compaction does."""
    builder = MemoryRecordsBuilder(2, 0, 1 << 20)
    for value in values:
        if value is None:
            builder.skip(1)
            continue
        builder.append(1_700_000_000_000, None, value, [])
    builder.close()
    data = bytearray(builder.buffer())
    data[0:8] = base.to_bytes(8, "big")
    return bytes(data)


class FakeCluster:
    """Nodes, one topic, one group; `fail` queues error codes (or exceptions) for the next requests of a kind."""

    def __init__(self, nodes: int = 1, partitions: int = 1, *, config: GroupConfig | None = None) -> None:
        self.config = config or GroupConfig()
        self.now = 0.0
        self.leaders = {index: (index % nodes, 0) for index in range(partitions)}
        self.logs: dict[int, list[bytes | None]] = {index: [] for index in range(partitions)}
        self.states = {index: SharePartition(self.config) for index in range(partitions)}
        self.sessions: dict[tuple[str, int], tuple[int, set[int]]] = {}
        self.epochs: dict[str, int] = {}
        self.fail: dict[str, deque[Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self.exists = True
        self.asked = self.most_asked = 0
        self.nodes = list(range(nodes))

    def order(self, kind: str, *errors_: Any) -> None:
        """The next requests of a kind fail so."""
        self.fail.setdefault(kind, deque()).extend(errors_)

    def due(self, kind: str) -> Any:
        queue = self.fail.get(kind)
        return queue.popleft() if queue else 0

    # ---- what requests do

    def heartbeat(self, node: int, request: Any) -> Any:
        code = self.due("heartbeat")
        member = request.member_id
        answer = SimpleNamespace(
            error_code=code, error_message=None, member_epoch=0, heartbeat_interval_ms=1000, assignment=None
        )
        if code:
            if code == errors.UNKNOWN_MEMBER_ID:
                self.epochs.pop(member, None)
            return answer
        if request.member_epoch == -1:
            self.epochs.pop(member, None)
            answer.member_epoch = -1
            return answer
        if request.member_epoch == 0:
            assert request.subscribed_topic_names is not None
            self.epochs[member] = 1
        elif request.member_epoch != self.epochs.get(member):
            answer.error_code = errors.FENCED_MEMBER_EPOCH
            return answer
        answer.member_epoch = self.epochs[member]
        parts = sorted(self.leaders) if self.exists else []
        topic = SimpleNamespace(topic_id=TOPIC_ID, partitions=parts)
        answer.assignment = SimpleNamespace(topic_partitions=[topic] if parts else [])
        return answer

    def metadata(self, node: int, request: Any) -> Any:
        code = self.due("metadata")
        parts = [
            SimpleNamespace(partition_index=index, leader_id=leader, leader_epoch=epoch)
            for index, (leader, epoch) in self.leaders.items()
        ]
        topic = SimpleNamespace(error_code=code, topic_id=TOPIC_ID, name="jobs", partitions=parts)
        return SimpleNamespace(brokers=self._endpoints(), topics=[topic])

    def fetch(self, node: int, request: Any) -> Any:
        code = self.due("fetch") or self._session(node, request)
        answer = self._answer(code)
        answer.acquisition_lock_timeout_ms = int(self.config.lock_duration * 1000)
        if code:
            return answer
        parts: dict[int, Any] = {}
        for index, batches in self._acks(request):
            parts[index] = self._part(index, node, ack=self._settle(node, index, request.member_id, batches))
        _, known = self.sessions[request.member_id, node]
        left = request.max_records if request.share_acquire_mode else 1000
        for index in sorted(known):
            refused = self.due("partition") if not self._leads(index, node) or "partition" in self.fail else 0
            refused = refused or (0 if self._leads(index, node) else errors.NOT_LEADER_OR_FOLLOWER)
            taken = [] if refused else self._acquire(index, request.member_id, left)
            left -= len(taken)
            if taken or refused:
                part = parts.setdefault(index, self._part(index, node))
                part.error_code = refused
                part.acquired_records = [
                    SimpleNamespace(first_offset=offset, last_offset=offset, delivery_count=count)
                    for offset, count in taken
                ]
                if taken:
                    part.records = records(self.logs[index], 0)
        answer.responses = [SimpleNamespace(topic_id=TOPIC_ID, partitions=list(parts.values()))]
        return answer

    def acknowledge(self, node: int, request: Any) -> Any:
        code = self.due("acknowledge") or self._session(node, request)
        answer = self._answer(code)
        if code:
            return answer
        parts = []
        for index, batches in self._acks(request):
            fate = self._settle(node, index, request.member_id, batches)
            parts.append(self._part(index, node, code=fate))
        answer.responses = [SimpleNamespace(topic_id=TOPIC_ID, partitions=parts)]
        if request.share_session_epoch == -1:
            self.disconnect(request.member_id, node)
        return answer

    def disconnect(self, member: str, node: int) -> None:
        """A session's connection closed: its records are available again."""
        if self.sessions.pop((member, node), None) is not None:
            for index, state in self.states.items():
                if self._leads(index, node):
                    state.release(member)

    # ---- inside

    def _session(self, node: int, request: Any) -> int:
        key = (request.member_id, node)
        epoch = request.share_session_epoch
        added = {part.partition_index for topic in request.topics for part in topic.partitions}
        if epoch == 0:
            assert not any(part for _, part in self._acks(request)), "no acknowledgements on an opening request"
            self.sessions[key] = (1, added)
            return 0
        if key not in self.sessions:
            return errors.SHARE_SESSION_NOT_FOUND
        expected, known = self.sessions[key]
        if epoch not in (expected, -1):
            return errors.INVALID_SHARE_SESSION_EPOCH
        forgotten = {i for topic in getattr(request, "forgotten_topics_data", ()) for i in topic.partitions}
        fetch = hasattr(request, "max_records")
        self.sessions[key] = (expected + 1, (known | added) - forgotten if fetch else known)
        return 0

    def _acks(self, request: Any) -> list[tuple[int, list[Any]]]:
        return [
            (part.partition_index, part.acknowledgement_batches)
            for topic in request.topics
            for part in topic.partitions
            if part.acknowledgement_batches
        ]

    def _settle(self, node: int, index: int, member: str, batches: list[Any]) -> int:
        code = int(self.due("settle"))
        if code:
            return code
        if not self._leads(index, node):
            return errors.NOT_LEADER_OR_FOLLOWER
        acks = ranges.decode((b.first_offset, b.last_offset, b.acknowledge_types) for b in batches)
        try:
            self.states[index].acknowledge(member, acks, self.now)
        except errors.LeaseLostError:
            return errors.INVALID_RECORD_STATE
        return 0

    def _acquire(self, index: int, member: str, limit: int) -> list[tuple[int, int]]:
        return self.states[index].acquire(member, limit, len(self.logs[index]), self.now)

    def _leads(self, index: int, node: int) -> bool:
        return self.leaders[index][0] == node

    def _endpoints(self) -> list[Any]:
        return [SimpleNamespace(node_id=node, host="fake", port=node) for node in self.nodes]

    def _answer(self, code: int) -> Any:
        return SimpleNamespace(error_code=code, error_message=None, responses=[], node_endpoints=[])

    def _part(self, index: int, node: int, *, code: int = 0, ack: int = 0) -> Any:
        leader, epoch = self.leaders[index]
        return SimpleNamespace(
            partition_index=index,
            error_code=code,
            error_message=None,
            acknowledge_error_code=ack,
            acknowledge_error_message=None,
            current_leader=SimpleNamespace(leader_id=leader, leader_epoch=epoch),
            records=None,
            acquired_records=[],
        )


class FakeChannel:
    """Stands in for `Channel`: requests go to a `FakeCluster`; long polls answer at once when there is something."""

    def __init__(self, net: Any, cluster: FakeCluster) -> None:
        self.net, self.cluster = net, cluster
        self.endpoints: set[int] = set()
        self.member = ""
        self.closed = False

    async def bootstrap(self) -> None:
        code = self.cluster.due("bootstrap")
        if code:
            raise code

    def learn(self, endpoints: Any) -> None:
        self.endpoints |= {node for node, _, _ in endpoints}

    def knows(self, node: int) -> bool:
        return node in self.endpoints

    async def coordinator(self, role: str, group: str) -> int:
        code = self.cluster.due("coordinator")
        if code:
            raise errors.from_code(code)
        return self.cluster.nodes[0]

    async def send(self, role: str, node: int | None, request: Any, *, timeout: float | None = None) -> Any:
        kind = {
            "ShareGroupHeartbeatRequest": "heartbeat",
            "MetadataRequest": "metadata",
            "ShareFetchRequest": "fetch",
            "ShareAcknowledgeRequest": "acknowledge",
        }[request.name]
        self.cluster.requests.append((kind, request))
        self.member = getattr(request, "member_id", self.member)
        if self.closed:
            raise errors.UnavailableError("closed")
        queue = self.cluster.fail.get(kind)
        if queue and isinstance(queue[0], Exception):
            raise queue.popleft()
        cluster, wanted = self.cluster, getattr(request, "max_records", 0) or 0
        cluster.asked += wanted
        cluster.most_asked = max(cluster.most_asked, cluster.asked)
        answer = getattr(self.cluster, kind)(node, request)
        if kind == "fetch" and not any(topic.partitions for topic in answer.responses):
            await self.net.sleep(0.002)
        cluster.asked -= wanted
        return answer

    def drop(self, role: str, node: int) -> None:
        self.cluster.disconnect(self.member, node)

    def close(self) -> None:
        self.closed = True
        for node in self.cluster.nodes:
            self.cluster.disconnect(self.member, node)
