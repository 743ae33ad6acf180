"""Breakers as the worker uses them: what a kind needs, whether its jobs may be taken now, and how they went.

A kind needs what it declares, the store where its outcome is kept there, and itself: a kind whose jobs all fail alike
is as good as away. While something a kind needs is away its jobs are not acquired, and what was acquired is postponed.
So it is with the kinds of child processes while the device of this worker is in quarantine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from schemas.control import parted
from schemas.errors import TapeError, UnavailableError
from schemas.outcome import Failed, Failure, Succeeded, Verdict
from workers.attempt import Attempt
from workers.breaker import KIND, Allowed, Breakers, Paused
from workers.failures import REFUSED, dependency, suspect
from workers.kinds import Kind
from workers.policy import Decision, Postpone
from workers.probe import apart
from workers.quarantine import Quarantine

HANDED_ON_S = 1.0
"""What was acquired when the device failed, or the credentials, is soon tried by another worker: this one takes no such
job, but one that tries it again."""
LEFT_S = 1.0
"""A worker that leaves a job to another takes none of its kind for so long: it would get the same one again."""


class Gate:
    """Stands between the queue and the kinds of one worker; thread-safe."""

    def __init__(
        self,
        breakers: Breakers,
        kinds: Mapping[str, Kind],
        quarantine: Quarantine | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._breakers, self._clock = breakers, clock
        self._left: dict[str, float] = {}
        self._needs = {name: needs(kind) for name, kind in kinds.items()}
        self._heavy = frozenset(name for name, kind in kinds.items() if kind.recorded)
        self._quarantine = quarantine or Quarantine(apart(kinds.values()))

    @property
    def device(self) -> str | None:
        """Why the device of this worker is not used; None when it is."""
        return self._quarantine.reason

    def room(self, kind: str) -> int | None:
        """Return how many jobs of a kind may be acquired now; None: as many as fit."""
        if self.device is not None and kind in self._heavy:
            return 0
        if self._left and self._clock() < self._left.get(kind, 0.0):
            return 0
        if self._breakers.calm:
            return None
        answer = self._breakers.allowed(self._needs[kind])
        if isinstance(answer, Allowed):
            return None
        return 0 if isinstance(answer, Paused) else 1

    def enter(self, attempt: Attempt) -> Failure | None:
        """Return None when the attempt may run, else why not: its place tells for how many seconds."""
        if (reason := self.device) is not None and attempt.kind.recorded:
            return Failure.of(_away("device", reason, HANDED_ON_S))
        if attempt.elsewhere(self._breakers.worker):  # `workers.admit` lets go of it
            self._left[attempt.kind.name] = self._clock() + LEFT_S
        if self._breakers.calm:
            return None
        answer = self._breakers.allowed(self._needs[attempt.kind.name])
        if isinstance(answer, Allowed):
            return None
        if isinstance(answer, Paused):
            return Failure.of(_away(answer.dependency, answer.reason, answer.seconds))
        if self._breakers.take(answer, attempt.id):
            return None
        return Failure.of(_away(answer.dependencies[0], "another job tries it", 1.0))

    def tell(self, attempt: Attempt, verdict: Verdict) -> None:
        """Take in how an attempt went."""
        if isinstance(verdict, Succeeded):
            if attempt.kind.recorded:
                self._quarantine.well()
            if not self._breakers.calm:
                for name in self._needs[attempt.kind.name]:
                    self._breakers.report(attempt.id, name, None)
        elif isinstance(verdict, Failed):
            if suspect(verdict.failure):
                self._quarantine.blame(verdict.failure.message)
            elif verdict.failure.place.get("hung"):
                self._quarantine.doubt(verdict.failure.message)
            self._report(attempt, verdict.failure)

    def trouble(self, attempt: Attempt, error: TapeError) -> None:
        """Take in that the worker itself could not reach something for this attempt."""
        self._report(attempt, Failure.of(error))

    def _report(self, attempt: Attempt, failure: Failure) -> None:
        named, own = dependency(failure), self._needs[attempt.kind.name]
        self._breakers.report(attempt.id, named if named in own else f"{KIND}{attempt.kind.name}", failure)

    def handed_on(self, attempt: Attempt, failure: Failure, decision: Decision) -> Decision:
        """Return the decision about a failure; what only this worker is refused is no reason for others to wait."""
        alone = failure.code in REFUSED or parted(str(failure.place.get("dependency", "")))[1] is not None
        if isinstance(decision, Postpone) and alone and self._breakers.apart(self._needs[attempt.kind.name]):
            return Postpone(min(decision.delay_s, HANDED_ON_S))
        return decision

    def ended(self, attempt: Attempt) -> None:
        """The attempt is over, whatever came of it."""
        if not self._breakers.calm:
            self._breakers.ended(attempt.id)

    def disposition(self, attempt: Attempt, failure: Failure) -> str:
        """Say whether the world or the job is to blame for a failure, for the header `tape-disposition`."""
        return self._breakers.disposition(failure, attempt.past).value


def needs(kind: Kind) -> tuple[str, ...]:
    """Return the dependencies of a kind, by the names of their breakers."""
    store = ("store",) if kind.recorded else ()
    return (*dict.fromkeys((*store, *kind.needs)), f"{KIND}{kind.name}")


def _away(name: str, reason: str, seconds: float) -> TapeError:
    return UnavailableError(
        f"{name} is away: {reason}", code="TAPE-5010", dependency=name, retry_after=round(seconds, 3)
    )
