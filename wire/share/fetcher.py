"""Sessions with the leaders: one loop per leader, one request in flight in each. Runs on the network thread.

A loop's next step: renewals alone at once; else a fetch with acknowledgements on board when records are wanted; else
acknowledgements alone when they have lingered; else wait until something changes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any

from . import errors, messages
from .channel import Alarm, Backoff, Channel, Leaders
from .config import ShareConfig
from .errors import FatalError, SessionLostError, ShareError
from .leases import Answered
from .mailbox import Chunk, Mailbox
from .messages import TopicPartition
from .model import AcquireMode
from .session import Session, shares

_SESSION = "session"
_BATCH_SIZE = 500  # a hint to the broker: how many records of one acquired batch travel together
_IDLE = 60.0


class Line:
    """One leader's session with what its loop needs."""

    def __init__(self, node: int, net: Any, config: ShareConfig) -> None:
        self.node = node
        self.session = Session(node)
        self.alarm = Alarm(net)
        self.backoff = Backoff(config.backoff, config.backoff_max)
        self.asked = 0
        self.acks_since = 0.0
        self.running = False


class Fetcher:
    """The sessions of one consumer."""

    def __init__(
        self,
        net: Any,
        config: ShareConfig,
        channel: Channel,
        leaders: Leaders,
        mailbox: Mailbox,
        who: tuple[str, str],
    ) -> None:
        self._net, self._config, self._channel, self._leaders, self._mail = net, config, channel, leaders, mailbox
        self._group, self._member = who
        self._lines: dict[int, Line] = {}
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._look: Callable[[], None] = lambda: None
        self._hot: set[int] = set()
        self._turn = 0
        self.focus: frozenset[int] | None = None
        self.batches = True
        self.closing = False

    @property
    def asked(self) -> int:
        """Records asked for by fetches in flight. Any thread may read it."""
        return sum(line.asked for line in list(self._lines.values()))

    def ring(self) -> None:
        """Something changed: every loop looks at it."""
        for line in self._lines.values():
            line.alarm.ring()

    def shut(self) -> None:
        """Every loop ends its session and itself."""
        self.closing = True
        for line in self._lines.values():
            line.alarm.shut()

    def arrange(
        self, assigned: frozenset[TopicPartition], look: Callable[[], None]
    ) -> Iterator[Callable[[], Awaitable[None]]]:
        """Take an assignment and its leaders in; yields the loops to start. `look` is called when leaders changed."""
        self._assigned, self._look = assigned, look
        for tip in assigned:
            leader = self._leaders.of(tip)
            if leader is None or not self._channel.knows(leader):
                continue
            self._move(tip, leader)
            line = self._lines.setdefault(leader, Line(leader, self._net, self._config))
            if not line.running and not self.closing:
                line.running = True
                yield partial(self._serve, line)
        self.ring()

    def _move(self, tip: TopicPartition, leader: int) -> None:
        """Leases at a former leader are void."""
        with self._mail.changed:
            former = self._mail.leases.node(tip)
        if former is not None and former != leader:
            self._mail.lose(SessionLostError(f"{self._place(tip)} moved from broker {former} to {leader}"), tip=tip)

    def _wanted(self, node: int) -> set[TopicPartition]:
        return {tip for tip in self._assigned if self._leaders.of(tip) == node}

    def _read(self, node: int) -> set[TopicPartition]:
        """What to fetch from a leader now: all that is wanted, or the owner's choice of it."""
        focus = self.focus
        return {tip for tip in self._wanted(node) if focus is None or tip[1] in focus}

    def _place(self, tip: TopicPartition) -> str:
        return f"{self._leaders.names.get(tip[0], tip[0])}[{tip[1]}]"

    # ---- one leader's loop

    async def _serve(self, line: Line) -> None:
        try:
            while not self.closing:
                await line.alarm.wait(await self._step(line))
            await self._end(line)
        finally:
            line.running = False

    async def _step(self, line: Line) -> float:
        """Do the next thing with this leader. Returns seconds to wait unless something changes."""
        now = time.monotonic()
        self._mail.shed(now)
        wanted, read = self._wanted(line.node), self._read(line.node)
        with self._mail.changed:
            queued = self._mail.leases.queued(line.node)
            alone = queued and (self._mail.urgent or self._mail.leases.renewing(line.node))
            free = self._mail.demand - self.asked
            patience = self._mail.lock_timeout / 4 if self._mail.buffered() else _IDLE
            holding = queued or self._mail.leases.holding(line.node)
        line.acks_since = (line.acks_since or now) if queued else 0.0
        if queued and not line.session.open:
            self._mail.lose(SessionLostError(f"no session with broker {line.node}"), node=line.node)
            return 0.0
        share = 0 if alone or not read else self._share(line, free)
        if share:
            return await self._attempt(line, partial(self._fetch, line, read, share))
        if queued and (alone or now - line.acks_since >= self._config.ack_linger):
            return await self._attempt(line, partial(self._acknowledge, line, line.session.acknowledge))
        if queued:
            return self._config.ack_linger
        if not wanted and not holding and line.session.open:
            return await self._attempt(line, partial(self._acknowledge, line, line.session.end))
        return patience

    def _share(self, line: Line, free: int) -> int:
        """How many records to ask this leader for now."""
        idle = [node for node, other in sorted(self._lines.items()) if not other.session.busy and self._read(node)]
        return shares(free, idle, self._hot, self._turn).get(line.node, 0)

    async def _attempt(self, line: Line, action: Callable[[], Awaitable[ShareError | None]]) -> float:
        """Run one exchange; after a failure, pause with full jitter."""
        try:
            error = await action()
        except ShareError as exc:
            self._lose(line, exc)
            error = exc
        finally:
            line.asked = 0
        self._turn += 1
        for other in self._lines.values():  # room was freed: leaders that got no share may get one now
            if other is not line and not other.session.busy:
                other.alarm.ring()
        if error is None:
            line.backoff.reset()
            return 0.0
        if not self.closing:
            self._mail.report(error)
            self._look()
            await line.alarm.pause(_IDLE if isinstance(error, FatalError) else line.backoff.next())
        return 0.0

    def _lose(self, line: Line, error: ShareError) -> None:
        """The session is gone, with every lease of it; closing its connection makes the broker release them."""
        line.session.lost()
        self._hot.discard(line.node)
        self._channel.drop(_SESSION, line.node)
        self._mail.lose(SessionLostError(f"broker {line.node}: {error}"), node=line.node)

    async def _end(self, line: Line) -> None:
        """Say what is left to say and end the session: the broker releases what it still held for us."""
        if line.session.open and not line.session.busy:
            await self._attempt(line, partial(self._acknowledge, line, line.session.end))

    # ---- fetch

    async def _fetch(self, line: Line, read: set[TopicPartition], share: int) -> ShareError | None:
        step = line.session.fetch(read)
        line.asked = share
        with self._mail.changed:
            acks = self._mail.leases.take(line.node) if step.epoch else {}
        crowded = any(not other.session.busy and self._read(node) for node, other in self._lines.items())
        wait = self._config.rotate_wait if crowded or self.focus is not None else self._config.max_wait
        plan = messages.Fetch(
            group=self._group,
            member=self._member,
            epoch=step.epoch,
            max_wait_ms=int(wait * 1000),
            max_bytes=self._config.max_bytes,
            max_records=share,
            batch_size=min(share, _BATCH_SIZE),
            mode=int(self._mode()),
            added=step.added,
            # A partition that is named for its acknowledgements alone would be fetched from, too.
            forgotten=step.forgotten.union(acks.keys() - read),
            acks=acks,
        )
        began = time.monotonic()
        timeout = wait + self._config.request_timeout
        response = await self._channel.send(_SESSION, line.node, messages.fetch(plan), timeout=timeout)
        if response.error_code:
            raise errors.from_code(response.error_code, response.error_message, place="share fetch")
        line.session.answered()
        self._mail.lock_timeout = response.acquisition_lock_timeout_ms / 1000 or self._mail.lock_timeout
        refused = self._settle(
            response, acks, lambda data: (data.acknowledge_error_code, data.acknowledge_error_message)
        )
        return self._unpack(line, response, share, time.monotonic() - began) or refused

    def _mode(self) -> AcquireMode:
        """Whoever chooses partitions, or wants no batches, gets no more than asked for: a batch may hold hundreds."""
        return self._config.mode if self.batches and self.focus is None else AcquireMode.RECORD_LIMIT

    def _unpack(self, line: Line, response: Any, share: int, seconds: float) -> ShareError | None:
        """Hand over what was acquired. Returns the first partition's error: it asks for a pause."""
        chunks: list[Chunk] = []
        first: ShareError | None = None
        for topic in response.responses:
            for data in topic.partitions:
                tip = (topic.topic_id, data.partition_index)
                if data.error_code:
                    error = errors.from_code(data.error_code, data.error_message, place=self._place(tip))
                    first = first or error
                    if data.error_code in errors.LEADER_MOVED:
                        line.session.drop(tip)
                        self._misled(tip, data, error)
                if data.acquired_records:
                    runs = [(run.first_offset, run.last_offset, run.delivery_count) for run in data.acquired_records]
                    name = self._leaders.names.get(tip[0], str(tip[0]))
                    chunks.append(Chunk(tip, line.node, name, data.records or b"", runs))
        self._endpoints(response)
        count = sum(chunk.count for chunk in chunks)
        (self._hot.add if count >= share else self._hot.discard)(line.node)
        line.asked = 0
        if chunks:
            self._mail.deliver(chunks)
        self._mail.fetched(count, sum(len(chunk.data) for chunk in chunks), seconds)
        return first

    def _misled(self, tip: TopicPartition, data: Any, error: ShareError) -> None:
        """The broker does not lead this partition; it may say who does."""
        self._leaders.forget(tip)
        self._leaders.hint(tip, data.current_leader.leader_id, data.current_leader.leader_epoch)
        self._mail.lose(SessionLostError(str(error)), tip=tip)

    def _endpoints(self, response: Any) -> None:
        self._channel.learn((end.node_id, end.host, end.port) for end in response.node_endpoints)

    # ---- acknowledge

    async def _acknowledge(self, line: Line, advance: Callable[[], Any]) -> ShareError | None:
        step = advance()
        with self._mail.changed:
            renew = self._mail.leases.renewing(line.node)
            acks = self._mail.leases.take(line.node)
        request = messages.acknowledge(self._group, self._member, step.epoch, acks, renew=renew)
        response = await self._channel.send(_SESSION, line.node, request)
        if response.error_code:
            raise errors.from_code(response.error_code, response.error_message, place="share acknowledge")
        line.session.answered()
        self._endpoints(response)
        return self._settle(response, acks, lambda data: (data.error_code, data.error_message))

    def _settle(
        self, response: Any, acks: Iterable[TopicPartition], fate: Callable[[Any], tuple[int, str | None]]
    ) -> ShareError | None:
        """Take in what became of the acknowledgements sent. Returns an error worth a pause."""
        fates = {(t.topic_id, data.partition_index): data for t in response.responses for data in t.partitions}
        results: list[Answered] = []
        pause: ShareError | None = None
        for tip in acks:
            data = fates.get(tip)
            code, message = fate(data) if data is not None else (-1, "the broker did not answer for this partition")
            error = errors.from_code(code, message, place=self._place(tip)) if code else None
            if code in errors.LEADER_MOVED and error is not None:
                self._misled(tip, data, error)
                pause = pause or error
                continue
            retry = error is not None and not isinstance(error, errors.LeaseLostError)
            with self._mail.changed:
                results.append(self._mail.leases.answered(tip, error, retry=retry))
            pause = pause or (error if retry else None)
        if results:
            self._mail.answered(results)
        return pause
