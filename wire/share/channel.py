"""Connections to the brokers of one consumer, on kafka-python's connection manager. Used on the network thread.

Each share session gets a connection of its own, and so does the membership: a long poll holds up every request that
follows it on the same connection, and a broker releases a session's records when its connection closes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from kafka.future import Future
from kafka.protocol.metadata import CoordinatorType

from . import errors, messages
from .config import ShareConfig
from .messages import TopicPartition
from .transport import Connections

_BOOTSTRAP_ROUND = 5000


class Alarm:
    """Waits on the network thread that end early when somebody rings."""

    def __init__(self, net: Any) -> None:
        self._net = net
        self._future: Future | None = None
        self._rung = self._shut = self._deaf = False

    def ring(self) -> None:
        """End the wait under way, or else the next one at once; a pause is not cut short. Network thread only."""
        if self._deaf or not self._end():
            self._rung = True

    def shut(self) -> None:
        """End every wait and pause from now on. Network thread only."""
        self._shut = True
        self._end()

    async def wait(self, seconds: float | None) -> None:
        """Wait so long, or until rung."""
        if not self._rung:
            await self._sleep(seconds)
        self._rung = False

    async def pause(self, seconds: float) -> None:
        """Wait so long, whoever rings: back-off would be none if every bit of news ended it."""
        self._deaf = True
        try:
            await self._sleep(seconds)
        finally:
            self._deaf = False

    async def _sleep(self, seconds: float | None) -> None:
        if self._shut:
            return
        self._future = Future()
        timer = None if seconds is None else self._net.call_later(max(seconds, 0.0), self._end)
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                self._net.cancel(timer)

    def _end(self) -> bool:
        if self._future is None or self._future.is_done:
            return False
        self._future.success(None)
        return True


class Backoff:
    """Full jitter: each failure waits a random time below a bound that doubles. Seconds."""

    def __init__(self, base: float, top: float, rand: Callable[[], float] = random.random) -> None:
        self._base, self._top, self._rand = base, top, rand
        self.failures = 0

    def reset(self) -> None:
        """Something worked."""
        self.failures = 0

    def next(self) -> float:
        """How long to wait after one more failure."""
        bound = min(self._top, self._base * 2 ** min(self.failures, 20))
        self.failures += 1
        wait: float = self._rand() * bound
        return wait


class Channel:
    """Sends requests to brokers by role (member, session) and maps what goes wrong to this package's errors."""

    def __init__(self, net: Any, config: ShareConfig) -> None:
        self._config = config
        self._manager = Connections(net, **_manager_config(config))
        self._manager.cluster.config["allow_auto_create_topics"] = False
        self._endpoints: dict[int, tuple[str, int]] = {}

    async def bootstrap(self) -> None:
        """Connect to any of the bootstrap servers. Raises UnavailableError, AuthenticationError, UnsupportedError."""
        place = f"bootstrap {self._config.bootstrap_servers}"
        try:
            await self._manager.bootstrap_async(_BOOTSTRAP_ROUND)
        except Exception as exc:
            why = self._manager.last_failure
            raise errors.from_exception(exc, place=f"{place} ({why})" if why is not None else place) from exc
        self.learn((node.node_id, node.host, node.port) for node in self._manager.cluster.brokers())

    def learn(self, endpoints: Iterable[tuple[int, str, int]]) -> None:
        """Remember where brokers are."""
        for node, host, port in endpoints:
            self._endpoints[node] = (host, port)

    def knows(self, node: int) -> bool:
        """The broker's address is known."""
        return node in self._endpoints

    async def send(self, role: str, node: int | None, request: Any, *, timeout: float | None = None) -> Any:
        """Send on the connection of that role to that broker (any broker: None) and return the response.

        Raises UnavailableError when no connection can be had or it breaks, and the fatal errors.
        """
        seconds = self._config.request_timeout if timeout is None else timeout
        place = f"{role} {node}"
        try:
            name = self._name(role, node)
            return await self._manager.send(request, node_id=name, request_timeout_ms=seconds * 1000)
        except Exception as exc:
            raise errors.from_exception(exc, place=place) from exc

    async def coordinator(self, role: str, group: str) -> int:
        """Find the group's coordinator. Raises UnavailableError while it moves or loads, and the fatal errors."""
        response = await self.send(role, None, messages.find_coordinator(group))
        found = response.coordinators[0] if response.coordinators else response
        if found.error_code:
            raise errors.from_code(found.error_code, found.error_message, place=f"coordinator of {group}")
        self.learn([(found.node_id, found.host, found.port)])
        return int(found.node_id)

    def drop(self, role: str, node: int) -> None:
        """Close the connection of that role, if there is one."""
        self._manager.close(f"{role}-{node}")

    def close(self) -> None:
        """Close every connection."""
        self._manager.close()

    def _name(self, role: str, node: int | None) -> str:
        if node is None:
            known = list(self._endpoints)
            if not known:
                raise errors.UnavailableError("no broker is known")
            node = random.choice(known)  # noqa: S311  (spreads load, guards nothing)
        try:
            host, port = self._endpoints[node]
        except KeyError:
            raise errors.UnavailableError(f"broker {node} is not known") from None
        # A named endpoint is how kafka-python gives coordinators a connection apart; sessions want the same.
        name = f"{role}-{node}"
        answer = SimpleNamespace(error_code=0, node_id=name, host=host, port=port)
        self._manager.cluster.add_coordinator(answer, CoordinatorType.SHARE, name, synthesize_node_id=False)
        return name


def _manager_config(config: ShareConfig) -> dict[str, Any]:
    """kafka-python's settings: its own reconnect delay is kept short, since ours (full jitter) rules."""
    return {
        **config.security,
        "bootstrap_servers": config.bootstrap_servers,
        "client_id": config.client_id,
        "receive_message_max_bytes": 2 * config.max_bytes + (4 << 20),
        "request_timeout_ms": int(config.request_timeout * 1000),
        "socket_connection_setup_timeout_ms": int(config.connect_timeout * 1000),
        "socket_connection_setup_timeout_max_ms": int(config.connect_timeout * 1000),
        "reconnect_backoff_ms": 10,
        "reconnect_backoff_max_ms": 20,
    }


class Leaders:
    """Names and leaders of topics known by id, with hints from responses."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.seen: frozenset[TopicPartition] = frozenset()
        self._leaders: dict[TopicPartition, tuple[int, int]] = {}

    def of(self, tip: TopicPartition) -> int | None:
        """The leader of a partition, None when it is not known."""
        leader = self._leaders[tip][0] if tip in self._leaders else -1
        return leader if leader >= 0 else None

    def forget(self, tip: TopicPartition) -> None:
        """What is known about the leader is wrong."""
        if tip in self._leaders:
            self._leaders[tip] = (-1, self._leaders[tip][1])

    def hint(self, tip: TopicPartition, leader: int, epoch: int) -> bool:
        """A response names a leader. Returns whether that is news."""
        known = self._leaders.get(tip)
        if leader < 0 or (known is not None and (epoch < known[1] or (epoch == known[1] and known[0] >= 0))):
            return False
        self._leaders[tip] = (leader, epoch)
        return known is None or known[0] != leader

    def update(self, response: Any) -> list[tuple[UUID, int]]:
        """Take in a metadata response; `seen` is then every partition in it. Returns topics with an error code."""
        bad: list[tuple[UUID, int]] = []
        self.seen = frozenset(
            (topic.topic_id, part.partition_index) for topic in response.topics for part in topic.partitions
        )
        for topic in response.topics:
            if topic.error_code:
                bad.append((topic.topic_id, topic.error_code))
                continue
            self.names[topic.topic_id] = topic.name
            for part in topic.partitions:
                self.hint((topic.topic_id, part.partition_index), part.leader_id, part.leader_epoch)
        return bad
