"""What runs on the network thread besides the sessions: joining the group, staying in it, finding the leaders.

attend   find the coordinator, heartbeat, take the assignment in          (one task)
survey   find names and leaders of what is assigned                       (one task)
serve    fetch and acknowledge with one leader (see fetcher.py)           (one task per leader)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from . import errors, messages
from .channel import Alarm, Backoff, Channel, Leaders
from .config import ShareConfig
from .errors import FatalError, ShareError
from .fetcher import Fetcher
from .mailbox import Mailbox
from .membership import Answer, Membership, partitions, take_id

_MEMBER = "member"
_REFRESH = 30.0  # seconds between looks for new partitions, which the group may give to others


class Engine:
    """Drives one consumer. Everything but `start` and `ring` runs on the network thread."""

    def __init__(self, net: Any, config: ShareConfig, group: str, topics: Sequence[str], mailbox: Mailbox) -> None:
        self._net, self._config, self._group, self._topics = net, config, group, sorted(topics)
        self._mail = mailbox
        self.membership = Membership(take_id())
        self._channel = Channel(net, config)
        self._leaders = Leaders()
        self.fetcher = Fetcher(net, config, self._channel, self._leaders, mailbox, (group, self.membership.member_id))
        self._coordinator: int | None = None
        self._member_alarm, self._survey_alarm, self._done = Alarm(net), Alarm(net), Alarm(net)
        self._stale = False
        self._read: frozenset[messages.TopicPartition] = frozenset()
        self._told: list[tuple[str, int]] = []
        self._closing = False
        self._running = 0
        self._rung = False

    def start(self) -> None:
        """Start on the network thread. Any thread."""
        self._running += 1
        self._net.call_soon_threadsafe(self._guard(self._begin))

    def ring(self) -> None:
        """The owner changed something: look at it. Any thread; many rings are one."""
        if not self._rung:
            self._rung = True
            self._net.call_soon_threadsafe(self._heed)

    def _heed(self) -> None:
        self._rung = False
        self.fetcher.ring()

    def _guard(self, body: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """A task that does not die unseen and is counted."""

        async def task() -> None:
            try:
                await body()
            except Exception as exc:
                self._mail.report(FatalError(f"internal error: {type(exc).__name__}: {exc}"))
                raise
            finally:
                self._running -= 1
                self._done.ring()

        return task

    def _spawn(self, body: Callable[[], Awaitable[None]]) -> None:
        self._running += 1
        self._net.call_soon(self._guard(body))

    async def _begin(self) -> None:
        backoff = Backoff(self._config.backoff, self._config.backoff_max)
        while not self._closing:
            try:
                await self._channel.bootstrap()
            except ShareError as error:
                self._mail.report(error)
                if isinstance(error, FatalError):
                    return
                await self._member_alarm.pause(backoff.next())
            else:
                self._spawn(self._attend)
                self._spawn(self._survey)
                return

    # ---- membership

    async def _attend(self) -> None:
        backoff = Backoff(self._config.backoff, self._config.backoff_max)
        while not self._closing:
            try:
                await self._beat()
                backoff.reset()
                delay = self.membership.delay()
            except FatalError as error:
                self._mail.report(error)
                return
            except ShareError as error:
                self._coordinator = None
                self._mail.report(error)
                delay = backoff.next()
            await self._member_alarm.pause(delay)

    async def _beat(self) -> None:
        """One heartbeat. Raises what it was answered, after which the coordinator is looked for anew."""
        if self._coordinator is None:
            self._coordinator = await self._channel.coordinator(_MEMBER, self._group)
        member = self.membership
        topics = self._topics if member.sends_topics else None
        request = messages.heartbeat(self._group, member.member_id, member.epoch, self._config.rack, topics)
        response = await self._channel.send(_MEMBER, self._coordinator, request)
        given = response.assignment
        before = member.assignment
        error = member.answered(
            Answer(
                code=response.error_code,
                message=response.error_message,
                epoch=response.member_epoch,
                interval=response.heartbeat_interval_ms / 1000,
                assignment=given and partitions((t.topic_id, t.partitions) for t in given.topic_partitions),
            )
        )
        if error is not None:
            raise error
        if member.assignment != before:
            self.look()

    # ---- leaders

    def look(self) -> None:
        """Leaders are not (all) known, or changed: find them."""
        self._stale = True
        self._survey_alarm.ring()

    async def _survey(self) -> None:
        backoff = Backoff(self._config.backoff, self._config.backoff_max)
        while not self._closing:
            if not self._stale:
                every = self._config.every_partition
                await self._survey_alarm.wait(_REFRESH if every else None)
                self._stale = self._stale or every
                continue
            self._stale = False
            try:
                missing = await self._locate()
            except FatalError as error:
                self._mail.report(error)
                return
            except ShareError as error:
                self._mail.report(error)
                missing = True
            if not missing:
                backoff.reset()
            else:
                await self._survey_alarm.pause(backoff.next())
                self._stale = True

    async def _locate(self) -> bool:
        """Ask for metadata and arrange the sessions. Returns whether a leader is still missing."""
        every = self._config.every_partition
        topics: list[Any] = list(self._topics if every else {topic_id for topic_id, _ in self.membership.assignment})
        if topics and self.membership.assignment:
            response = await self._channel.send(_MEMBER, self._coordinator, messages.metadata(topics))
            self._channel.learn((node.node_id, node.host, node.port) for node in response.brokers)
            for _, code in self._leaders.update(response):
                if code in errors.AUTHORIZATION:
                    raise errors.from_code(code, place="topic")
        self._read = self._leaders.seen if every and self.membership.assignment else self.membership.assignment
        missing = self._missing()
        for serve in self.fetcher.arrange(self._read, self.look):
            self._spawn(serve)
        if self.assignment != self._told:
            self._told = self.assignment
            self._mail.assigned(self._told)
        return missing

    def _missing(self) -> bool:
        for tip in self._read:
            leader = self._leaders.of(tip)
            if leader is None or tip[0] not in self._leaders.names or not self._channel.knows(leader):
                return True
        return False

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """The partitions read whose topic's name is known."""
        names = self._leaders.names
        return sorted((names[t], p) for t, p in self._read if t in names)

    # ---- the end

    async def close(self, deadline: float) -> None:
        """End the sessions, leave the group, close the connections; at the deadline, just close the connections."""
        self._closing = True
        timer = self._net.call_at(deadline, self._channel.close)
        self._survey_alarm.shut()
        self._member_alarm.shut()
        self.fetcher.shut()
        try:
            while self._running and time.monotonic() < deadline:
                await self._done.wait(max(0.0, deadline - time.monotonic()))
            if self.membership.leave() and self._coordinator is not None and time.monotonic() < deadline:
                member = self.membership
                request = messages.heartbeat(self._group, member.member_id, member.epoch, None, None)
                await self._channel.send(_MEMBER, self._coordinator, request)
        except ShareError as error:
            self._mail.report(error)
        finally:
            self._net.cancel(timer)
            self._channel.close()
