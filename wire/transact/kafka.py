"""The transactor on Kafka: one link, one transactional producer, and an end to every wait.

kafka-python's own transactional producer refuses headers without a value, which must travel as they are, sends at most
16 kB in a batch, and waits for the coordinator for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from kafka import errors as kafka_errors

from wire.kafka import Link, mapped
from wire.settings import Settings
from wire.transact.port import NOTHING, Member, Outgoing, fenced, shut
from wire.transact.session import Session


class KafkaTransactor:
    """A `Transactor` on Kafka under the transactional id `name`; opening it fences whoever held that name.

    `timeout_s` bounds one commit; `transaction_s` is how long the broker waits for a holder that fell silent in the
    middle of a transaction before it aborts it: readers of what it wrote to wait as long.
    """

    def __init__(self, settings: Settings, name: str, *, timeout_s: float = 20.0, transaction_s: float = 60.0) -> None:
        """Connect. Raises `AuthError` (TAPE-4001, TAPE-4003), `UnavailableError` (TAPE-5001)."""
        self._name, self._timeout_s = name, timeout_s
        self._lock = threading.Lock()
        self._fenced = False
        self._link = Link(settings, name=name)
        self._session = Session(self._link, name, transaction_s=transaction_s)
        try:
            self._link.run(self._session.begin, time.monotonic() + timeout_s)
        except BaseException as error:
            self._link.close()
            if isinstance(error, kafka_errors.KafkaError):
                raise mapped(error, transactor=name) from error
            raise

    def commit(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[tuple[str, int], int] = NOTHING,
        *,
        group: Member | None = None,
    ) -> None:
        """Write all of it or nothing; see `Transactor.commit`."""
        if offsets and group is None:
            raise ValueError("offsets are committed for a group")
        if not records and not offsets:
            return
        with self._lock:
            if self._link.closed:
                raise shut()
            if self._fenced:
                raise fenced(self._name)
            try:
                self._link.run(self._session.commit, records, offsets, group, time.monotonic() + self._timeout_s)
            except Exception as error:
                self._fenced = getattr(error, "code", "") == "TAPE-3006"
                raise

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._link.close()
