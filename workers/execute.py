"""One job: decode → admit → start → run → settle. A straight line over one record, in a slot's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

import structlog
from opentelemetry import trace

from schemas.errors import InvalidError, JobError, TapeError
from schemas.event import EventType
from schemas.job import Lane
from schemas.outcome import Cancelled, Failed, Failure, Verdict
from schemas.topics import Names
from wire import telemetry
from workers.again import Again
from workers.attempt import Attempt, Record, read
from workers.kinds import Kind
from workers.retry import decide
from workers.runner import Runner
from workers.settle import Settler

_TRACER = trace.get_tracer("tickertape.worker")
_LOG = structlog.get_logger("tickertape.execute")


class Executor:
    """Runs acquired records through the pipeline. Whatever happens in here ends in exactly one settlement."""

    def __init__(
        self,
        *,
        kinds: Mapping[str, Kind],
        names: Names,
        settler: Settler,
        now: Callable[[], datetime],
        cancelled: Callable[[str], str | None],
        stopping: Callable[[], bool],
        again: Again,
        give: Callable[[Record], None],
    ) -> None:
        self._kinds, self._names, self._settler = kinds, names, settler
        self._topics = {names.jobs(kind, lane): (kind, lane.value) for kind in kinds for lane in Lane}
        self._now, self._cancelled, self._stopping = now, cancelled, stopping
        self._again, self._give = again, give

    def execute(self, record: Record, runner: Runner) -> None:
        """Take one record from bytes to settlement; never raises."""
        try:
            attempt = self._read(record)
            if attempt is not None:
                self._attempt(attempt, runner)
        except Exception:
            # Not even a dead letter could be made of it. It stays leased, so that nothing is lost, and is loud.
            _LOG.exception("defect in the worker", topic=record.topic, offset=record.offset)
            self._again.later(record, lambda: self._give(record))

    def _read(self, record: Record) -> Attempt | None:
        """Decode the record; what cannot be read becomes a dead letter."""
        kind, lane = "unknown", Lane.BULK.value
        try:
            known = self._topics.get(record.topic)
            if known is None:
                kind, lane = self._names.parse_jobs(record.topic)
                raise InvalidError(f"this worker has no kind {kind!r}", code="TAPE-1003", topic=record.topic)
            kind, lane = known
            return read(record, self._kinds[kind], lane, self._now())
        except TapeError as error:
            self._settler.bury_raw(record, kind, lane, Failure.of(error))
        except Exception as error:
            _LOG.exception("defect in the worker", topic=record.topic, offset=record.offset)
            self._settler.bury_raw(record, kind, lane, _defect(error))
        return None

    def _attempt(self, attempt: Attempt, runner: Runner) -> None:
        record = attempt.record
        try:
            with self._span(attempt):
                if self._admit(attempt):
                    self._settle(attempt, self._run(attempt, runner))
        except (InvalidError, JobError) as error:  # it would be the same another time
            self._settler.bury(attempt, Failure.of(error))
        except TapeError as error:
            _LOG.error("attempt cannot go on yet", job=attempt.id, error=str(error))
            self._again.later(record, lambda: self._give(record))
        except Exception as error:
            _LOG.exception("defect in the worker", job=attempt.id)
            self._settler.bury(attempt, _defect(error))

    def _span(self, attempt: Attempt) -> AbstractContextManager[Any]:
        """A span under the client's; light jobs have one only when their sender traces them."""
        if not attempt.kind.recorded and "traceparent" not in attempt.carrier:
            return nullcontext()
        return _TRACER.start_as_current_span(
            f"job {attempt.kind.name}",
            context=telemetry.extract(attempt.carrier),
            kind=trace.SpanKind.CONSUMER,
            attributes={"tape.job": attempt.id, "tape.attempt": attempt.number, "tape.topic": attempt.record.topic},
        )

    def _admit(self, attempt: Attempt) -> bool:
        """Settle at once what must not run: settled already, cancelled, expired, or delivered too often."""
        if attempt.kind.recorded and (known := self._settler.known(attempt)) is not None:
            _LOG.info("already settled", job=attempt.id, status=known.status.value)
            self._settler.repeat(attempt, known)
        elif (reason := self._cancelled(attempt.id)) is not None:
            self._settler.finish(attempt, Cancelled(reason=reason))
        elif attempt.job.expires_at is not None and attempt.started_at > attempt.job.expires_at:
            late = JobError("the job was not started in time", code="TAPE-6006", expires_at=attempt.job.expires_at)
            self._settler.expire(attempt, Failure.of(late))
        elif attempt.number > attempt.limit:
            lost = JobError(f"delivered {attempt.number} times without an end", code="TAPE-6008", limit=attempt.limit)
            self._settler.bury(attempt, Failure.of(lost))
        else:
            return True
        return False

    def _run(self, attempt: Attempt, runner: Runner) -> Verdict:
        if attempt.kind.recorded:
            self._settler.announce(attempt, EventType.RUNNING)
            _LOG.info("job started", job=attempt.id, kind=attempt.kind.name, attempt=attempt.number)
        return runner.run(
            attempt,
            lambda data: self._progress(attempt, data),
            lambda: self._cancelled(attempt.id) is not None or self._stopping(),
        )

    def _progress(self, attempt: Attempt, data: dict[str, Any]) -> None:
        self._settler.announce(attempt, EventType.PROGRESS, progress=data)

    def _settle(self, attempt: Attempt, verdict: Verdict) -> None:
        with self._step("settle", attempt):
            if isinstance(verdict, Cancelled):
                self._end_early(attempt, verdict)
            elif isinstance(verdict, Failed):
                decision = decide(verdict.failure, attempt=attempt.number, limit=attempt.limit)
                _LOG.warning(
                    "job failed",
                    job=attempt.id,
                    attempt=attempt.number,
                    code=verdict.failure.code,
                    error=verdict.failure.message,
                    decision=decision.value,
                )
                self._settler.apply(attempt, verdict, decision)
            else:
                self._settler.finish(attempt, verdict)
        if attempt.kind.recorded:
            _LOG.info("job settled", job=attempt.id, verdict=verdict.verdict, seconds=round(verdict.usage.seconds, 3))

    def _end_early(self, attempt: Attempt, verdict: Cancelled) -> None:
        reason = self._cancelled(attempt.id)
        if reason is None and self._stopping():
            # Stopped because the worker goes down, not because anybody asked: hand the job back.
            down = JobError("the worker was stopped", code="TAPE-3004", hint="another worker takes the job")
            self._settler.release(attempt, Failure.of(down))
        else:
            self._settler.finish(attempt, verdict.model_copy(update={"reason": reason or verdict.reason}))

    def _step(self, name: str, attempt: Attempt) -> AbstractContextManager[Any]:
        if not attempt.kind.recorded:
            return nullcontext()
        return _TRACER.start_as_current_span(name)


def _defect(error: Exception) -> Failure:
    return Failure.of(JobError(f"{type(error).__name__}: {error}", code="TAPE-6010"))
