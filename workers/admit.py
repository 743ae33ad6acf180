"""May this job run here and now? Whatever must not is settled at once; what may has its start written down first."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from schemas.claim import End, Start
from schemas.control import Pause
from schemas.errors import ConflictError, FailureClass, JobError, UnavailableError
from schemas.event import EventType
from schemas.outcome import Cancelled, Failed, Failure
from schemas.past import Hint, Past, Try
from workers.attempt import Attempt, former_of, life_of, place_of
from workers.claim import Busy, Claims, Copy, Over
from workers.gate import Gate
from workers.pace import Pace
from workers.policy import CREDITS, MEMORY, Bury, decide
from workers.quota import Quotas
from workers.settle import Settler

_LOG = structlog.get_logger("tickertape.admit")
BUSY_S = 20.0
"""How long a copy of a job waits while another worker runs it."""
FIRST_S, LONGEST_S = 5.0, 60.0
"""Between two looks at a paused job: a quarter of the time for which it has been paused, within these bounds."""
PAST_S = 0.01
"""So long after its last moment a job has certainly expired."""
REWRITTEN = 8
"""Deliveries after which a record is written anew; Kafka drops it after ten."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What an executor hears of the world: the time, chance in [0, 1), who was cancelled, whether to stop, who may.

    `pause` sleeps for seconds and returns True when the worker ends meanwhile; `paused` tells of a job that shall wait.
    """

    now: Callable[[], datetime]
    cancelled: Callable[[str], str | None]
    stopping: Callable[[], bool]
    pause: Callable[[float], bool]
    chance: Callable[[], float] = random.random
    quotas: Quotas | None = None
    paused: Callable[[str], Pause | None] = lambda _: None


class Admission:
    """The way in: settled, cancelled, expired, paused, too early, better elsewhere, busy, poisonous, or welcome."""

    def __init__(self, settler: Settler, claims: Claims, gate: Gate, signals: Signals) -> None:
        self._settler, self._claims, self._gate, self._signals = settler, claims, gate, signals
        self.pace = Pace()

    def admit(self, attempt: Attempt) -> Attempt | None:
        """Return the attempt to run, its number counted; None when there is none, and the record is settled.

        Raises `UnavailableError` when the store does not answer.
        """
        ends = self._ends(attempt)
        bar = self._barred(attempt) if ends is None else None
        if isinstance(bar, Failure):
            self.postpone(attempt, bar)
            return None
        known = self._settler.outcomes.read(attempt.id) if attempt.kind.recorded else None
        if known is not None and known.final:
            _LOG.info("already settled", job=attempt.id, status=known.status.value)
            self._settler.repeat(attempt, known)
            return None
        if bar is not None:
            self.rest(attempt, attempt.past, bar)
            return None
        if ends is None and (self._put_off(attempt) or self._over_quota(attempt)):
            return None
        if attempt.past.put_off:
            attempt = replace(attempt, past=attempt.past.welcomed())
        if attempt.ledgered:
            return self._ledgered(attempt, ends, 0 if known is None else known.epoch)
        if ends is not None:
            ends(attempt)
        return attempt if ends is None else None

    def _barred(self, attempt: Attempt) -> Pause | Failure | None:
        """Return the pause of the job, or what is away that it needs; a paused one is not asked to try that."""
        try:
            pause = self._signals.paused(attempt.id)
        except UnavailableError as error:  # no breaker of this kind is to hear of it
            return Failure.of(error)
        return pause or self._gate.enter(attempt)

    def _ledgered(self, attempt: Attempt, ends: Callable[[Attempt], None] | None, above: int) -> Attempt | None:
        """Write the start down, then look at what the ledger says."""
        mine = self._claim(attempt, above)
        if mine is None:
            return None
        try:
            if ends is not None:
                self._end(mine, ends)
                return None
            return None if self._poisonous(mine) or self._worn(mine) else _eased(mine)
        except BaseException:
            self._claims.abandon(attempt.id)
            raise

    def _end(self, attempt: Attempt, ends: Callable[[Attempt], None]) -> None:
        """End a job that does not run. Only who holds its claim may: another attempt may just have buried it."""
        if attempt.kind.recorded:
            ends(attempt)
            self._claims.drop(attempt.id)
        elif self._claims.free(attempt.id, End(past=attempt.past)):
            ends(attempt)
        else:
            self._settler.refuse(attempt)

    def _ends(self, attempt: Attempt) -> Callable[[Attempt], None] | None:
        """Return how the job ends without running, if it does: an open breaker is no reason to put that off."""
        job, settler = attempt.job, self._settler
        if (reason := self._signals.cancelled(attempt.id)) is not None:
            return lambda mine: settler.finish(mine, Cancelled(reason=reason))
        if attempt.expired:
            late = JobError("the job was not started in time", code="TAPE-6006", expires_at=job.expires_at)
        elif (short_s := self._too_short(attempt)) is not None:
            told = f"{attempt.kind.name} jobs take {short_s:.1f} s here, and there is less time than that"
            late = JobError(told, code="TAPE-6018", expires_at=job.expires_at)
        else:
            return None
        return lambda mine: settler.expire(mine, Failure.of(late))

    def postpone(self, attempt: Attempt, failure: Failure) -> None:
        """Put a job off because of a dependency; one that has waited for too long is buried."""
        decision = decide(
            attempt.policy, failure, attempt.past,
            attempt=attempt.number, now=attempt.started_at, chance=self._signals.chance(),
        )  # fmt: skip
        self._settler.apply(attempt, Failed(failure=failure), self._gate.handed_on(attempt, failure, decision))

    def rest(self, attempt: Attempt, past: Past, pause: Pause) -> None:
        """Put a paused job off until it is looked at again; that is no attempt, and no wait that ever ends badly.

        The longer it has been paused the rarer are the looks: whoever resumes it soon need not wait for long.
        """
        now, begin = self._signals.now(), attempt.job.not_before
        delay = min(LONGEST_S, max(FIRST_S, (now - pause.time).total_seconds() / 4))
        if begin is not None:
            delay = max(delay, (begin - now).total_seconds())
        delay = _in_time(attempt, now, delay)
        told = ConflictError(
            f"paused by {pause.by}", code="TAPE-3011", hint=f"`tape resume {attempt.id}` lets it go on",
            who=pause.who or None, since=pause.time.isoformat(),
        )  # fmt: skip
        self._settler.again(attempt, past.rested(delay), EventType.POSTPONED, delay_s=delay, failure=Failure.of(told))

    def _worn(self, attempt: Attempt) -> bool:
        """Write a record anew that was delivered too often: Kafka counts deliveries, whatever they were for."""
        if attempt.record.delivery_count < REWRITTEN:
            return False
        if self._claims.free(attempt.id, End(past=attempt.past)):
            self._settler.again(attempt, attempt.past, EventType.RETRYING, delay_s=0.0)
        else:
            self._settler.refuse(attempt)
        return True

    def _put_off(self, attempt: Attempt) -> bool:
        job, settler = attempt.job, self._settler
        if job.not_before is not None and attempt.started_at < job.not_before:
            wait_s = (job.not_before - attempt.started_at).total_seconds()
            settler.again(attempt, attempt.past, EventType.POSTPONED, delay_s=wait_s)
        elif attempt.elsewhere(self._settler.worker):
            short = JobError("short of resources here", code="TAPE-6003", hint="another worker may have more")
            settler.release(attempt, Failure.of(short))
        else:
            return False
        return True

    def _too_short(self, attempt: Attempt) -> float | None:
        """Return how long such a job takes, if it cannot end before it expires; None if it can, or nobody knows."""
        end = attempt.job.expires_at
        if end is None or (needed := self.pace.p95(attempt.kind.name)) is None:
            return None
        return needed if (end - attempt.started_at).total_seconds() < needed else None

    def _over_quota(self, attempt: Attempt) -> bool:
        """Put a job off while its tenant has no room for it; that is no attempt, and no wait that ever ends badly."""
        try:
            wait = self._signals.quotas.enter(attempt) if self._signals.quotas is not None else None
        except UnavailableError as error:
            if attempt.kind.recorded and error.code == "TAPE-5002":
                raise
            # No breaker of this kind is to hear of it: other tenants' jobs do without the store.
            self.postpone(attempt, Failure.of(error))
            return True
        if wait is None:
            return False
        delay = _in_time(attempt, attempt.started_at, wait.delay_s)
        self._settler.again(attempt, wait.past, EventType.POSTPONED, delay_s=delay, failure=wait.failure)
        return True

    def _claim(self, attempt: Attempt, above: int) -> Attempt | None:
        """Write the start down; None when another worker runs the job. A death `above` which it is was before."""
        record, past = attempt.record, attempt.past
        copy = Copy(
            place=str(place_of(record)), line=attempt.line, spent=past.spent,
            replays=past.replays, life=life_of(record),
            redelivered=record.delivery_count > 1, former=former_of(record),
        )  # fmt: skip
        claim = self._claims.take(attempt.id, copy, above=above)
        if isinstance(claim, Busy):
            busy = Failure.of(ConflictError("another worker runs the job", code="TAPE-3008", worker=claim.worker))
            # Not a try of the job: the wait may be long, and must not push the story of its attempts out.
            self._settler.again(attempt, past, EventType.POSTPONED, delay_s=BUSY_S, failure=busy)
            return None
        if isinstance(claim, Over):
            self._over(attempt, claim)
            return None
        for start in claim.lost:
            spent = start.reached <= past.reached or past.credits >= CREDITS
            death, unspent = _died(start, attempt.started_at, spent=spent), past.credits + int(not spent)
            update = {"hint": Hint.ALONE, "reached": max(past.reached, start.reached), "credits": unspent}
            past = past.after(death).model_copy(update=update)
        return replace(attempt, number=past.spent + 1, past=past, epoch=claim.start.epoch)

    def _over(self, attempt: Attempt, over: Over) -> None:
        """The record's attempt ended, but whoever ran it may have died before it wrote what follows: write that."""
        if over.end is None:
            self._settler.drop(attempt)
            return
        past, last = over.end.past, over.end.past.tries[-1]
        failure = Failure(failure=last.failure, code=last.code, message=last.message)
        told = replace(attempt, number=last.attempt)
        if not over.end.buried:
            delay = attempt.policy.backoff(past.spent, self._signals.chance())
            self._settler.again(
                told, past, EventType.RETRYING, delay_s=delay, failure=failure, copied=False, life=over.life
            )
        elif over.left_over:
            self._settler.dead_again(told, failure, over.line)
        else:
            before = past.model_copy(update={"tries": past.tries[:-1], "spent": past.spent - int(last.spent)})
            self._settler.bury(replace(told, past=before), failure)

    def _poisonous(self, attempt: Attempt) -> bool:
        """Bury a job of which too many workers, or processes, have died."""
        tries, policy = attempt.past.tries, attempt.policy
        crashes = [one for one in tries if one.spent and one.failure is FailureClass.CRASHED]
        if not crashes or (len(crashes) < policy.crashes and attempt.past.spent < policy.attempts):
            return False
        last = JobError(f"{len(crashes)} workers died of it, or beside it", code="TAPE-6008", last=crashes[-1].worker)
        failure = Failure.of(last)
        end = End(past=self._settler.after(attempt, failure, Bury("its workers died")), buried=True)
        if self._claims.free(attempt.id, end):
            self._settler.bury(attempt, failure)
        else:
            self._settler.refuse(attempt)
        return True


def _in_time(attempt: Attempt, now: datetime, delay_s: float) -> float:
    """Return a delay that is over when the job has expired: whoever waits for it is told in time."""
    end = attempt.job.expires_at
    return delay_s if end is None else min(delay_s, max(0.0, (end - now).total_seconds()) + PAST_S)


def _died(start: Start, now: datetime, *, spent: bool) -> Try:
    """What is known of an attempt whose worker died: that it began, and whether its checkpoint came further."""
    return Try(
        attempt=start.attempt, started_at=start.started_at, ended_at=now, worker=start.worker,
        failure=FailureClass.CRASHED, code="TAPE-6008", message="the worker died, or fell silent", spent=spent,
    )  # fmt: skip


def _eased(attempt: Attempt) -> Attempt:
    """Halve the batch of a job that ran out of memory; what a training learns from at a step stays the same."""
    past, size = attempt.past, getattr(attempt.params, "batch_size", None)
    # Stronger hints hide this one, and are given for other reasons too.
    short = past.hint is Hint.SMALLER or any(one.spent and one.code in MEMORY for one in past.tries)
    if not short or not isinstance(size, int) or size < 2:
        return attempt
    shared, changes = getattr(attempt.params, "devices", 1), {}
    shared = shared if isinstance(shared, int) and shared > 0 else 1
    fewer = [part for part in range(size // 2, 0, -1) if part % shared == 0]
    if isinstance(steps := getattr(attempt.params, "accumulation", None), int):
        fewer = [part for part in fewer if size % part == 0]
        changes["accumulation"] = steps * (size // fewer[0]) if fewer else steps
    if not fewer:  # a row for each device: it runs as it is, and says TAPE-6003 again where that is too much
        return attempt
    changes["batch_size"] = fewer[0]
    return replace(attempt, params=attempt.params.model_copy(update=changes))
