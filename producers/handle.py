"""A submitted job: wait for it, watch it, cancel it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from schemas.errors import CODES, JobError, TimeoutExceeded, UnavailableError
from schemas.event import FINAL, Event, State
from schemas.outcome import Outcome, Status
from schemas.topics import WEEK_MS

if TYPE_CHECKING:
    from producers.client import Client
    from producers.log import Log

SKEW = timedelta(seconds=5)
"""How much the clock of a foreign submitter may be ahead of the workers' when a job's events are looked for."""

_CODE = {Status.CANCELLED: "TAPE-6005", Status.EXPIRED: "TAPE-6006"}


_ARGUMENTS = frozenset({"message", "code", "hint", "failure"})


class JobHandle:
    """One job of a client. Cheap; may be dropped at any time without touching the job.

    >>> handle = client.submit("inference", {"model": "blob:m", "prompt": "hi"})   # doctest: +SKIP
    >>> handle.result(timeout=60).result["text"]                                   # doctest: +SKIP
    """

    __slots__ = ("_client", "_stored", "id", "log")

    def __init__(self, client: Client, log: Log, *, stored: bool) -> None:
        self.id = log.job
        self._client, self.log = client, log
        # Whether the job may have ended before its events were followed, so that the store must be asked.
        self._stored = stored

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    def result(self, timeout: float | None = None, *, raise_on_failure: bool = False) -> Outcome:
        """Wait for the job's one outcome, however it ended; it may have ended long ago.

        `timeout` is in seconds. Raises `TimeoutExceeded` (TAPE-7002), and with `raise_on_failure` a `JobError` with
        the failure's own code when the job did not succeed. A broker that goes away meanwhile is waited for.
        """
        end = None if timeout is None else time.monotonic() + timeout
        found = self.known()
        if found is None:
            final = self.log.wait_final(None if end is None else max(0.0, end - time.monotonic()))
            found = self.conclude(final, timeout)
        return checked(found, raise_on_failure)

    def watch(self, timeout: float | None = None) -> Iterator[Event]:
        """Yield the job's events as they come, each once, those of the past first, until its last one.

        Raises `TimeoutExceeded` (TAPE-7002) when that takes longer than `timeout` seconds in all.
        """
        self.follow()
        return self.log.events(timeout)

    def follow(self) -> None:
        """Make sure that the job's events arrive in `log`."""
        self._client.feed.follow(self.log)

    def state(self) -> State | None:
        """Return where the job is now; None when no event of it was found.

        While the store is away its events alone tell it. Raises `UnavailableError` where there are none of it then.
        """
        if self.log.final is not None or (self._client.feed.running and self.log.covered and self.log.state):
            return self.log.state
        away: UnavailableError | None = None
        try:
            stored = self._client.outcome(self.id)
        except UnavailableError as error:
            stored, away = None, error  # its events tell it too
        if stored is not None:
            return State(stored.status)
        for event in self._client.scan(self.log.since, job=self.id):
            self.log.add(event)
        if self.log.state is None and away is not None:
            raise away
        return self.log.state

    def cancel(self, reason: str = "cancelled on request") -> State | None:
        """Ask every worker to stop the job; returns when the request is confirmed, not when the job has stopped.

        What is returned is where its events say that it is now.
        """
        return self._client.cancel(self.id, reason)

    def pause(self, reason: str = "") -> State | None:
        """Let the job wait until it is resumed, and stop it where it runs; as `Client.pause`."""
        return self._client.pause(self.id, reason)

    def resume(self, reason: str = "") -> State | None:
        """Let the job go on if it is paused; as `Client.resume`."""
        return self._client.resume(self.id, reason)

    def known(self) -> Outcome | None:
        """Return the outcome if the job ended before now; else make sure that its events arrive."""
        if self.log.final is None and self._stored:
            found = self._client.outcome(self.id)
            if found is not None:
                return found
        self.follow()
        return None

    def conclude(self, final: Event | None, timeout: float | None) -> Outcome:
        """Return the outcome that the last event tells of. Raises `TimeoutExceeded` (TAPE-7002) when there was none."""
        if final is not None:
            return final.outcome or self._client.outcome(self.id) or _told(final)
        found = self._client.outcome(self.id)
        if found is not None:
            return found
        trouble = self._client.feed.trouble
        raise TimeoutExceeded(
            f"the job has not ended within {timeout:g} s" + (f"; {trouble.message}" if trouble else ""),
            code="TAPE-7002",
            hint=trouble.hint if trouble else None,
            job=self.id,
            state=self.log.state,
        )


def checked(outcome: Outcome, raise_on_failure: bool) -> Outcome:
    """Return the outcome, or raise what made the job fail if that is asked for."""
    if raise_on_failure and outcome.status != Status.SUCCEEDED:
        raise failure_of(outcome)
    return outcome


def failure_of(outcome: Outcome) -> JobError:
    """Return the error that tells of an outcome that is no success."""
    failure = outcome.failure
    place: dict[str, Any] = {"job": outcome.job, "attempt": outcome.attempt, "worker": outcome.worker}
    if failure is None:
        code = _CODE.get(outcome.status, "TAPE-6001")
        return JobError(f"the job ended {outcome.status}", code=code, **place)
    # The place came over the wire: none of its keys may be taken for an argument, nor hide whose failure it is.
    told = {key: value for key, value in failure.place.items() if key not in _ARGUMENTS}
    code = failure.code if failure.code in CODES else "TAPE-6001"
    return JobError(failure.message, code=code, hint=failure.hint or None, failure=failure.failure, **{**told, **place})


def born(job: str) -> datetime:
    """Return the moment from which a job's events must be looked for.

    The id of a job without an idempotency key tells when it was made (UUIDv7); any other may be as old as the oldest
    event that is kept.
    """
    try:
        found = UUID(job)
    except ValueError:
        found = UUID(int=0)
    now = datetime.now(UTC)
    oldest = now - timedelta(milliseconds=WEEK_MS)
    if found.version != 7:
        return oldest
    return max(oldest, datetime.fromtimestamp((found.int >> 80) / 1000, UTC) - SKEW)


def _told(final: Event) -> Outcome:
    """The outcome that a last event without one tells of: a foreign worker's, or an older one's."""
    assert State(final.type.value) in FINAL
    return Outcome(
        job=final.job,
        kind=final.kind,
        tenant=final.tenant,
        status=Status(final.type.value),
        attempt=final.attempt,
        worker=final.worker or "unknown",
        finished_at=final.time,
        failure=final.failure,
    )
