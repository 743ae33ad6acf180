"""What follows a failed attempt: a pure function of the policy, the failure, the job's past and the moment.

| class | what follows |
|---|---|
| invalid | buried at once: a human may mend and redrive it |
| permanent | failed for good: the same input would fail again |
| transient | tried again after an exponential back-off with full jitter |
| resource | with a smaller batch (where that helps), then on another worker, then buried |
| dependency | postponed, which spends nothing, for at most `Policy.wait_s` |
| crashed | tried again alone; buried after `Policy.crashes`, whatever the limit of attempts |
| timeout | tried again `Policy.timeouts` times |

No class goes beyond `Policy.attempts`. An attempt that moved its checkpoint on spends nothing, at most `CREDITS` times:
a job that comes nearer to its end with every attempt does end.
Source of the jitter: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from schemas.errors import FailureClass
from schemas.outcome import Failure
from schemas.past import Hint, Past
from workers.failures import suspect

LIMIT = 8
"""Most attempts a request may ask for; `schemas.job` refuses more."""
MEMORY = frozenset({"TAPE-6003"})
"""Codes of the class `resource` that a smaller batch may cure; for the others only another worker may."""
SHORTAGES = 2
"""Retries for want of resources: one with less, one elsewhere."""
CREDITS = 100
"""Attempts of a job that go unspent for their checkpoints. Ever smaller steps need not lead to an end; a training of
weeks on nodes that are taken away several times a day stays below it."""
_HINTS = list(Hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How patient one kind of job is. Times are seconds."""

    attempts: int = 3
    base_s: float = 5.0
    factor: float = 2.0
    cap_s: float = 600.0
    crashes: int = 3
    timeouts: int = 1
    wait_s: float = 86_400.0

    def backoff(self, spent: int, chance: float) -> float:
        """Return seconds to wait after the attempt number `spent` (from 1): full jitter, never more than `cap_s`."""
        return min(self.cap_s, self.base_s * self.factor ** min(max(spent - 1, 0), 32)) * chance


POLICIES: dict[str, Policy] = {
    "inference": Policy(base_s=2.0, cap_s=120.0),
    "evaluation": Policy(base_s=10.0),
    "training": Policy(base_s=30.0, cap_s=1_800.0),
    "indexing": Policy(base_s=10.0),
}
"""The policies of the kinds that ship with Tickertape; `Policy()` for any other."""


def policy(kind: str, *, default: int | None = None, asked: int | None = None, own: Policy | None = None) -> Policy:
    """Return the policy for a job of `kind`: `default` is the kind's limit of attempts, `asked` the request's.

    `own` is the policy that the kind itself declares; then `default` says nothing.
    """
    found = own or POLICIES.get(kind, Policy())
    wanted = asked or (None if own else default) or found.attempts
    return replace(found, attempts=min(max(wanted, 1), LIMIT))


@dataclass(frozen=True, slots=True)
class Retry:
    """Try it again: through the delay topics, with this hint in the headers."""

    delay_s: float
    hint: Hint = Hint.NONE
    spent: bool = True


@dataclass(frozen=True, slots=True)
class Postpone:
    """Wait for a dependency; no attempt is spent."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """It failed for good; the outcome says so."""


@dataclass(frozen=True, slots=True)
class Bury:
    """Make a dead letter of it."""

    reason: str


Decision = Retry | Postpone | Fail | Bury


@dataclass(frozen=True, slots=True)
class _Story:
    """What counts when an attempt has failed: this one and those before it."""

    attempts: int
    crashes: int
    shortages: int
    timeouts: int


def decide(
    policy: Policy,
    failure: Failure,
    past: Past,
    *,
    attempt: int,
    now: datetime,
    chance: float,
    advanced: bool = False,
) -> Decision:
    """Return what follows the failure of attempt number `attempt` (from 1; what exceeds the past died with a worker).

    `now` is when this attempt began: up to then the job had waited. `chance` is uniform in [0, 1). `advanced`: the
    attempt left a newer checkpoint than it found, which helps `CREDITS` times. A dependency's `retry_after` (seconds,
    in the failure's place) is the least delay, as far as `wait_s` goes.
    """
    advanced = advanced and past.credits < CREDITS
    if failure.failure is FailureClass.INVALID:
        return Bury("the input is invalid")
    if failure.failure is FailureClass.PERMANENT:
        return Fail()
    if failure.failure is FailureClass.DEPENDENCY:
        return _postpone(policy, failure, past, now, chance)
    story = _told(failure, past, attempt, advanced)
    if (reason := _spent(policy, failure, story)) is not None and not advanced:
        return Bury(reason)
    delay = max(policy.backoff(story.attempts, chance), min(asked_s(failure), policy.wait_s))
    return Retry(delay, _hint(failure, past, story), spent=not advanced)


def asked_s(failure: Failure) -> float:
    """Return the seconds that a dependency asked to wait, 0 if it did not."""
    raw: Any = failure.place.get("retry_after", 0)
    try:
        seconds = float(raw)
    except (TypeError, ValueError):
        return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def waited_s(past: Past, now: datetime) -> float:
    """Return for how long the job has waited for a dependency without a break; 0 if it has not."""
    last = past.tries[-1] if past.tries else None
    if last is None or not last.waited:
        return 0.0
    return max(0.0, (now - (last.started_at or last.ended_at)).total_seconds())


def _postpone(policy: Policy, failure: Failure, past: Past, now: datetime, chance: float) -> Decision:
    waited = waited_s(past, now)
    if waited >= policy.wait_s:
        return Bury(f"waited {waited:.0f} s for a dependency, and at most {policy.wait_s:.0f} s are waited")
    # The wait doubles, so its length so far says how long the next part is; half of it is certain, lest it spin.
    part = min(policy.cap_s, max(policy.base_s, waited * (policy.factor - 1))) * (1 + chance) / 2
    return Postpone(max(part, min(asked_s(failure), policy.wait_s)))


def _told(failure: Failure, past: Past, attempt: int, advanced: bool) -> _Story:
    deaths = max(0, attempt - 1 - past.spent)  # in the ledger only: the worker died and wrote nothing
    now = int(not advanced)

    def count(kind: FailureClass) -> int:
        return sum(one.spent and one.failure is kind for one in past.tries) + now * (failure.failure is kind)

    return _Story(
        attempts=max(past.spent, attempt - 1) + now,
        crashes=deaths + count(FailureClass.CRASHED),
        shortages=count(FailureClass.RESOURCE),
        timeouts=count(FailureClass.TIMEOUT),
    )


def _spent(policy: Policy, failure: Failure, story: _Story) -> str | None:
    """Return why there is no further attempt, or None."""
    kind = failure.failure
    if kind is FailureClass.CRASHED and story.crashes >= policy.crashes:
        return f"crashed {story.crashes} times"
    if kind is FailureClass.RESOURCE and story.shortages > SHORTAGES:
        return f"short of resources {story.shortages} times, on another worker too"
    if kind is FailureClass.TIMEOUT and story.timeouts > policy.timeouts:
        return f"timed out {story.timeouts} times"
    if story.attempts >= policy.attempts:
        return f"all {policy.attempts} attempts are spent"
    return None


def _hint(failure: Failure, past: Past, story: _Story) -> Hint:
    """A hint once given stays: what made it necessary is still true of the job."""
    found = past.hint
    if suspect(failure):  # the machine is to blame, not the job
        return _stronger(found, Hint.ELSEWHERE)
    if failure.failure is FailureClass.RESOURCE:
        first = failure.code in MEMORY and story.shortages <= 1
        found = _stronger(found, Hint.SMALLER if first else Hint.ELSEWHERE)
    if failure.failure is FailureClass.CRASHED or story.crashes:
        found = Hint.ALONE
    return found


def _stronger(one: Hint, other: Hint) -> Hint:
    return max(one, other, key=_HINTS.index)
