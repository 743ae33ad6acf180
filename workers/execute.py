"""One job: decode → admit → start → run → settle. A straight line over one record, in a slot's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
from opentelemetry import trace

from schemas.claim import End
from schemas.control import Pause
from schemas.errors import FailureClass, InvalidError, JobError, TapeError
from schemas.event import EventType
from schemas.job import Lane
from schemas.outcome import Cancelled, Failed, Failure, Succeeded, Verdict
from schemas.topics import Names
from wire import telemetry
from workers.admit import Admission, Signals
from workers.again import Again
from workers.attempt import Attempt, Record, read
from workers.claim import SURE_S, Claims
from workers.context import CHECKPOINT, measured
from workers.gate import Gate
from workers.kinds import Kind
from workers.policy import Bury, Decision, Fail, decide
from workers.runner import Runner
from workers.settle import Settler

_TRACER = trace.get_tracer("tickertape.worker")
_LOG = structlog.get_logger("tickertape.execute")
_NOTHING = nullcontext()


@dataclass(slots=True)
class Halt:
    """Whether an attempt was told to stop because its job is paused; it was, though that be taken back meanwhile."""

    pause: Pause | None = None


class Executor:
    """Runs acquired records through the pipeline. Whatever happens in here ends in exactly one settlement."""

    def __init__(
        self,
        *,
        kinds: Mapping[str, Kind],
        names: Names,
        settler: Settler,
        claims: Claims,
        gate: Gate,
        signals: Signals,
        again: Again,
        give: Callable[[Record], None],
    ) -> None:
        self._kinds, self._names, self._settler = kinds, names, settler
        self._topics = {names.jobs(kind, lane): (kind, lane.value) for kind in kinds for lane in Lane}
        self._again, self._give, self._claims, self._signals = again, give, claims, signals
        self._admission, self._gate = Admission(settler, claims, gate, signals), gate
        self._alone = threading.Lock()

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
            return read(record, self._kinds[kind], lane, self._signals.now())
        except TapeError as error:
            self._settler.bury_raw(record, kind, lane, Failure.of(error))
        except Exception as error:
            _LOG.exception("defect in the worker", topic=record.topic, offset=record.offset)
            self._settler.bury_raw(record, kind, lane, _defect(error))
        return None

    def _attempt(self, attempt: Attempt, runner: Runner) -> None:
        record = attempt.record
        try:
            with self._span(attempt), self._apart(attempt):
                if (admitted := self._admission.admit(attempt)) is not None:
                    with self._held(admitted) if admitted.ledgered else _NOTHING:
                        verdict = self._run(admitted, runner, halt := Halt())
                        self._gate.tell(admitted, verdict)
                        self._settle(admitted, verdict, halt)
        except (InvalidError, JobError) as error:  # it would be the same another time
            self._settler.bury(attempt, Failure.of(error))
        except TapeError as error:
            _LOG.error("attempt cannot go on yet", job=attempt.id, error=str(error))
            self._gate.trouble(attempt, error)
            if error.failure is FailureClass.DEPENDENCY:
                self._admission.postpone(attempt, Failure.of(error))
            else:
                self._again.later(record, lambda: self._give(record))
        except Exception as error:
            _LOG.exception("defect in the worker", job=attempt.id)
            self._settler.bury(attempt, _defect(error))
        finally:
            if self._signals.quotas is not None:
                self._signals.quotas.leave(attempt)
            self._gate.ended(attempt)

    def _apart(self, attempt: Attempt) -> AbstractContextManager[Any]:
        """Suspects run one at a time: should the worker die, the ledger names the one that was running."""
        return self._alone if attempt.suspect else _NOTHING

    @contextmanager
    def _held(self, attempt: Attempt) -> Iterator[None]:
        """Whatever happens, a claim beats no longer than its attempt lasts."""
        try:
            yield
        except BaseException:
            self._claims.abandon(attempt.id)
            raise
        finally:
            self._claims.drop(attempt.id)

    def _span(self, attempt: Attempt) -> AbstractContextManager[Any]:
        """A span under the client's; light jobs have one only when their sender traces them."""
        if not attempt.kind.recorded and "traceparent" not in attempt.carrier:
            return _NOTHING
        return _TRACER.start_as_current_span(
            f"job {attempt.kind.name}",
            context=telemetry.extract(attempt.carrier),
            kind=trace.SpanKind.CONSUMER,
            attributes={"tape.job": attempt.id, "tape.attempt": attempt.number, "tape.topic": attempt.record.topic},
        )

    def _run(self, attempt: Attempt, runner: Runner, halt: Halt) -> Verdict:
        halt.pause = self._signals.paused(attempt.id)
        if halt.pause is not None:  # paused while its claim was waited for
            return Cancelled()
        if attempt.kind.recorded:
            self._settler.announce(attempt, EventType.RUNNING)
            _LOG.info("job started", job=attempt.id, kind=attempt.kind.name, attempt=attempt.number)
        return runner.run(
            attempt,
            lambda data: self._progress(attempt, data),
            lambda: self._stopped(attempt, halt),
        )

    def _stopped(self, attempt: Attempt, halt: Halt) -> bool:
        """Whether the handler should end: the job was cancelled, paused or taken over, or the worker goes down."""
        halt.pause = self._signals.paused(attempt.id) or halt.pause
        ours = not attempt.ledgered or not self._claims.fenced(attempt.id)
        asked = self._signals.cancelled(attempt.id) is not None or halt.pause is not None
        return asked or self._signals.stopping() or not ours

    def _progress(self, attempt: Attempt, data: dict[str, Any]) -> None:
        """Tell how far the attempt is; what cannot be told is dropped: no job fails, or lives on, for it."""
        try:
            if (checkpoint := measured(data.get(CHECKPOINT))) is not None:
                self._claims.reach(attempt.id, checkpoint)
            self._settler.announce(attempt, EventType.PROGRESS, progress=data)
        except Exception as error:
            _LOG.warning("progress dropped, it cannot be told", job=attempt.id, error=repr(error))

    def _settle(self, attempt: Attempt, verdict: Verdict, halt: Halt) -> None:
        with self._step("settle", attempt):
            if not self._sure(attempt):
                self._settler.refuse(attempt)
            elif isinstance(verdict, Cancelled):
                self._end_early(attempt, verdict, halt)
            elif isinstance(verdict, Failed):
                self._failed(attempt, verdict)
            else:
                if attempt.kind.recorded:
                    self._admission.pace.add(attempt.kind.name, verdict.usage.seconds)
                self._finish(attempt, verdict)
        if attempt.kind.recorded:
            asked = not isinstance(verdict, Cancelled) or self._signals.cancelled(attempt.id) is not None
            # Stopped by a drain or a pause it was not cancelled, and goes on elsewhere.
            told = verdict.verdict if asked else "stopped"
            _LOG.info("job settled", job=attempt.id, verdict=told, seconds=round(verdict.usage.seconds, 3))

    def _sure(self, attempt: Attempt) -> bool:
        """Whether the job is still ours."""
        return not attempt.ledgered or self._patiently(attempt, self._claims.sure)

    def _freed(self, attempt: Attempt, end: End | None) -> bool:
        """Let go of the claim, if there is one; False when the job is not ours any more."""
        return not attempt.ledgered or self._patiently(attempt, partial(self._claims.free, end=end))

    def _patiently(self, attempt: Attempt, call: Callable[[str], bool]) -> bool:
        """Ask the claims until the store answers: the work is done and the lease is held, so there is time."""
        while True:
            try:
                return call(attempt.id)
            except TapeError as error:
                _LOG.error("claim not written yet", job=attempt.id, error=str(error))
                self._gate.trouble(attempt, error)
                if self._signals.pause(SURE_S):
                    return True

    def _failed(self, attempt: Attempt, verdict: Failed) -> None:
        failure, policy = verdict.failure, attempt.policy
        attempt = replace(attempt, reached=self._claims.reached(attempt.id))
        decision = decide(
            policy,
            failure,
            attempt.past,
            attempt=attempt.number,
            now=attempt.started_at,
            chance=self._signals.chance(),
            advanced=attempt.advanced,
        )
        decision = self._gate.handed_on(attempt, failure, decision)
        _LOG.warning(
            "job failed", job=attempt.id, attempt=attempt.number, code=failure.code, error=failure.message,
            decision=type(decision).__name__.lower(),
        )  # fmt: skip
        if isinstance(decision, Fail):
            self._finish(attempt, verdict)
        elif self._freed(attempt, self._end(attempt, failure, decision)):
            self._settler.apply(attempt, verdict, decision)
        else:
            self._settler.refuse(attempt)

    def _end(self, attempt: Attempt, failure: Failure, decision: Decision) -> End:
        return End(past=self._settler.after(attempt, failure, decision), buried=isinstance(decision, Bury))

    def _finish(self, attempt: Attempt, verdict: Succeeded | Failed | Cancelled) -> None:
        """End the job. A kept outcome stands above the claim; a light job's must not look like a death later."""
        if attempt.kind.recorded or self._freed(attempt, End(past=attempt.past)):
            self._settler.finish(attempt, verdict)
        else:
            self._settler.refuse(attempt)

    def _end_early(self, attempt: Attempt, verdict: Cancelled, halt: Halt) -> None:
        reason = self._signals.cancelled(attempt.id)
        if reason is None and halt.pause is not None:
            self._rest(attempt, halt.pause)
        elif reason is None and self._signals.stopping():
            # Stopped because the worker goes down, not because anybody asked: hand the job back.
            down = JobError("the worker was stopped", code="TAPE-3004", hint="another worker takes the job")
            if self._freed(attempt, None):
                self._settler.release(attempt, Failure.of(down))
            else:
                self._settler.refuse(attempt)
        else:
            self._finish(attempt, verdict.model_copy(update={"reason": reason or verdict.reason}))

    def _rest(self, attempt: Attempt, pause: Pause) -> None:
        """Hand back a job that was paused while it ran: nothing is spent, and its checkpoint stays where it is."""
        reached = max(attempt.past.reached, self._claims.reached(attempt.id))
        past = attempt.past.model_copy(update={"reached": reached})
        if self._freed(attempt, End(past=past)):
            _LOG.info("job paused", job=attempt.id, who=pause.who, reason=pause.reason)
            self._admission.rest(attempt, past, pause)
        else:
            self._settler.refuse(attempt)

    def _step(self, name: str, attempt: Attempt) -> AbstractContextManager[Any]:
        if not attempt.kind.recorded:
            return _NOTHING
        return _TRACER.start_as_current_span(name)


def _defect(error: Exception) -> Failure:
    return Failure.of(JobError(f"{type(error).__name__}: {error}", code="TAPE-6010"))
