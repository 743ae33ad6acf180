"""One follower of the events topic for all the jobs a client waits for.

A log is joined *before* its job is published, so the feed, once it runs, cannot miss what happens to it. A log of an
older job makes the feed go back in time; logs drop what they have seen, so going back costs time and nothing else.
Logs are held weakly: a handle that nobody keeps costs nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Protocol

import structlog

from producers.log import Log
from schemas import codec
from schemas.errors import TapeError, UnavailableError
from schemas.event import Event

CLOSE_S = 5.0

_log = structlog.get_logger("producers.feed")


class Record(Protocol):
    """What the feed needs of a record."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


Source = Callable[[datetime, threading.Event], Iterator[Record]]
"""Opens the events topic at a moment and yields its records until the event is set."""


class Feed:
    """Hands events to the logs of their jobs, from one thread that starts at the first wait."""

    def __init__(self, source: Source, *, backoff_s: float = 0.5, ceiling_s: float = 5.0) -> None:
        self._source = source
        self._backoff_s, self._ceiling_s = backoff_s, ceiling_s
        self._logs: weakref.WeakValueDictionary[bytes, Log] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._running = False
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.trouble: TapeError | None = None

    def join(self, job: str, since: datetime, *, fresh: bool = False) -> Log:
        """Return the log of a job, the one that is there already if there is one.

        `fresh` is the promise that nothing happened to the job yet: a running feed need not go back for it.
        """
        with self._lock:
            log = self._logs.get(job.encode())
            if log is None:
                log = self._logs[job.encode()] = Log(job, since)
                log.covered = fresh
            elif since < log.since:
                log.since, log.covered = since, False
            return log

    def renew(self, job: str, since: datetime, revived: datetime) -> Log:
        """Return the log of a job that is submitted again at `revived`: a death before that is not its end.

        Who waits for the job already goes on with the same log; one that is at its end gives way to a new one.
        """
        with self._lock:
            log = self._logs.get(job.encode())
            if log is None or log.final is not None:
                log = self._logs[job.encode()] = Log(job, since)
            elif since < log.since:
                log.since, log.covered = since, False
            log.revived = revived
            return log

    def follow(self, log: Log) -> None:
        """Make sure that the log's events arrive, from its `since` on."""
        with self._lock:
            if self._closed or log.final is not None or (self._running and log.covered):
                return
            self._running = True
            self._stop.set()
            self._stop = threading.Event()
            since = min(self._since(), log.since)
            for entry in list(self._logs.values()):
                entry.covered = True
            thread = threading.Thread(target=self._run, args=(since, self._stop), name="tape-feed", daemon=True)
            self._threads = [entry for entry in self._threads if entry.is_alive()] + [thread]
            thread.start()

    @property
    def running(self) -> bool:
        """Whether the feed follows the topic."""
        return self._running and not self._closed

    def close(self) -> None:
        """Stop following and wait for the thread to end."""
        with self._lock:
            self._closed = True
            self._stop.set()
            threads = list(self._threads)
        for thread in threads:
            thread.join(CLOSE_S)  # one that is just connecting to a dead broker takes longer; it dies with the process

    def _run(self, since: datetime, stop: threading.Event) -> None:
        pause = self._backoff_s
        while not stop.is_set():
            try:
                for record in self._source(since, stop):
                    self._take(record)
                    self.trouble, pause = None, self._backoff_s
            except UnavailableError as error:
                # A broker that went away comes back; who waits has a timeout of their own.
                self.trouble = error
                _log.warning("events cannot be followed", code=error.code, error=error.message, retry_s=pause)
            except TapeError as error:
                self._fail(error)
                return
            except Exception as error:  # a thread that dies must not leave its waiters hanging
                self._fail(TapeError(f"{type(error).__name__}: {error}", code="TAPE-8006"))
                raise
            stop.wait(pause)
            pause = min(pause * 2, self._ceiling_s)
            since = self._since()

    def _since(self) -> datetime:
        """From when on the logs that are not at their end need events."""
        return min((log.since for log in list(self._logs.values()) if log.final is None), default=datetime.now(UTC))

    def _take(self, record: Record) -> None:
        log = self._logs.get(record.key) if record.key is not None else None
        if log is None or record.value is None:
            return
        try:
            log.add(codec.parse(Event, record.value))
        except TapeError as error:
            _log.warning("an event was skipped", job=log.job, code=error.code, error=error.message)

    def _fail(self, error: TapeError) -> None:
        self.trouble = error
        for log in list(self._logs.values()):
            log.fail(error)
