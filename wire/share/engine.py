"""What runs on the network thread: membership, leaders, and one loop per share session.

attend   find the coordinator, heartbeat, take the assignment in          (one task)
survey   find names and leaders of what is assigned                       (one task)
serve    fetch and acknowledge with one leader, one request at a time     (one task per leader)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from . import errors, messages
from .channel import Alarm, Backoff, Channel, Leaders
from .config import ShareConfig
from .errors import FatalError, SessionLostError, ShareError
from .leases import Answered
from .mailbox import Chunk, Mailbox
from .membership import Answer, Membership, State, partitions
from .messages import TopicPartition
from .session import Session, Step, shares

_MEMBER, _SESSION = "member", "session"
_BATCH_SIZE = 500  # a hint: how many records of one acquired batch travel together


class Line:
    """One leader's session with what its loop needs."""

    def __init__(self, node: int, net: Any, config: ShareConfig) -> None:
        self.session = Session(node)
        self.node = node
        self.alarm = Alarm(net)
        self.backoff = Backoff(config.backoff, config.backoff_max)
        self.asked = 0
        self.acks_since = 0.0


class Engine:
    """Drives one consumer. Everything but `start` and `ring` runs on the network thread."""

    def __init__(self, net: Any, config: ShareConfig, group: str, topics: list[str], mailbox: Mailbox, member: str):
        self._net, self._config, self._group, self._topics = net, config, group, topics
        self._mail = mailbox
        self._channel = Channel(net, config)
        self._leaders = Leaders()
        self.membership = Membership(member)
        self._lines: dict[int, Line] = {}
        self._hot: set[int] = set()
        self._turn = 0
        self._coordinator: int | None = None
        self._member_alarm, self._survey_alarm = Alarm(net), Alarm(net)
        self._surveying = False
        self._closing = False
        self._running = 0
        self._done = Alarm(net)
        self._rung = False

    def start(self) -> None:
        """Start on the network thread. Any thread."""
        self._net.call_soon_threadsafe(self._start)

    def ring(self) -> None:
        """The owner changed something: look at it. Any thread; many rings are one."""
        if not self._rung:
            self._rung = True
            self._net.call_soon_threadsafe(self._ring)

    async def _start(self) -> None:
        backoff = Backoff(self._config.backoff, self._config.backoff_max)
        while not self._closing:
            try:
                await self._channel.bootstrap()
            except ShareError as error:
                self._mail.report(error)
                if isinstance(error, FatalError):
                    return
                await self._member_alarm.wait(backoff.next())
            else:
                self._spawn(self._attend)
                self._spawn(self._survey)
                return

    def _ring(self) -> None:
        self._rung = False
        for line in self._lines.values():
            line.alarm.ring()

    def _spawn(self, body: Callable[[], Awaitable[None]]) -> None:
        async def task() -> None:
            self._running += 1
            try:
                await body()
            except Exception as exc:  # a task must not die unseen
                self._mail.report(FatalError(f"internal error: {type(exc).__name__}: {exc}"))
                raise
            finally:
                self._running -= 1
                self._done.ring()

        self._net.call_soon(task)

    # ---- membership

    async def _attend(self) -> None:
        backoff = Backoff(self._config.backoff, self._config.backoff_max)
        member = self.membership
        while not self._closing:
            try:
                await self._beat()
                backoff.reset()
                delay = member.delay()
            except FatalError as error:
                self._mail.report(error)
                return
            except ShareError as error:
                self._coordinator = None
                self._mail.report(error)
                delay = backoff.next()
            if not self._closing:
                await self._member_alarm.wait(delay)

    async def _beat(self) -> None:
        """One heartbeat. Raises the error it got, with the coordinator to be found anew."""
        if self._coordinator is None:
            self._coordinator = await self._find()
        member = self.membership
        topics = self._topics if member.sends_topics else None
        request = messages.heartbeat(self._group, member.member_id, member.epoch, self._config.rack, topics)
        response = await self._channel.send(_MEMBER, self._coordinator, request)
        assignment = response.assignment
        before = member.assignment
        error = member.answered(
            Answer(
                code=response.error_code,
                message=response.error_message,
                epoch=response.member_epoch,
                interval=response.heartbeat_interval_ms / 1000,
                assignment=None
                if assignment is None
                else partitions((t.topic_id, t.partitions) for t in assignment.topic_partitions),
            )
        )
        if error is not None:
            raise error
        if member.assignment != before:
            self._look()

    async def _find(self) -> int:
        response = await self._channel.send(_MEMBER, None, messages.find_coordinator(self._group))
        found = response.coordinators[0] if response.coordinators else response
        if found.error_code:
            raise errors.from_code(found.error_code, found.error_message, place=f"coordinator of {self._group}")
        self._channel.learn([(found.node_id, found.host, found.port)])
        return int(found.node_id)

    # ---- leaders

    def _look(self) -> None:
        """Leaders are not (all) known: find them."""
        self._surveying = True
        self._survey_alarm.ring()

    async def _survey(self) -> None:
        backoff = Backoff(self._config.backoff, self._config.backoff_max)
        while not self._closing:
            if not self._surveying:
                await self._survey_alarm.wait(None)
                continue
            self._surveying = False
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
            elif not self._closing:
                await self._survey_alarm.wait(backoff.next())
                self._surveying = True

    async def _locate(self) -> bool:
        """Ask for metadata and start the sessions. Returns whether a leader is still missing."""
        assigned = self.membership.assignment
        topic_ids = {topic_id for topic_id, _ in assigned}
        if topic_ids:
            response = await self._channel.send(_MEMBER, self._coordinator, messages.metadata(topic_ids))
            self._channel.learn((node.node_id, node.host, node.port) for node in response.brokers)
            for _, code in self._leaders.update(response):
                if code in errors.AUTHORIZATION:
                    raise errors.from_code(code, place="topic")
        self._arrange()
        names = self._leaders.names
        self._mail.assigned(sorted((names[t], p) for t, p in assigned if t in names))
        return any(t not in names or not self._channel.knows(self._leaders.of((t, p)) or -1) for t, p in assigned)

    def _arrange(self) -> None:
        """A loop for every leader of ours; leases at former leaders are lost."""
        for tip in self.membership.assignment:
            leader = self._leaders.of(tip)
            if leader is None or leader < 0 or not self._channel.knows(leader):
                continue
            self._leave(tip, leader)
            if leader not in self._lines:
                line = self._lines[leader] = Line(leader, self._net, self._config)
                self._spawn(partial(self._serve, line))
        self._ring()

    def _leave(self, tip: TopicPartition, leader: int | None) -> None:
        """The partition has another leader (or none): its former leader's locks are void."""
        with self._mail.changed:
            former = self._mail.leases.node(tip)
        if former is not None and former != leader:
            error = SessionLostError(f"{self._leaders.names.get(tip[0], tip[0])}[{tip[1]}] left broker {former}")
            self._mail.lose(error, tip=tip)

    def _wanted(self, node: int) -> set[TopicPartition]:
        return {tip for tip in self.membership.assignment if self._leaders.of(tip) == node}

    # ---- sessions

    async def _serve(self, line: Line) -> None:
        while True:
            wanted = self._wanted(line.node)
            if self._closing:
                await self._end(line)
                return
            delay = await self._turn_of(line, wanted)
            if delay is not None:
                await line.alarm.wait(delay)

    async def _turn_of(self, line: Line, wanted: set[TopicPartition]) -> float | None:
        """Do the next thing with this leader. Returns seconds to wait, None to go on at once."""
        now = time.monotonic()
        self._mail.shed(now)
        with self._mail.changed:
            queued = self._mail.leases.queued(line.node)
            alone = queued and (self._mail.urgent or self._mail.leases.renewing(line.node))
            busy = sum(other.asked for other in self._lines.values())
            free = self._mail.demand - busy
            buffered = self._mail.buffered()
        if not queued:
            line.acks_since = 0.0
        elif not line.acks_since:
            line.acks_since = now
        share = 0 if alone or not wanted else self._share(line, free)
        if share:
            return await self._attempt(line, lambda: self._fetch(line, wanted, share))
        lingered = queued and now - line.acks_since >= self._config.ack_linger
        if queued and line.session.open and (alone or lingered):
            return await self._attempt(line, lambda: self._acknowledge(line))
        if queued:
            return self._config.ack_linger
        return self._mail.lock_timeout / 4 if buffered else 60.0

    def _share(self, line: Line, free: int) -> int:
        """How many records to ask this leader for now."""
        idle = [node for node, other in sorted(self._lines.items()) if not other.session.busy and self._wanted(node)]
        given = shares(free, idle, self._hot, self._turn)
        return given.get(line.node, 0)

    async def _attempt(self, line: Line, action: Callable[[], Awaitable[ShareError | None]]) -> float | None:
        """Run one exchange; after a failure, wait with full jitter."""
        try:
            error = await action()
        except ShareError as exc:
            self._lose(line, exc)
            error = exc
        finally:
            line.asked = 0
        self._turn += 1
        self._wake_idle(line)
        if error is None:
            line.backoff.reset()
            return None
        self._mail.report(error)
        if isinstance(error, FatalError):
            return 60.0
        self._look()
        return line.backoff.next()

    def _wake_idle(self, line: Line) -> None:
        """Room was freed: leaders that got no share may get one now."""
        for other in self._lines.values():
            if other is not line and not other.session.busy:
                other.alarm.ring()

    def _lose(self, line: Line, error: ShareError) -> None:
        """The session is gone, with every lease of it."""
        line.session.lost()
        self._hot.discard(line.node)
        self._channel.drop(_SESSION, line.node)
        self._mail.lose(SessionLostError(f"broker {line.node}: {error}"), node=line.node)

    async def _fetch(self, line: Line, wanted: set[TopicPartition], share: int) -> ShareError | None:
        step = line.session.fetch(wanted)
        line.asked = share
        with self._mail.changed:
            acks = self._mail.leases.take(line.node) if step.epoch else {}
        crowded = len(self._lines) > 1 and any(not other.session.busy for other in self._lines.values())
        wait = self._config.rotate_wait if crowded else self._config.max_wait
        plan = messages.Fetch(
            group=self._group,
            member=self.membership.member_id,
            epoch=step.epoch,
            max_wait_ms=int(wait * 1000),
            max_bytes=self._config.max_bytes,
            max_records=share,
            batch_size=max(1, min(share, _BATCH_SIZE)),
            mode=int(self._config.mode),
            added=step.added,
            forgotten=step.forgotten,
            acks=acks,
        )
        began = time.monotonic()
        timeout = wait + self._config.request_timeout
        response = await self._channel.send(_SESSION, line.node, messages.fetch(plan), timeout=timeout)
        if response.error_code:
            raise errors.from_code(response.error_code, response.error_message, place="share fetch")
        line.session.answered()
        self._mail.lock_timeout = response.acquisition_lock_timeout_ms / 1000 or self._mail.lock_timeout
        self._settle(line, response, acks, lambda data: (data.acknowledge_error_code, data.acknowledge_error_message))
        return self._unpack(line, response, share, time.monotonic() - began)

    def _unpack(self, line: Line, response: Any, share: int, seconds: float) -> ShareError | None:
        """Hand over what was acquired. Returns the first partition's error that asks for a pause."""
        chunks: list[Chunk] = []
        first: ShareError | None = None
        for topic in response.responses:
            for data in topic.partitions:
                tip = (topic.topic_id, data.partition_index)
                if data.error_code:
                    error = self._refused(line, tip, data)
                    first = first or error
                if data.acquired_records:
                    acquired = [
                        (run.first_offset, run.last_offset, run.delivery_count) for run in data.acquired_records
                    ]
                    name = self._leaders.names.get(tip[0], str(tip[0]))
                    chunks.append(Chunk(tip, line.node, name, data.records or b"", acquired))
        count = sum(chunk.count for chunk in chunks)
        (self._hot.add if count >= share else self._hot.discard)(line.node)
        line.asked = 0
        if chunks:
            self._mail.deliver(chunks)
        self._mail.fetched(count, sum(len(chunk.data) for chunk in chunks), seconds)
        self._channel.learn((end.node_id, end.host, end.port) for end in response.node_endpoints)
        return first

    def _refused(self, line: Line, tip: TopicPartition, data: Any) -> ShareError:
        """A partition was not served: not led here any more, or something else."""
        name = self._leaders.names.get(tip[0], str(tip[0]))
        error = errors.from_code(data.error_code, data.error_message, place=f"{name}[{tip[1]}]")
        if data.error_code in errors.LEADER_MOVED:
            line.session.drop(tip)
            self._leaders.forget(tip)
            self._leaders.hint(tip, data.current_leader.leader_id, data.current_leader.leader_epoch)
            self._mail.lose(SessionLostError(str(error)), tip=tip)
        return error

    async def _acknowledge(self, line: Line, step: Step | None = None) -> ShareError | None:
        step = step or line.session.acknowledge()
        with self._mail.changed:
            renew = self._mail.leases.renewing(line.node)
            acks = self._mail.leases.take(line.node)
        request = messages.acknowledge(self._group, self.membership.member_id, step.epoch, acks, renew=renew)
        response = await self._channel.send(_SESSION, line.node, request)
        if response.error_code:
            raise errors.from_code(response.error_code, response.error_message, place="share acknowledge")
        line.session.answered()
        self._channel.learn((end.node_id, end.host, end.port) for end in response.node_endpoints)
        return self._settle(line, response, acks, lambda data: (data.error_code, data.error_message))

    def _settle(
        self, line: Line, response: Any, acks: messages.Acks, fate: Callable[[Any], tuple[int, str | None]]
    ) -> ShareError | None:
        """Take in what became of the acknowledgements sent. Returns an error worth a pause."""
        if not acks:
            return None
        fates = {(t.topic_id, data.partition_index): data for t in response.responses for data in t.partitions}
        results: list[Answered] = []
        pause: ShareError | None = None
        for tip in acks:
            data = fates.get(tip)
            code, message = fate(data) if data is not None else (-1, "the broker did not answer for this partition")
            error = errors.from_code(code, message, place=self._leaders.names.get(tip[0], "")) if code else None
            retry = error is not None and not isinstance(error, errors.LeaseLostError)
            if code in errors.LEADER_MOVED and data is not None:
                self._leaders.forget(tip)
                self._leaders.hint(tip, data.current_leader.leader_id, data.current_leader.leader_epoch)
                self._mail.lose(SessionLostError(str(error)), tip=tip)
                pause = error
                continue
            with self._mail.changed:
                results.append(self._mail.leases.answered(tip, error, retry=retry))
            pause = pause or (error if retry else None)
        self._mail.answered(results)
        return pause

    # ---- the end

    async def _end(self, line: Line) -> None:
        """Say what is left to say and end the session: the broker releases what it still held for us."""
        if not line.session.open or line.session.busy:
            return
        try:
            await self._acknowledge(line, line.session.end())
        except ShareError as error:
            self._lose(line, error)

    async def close(self, deadline: float) -> None:
        """End the sessions, leave the group, close the connections; gives up on politeness at the deadline."""
        self._closing = True
        timer = self._net.call_at(deadline, self._give_up)
        self._ring()
        self._survey_alarm.ring()
        self._member_alarm.ring()
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

    def _give_up(self) -> None:
        self._channel.close()

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """Assigned partitions whose topic's name is known."""
        names = self._leaders.names
        return sorted((names[t], p) for t, p in self.membership.assignment if t in names)

    @property
    def state(self) -> State:
        """Where the member stands."""
        return self.membership.state
