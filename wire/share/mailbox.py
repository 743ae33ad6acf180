"""Where the owner's thread and the network thread meet: records in, acknowledgements out, one lock.

The network thread delivers fetched bytes undecoded; the owner decodes what it takes. A record waits here at most half
its lock: then it is released, so that a slow owner does not sit on work that others could do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .decode import Acquired, Decoder
from .errors import FatalError, LeaseLostError, ShareError
from .leases import Answered, Leases
from .messages import TopicPartition
from .model import GAP, AckType, Listener, OffsetRange, Record

log = logging.getLogger(__name__)
_FAILURES_KEPT = 10_000


class Chunk:
    """The bytes one partition gave in one fetch."""

    __slots__ = ("acquired", "alive", "at", "count", "data", "node", "tip", "topic")

    def __init__(self, tip: TopicPartition, node: int, topic: str, data: bytes | memoryview, acquired: list[Acquired]):
        self.tip, self.node, self.topic, self.data, self.acquired = tip, node, topic, data, acquired
        self.count = sum(last - first + 1 for first, last, _ in acquired)
        self.at = time.monotonic()
        self.alive = True

    def offsets(self) -> list[int]:
        """Every acquired offset."""
        return [offset for first, last, _ in self.acquired for offset in range(first, last + 1)]


class Mailbox:
    """The shared state of a consumer. Every method takes the lock itself; hooks are called without it."""

    def __init__(self, decoder: Decoder, listener: Listener, on_ready: Callable[[], None] | None) -> None:
        self.changed = threading.Condition()
        self.leases = Leases()
        self.listener = listener
        self.lock_timeout = 30.0
        self.demand = 0
        self.fatal: ShareError | None = None
        self._decoder = decoder
        self._on_ready = on_ready
        self._chunks: deque[Chunk] = deque()
        self._decoding: Chunk | None = None
        self._ready: deque[tuple[float, Record]] = deque()
        self._failures: deque[tuple[OffsetRange, ShareError]] = deque(maxlen=_FAILURES_KEPT)
        self._urgent = False
        self._woken = False
        self._unheard = False

    # ---- the owner's side

    def take(self, limit: int) -> list[Record]:
        """Up to `limit` records; sets what may be fetched next to the rest of the limit."""
        taken: list[Record] = []
        while len(taken) < limit and self._fill():
            with self.changed:
                while self._ready and len(taken) < limit:
                    _, record = self._ready.popleft()
                    if self.leases.holds(record):
                        taken.append(record)
        with self.changed:
            self.demand = limit - len(taken)
        return taken

    def _fill(self) -> bool:
        """Decode one chunk if no decoded record waits. Returns whether there may be records."""
        with self.changed:
            if self._ready:
                return True
            if not self._chunks:
                return False
            chunk = self._decoding = self._chunks.popleft()
        found = self._decoder.decode(chunk.data, chunk.topic, chunk.tip[1], chunk.acquired)
        with self.changed:
            self._decoding = None
            if not chunk.alive:
                return True
            again = self.leases.add(chunk.tip, chunk.node, chunk.topic, found.records)
            self._ready.extend((chunk.at, record) for record in found.records)
            if found.gaps:
                self._unheard = True
                self.leases.put(chunk.tip, chunk.node, chunk.topic, dict.fromkeys(found.gaps, GAP))
        if again:
            self._hook("on_lost", again, LeaseLostError("the lock expired and the record came again", again))
        if found.error is not None:
            self.report(found.error)
        return True

    def unheard(self) -> bool:
        """Acknowledgements were queued here that the network thread was not told of; asking is telling."""
        unheard, self._unheard = self._unheard, False
        return unheard

    def outstanding(self) -> int:
        """Records acquired and not yet settled, here or with the owner."""
        with self.changed:
            waiting = sum(chunk.count for chunk in self._chunks)
            return self.leases.held + waiting + (self._decoding.count if self._decoding else 0)

    def promised(self, asked: int) -> int:
        """Records that may come without another `take`, when fetches for `asked` are under way."""
        with self.changed:
            waiting = sum(chunk.count for chunk in self._chunks) + len(self._ready)
            return waiting + (self._decoding.count if self._decoding else 0) + max(self.demand, asked)

    def buffered(self) -> bool:
        """Records wait for the owner. The caller holds the lock."""
        return bool(self._ready or self._chunks)

    def wait(self, deadline: float) -> bool:
        """Wait for records, an error or a wake-up. Returns whether to look again."""
        with self.changed:
            while not self.buffered() and self.fatal is None and not self._woken:
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            woken, self._woken = self._woken, False
            return self.buffered() and not woken

    def wake(self) -> None:
        """End a wait."""
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    def settled(self, deadline: float) -> bool:
        """Wait until every acknowledgement was answered. Returns False when the deadline passed first."""
        with self.changed:
            self._urgent = True
            try:
                while self.leases.pending() and self.fatal is None:
                    left = deadline - time.monotonic()
                    if left <= 0 or not self.changed.wait(left):
                        return not self.leases.pending()
            finally:
                self._urgent = False
        return True

    def failures(self) -> list[tuple[OffsetRange, ShareError]]:
        """Acknowledgements refused since this was last asked."""
        with self.changed:
            failed = list(self._failures)
            self._failures.clear()
            return failed

    def abandon(self) -> None:
        """Release everything: what waits and what is held."""
        with self.changed:
            self.demand = 0
            self._urgent = True
            self._release(list(self._chunks))
            self._chunks.clear()
            self._ready.clear()
            self.leases.settle_all(AckType.RELEASE)

    # ---- the network thread's side

    @property
    def urgent(self) -> bool:
        """Somebody waits for acknowledgements: do not linger."""
        return self._urgent

    def deliver(self, chunks: list[Chunk]) -> None:
        """Fetched bytes arrived."""
        with self.changed:
            self._chunks.extend(chunks)
            self.demand = max(0, self.demand - sum(chunk.count for chunk in chunks))
            self.changed.notify_all()
        self.ready()

    def answered(self, results: list[Answered]) -> None:
        """Acknowledgements were answered: tell the listener, then whoever waits."""
        with self.changed:
            for result in results:
                if result.error is not None:
                    self._failures.extend((span, result.error) for span in result.lost)
        for result in results:
            for kind, count in result.kinds.items():
                self._hook("on_ack", count, kind, result.error)
            if result.lost and result.error is not None:
                self._hook("on_lost", result.lost, result.error)
        with self.changed:
            self.changed.notify_all()
        self.ready()

    def lose(self, error: ShareError, *, node: int | None = None, tip: TopicPartition | None = None) -> None:
        """A session or a partition is lost with all that was held of it."""
        with self.changed:
            for chunk in [*self._chunks, *([self._decoding] if self._decoding else [])]:
                if (node is None or chunk.node == node) and (tip is None or chunk.tip == tip):
                    chunk.alive = False
            self._chunks = deque(chunk for chunk in self._chunks if chunk.alive)
            unseen = {(record.topic, record.partition, record.offset) for _, record in self._ready}
            lost, unconfirmed = self.leases.lose(node, tip)
            self._failures.extend((span, error) for span in unconfirmed)
            self.changed.notify_all()
        if lost and not all((s.topic, s.partition, o) in unseen for s in lost for o in range(s.first, s.last + 1)):
            self._hook("on_lost", lost, error)
            self.ready()

    def shed(self, now: float) -> None:
        """Release what has waited here for half its lock."""
        limit = now - self.lock_timeout / 2
        with self.changed:
            old = [chunk for chunk in self._chunks if chunk.at < limit]
            self._release(old)
            self._chunks = deque(chunk for chunk in self._chunks if chunk.alive)
            while self._ready and self._ready[0][0] < limit:
                _, record = self._ready.popleft()
                if self.leases.holds(record):
                    self.leases.settle(record, AckType.RELEASE)

    def report(self, error: ShareError) -> None:
        """Something failed; a FatalError ends the consumer's polls."""
        log.log(logging.DEBUG if error.retryable else logging.WARNING, "%s: %s", error.code, error)
        self._hook("on_error", error)
        if isinstance(error, FatalError):
            with self.changed:
                self.fatal = self.fatal or error
                self.changed.notify_all()
        self.ready()

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        """The assignment changed."""
        self._hook("on_assigned", partitions)

    def fetched(self, records: int, size: int, seconds: float) -> None:
        """A fetch was answered."""
        self._hook("on_fetch", records, size, seconds)

    def ready(self) -> None:
        """Tell the owner to look."""
        if self._on_ready is not None:
            try:
                self._on_ready()
            except Exception:
                log.exception("on_ready failed")

    def _release(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            chunk.alive = False
            release = dict.fromkeys(chunk.offsets(), int(AckType.RELEASE))
            self.leases.put(chunk.tip, chunk.node, chunk.topic, release)

    def _hook(self, name: str, *args: Any) -> None:
        try:
            getattr(self.listener, name)(*args)
        except Exception:
            log.exception("listener %s failed", name)
