"""What follows a failed attempt: a pure function of the failure, the attempt's number and its limit."""

from __future__ import annotations

from enum import StrEnum

from schemas.errors import FailureClass
from schemas.outcome import Failure


class Decision(StrEnum):
    """What becomes of a job whose attempt failed."""

    RELEASE = "release"
    FAIL = "fail"
    BURY = "bury"


FINAL: dict[FailureClass, Decision | None] = {
    FailureClass.INVALID: Decision.BURY,
    FailureClass.PERMANENT: Decision.FAIL,
    FailureClass.TRANSIENT: None,
    FailureClass.RESOURCE: None,
    FailureClass.DEPENDENCY: None,
    FailureClass.CRASHED: None,
    FailureClass.TIMEOUT: None,
}
"""Classes that end a job at once, and how. `None`: another attempt may help."""


def decide(failure: Failure, *, attempt: int, limit: int) -> Decision:
    """Return what follows.

    `permanent` fails for good: the same input would fail again and its sender has to mend it. `invalid`, and whatever
    used up its attempts, becomes a dead letter: a human may redrive it.
    """
    final = FINAL[failure.failure]
    if final is not None:
        return final
    return Decision.RELEASE if attempt < limit else Decision.BURY
