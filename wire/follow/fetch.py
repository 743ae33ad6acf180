"""The fetcher: asks the leaders for what comes next, on the link's thread, and hands the bytes over undecoded.

Every leader has one request waiting at it; the broker answers as soon as there is a record, so nothing is polled for.
A reader that is slow has its partitions left out until it has taken what is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from kafka import errors as kafka_errors
from kafka.protocol.consumer import FetchRequest
from kafka.structs import TopicPartition

from schemas.errors import UnavailableError
from wire.follow.feed import Handover
from wire.follow.offsets import COMMITTED, PAUSE_S
from wire.follow.span import spans
from wire.kafka import Link, mapped

WAIT_MS = 500
PART_BYTES = 1 << 20
TOTAL_BYTES = 8 << 20
AHEAD_BYTES = 16 << 20

_ELSEWHERE = (
    kafka_errors.NotLeaderForPartitionError,
    kafka_errors.UnknownTopicOrPartitionError,
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.FencedLeaderEpochError,
    kafka_errors.UnknownLeaderEpochError,
    kafka_errors.OffsetNotAvailableError,
    kafka_errors.KafkaStorageError,
)


class Piece(NamedTuple):
    """Bytes of one partition's log, from `start` on; offsets from `end` on are not wanted."""

    partition: int
    start: int
    end: int | None
    aborted: Sequence[tuple[int, int]]
    data: bytes


class Fetcher:
    """Keeps fetching a topic's partitions into a hand-over, from `positions` on, up to `ends` where given."""

    def __init__(
        self,
        link: Link,
        topic: str,
        positions: dict[int, int],
        *,
        ends: dict[int, int] | None,
        out: Handover[Piece],
        patience_s: float,
    ) -> None:
        self._link = link
        self._topic = topic
        self._positions = positions
        self._ends = ends
        self._out = out
        self._patience_s = patience_s
        self._heard = time.monotonic()
        self._busy: set[int] = set()
        self._ahead = 0
        self._lock = threading.Lock()
        self._paused = self._armed = False
        self._trouble: Exception | None = None

    def look(self) -> None:
        """Send the fetches that are not under way; called on the link's thread whenever that may have changed."""
        if self._out.closed:
            return
        if self._ends is not None:
            self._positions = {part: at for part, at in self._positions.items() if at < self._ends[part]}
            if not self._positions:
                self._out.finish()
                return
        if time.monotonic() - self._heard > self._patience_s:
            self._out.finish(self._unheard())
            return
        if self._full():
            return
        for node, parts in self._by_leader().items():
            if node is None:
                self._link.manager.cluster.request_update()
                self._later()
            elif node not in self._busy:
                self._send(node, parts)

    def _full(self) -> bool:
        with self._lock:
            self._paused = self._ahead >= AHEAD_BYTES
            return self._paused

    def taken(self, size: int) -> None:
        """Say that the reader has taken so many bytes; called on the reader's thread."""
        with self._lock:
            self._ahead -= size
            resume = self._paused and self._ahead < AHEAD_BYTES
            self._paused = self._paused and not resume
        if resume:
            self._link.net.call_soon_threadsafe(self.look)

    def _later(self) -> None:
        if not self._armed:
            self._armed = True
            self._link.net.call_later(PAUSE_S, self._tick)

    def _tick(self) -> None:
        self._armed = False
        self.look()

    def _by_leader(self) -> dict[int | None, list[int]]:
        found: dict[int | None, list[int]] = {}
        for part in self._positions:
            leader = self._link.manager.cluster.leader_for_partition(TopicPartition(self._topic, part))
            found.setdefault(None if leader == -1 else leader, []).append(part)
        return found

    def _send(self, node: int, parts: list[int]) -> None:
        try:
            future = self._link.manager.send(self._request(parts), node_id=node)
        except kafka_errors.KafkaError as error:
            self._lost(node, error)
            return
        self._busy.add(node)
        future.add_callback(self._answered, node)
        future.add_errback(lambda error: self._lost(node, error))

    def _request(self, parts: list[int]) -> Any:
        kind = FetchRequest.FetchTopic
        # Partitions are served in the order they are asked for, so a full one goes to the end of the next request.
        wanted = [
            kind.FetchPartition(
                partition=part,
                current_leader_epoch=-1,
                fetch_offset=self._positions[part],
                last_fetched_epoch=-1,
                log_start_offset=-1,
                partition_max_bytes=PART_BYTES,
            )
            for part in parts
        ]
        return FetchRequest(
            max_wait_ms=WAIT_MS,
            min_bytes=1,
            max_bytes=TOTAL_BYTES,
            isolation_level=COMMITTED,
            session_id=0,
            session_epoch=-1,
            topics=[kind(topic=self._topic, partitions=wanted)],
            forgotten_topics_data=[],
            rack_id="",
            max_version=12,  # later versions name topics by id
        )

    def _answered(self, node: int, answer: Any) -> None:
        self._busy.discard(node)
        self._heard = time.monotonic()
        again = True
        if answer.error_code:
            again = self._misfit(kafka_errors.for_code(answer.error_code)(self._topic))
        for topic in answer.responses:
            for found in topic.partitions:
                again = self._take(found) and again
        if again:
            self.look()
        elif not self._out.closed:
            self._later()

    def _take(self, found: Any) -> bool:
        part = found.partition_index
        if part not in self._positions:
            return True
        if found.error_code:
            return self._refused(part, found)
        data = bytes(found.records or b"")
        last = -1
        for span in spans(data):
            last = span.last
        if last >= self._positions[part]:
            end = None if self._ends is None else self._ends[part]
            aborted = [(entry.producer_id, entry.first_offset) for entry in found.aborted_transactions or ()]
            piece = Piece(part, self._positions[part], end, aborted, data)
            self._positions[part] = last + 1
            self._positions[part] = self._positions.pop(part)
            with self._lock:
                self._ahead += len(data)
            self._out.put(piece)
        return True

    def _refused(self, part: int, found: Any) -> bool:
        error = kafka_errors.for_code(found.error_code)(f"{self._topic}[{part}]")
        if not isinstance(error, kafka_errors.OffsetOutOfRangeError):
            return self._misfit(error)
        # Deleted below our place: go on with what is left. Cut off above it (a leader lost data): go on at its end.
        low, high = found.log_start_offset, found.high_watermark
        self._positions[part] = low if low > self._positions[part] else max(low, high, 0)
        return False

    def _misfit(self, error: Exception) -> bool:
        if isinstance(error, _ELSEWHERE):
            self._trouble = error
            self._link.manager.cluster.request_update()
        else:
            self._out.finish(mapped(error, topic=self._topic))
        return False

    def _lost(self, node: int, error: Exception) -> None:
        self._busy.discard(node)
        self._trouble = error
        found = mapped(error, topic=self._topic)
        if found.code == "TAPE-5001":
            self._link.manager.cluster.request_update()
            if not self._out.closed:
                self._later()
        else:
            self._out.finish(found)

    def _unheard(self) -> UnavailableError:
        last = "" if self._trouble is None else f"; last: {mapped(self._trouble).message}"
        return UnavailableError(f"no broker answered for {self._patience_s:g} s{last}", topic=self._topic)
