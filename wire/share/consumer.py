"""The share consumer: what its owner calls.

consumer = ShareConsumer(["jobs"], "workers", ShareConfig(bootstrap_servers="localhost:9092"))
for record in consumer.poll(max_records=4, timeout=1.0):
    consumer.acknowledge(record)
consumer.close()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Self

from kafka.net.selector import NetworkSelector

from .config import ShareConfig
from .decode import Decoder
from .engine import Engine
from .errors import AcknowledgeError, ClosedError, ConfigError, DeadlineError, ShareError
from .mailbox import Mailbox
from .model import AckType, Listener, Record

__all__ = ["AckType", "Listener", "Record", "ShareConsumer"]


class ShareConsumer:
    """A member of a share group: acquires records under a lock and settles them one by one.

    `poll` and `close` belong to one thread; `acknowledge`, `flush`, `wakeup` and the properties may be called from any.
    Several consumers can share one `net` (a kafka-python NetworkSelector; it is started if need be); without one, the
    consumer makes its own and closes it. `on_ready` is called from the network thread when records arrived,
    acknowledgements were answered, leases were lost or something failed; it must not block.
    """

    def __init__(
        self,
        topics: Sequence[str],
        group: str,
        config: ShareConfig,
        *,
        net: Any = None,
        on_ready: Callable[[], None] | None = None,
        listener: Listener | None = None,
    ) -> None:
        if isinstance(topics, str) or not topics:
            raise ConfigError("topics must be a sequence of at least one name")
        if not group:
            raise ConfigError("group must not be empty")
        self._config = config
        self._own_net = net is None
        self._net = net if net is not None else NetworkSelector(client_id=config.client_id)
        self._mail = Mailbox(Decoder(check_crcs=config.check_crcs), listener or Listener(), on_ready)
        self._engine = Engine(self._net, config, group, topics, self._mail)
        self._closed = False
        self._net.start()
        self._engine.start()

    def poll(self, max_records: int, timeout: float = 0.0) -> list[Record]:
        """Acquired records, at most `max_records`, waiting up to `timeout` seconds for the first.

        With timeout 0 it never blocks: it returns what has arrived, and sees to it that so many records (less what it
        returned) are being fetched. With max_records 0, nothing more is fetched; heartbeats and acknowledgements go on.
        With `AcquireMode.RECORD_LIMIT`, never more is acquired than the latest call asked for when the fetch began.
        Raises ClosedError, and a FatalError once nothing but a person can help.
        """
        if self._closed:
            raise ClosedError("the consumer is closed")
        deadline = time.monotonic() + timeout
        while True:
            if self._mail.fatal is not None:
                raise self._mail.fatal
            records = self._mail.take(max_records)
            if self._mail.unheard() or self._mail.demand > self._engine.fetcher.asked:
                self._engine.ring()
            if records or timeout <= 0 or max_records <= 0 or not self._mail.wait(deadline):
                return records if records or self._mail.fatal is None else self._raise_fatal()

    def _raise_fatal(self) -> list[Record]:
        assert self._mail.fatal is not None
        raise self._mail.fatal

    def focus(self, partitions: Collection[int] | None, *, batches: bool = True) -> None:
        """Fetch from these partitions (of every topic) only, or from all again; leases elsewhere are kept.

        Without `batches`, and from chosen partitions, never more comes than was asked for, in any mode. It holds from
        the next fetch on: what is under way, or has arrived, may be of others.
        """
        self._engine.fetcher.batches = batches
        wanted = None if partitions is None else frozenset(partitions)
        if wanted != self._engine.fetcher.focus:
            self._engine.fetcher.focus = wanted
            self._engine.ring()

    def acknowledge(self, record: Record, kind: AckType = AckType.ACCEPT) -> None:
        """Queue an acknowledgement: it rides on the next fetch, or goes alone after `ack_linger`.

        `record` must be the very object `poll` returned. A record can be renewed many times and settled once.
        Raises LeaseLostError when the record is not held any more, ClosedError after close.
        """
        if self._closed:
            raise ClosedError("the consumer is closed")
        with self._mail.changed:
            first = self._mail.leases.settle(record, kind)
        if first:
            self._engine.ring()

    def flush(self, timeout: float) -> None:
        """Wait until every queued acknowledgement was answered.

        Raises AcknowledgeError with the ranges refused since the last flush, DeadlineError, or a FatalError.
        """
        deadline = time.monotonic() + timeout
        self._engine.ring()
        settled = self._mail.settled(deadline)
        failures = self._mail.failures()
        if failures:
            raise AcknowledgeError(failures)
        if self._mail.fatal is not None:
            raise self._mail.fatal
        if not settled:
            raise DeadlineError(f"acknowledgements were not answered within {timeout} s")

    def wakeup(self) -> None:
        """Make a waiting (or else the next) `poll` return at once. Any thread."""
        self._mail.wake()

    def close(self, timeout: float = 5.0) -> None:
        """Send what is queued, release at once everything still held, leave the group, close the connections.

        Raises AcknowledgeError, after all is closed, when acknowledgements were refused or could not be sent in time.
        """
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + timeout
        self._mail.abandon()
        self._engine.ring()
        try:
            self._mail.settled(deadline - timeout / 4)
            self._net.run(self._engine.close, deadline)
        finally:
            if self._own_net:
                self._net.close()
        self._mail.lose(ClosedError("closed before the broker answered"))
        failures = self._mail.failures()
        if failures:
            raise AcknowledgeError(failures)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ShareError:
            if error is None:
                raise

    @property
    def lock_timeout(self) -> float:
        """Seconds an acquired record stays locked, as the broker last said."""
        return self._mail.lock_timeout

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """The partitions this member reads, as (topic, partition)."""
        return self._engine.assignment

    @property
    def outstanding(self) -> int:
        """Records acquired and not yet settled, those not yet polled included."""
        return self._mail.outstanding()

    @property
    def promised(self) -> int:
        """Records that may still come without another word: being fetched, to be fetched, or waiting to be polled.

        An owner of several consumers adds this up to know what it may ask for without acquiring too much.
        """
        return self._mail.promised(self._engine.fetcher.asked)

    @property
    def member_id(self) -> str:
        """This member's id in the group."""
        return self._engine.membership.member_id

    def window(self) -> dict[tuple[str, int], float]:
        """How full the lock window of each partition is, seen from here: 1.0 means that nothing more is handed out.

        (newest acquired - oldest unsettled offset + 1) / max_locks; a partition with nothing open is at 0.
        """
        with self._mail.changed:
            spread = self._mail.leases.window()
        return {key: value / self._config.max_locks for key, value in spread.items()}
