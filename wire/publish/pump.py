"""The publisher on Kafka: idempotent, acks=all, as little work per record as can be.

The caller's thread only appends to an inbox. The link's thread pumps: it sorts the inbox into lanes (one a partition),
builds batches with aiokafka's compiled encoder, keeps one request per broker on its way, and resolves the futures.
A record that comes while nothing is on its way leaves at once; under load a broker gets a request every `linger_ms`,
and what came meanwhile travels together.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka import errors as kafka_errors
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.protocol.producer import ProduceRequest

from schemas.errors import AuthError, NotFoundError, TapeError, UnavailableError
from wire.kafka import Link, mapped
from wire.publish.lane import Batch, Identity, Lane, Record
from wire.publish.port import Headers, Sent, closed, fail, not_flushed, succeed, too_large
from wire.publish.route import PAUSE_S, Route, identify, open_route, ready
from wire.settings import Settings

REQUEST_S = 10.0
REQUEST_BYTES = 1 << 20
BATCH_HEADER = 61

_RENUMBER = (
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
    kafka_errors.InvalidProducerEpochError,
)
_DUPLICATE = kafka_errors.DuplicateSequenceNumberError.errno
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class KafkaPublisher:
    """A `Publisher` on Kafka; see the port for what its futures mean.

    `delivery_s` is how long a record may take until its future fails, `buffer_bytes` how much may wait, `max_block_s`
    how long `publish` waits for room. One link (a thread, a connection per broker) carries it all.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        linger_ms: float = 2.0,
        batch_bytes: int = 256 << 10,
        buffer_bytes: int = 32 << 20,
        max_block_s: float = 10.0,
        delivery_s: float = 30.0,
        name: str = "tape-publisher",
    ) -> None:
        """Connect. Raises `AuthError` (TAPE-4001) or `UnavailableError` (TAPE-5001)."""
        self._linger_s = linger_ms / 1000
        self._batch_bytes = batch_bytes
        self._buffer_bytes = buffer_bytes
        self._max_block_s = max_block_s
        self._delivery_s = delivery_s
        self._room = threading.Condition()
        self._inbox: deque[tuple[str, int | None, Record]] = deque()
        self._bytes = self._count = 0
        self._idle = self._closing = self._stopped = False
        self._routes: dict[str, Route] = {}
        self._parked: dict[str, list[tuple[int | None, Record]]] = {}
        self._active: dict[Lane, None] = {}
        self._busy: set[int] = set()
        self._next_send: dict[int, float] = {}
        self._identity: Identity | None = None
        self._identifying = False
        self._link = Link(settings, name=name)
        self._wake = WakeupNotifier(self._link.net)
        self._done = self._link.manager.call_soon(self._pump)

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Future[Sent]:
        """Take one record; see `Publisher.publish`."""
        future: Future[Sent] = Future()
        listed = headers if type(headers) is list else list(headers)
        size = (len(key) if key else 0) + (len(value) if value else 0) + 48 * len(listed) + 32
        moment = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        record = Record(key, value, listed, moment, time.monotonic(), size, future)
        with self._room:
            if self._closing:
                raise closed()
            if self._bytes + size > self._buffer_bytes and self._bytes:
                self._await_room(size)
            self._bytes += size
            self._count += 1
            self._inbox.append((topic, partition, record))
            wake, self._idle = self._idle, False
        if wake:
            self._wake.notify()
        return future

    def flush(self, timeout: float | None = None) -> None:
        """Wait until nothing is under way; see `Publisher.flush`."""
        with self._room:
            if not self._room.wait_for(lambda: self._count == 0, timeout):
                raise not_flushed(self._count, timeout)

    def close(self, timeout: float | None = None) -> None:
        """Flush and end the thread; see `Publisher.close`."""
        with self._room:
            again, self._closing = self._closing, True
        if again:
            return
        try:
            self.flush(timeout)
        finally:
            self._stopped = True
            self._link.close()
            self._drop_all(closed())

    def _await_room(self, size: int) -> None:
        # The pump makes the room, so a callback that publishes from the pump's own thread must not wait for it.
        own = threading.current_thread() is self._link.net._io_thread
        free = not own and self._room.wait_for(
            lambda: self._closing or not self._bytes or self._bytes + size <= self._buffer_bytes, self._max_block_s
        )
        if self._closing:
            raise closed()
        if not free:
            raise UnavailableError(
                f"{self._bytes} bytes wait to be published, and no room came within {self._max_block_s:g} s",
                code="TAPE-5004",
            )

    # Everything below runs on the link's thread.

    async def _pump(self) -> None:
        while not self._stopped:
            moved = self._sort()
            now = time.monotonic()
            self._expire(now - self._delivery_s)
            delay = self._dispatch(now)
            with self._room:
                # While records keep coming the pump looks every linger_ms and nobody has to wake it.
                self._idle = not moved and not self._inbox
            await self._wake(delay if self._idle else min(self._linger_s, delay or self._linger_s))

    def _sort(self) -> bool:
        with self._room:
            arrived, self._inbox = self._inbox, deque()
        for topic, partition, record in arrived:
            route = self._routes.get(topic)
            if route is not None:
                self._place(route, partition, record)
            elif topic in self._parked:
                self._parked[topic].append((partition, record))
            else:
                self._parked[topic] = [(partition, record)]
                self._link.net.call_soon(self._open(topic, record.born + self._delivery_s))
        return bool(arrived)

    def _place(self, route: Route, partition: int | None, record: Record) -> None:
        try:
            if record.size > route.limit // 2:
                _check_size(route, record)
            lane = route.lane(partition, record.key)
        except TapeError as error:
            self._release([record], error=error)
            return
        lane.add(record)
        self._active[lane] = None

    async def _open(self, topic: str, until: float) -> None:
        try:
            route = await open_route(self._link, topic, until=until, batch_bytes=self._batch_bytes)
        except TapeError as error:
            self._release([record for _, record in self._parked.pop(topic)], error=error)
            return
        self._routes[topic] = route
        for partition, record in self._parked.pop(topic):
            self._place(route, partition, record)
        self._wake.notify()

    async def _identify(self) -> None:
        try:
            self._identity = await identify(self._link)
        except AuthError as error:
            self._drop_all(error)
        finally:
            self._identifying = False
            self._wake.notify()

    def _dispatch(self, now: float) -> float | None:
        """Send what may be sent; return after how many seconds to look again, None for not before a wake-up."""
        idle = [lane for lane in self._active if lane.batch is None and not lane.queue]
        for lane in idle:
            del self._active[lane]
        waiting = [lane for lane in self._active if not lane.sending]
        if not waiting:
            return None
        if self._identity is None:
            if not self._identifying:
                self._identifying = True
                self._link.net.call_soon(self._identify())
            return PAUSE_S
        self._grow()
        delay = PAUSE_S  # leaders may be missing, records may expire
        for node, lanes in ready(self._link, waiting).items():
            if node in self._busy:
                continue
            due = self._due(node, lanes, now)
            if due <= now:
                self._send(node, [lane for lane in lanes if lane.not_before <= now], now)
            else:
                delay = min(delay, due - now)
        return delay

    def _due(self, node: int, lanes: Sequence[Lane], now: float) -> float:
        earliest = min(lane.not_before for lane in lanes)
        full = any(lane.bytes >= lane.limit for lane in lanes)
        return earliest if full else max(earliest, self._next_send.get(node, now))

    def _grow(self) -> None:
        for route in self._routes.values():
            partitions = self._link.manager.cluster._partitions.get(route.topic, ())
            if len(partitions) > len(route.lanes):
                route.grow(len(partitions), self._batch_bytes)

    def _send(self, node: int, lanes: Sequence[Lane], now: float) -> None:
        assert self._identity is not None
        chosen: list[Lane] = []
        size = 0
        for lane in lanes:
            if size >= REQUEST_BYTES:
                break
            size += len(lane.next(self._identity).data)
            chosen.append(lane)
        for lane in chosen[1:]:  # the next request begins with those that had no room in this one
            self._active[lane] = self._active.pop(lane)
        self._busy.add(node)
        self._next_send[node] = now + self._linger_s
        self._link.net.call_soon(self._exchange(node, chosen))

    async def _exchange(self, node: int, lanes: Sequence[Lane]) -> None:
        topics: dict[str, dict[int, Lane]] = {}
        for lane in lanes:
            topics.setdefault(lane.place.topic, {})[lane.place.partition] = lane
        try:
            answer = await self._link.ask(_request(topics), node, min(REQUEST_S, self._delivery_s))
            for topic in answer.responses:
                for found in topic.partition_responses:
                    self._judge(topics[topic.name].pop(found.index), found)
        except Exception as error:
            for left in topics.values():
                for lane in left.values():
                    self._unanswered(lane, error)
        finally:
            self._busy.discard(node)
            self._wake.notify()

    def _judge(self, lane: Lane, found: Any) -> None:
        if found.error_code in {0, _DUPLICATE}:
            self._release(lane.confirm().records, lane=lane, base=found.base_offset)
            return
        error = kafka_errors.for_code(found.error_code)(found.error_message)
        if isinstance(error, kafka_errors.RetriableError):
            self._link.manager.cluster.request_update()
            lane.later(time.monotonic() + PAUSE_S, error)
        elif isinstance(error, _RENUMBER):
            # The broker lost count of us (it lost data, or forgot an idle producer) and did not take the batch.
            self._identity = None
            lane.restore(lane.abandon().records)
        elif isinstance(error, _TOO_LARGE):
            self._shrink(lane)
        else:
            self._release(lane.refuse().records, error=mapped(error, code="TAPE-5003", topic=lane.place.topic))

    def _shrink(self, lane: Lane) -> None:
        batch = lane.refuse()
        if len(batch.records) > 1:
            lane.limit = max(1, len(batch.data) // 2)
            lane.restore(batch.records)
        else:
            limit = self._routes[lane.place.topic].limit
            self._release(batch.records, error=too_large(lane.place.topic, len(batch.data), limit))

    def _unanswered(self, lane: Lane, error: Exception) -> None:
        assert lane.batch is not None
        if not isinstance(error, kafka_errors.NodeNotReadyError):
            lane.batch.doubtful = True
        found = mapped(error)
        if isinstance(found, AuthError):
            self._give_up(lane, found)
        else:
            self._link.manager.cluster.request_update()
            lane.later(time.monotonic() + PAUSE_S, error)

    def _expire(self, before: float) -> None:
        for lane in list(self._active):
            if lane.batch is not None and not lane.sending and lane.batch.born < before:
                self._give_up(lane, self._late(lane))
            old = lane.expired(before)
            if old:
                self._release(old, error=self._late(lane))

    def _give_up(self, lane: Lane, error: TapeError) -> None:
        assert lane.batch is not None
        if lane.batch.doubtful:
            self._identity = None  # whether the broker counted the batch is not known, so we start counting anew
            batch: Batch = lane.abandon()
        else:
            batch = lane.refuse()
        self._release(batch.records, error=error)

    def _late(self, lane: Lane) -> TapeError:
        trouble = lane.trouble
        found = None if trouble is None else mapped(trouble, topic=lane.place.topic)
        if isinstance(found, NotFoundError | AuthError):
            return found
        last = f"; last: {found.message}" if found is not None else ""
        return UnavailableError(
            f"no confirmation within {self._delivery_s:g} s{last}", code="TAPE-5003", topic=lane.place.topic
        )

    def _release(
        self, records: Sequence[Record], *, lane: Lane | None = None, base: int = -1, error: TapeError | None = None
    ) -> None:
        if error is not None:
            for record in records:
                fail(record.future, error)
        elif lane is not None:
            topic, partition = lane.place
            for offset, record in enumerate(records, base):
                succeed(record.future, Sent(topic, partition, offset if base >= 0 else -1))
        with self._room:
            self._count -= len(records)
            self._bytes -= sum(record.size for record in records)
            self._room.notify_all()

    def _drop_all(self, error: TapeError) -> None:
        with self._room:
            left = [record for _, _, record in self._inbox]
            self._inbox.clear()
        for parked in self._parked.values():
            left += [record for _, record in parked]
            parked.clear()
        for lane in self._active:
            if lane.batch is not None:
                left += lane.abandon().records
            left += lane.expired(float("inf"))
        self._release(left, error=error)


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


def _check_size(route: Route, record: Record) -> None:
    arguments = (record.key, record.value, record.headers)
    if DefaultRecordBatchBuilder.estimate_size_in_bytes(*arguments) <= route.limit:
        return
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=0,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1,
    )
    size = BATCH_HEADER + builder.size_in_bytes(0, record.timestamp_ms, *arguments)
    if size > route.limit:
        raise too_large(route.topic, size, route.limit)
