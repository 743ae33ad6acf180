"""The sender: from the inbox into the log, on the link's thread only.

It sorts records into lanes (one a partition), has one request per broker on its way, and settles the futures. A record
that comes while nothing is on its way leaves at once; under load a broker gets a request every linger, and what came
meanwhile travels together. A lane's batch is sent again until it is confirmed, refused, or too old.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kafka import errors as kafka_errors
from kafka.protocol.producer import ProduceRequest

from schemas.errors import AuthError, NotFoundError, TapeError, UnavailableError
from wire.kafka import Link, mapped
from wire.publish.inbox import Inbox
from wire.publish.lane import Identity, Lane, Record
from wire.publish.port import Sent, fail, succeed, too_large
from wire.publish.route import PAUSE_S, Route, identify, open_route

REQUEST_S = 10.0
REQUEST_BYTES = 1 << 20
EXPIRY_S = 0.1
NEVER = float("inf")

_RENUMBER = (
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
    kafka_errors.InvalidProducerEpochError,
)
_DUPLICATE = kafka_errors.DuplicateSequenceNumberError.errno
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class Sender:
    """Moves records from the inbox to the brokers; `look` is called whenever there may be something to do."""

    def __init__(self, link: Link, inbox: Inbox, *, linger_s: float, delivery_s: float) -> None:
        self._link = link
        self._inbox = inbox
        self._linger_s = linger_s
        self._delivery_s = delivery_s
        self._routes: dict[str, Route] = {}
        self._parked: dict[str, list[tuple[int | None, Record]]] = {}
        self._active: dict[Lane, None] = {}
        self._busy: set[int] = set()
        self._next_send: dict[int, float] = {}
        self._identity: Identity | None = None
        self._identifying = False
        self._timer = NEVER
        self._expiry = 0.0

    def look(self) -> None:
        """Sort what came, send what may be sent, and see to being called again when that is due."""
        now = time.monotonic()
        moved = self._sort()
        if now >= self._expiry:
            self._expire(now - self._delivery_s)
            self._expiry = now + EXPIRY_S
        due = self._dispatch(now)
        if self._active:
            due = min(due, self._expiry)
        if moved or not self._inbox.sleep():
            # While records keep coming nobody has to wake the sender: an answer or this timer does.
            due = min(due, now + self._linger_s * (5 if self._busy else 1))
        if due < self._timer:
            self._timer = due
            self._link.net.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = NEVER
        self.look()

    def _sort(self) -> bool:
        arrived = self._inbox.take()
        if not arrived:
            return False
        for topic, partition, record in arrived:
            route = self._routes.get(topic)
            if route is not None:
                self._place(route, partition, record)
            elif topic in self._parked:
                self._parked[topic].append((partition, record))
            else:
                self._parked[topic] = [(partition, record)]
                self._link.net.call_soon(self._open(topic, record.born + self._delivery_s))
        return True

    def _place(self, route: Route, partition: int | None, record: Record) -> None:
        try:
            if record.size > route.limit // 2:
                route.check(record)
            lane = route.lane(partition, record.key)
        except TapeError as error:
            self._fail([record], error)
            return
        lane.add(record)
        self._active[lane] = None

    async def _open(self, topic: str, until: float) -> None:
        try:
            route = await open_route(self._link, topic, until=until)
        except TapeError as error:
            self._fail([record for _, record in self._parked.pop(topic)], error)
            return
        self._routes[topic] = route
        for partition, record in self._parked.pop(topic):
            self._place(route, partition, record)
        self.look()

    async def _identify(self) -> None:
        try:
            self._identity = await identify(self._link)
        except AuthError as error:
            self.drop(error)
        finally:
            self._identifying = False
        self.look()

    def _dispatch(self, now: float) -> float:
        """Send what may be sent; return the moment to look again, or never."""
        for lane in [lane for lane in self._active if lane.batch is None and not lane.queue]:
            del self._active[lane]
        by_node = self._by_leader()
        if not by_node:
            return NEVER
        if self._identity is None:
            if not self._identifying:
                self._identifying = True
                self._link.net.call_soon(self._identify())
            return NEVER
        due = NEVER
        for node, lanes in by_node.items():
            if node is None:
                due = min(due, now + PAUSE_S)
            elif node not in self._busy:
                moment = self._due(node, lanes, now)
                if moment <= now:
                    self._send(node, [lane for lane in lanes if lane.not_before <= now], now)
                else:
                    due = min(due, moment)
        return due

    def _by_leader(self) -> dict[int | None, list[Lane]]:
        found: dict[int | None, list[Lane]] = {}
        cluster = self._link.manager.cluster
        for lane in self._active:
            if not lane.sending:
                leader = cluster.leader_for_partition(lane.place)
                found.setdefault(None if leader == -1 else leader, []).append(lane)
        if None in found:
            cluster.request_update()
        return found

    def _due(self, node: int, lanes: Sequence[Lane], now: float) -> float:
        earliest = min(lane.not_before for lane in lanes)
        if any(lane.bytes >= lane.limit for lane in lanes):
            return earliest
        return max(earliest, self._next_send.get(node, now))

    def _send(self, node: int, lanes: Sequence[Lane], now: float) -> None:
        assert self._identity is not None
        topics: dict[str, dict[int, Lane]] = {}
        size = 0
        for lane in lanes:
            if size >= REQUEST_BYTES:
                break
            size += len(lane.next(self._identity).data)
            topics.setdefault(lane.place.topic, {})[lane.place.partition] = lane
            self._active[lane] = self._active.pop(lane)  # those without room in this request are first in the next
        self._busy.add(node)
        self._next_send[node] = now + self._linger_s
        limit_ms = min(REQUEST_S, self._delivery_s) * 1000
        try:
            future = self._link.manager.send(_request(topics), node_id=node, request_timeout_ms=limit_ms)
        except kafka_errors.KafkaError as error:
            self._lost(node, topics, error)
        else:
            future.add_callback(self._answered, node, topics)
            future.add_errback(lambda error: self._lost(node, topics, error))

    def _answered(self, node: int, topics: dict[str, dict[int, Lane]], answer: Any) -> None:
        self._busy.discard(node)
        for topic in answer.responses:
            for found in topic.partition_responses:
                self._judge(topics[topic.name].pop(found.index), found)
        self._lost(node, topics, kafka_errors.UnknownError("the broker's answer left a partition out"))

    def _lost(self, node: int, topics: dict[str, dict[int, Lane]], error: Exception) -> None:
        self._busy.discard(node)
        for lanes in topics.values():
            for lane in lanes.values():
                self._unanswered(lane, error)
        self.look()

    def _judge(self, lane: Lane, found: Any) -> None:
        if found.error_code in {0, _DUPLICATE}:
            self._confirm(lane, found.base_offset, found.log_append_time_ms)
            return
        error = kafka_errors.for_code(found.error_code)(found.error_message)
        if isinstance(error, kafka_errors.RetriableError):
            self._again(lane, error)
        elif isinstance(error, _RENUMBER):
            # The broker lost count of us (it lost data, or forgot an idle producer) and did not take the batch.
            self._identity = None
            lane.restore(lane.abandon().records)
        elif isinstance(error, _TOO_LARGE):
            self._shrink(lane)
        else:
            self._fail(lane.refuse().records, mapped(error, code="TAPE-5003", topic=lane.place.topic))

    def _confirm(self, lane: Lane, base: int, dated: int) -> None:
        batch = lane.confirm()
        topic, partition = lane.place
        at_ms = dated if dated >= 0 else None
        for offset, record in enumerate(batch.records, base):
            succeed(record.future, Sent(topic, partition, offset if base >= 0 else -1, at_ms))
        self._inbox.release(len(batch.records), batch.size)

    def _shrink(self, lane: Lane) -> None:
        batch = lane.refuse()
        if len(batch.records) > 1:
            lane.limit = max(1, len(batch.data) // 2)
            lane.restore(batch.records)
        else:
            limit = self._routes[lane.place.topic].limit
            self._fail(batch.records, too_large(lane.place.topic, len(batch.data), limit))

    def _unanswered(self, lane: Lane, error: Exception) -> None:
        assert lane.batch is not None
        if not isinstance(error, kafka_errors.NodeNotReadyError):
            lane.batch.doubtful = True
        found = mapped(error)
        if isinstance(found, AuthError):
            self._give_up(lane, found)
        else:
            self._again(lane, error)

    def _again(self, lane: Lane, error: Exception) -> None:
        self._link.manager.cluster.request_update()
        lane.later(time.monotonic() + PAUSE_S, error)

    def _expire(self, before: float) -> None:
        for lane in list(self._active):
            if lane.batch is not None and not lane.sending and lane.batch.born < before:
                self._give_up(lane, self._late(lane))
            old = lane.expired(before)
            if old:
                self._fail(old, self._late(lane))

    def _give_up(self, lane: Lane, error: TapeError) -> None:
        assert lane.batch is not None
        if lane.batch.doubtful:
            self._identity = None  # whether the broker counted the batch is not known, so we start counting anew
            batch = lane.abandon()
        else:
            batch = lane.refuse()
        self._fail(batch.records, error)

    def _late(self, lane: Lane) -> TapeError:
        found = None if lane.trouble is None else mapped(lane.trouble, topic=lane.place.topic)
        if isinstance(found, NotFoundError | AuthError):
            return found
        last = f"; last: {found.message}" if found is not None else ""
        return UnavailableError(
            f"no confirmation within {self._delivery_s:g} s{last}", code="TAPE-5003", topic=lane.place.topic
        )

    def _fail(self, records: Sequence[Record], error: TapeError) -> None:
        for record in records:
            fail(record.future, error)
        self._inbox.release(len(records), sum(record.size for record in records))

    def drop(self, error: TapeError) -> None:
        """Fail everything that is not settled; on the link's thread, or when that has ended."""
        left = [item.record for item in self._inbox.take()]
        for parked in self._parked.values():
            left += [record for _, record in parked]
            parked.clear()
        for lane in self._active:
            if lane.batch is not None:
                left += lane.abandon().records
            left += lane.expired(NEVER)
        self._fail(left, error)


def _request(topics: dict[str, dict[int, Lane]]) -> ProduceRequest:
    topic_data = ProduceRequest.TopicProduceData
    return ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=int(REQUEST_S * 1000),
        topic_data=[
            topic_data(
                name=topic,
                partition_data=[
                    topic_data.PartitionProduceData(index=index, records=lane.batch.data if lane.batch else None)
                    for index, lane in lanes.items()
                ],
            )
            for topic, lanes in topics.items()
        ],
        max_version=12,  # later versions name topics by id
    )
