"""Look at share groups and set them up: offsets and lag, members, start offsets, configs. Blocking.

with ShareAdmin("localhost:9092") as admin:
    for line in admin.describe_offsets("workers", ["jobs"]):
        print(line.topic, line.partition, line.start_offset, line.lag)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kafka.net.selector import NetworkSelector
from kafka.protocol.admin import IncrementalAlterConfigsRequest
from kafka.protocol.metadata import MetadataRequest

from . import errors, messages
from .channel import Backoff, Channel
from .config import ShareConfig

_GROUP_RESOURCE = 32
_ROLE = "admin"


@dataclass(frozen=True, slots=True)
class PartitionOffset:
    """Where a group stands in a partition: everything below `start_offset` is finished; lag is -1 when unknown."""

    topic: str
    partition: int
    start_offset: int
    lag: int
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a share group."""

    member_id: str
    client_id: str
    host: str
    epoch: int
    topics: tuple[str, ...]
    assignment: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A share group: its state (Stable, Empty, Dead) and members."""

    name: str
    state: str
    epoch: int
    assignor: str
    members: tuple[Member, ...]


class ShareAdmin:
    """Asks a group's coordinator, over one connection at a time. Use it from one thread and close it.

    Every call raises UnavailableError, AuthenticationError, AuthorizationError, UnsupportedError or RequestError.
    """

    def __init__(self, config: ShareConfig | str, *, net: Any = None) -> None:
        self._config = ShareConfig(bootstrap_servers=config) if isinstance(config, str) else config
        self._own_net = net is None
        self._net = net if net is not None else NetworkSelector(client_id=self._config.client_id)
        self._channel: Channel | None = None
        self._net.start()

    def describe_offsets(self, group: str, topics: Sequence[str] | None = None) -> list[PartitionOffset]:
        """Start offset and lag by partition, of these topics (every partition) or of all the group has read.

        The lag counts finished records at once; the start offset is what the broker last wrote down, which may be one
        write behind. Deleting records below it is safe.
        """
        request = messages.DescribeShareGroupOffsetsRequest
        wanted = None
        if topics is not None:
            counts = self._partitions(topics)
            kind = request.DescribeShareGroupOffsetsRequestGroup.DescribeShareGroupOffsetsRequestTopic
            wanted = [kind(topic_name=name, partitions=list(range(counts[name]))) for name in topics if name in counts]
        ask = request(
            groups=[request.DescribeShareGroupOffsetsRequestGroup(group_id=group, topics=wanted)], min_version=1
        )
        response = self._coordinated(group, ask, lambda answer: answer.groups[0].error_code)
        found = response.groups[0]
        _check(found.error_code, found.error_message, group)
        lines = []
        for topic in found.topics:
            for part in topic.partitions:
                _check(part.error_code, part.error_message, f"{group} {topic.topic_name}[{part.partition_index}]")
                lines.append(
                    PartitionOffset(
                        topic.topic_name, part.partition_index, part.start_offset, part.lag, part.leader_epoch
                    )
                )
        return sorted(lines, key=lambda line: (line.topic, line.partition))

    def describe_group(self, group: str) -> Group:
        """State and members of a group. Raises FatalError's kin or RequestError (69: there is no such group)."""
        ask = messages.ShareGroupDescribeRequest(group_ids=[group], include_authorized_operations=False)
        response = self._coordinated(group, ask, lambda answer: answer.groups[0].error_code)
        found = response.groups[0]
        _check(found.error_code, found.error_message, group)
        members = tuple(_member(member) for member in found.members)
        return Group(found.group_id, found.group_state, found.group_epoch, found.assignor_name, members)

    def alter_offsets(self, group: str, starts: Mapping[tuple[str, int], int]) -> None:
        """Move start offsets by (topic, partition). The group must have no members."""
        request = messages.AlterShareGroupOffsetsRequest
        kind = request.AlterShareGroupOffsetsRequestTopic
        topics: dict[str, list[Any]] = {}
        for (topic, partition), offset in starts.items():
            cls = kind.AlterShareGroupOffsetsRequestPartition
            topics.setdefault(topic, []).append(cls(partition_index=partition, start_offset=offset))
        ask = request(
            group_id=group, topics=[kind(topic_name=name, partitions=parts) for name, parts in topics.items()]
        )
        response = self._coordinated(group, ask, lambda answer: answer.error_code)
        _check(response.error_code, response.error_message, group)
        for topic in response.responses:
            for part in topic.partitions:
                _check(part.error_code, part.error_message, f"{group} {topic.topic_name}[{part.partition_index}]")

    def coordinator(self, group: str) -> int:
        """The id of the broker that coordinates the group."""
        node: int = self._run(lambda channel: channel.coordinator(_ROLE, group))
        return node

    def configure_group(self, group: str, configs: Mapping[str, str]) -> None:
        """Set group configs (share.auto.offset.reset, share.record.lock.duration.ms …); others stay as they are."""
        request = IncrementalAlterConfigsRequest
        kind = request.AlterConfigsResource
        entries = [kind.AlterableConfig(name=name, config_operation=0, value=value) for name, value in configs.items()]
        resource = kind(resource_type=_GROUP_RESOURCE, resource_name=group, configs=entries)
        response = self._run(lambda channel: channel.send(_ROLE, None, request(resources=[resource])))
        for answer in response.responses:
            _check(answer.error_code, answer.error_message, group)

    def close(self) -> None:
        """Close the connections."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            self._net.run(channel.close)
        if self._own_net:
            self._net.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, action: Callable[[Channel], Awaitable[Any]]) -> Any:
        """Run on the network thread; while no broker answers, try again until request_timeout."""

        async def go() -> Any:
            backoff = Backoff(self._config.backoff, self._config.backoff_max)
            deadline = time.monotonic() + self._config.request_timeout
            while True:
                try:
                    return await action(await self._connected())
                except errors.UnavailableError:
                    if time.monotonic() >= deadline:
                        raise
                    await self._net.sleep(backoff.next())

        return self._net.run(go)

    async def _connected(self) -> Channel:
        if self._channel is None:
            channel = Channel(self._net, self._config)
            try:
                await channel.bootstrap()
            except errors.ShareError:
                channel.close()
                raise
            self._channel = channel
        return self._channel

    def _coordinated(self, group: str, request: Any, code: Callable[[Any], int]) -> Any:
        """Send to the group's coordinator; while it moves or loads, it is looked for again."""

        async def ask(channel: Channel) -> Any:
            response = await channel.send(_ROLE, await channel.coordinator(_ROLE, group), request)
            if code(response) in errors.COORDINATOR_MOVED:
                raise errors.from_code(code(response), place=f"coordinator of {group}")
            return response

        return self._run(ask)

    def _partitions(self, topics: Sequence[str]) -> dict[str, int]:
        """How many partitions the topics that exist have."""
        request = MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name=name) for name in topics],
            allow_auto_topic_creation=False,
        )
        response = self._run(lambda channel: channel.send(_ROLE, None, request))
        return {topic.name: len(topic.partitions) for topic in response.topics if not topic.error_code}


def _check(code: int, message: str | None, place: str) -> None:
    if code:
        raise errors.from_code(code, message, place=place)


def _member(found: Any) -> Member:
    return Member(
        member_id=found.member_id,
        client_id=found.client_id,
        host=found.client_host,
        epoch=found.member_epoch,
        topics=tuple(found.subscribed_topic_names),
        assignment=tuple(_pairs(found.assignment.topic_partitions)),
    )


def _pairs(topics: Iterable[Any]) -> list[tuple[str, int]]:
    return sorted((topic.topic_name, index) for topic in topics for index in topic.partitions)
