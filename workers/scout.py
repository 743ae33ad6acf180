"""The scout: reads ahead in a crowded queue, without taking anything, so that it is known who waits behind whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from schemas.errors import TapeError
from wire.follow import Feed, KafkaFollower
from wire.settings import Settings
from wire.share import ShareConfig, ShareError
from wire.share.admin import ShareAdmin
from workers.tenants import Tenants

_LOG = structlog.get_logger("tickertape.scout")
POLL_S, REST_S, PAUSE_S = 0.2, 0.1, 2.0


def ahead(settings: Settings, config: ShareConfig, group: str, topic: str) -> Feed:
    """Return the records of a queue from where its group begins to be unfinished.

    Raises `NotFoundError`, `UnavailableError`, `AuthError`, or a `ShareError`.
    """
    with ShareAdmin(config) as admin:
        told = {line.partition: line.start_offset for line in admin.describe_offsets(group, [topic])}
    starts = {partition: offset for partition, offset in told.items() if offset >= 0}
    return KafkaFollower(settings, name="tape-scout").follow(topic, since=starts)


class Scout:
    """One thread that looks ahead in one queue while its tenants are wanted, and sleeps when they are not.

    `look` opens the queue at its unfinished records. Whatever fails costs fairness, never a job.
    """

    def __init__(self, name: str, tenants: Tenants, look: Callable[[], Feed], *, pause_s: float = PAUSE_S) -> None:
        self._name, self._tenants, self._look, self._pause_s = name, tenants, look, pause_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"scout-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread."""
        self._ended.set()
        self._tenants.wanted.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _serve(self) -> None:
        while self._tenants.wanted.wait() and not self._ended.is_set():
            try:
                self._watch()
            except (TapeError, ShareError) as error:
                _LOG.warning("cannot look ahead", queue=self._name, error=str(error))
                self._ended.wait(self._pause_s)

    def _watch(self) -> None:
        with self._look() as feed:
            self._tenants.begin()
            began = time.monotonic()
            while self._tenants.wanted.is_set() and not self._ended.is_set() and not self._tenants.anew(began):
                if self._tenants.enough:
                    self._ended.wait(REST_S)
                else:
                    self._tenants.see(feed.poll(POLL_S))
