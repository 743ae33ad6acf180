"""Settle an attempt: outcome → event → acknowledge. Nothing is acknowledged before what it stands for is durable.

Order (DESIGN §3.5): the outcome object is created once in the store (recorded kinds), or the job's next record or its
dead letter is confirmed by the broker; then the event; and only then the lease is accepted, released or rejected. What
cannot be made durable now is tried again with growing pauses while the lease is held and renewed: a release would spend
one of the broker's deliveries, and after the last of those Kafka drops the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

import structlog

from schemas.codec import Header
from schemas.dead import DeadLetter, buried, dead_headers, fitting
from schemas.delays import delayed
from schemas.errors import ConflictError, InvalidError, JobError, TapeError
from schemas.event import EVENT_OF, Event, EventType, end_id, written
from schemas.ids import derived_id, uuid7
from schemas.model import LAST
from schemas.outcome import Cancelled, Failed, Failure, Outcome, Status, Succeeded, Usage
from schemas.past import LIFE, LINE, Past, Try, write
from schemas.topics import Names
from wire.blobs import Blobs
from wire.publish import Publisher, Sent
from wire.share import AckType
from workers import checkpoint
from workers.again import Again
from workers.attempt import Attempt, Record, identify, life_of
from workers.claim import epoch_of
from workers.gate import Gate
from workers.outcomes import Outcomes
from workers.policy import Bury, Decision, Fail, Postpone, Retry

Done = Callable[[Record, AckType, Event | None], None]
"""What is called once a record is settled, with the event that says so, if there is one."""
Clock = Callable[[], datetime]
_LOG = structlog.get_logger("tickertape.settle")
EVENT_LIMIT = 1_000_000
"""Bytes of the largest event: what a topic takes by default, less its headers."""


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
        gate: Gate,
    ) -> None:
        self._publisher, self._store, self._names = publisher, store, names
        self.outcomes = Outcomes(store)
        self.worker = worker
        self._now, self._done, self._again, self._gate = now, done, again, gate
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
        self._tidy(attempt, outcome)
        self._tell(attempt.record, self._final(attempt, outcome), AckType.ACCEPT)

    def retry(self, attempt: Attempt, failure: Failure, decision: Retry | Postpone) -> None:
        """Write the job's next record, to be taken after the delay, and say so."""
        kind = EventType.RETRYING if isinstance(decision, Retry) else EventType.POSTPONED
        past = self.after(attempt, failure, decision)
        self.again(attempt, past, kind, delay_s=decision.delay_s, failure=failure, copied=kind is EventType.POSTPONED)

    def after(self, attempt: Attempt, failure: Failure, decision: Decision) -> Past:
        """Return the job's past once this attempt has ended so."""
        spent = decision.spent if isinstance(decision, Retry) else not isinstance(decision, Postpone)
        last = Try.of(
            failure, attempt=attempt.number, started_at=attempt.started_at, ended_at=self._now(), worker=self.worker,
            spent=spent,
        )  # fmt: skip
        before = attempt.past
        unspent = before.credits + int(isinstance(decision, Retry) and not decision.spent)
        update = {"reached": max(before.reached, attempt.reached), "credits": unspent}
        past = before.after(last).model_copy(update=update)
        return past.model_copy(update={"hint": decision.hint}) if isinstance(decision, Retry) else past

    def again(
        self,
        attempt: Attempt,
        past: Past,
        kind: EventType,
        *,
        delay_s: float,
        failure: Failure | None = None,
        copied: bool = True,
        life: str = "",
    ) -> None:
        """Write the job's record once more, with this past and to be taken in `delay_s` seconds; let go of this one.

        `copied`: no attempt ended, so the new one stands for the same as this one. `life`: the one that it goes on
        with, if that is another than this record's.
        """
        line = [(LINE, attempt.line.encode())] if copied else []
        line += [(LIFE, told.encode())] if (told := life or life_of(attempt.record)) else []
        due = _due(self._now(), delay_s)
        identity = derived_id(attempt.id, kind.value, str(past.spent), str(due.timestamp()))
        event = self._event(attempt, kind, identity, failure=failure, until=due)
        record = attempt.record

        def send() -> Future[Sent]:
            return self._send(
                *delayed(
                    record.topic,
                    prefix=self._names.prefix,
                    key=record.key,
                    value=record.value,
                    headers=[*write(record.headers, past), *line],
                    due_ms=math.ceil(due.timestamp() * 1000),
                    now_ms=int(self._now().timestamp() * 1000),
                )
            )

        self._confirm(record, send, lambda: self._tell(record, event, AckType.ACCEPT))

    def drop(self, attempt: Attempt) -> None:
        """Let go of a left-over record: a later one of its job was taken already."""
        _LOG.info("left-over record dropped", job=attempt.id, offset=attempt.record.offset)
        self._done(attempt.record, AckType.ACCEPT, None)

    def dead_again(self, attempt: Attempt, failure: Failure, line: str) -> None:
        """Let go of a left-over record of a job that was buried by another line, and tell that again."""
        outcome = self._outcome(attempt, Failed(failure=failure), Status.DEAD)
        event = self._event(attempt, EventType.DEAD, _dead_id(attempt.id, line), failure=failure, outcome=outcome)
        self._tell(attempt.record, event, AckType.ACCEPT)

    def release(self, attempt: Attempt, failure: Failure) -> None:
        """Hand the job back as it is, for whoever takes it next; nothing is spent."""
        self._tell(attempt.record, self._event(attempt, EventType.RETRYING, uuid7(), failure=failure), AckType.RELEASE)

    def refuse(self, attempt: Attempt) -> None:
        """Drop what came of an attempt whose job another worker took over; say so, and let go of the lease."""
        late = ConflictError("another worker took the job over; this outcome is refused", code="TAPE-3009")
        _LOG.warning("late outcome refused", job=attempt.id, attempt=attempt.number, refused=self.worker)
        event = self._event(
            attempt, EventType.PROGRESS, uuid7(), failure=Failure.of(late), progress={"refused": self.worker}
        )
        self._tell(attempt.record, event, AckType.RELEASE)

    def bury(self, attempt: Attempt, failure: Failure, *, usage: Usage | None = None) -> None:
        """Make a dead letter of the job: the original bytes first, then its end, then the lease is rejected.

        The store is told first that the job is dead, so that whoever was taken for dead can bring it to no other end; a
        redrive may. Where it has an outcome (another worker was faster), that one stands and there is no dead letter.
        """
        spent = usage or Usage()
        outcome = self._outcome(attempt, Failed(failure=failure, usage=spent), Status.DEAD)
        if attempt.kind.recorded:
            try:
                stands = self._died(outcome)
            except TapeError as error:
                _LOG.error("death not stored yet", job=attempt.id, error=str(error))
                self._again.later(attempt.record, lambda: self.bury(attempt, failure, usage=usage))
                return
            if stands is None:
                self.refuse(attempt)
                return
            if stands.final:
                self.repeat(attempt, stands)
                return
            outcome = stands
        event = self._final(attempt, outcome)
        letter = self._letter(attempt, failure, spent)
        self._confirm(
            attempt.record,
            self._dead(attempt.record, letter),
            lambda: self._tell(attempt.record, event, AckType.REJECT),
        )

    def bury_raw(self, record: Record, kind: str, lane: str, failure: Failure) -> None:
        """Make a dead letter of a record that cannot be read."""
        now = self._now()
        letter = DeadLetter(
            job=identify(record), kind=kind, topic=record.topic, partition=record.partition, offset=record.offset,
            attempts=record.delivery_count, worker=self.worker, time=now, failure=failure,
            first_failed_at=now, last_failed_at=now,
        )  # fmt: skip
        event = buried(letter, lane)
        self._confirm(record, self._dead(record, letter), lambda: self._tell(record, event, AckType.REJECT))

    def apply(self, attempt: Attempt, verdict: Failed, decision: Decision) -> None:
        """Carry out what `workers.policy` decided about a failed attempt."""
        match decision:
            case Fail():
                self.finish(attempt, verdict)
            case Bury():
                self.bury(attempt, verdict.failure, usage=verdict.usage)
            case Retry() | Postpone():
                self.retry(attempt, verdict.failure, decision)

    def _died(self, death: Outcome) -> Outcome | None:
        """Tell the store that a job is dead; return the death or the outcome that stands, None where it died later.

        Whoever had no claim speaks for the newest there is.
        """
        try:
            if not death.epoch:
                before = self.outcomes.read(death.job)
                newest = max(epoch_of(self._store(), death.job), before.epoch if before is not None else 0)
                death = death.model_copy(update={"epoch": newest})
            stands = self.outcomes.settle(death)
        except (InvalidError, JobError) as error:  # what cannot be read or written today cannot be tomorrow
            _LOG.error("death not stored", job=death.job, error=str(error))
            return death
        return stands if stands is death or stands.final else None

    def _end(self, attempt: Attempt, outcome: Outcome, ack: AckType) -> None:
        if attempt.kind.recorded:
            try:
                stands = self.outcomes.settle(outcome)
            except (InvalidError, JobError) as error:  # what cannot be written, or read, today cannot be tomorrow
                self.bury(attempt, Failure.of(error))
                return
            except TapeError as error:
                _LOG.error("outcome not stored yet", job=attempt.id, error=str(error))
                self._gate.trouble(attempt, error)
                self._again.later(attempt.record, lambda: self._end(attempt, outcome, ack))
                return
            if not stands.final:  # taken for dead, and buried
                self.refuse(attempt)
                return
            if (stands.worker, stands.attempt) != (self.worker, attempt.number):
                _LOG.warning("late outcome refused", job=attempt.id, kept=stands.worker, refused=self.worker)
            outcome = stands
            self._tidy(attempt, outcome)
        self._tell(attempt.record, self._final(attempt, outcome), ack)

    def _tidy(self, attempt: Attempt, outcome: Outcome) -> None:
        """Delete the checkpoints of a job that has succeeded: not before its outcome stands."""
        if outcome.status is Status.SUCCEEDED:
            try:
                checkpoint.clear(self._store(), attempt.id)
            except TapeError as error:
                _LOG.warning("checkpoints not deleted", job=attempt.id, error=str(error))

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
            worker=self.worker,
            finished_at=self._now(),
            result=done.result,
            artifacts=done.artifacts,
            failure=failure,
            usage=verdict.usage,
            epoch=attempt.epoch,
        )

    def _final(self, attempt: Attempt, outcome: Outcome) -> Event:
        identity = end_id(attempt.id)
        if outcome.status is Status.DEAD:
            identity = _dead_id(attempt.id, attempt.line)
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
            worker=self.worker,
            started_at=attempt.started_at,
            labels=attempt.job.labels,
            **fields,
        )

    def _publish(self, event: Event) -> Future[Sent]:
        record = written(event, self._source)
        if len(record.value) > EVENT_LIMIT:  # the labels are the one part that is neither bounded nor needed
            record = written(event.model_copy(update={"labels": {}}), self._source)
        return self._send(self._names.events, None, *record)

    def _send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header],
        timestamp_ms: int | None = None,
    ) -> Future[Sent]:
        try:
            return self._publisher.publish(
                topic, key=key, value=value, headers=headers, partition=partition, timestamp_ms=timestamp_ms
            )
        except TapeError as error:
            refused: Future[Sent] = Future()
            refused.set_exception(error)
            return refused

    def _letter(self, attempt: Attempt, failure: Failure, usage: Usage) -> DeadLetter:
        record, past = attempt.record, self.after(attempt, failure, Bury(failure.message))
        now = past.tries[-1].ended_at
        model = getattr(attempt.params, "model", None) or getattr(attempt.params, "base", None)
        return DeadLetter(
            job=attempt.id, kind=attempt.kind.name, topic=record.topic, partition=record.partition,
            offset=record.offset, attempts=attempt.number, worker=self.worker, time=now, failure=failure, past=past,
            first_failed_at=past.tries[0].ended_at, last_failed_at=now, trace=_trace(attempt),
            tenant=attempt.job.tenant, model=model if isinstance(model, str) else None, replays=past.replays,
            gpu_seconds=usage.seconds or None,
            disposition=self._gate.disposition(attempt, failure),
        )  # fmt: skip

    def _dead(self, record: Record, letter: DeadLetter) -> Callable[[], Future[Sent]]:
        key, value, kept = fitting(record.key, record.value, record.headers)
        headers = [*kept, *dead_headers(letter)]
        topic = self._names.dead(letter.kind)
        return lambda: self._send(topic, None, key, value, headers)

    def _tell(self, record: Record, event: Event, ack: AckType) -> None:
        self._confirm(record, lambda: self._publish(event), lambda: self._done(record, ack, event))

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


def _dead_id(job: str, line: str) -> str:
    """The id of the event that a job is dead: one for all copies of the record by which it died."""
    return derived_id(job, "dead", *line.split("/"))


def _due(now: datetime, delay_s: float) -> datetime:
    """The moment after a delay, or the last one that there is."""
    try:
        return min(now + timedelta(seconds=delay_s), LAST)
    except OverflowError:
        return LAST


def _trace(attempt: Attempt) -> str | None:
    """Return the trace id that the job's sender gave, if it did."""
    parts = attempt.carrier.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else None
