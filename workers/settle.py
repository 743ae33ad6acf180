"""Settle an attempt: outcome → event → acknowledge. Nothing is acknowledged before what it stands for is durable.

Order (DESIGN §3.5): the outcome object is created once in the store (recorded kinds), then the event or the dead letter
is confirmed by the broker, and only then the lease is accepted,
released or rejected. What cannot be made durable now is tried again with growing pauses while the lease is held and
renewed: a release would spend one of the broker's deliveries, and after the last of those Kafka drops the record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any

import structlog

from schemas import codec
from schemas.codec import Header
from schemas.dead import HEADER, DeadLetter
from schemas.errors import ConflictError, InvalidError, JobError, TapeError
from schemas.event import EVENT_OF, Event, EventType
from schemas.ids import derived_id, uuid7
from schemas.outcome import Cancelled, Failed, Failure, Outcome, Status, Succeeded
from schemas.topics import Names
from wire.blobs import Blobs
from wire.publish import Publisher, Sent
from wire.share import AckType
from workers.again import Again
from workers.attempt import Attempt, Record, identify
from workers.retry import Decision

Done = Callable[[Record, AckType], None]
Clock = Callable[[], datetime]
_LOG = structlog.get_logger("tickertape.settle")
EVENT_LIMIT = 1_000_000
"""Bytes of the largest event: what a topic takes by default, less its headers."""


def outcome_name(job: str) -> str:
    """Return the name of a job's outcome in the store."""
    return f"runs/{job}/outcome.json"


class Settler:
    """Turns verdicts into durable facts and then acknowledges; thread-safe, used by every slot."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        store: Callable[[], Blobs],
        names: Names,
        worker: str,
        now: Clock,
        done: Done,
        again: Again,
    ) -> None:
        self._publisher, self._store, self._names = publisher, store, names
        self._worker, self._now, self._done, self._again = worker, now, done, again
        self._source = f"/tickertape/worker/{worker}"

    def announce(self, attempt: Attempt, kind: EventType, **fields: Any) -> Future[Sent]:
        """Publish an event of this attempt that ends nothing."""
        return self._publish(self._event(attempt, kind, uuid7(), **fields))

    def finish(self, attempt: Attempt, verdict: Succeeded | Failed | Cancelled) -> None:
        """End the job with this verdict: its outcome is kept, told, and the lease accepted."""
        self._end(attempt, self._outcome(attempt, verdict), AckType.ACCEPT)

    def expire(self, attempt: Attempt, failure: Failure) -> None:
        """End a job that was not started in time."""
        self._end(attempt, self._outcome(attempt, Failed(failure=failure), Status.EXPIRED), AckType.ACCEPT)

    def repeat(self, attempt: Attempt, outcome: Outcome) -> None:
        """Tell a known outcome again (its first teller may have died) and accept the lease."""
        self._tell(attempt.record, self._final(attempt, outcome), AckType.ACCEPT)

    def release(self, attempt: Attempt, failure: Failure) -> None:
        """Give the job back for another attempt, and say so."""
        self._tell(attempt.record, self._event(attempt, EventType.RETRYING, uuid7(), failure=failure), AckType.RELEASE)

    def bury(self, attempt: Attempt, failure: Failure) -> None:
        """Make a dead letter of the job: the original bytes first, then its end, then the lease is rejected.

        No outcome is kept in the store, because a redrive may still bring the job to one. Where the store has one
        (another worker was faster), that one stands and there is no dead letter.
        """
        if attempt.kind.recorded:
            try:
                first = self._known_or_corrupt(attempt)
            except TapeError as error:
                _LOG.error("outcome not looked up yet", job=attempt.id, error=str(error))
                self._again.later(attempt.record, lambda: self.bury(attempt, failure))
                return
            if first is not None:
                self.repeat(attempt, first)
                return
        outcome = self._outcome(attempt, Failed(failure=failure), Status.DEAD)
        event = self._final(attempt, outcome)
        letter = self._letter(attempt.record, attempt.id, attempt.kind.name, failure)
        self._confirm(attempt.record, letter, lambda: self._tell(attempt.record, event, AckType.REJECT))

    def bury_raw(self, record: Record, kind: str, lane: str, failure: Failure) -> None:
        """Make a dead letter of a record that cannot be read."""
        job = identify(record)
        now = self._now()
        outcome = Outcome(
            job=job, kind=kind, status=Status.DEAD, attempt=record.delivery_count, worker=self._worker,
            finished_at=now, failure=failure,
        )  # fmt: skip
        event = Event(
            id=derived_id(job, "dead", record.topic, str(record.partition), str(record.offset)),
            type=EventType.DEAD, job=job, kind=kind, lane=lane, time=now, attempt=record.delivery_count,
            worker=self._worker, failure=failure, outcome=outcome,
        )  # fmt: skip
        letter = self._letter(record, job, kind, failure)
        self._confirm(record, letter, lambda: self._tell(record, event, AckType.REJECT))

    def apply(self, attempt: Attempt, verdict: Failed, decision: Decision) -> None:
        """Carry out what `workers.retry` decided about a failed attempt."""
        if decision is Decision.RELEASE:
            self.release(attempt, verdict.failure)
        elif decision is Decision.FAIL:
            self.finish(attempt, verdict)
        else:
            self.bury(attempt, verdict.failure)

    def known(self, attempt: Attempt) -> Outcome | None:
        """Return the outcome that this job has already, if it has one."""
        try:
            return codec.parse(Outcome, self._store().read(outcome_name(attempt.id)))
        except TapeError as error:
            if error.code == "TAPE-2001":
                return None
            raise

    def _known_or_corrupt(self, attempt: Attempt) -> Outcome | None:
        try:
            return self.known(attempt)
        except (InvalidError, JobError):  # an outcome that nobody can read is none
            return None

    def _end(self, attempt: Attempt, outcome: Outcome, ack: AckType) -> None:
        if attempt.kind.recorded:
            try:
                outcome = self._create(attempt, outcome)
            except (InvalidError, JobError) as error:  # what cannot be written, or read, today cannot be tomorrow
                self.bury(attempt, Failure.of(error))
                return
            except TapeError as error:
                _LOG.error("outcome not stored yet", job=attempt.id, error=str(error))
                self._again.later(attempt.record, lambda: self._end(attempt, outcome, ack))
                return
        self._tell(attempt.record, self._final(attempt, outcome), ack)

    def _create(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        try:
            self._store().create(outcome_name(attempt.id), codec.dump(outcome))
        except ConflictError:
            first = self.known(attempt)
            if first is None:
                raise
            if first.worker != self._worker or first.attempt != attempt.number:
                _LOG.warning("late outcome refused", job=attempt.id, kept=first.worker, refused=self._worker)
            return first
        return outcome

    def _outcome(
        self, attempt: Attempt, verdict: Succeeded | Failed | Cancelled, status: Status | None = None
    ) -> Outcome:
        done = verdict if isinstance(verdict, Succeeded) else Succeeded()
        failure = verdict.failure if isinstance(verdict, Failed) else None
        if isinstance(verdict, Cancelled):
            failure = Failure.of(JobError(verdict.reason, code="TAPE-6005"))
        return Outcome(
            job=attempt.id,
            kind=attempt.kind.name,
            tenant=attempt.job.tenant,
            status=status or Status(verdict.verdict),
            attempt=attempt.number,
            worker=self._worker,
            finished_at=self._now(),
            result=done.result,
            artifacts=done.artifacts,
            failure=failure,
            usage=verdict.usage,
        )

    def _final(self, attempt: Attempt, outcome: Outcome) -> Event:
        identity = derived_id(attempt.id, "outcome")
        if outcome.status is Status.DEAD:
            record = attempt.record
            identity = derived_id(attempt.id, "dead", record.topic, str(record.partition), str(record.offset))
        return self._event(attempt, EVENT_OF[outcome.status], identity, failure=outcome.failure, outcome=outcome)

    def _event(self, attempt: Attempt, kind: EventType, identity: str, **fields: Any) -> Event:
        return Event(
            id=identity,
            type=kind,
            job=attempt.id,
            kind=attempt.kind.name,
            lane=attempt.lane,
            tenant=attempt.job.tenant,
            time=self._now(),
            attempt=attempt.number,
            worker=self._worker,
            started_at=attempt.started_at,
            labels=attempt.job.labels,
            **fields,
        )

    def _publish(self, event: Event) -> Future[Sent]:
        value = event.model_dump_json(exclude_none=True).encode()
        if len(value) > EVENT_LIMIT:  # the labels are the one part that is neither bounded nor needed
            value = event.model_copy(update={"labels": {}}).model_dump_json(exclude_none=True).encode()
        envelope = codec.Envelope(
            id=event.id,
            type=codec.event_type(event.type),
            source=self._source,
            data=value,
            subject=event.job,
            time=event.time.isoformat(),
        )
        return self._send(self._names.events, event.job.encode(), value, codec.encode(envelope))

    def _send(self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> Future[Sent]:
        try:
            return self._publisher.publish(topic, key=key, value=value, headers=headers)
        except TapeError as error:
            refused: Future[Sent] = Future()
            refused.set_exception(error)
            return refused

    def _letter(self, record: Record, job: str, kind: str, failure: Failure) -> Callable[[], Future[Sent]]:
        letter = DeadLetter(
            job=job, kind=kind, topic=record.topic, partition=record.partition, offset=record.offset,
            attempts=record.delivery_count, worker=self._worker, time=self._now(), failure=failure,
        )  # fmt: skip
        headers = [*record.headers, *dead_headers(letter)]
        topic = self._names.dead(kind)
        return lambda: self._send(topic, record.key, record.value, headers)

    def _tell(self, record: Record, event: Event, ack: AckType) -> None:
        self._confirm(record, lambda: self._publish(event), lambda: self._done(record, ack))

    def _confirm(self, record: Record, send: Callable[[], Future[Sent]], then: Callable[[], None]) -> None:
        def after(sent: Future[Sent]) -> None:
            error = sent.exception()
            if error is None:
                try:
                    then()
                    return
                except Exception as raised:  # a future's callback would swallow it, and the record with it
                    error = raised
            _LOG.error("not confirmed yet", topic=record.topic, offset=record.offset, error=str(error))
            self._again.later(record, lambda: self._confirm(record, send, then))

        send().add_done_callback(after)


def dead_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """Return the headers that tell why a record is dead; flat texts for tools, and the whole as JSON."""
    flat = {
        "job": letter.job,
        "kind": letter.kind,
        "topic": letter.topic,
        "partition": str(letter.partition),
        "offset": str(letter.offset),
        "attempts": str(letter.attempts),
        "worker": letter.worker,
        "time": letter.time.isoformat(),
        "class": letter.failure.failure.value,
        "code": letter.failure.code,
        "message": letter.failure.message,
        "json": letter.model_dump_json(),
    }
    return [(HEADER + name, text.encode()) for name, text in flat.items()]
