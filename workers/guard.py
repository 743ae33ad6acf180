"""Breakers around single calls: pybreaker, one state per dependency and process, shared by all its threads.

How it stands to `workers.breaker`: that one is the fleet's, counts jobs and decides which jobs are taken; it lives in
the worker's own process. This one counts calls, in whatever process makes them (a job's child too), and spares a
caller the wait for a dependency that has just failed several times: the call is refused with TAPE-5010, of the class
`dependency`, so the job is postponed. Its verdicts reach the fleet as those of jobs do, by `told` or by the failure.

pybreaker holds a lock while the call runs, so threads that shared one of its objects would wait for each other: each
thread has its own, on one storage. It also measures by the wall clock; the storage gives it times that fit the
monotonic one, and lets only one thread try at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pybreaker
from pybreaker import STATE_CLOSED, STATE_HALF_OPEN, STATE_OPEN

from schemas.errors import FailureClass, TapeError, UnavailableError
from workers.failures import classify

T = TypeVar("T")
FAILURES = 5
RESET_S = 10.0


class Guard:
    """Guards the calls to one dependency; thread-safe.

    `told` hears of every call that ran: the failure if the dependency was to blame, else None. What else a call
    raises (not found, conflict, a defect) shows that the dependency answers.
    """

    def __init__(
        self,
        dependency: str,
        *,
        failures: int = FAILURES,
        reset_s: float = RESET_S,
        told: Callable[[TapeError | None], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dependency, self._failures, self._reset_s = dependency, failures, reset_s
        self._listeners = [_Listener(told)] if told else []
        self._storage = Storage(reset_s, clock)
        self._local = threading.local()

    def call(self, what: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `what` and return its result.

        Raises what it raises, or `UnavailableError` (TAPE-5010) without calling it while the breaker is open.
        """
        try:
            return self._mine().call(what, *args, **kwargs)
        except pybreaker.CircuitBreakerError as error:
            raise UnavailableError(
                f"{self._dependency} has failed {self._failures} times in a row",
                code="TAPE-5010", dependency=self._dependency, retry_after=round(self._storage.left_s, 3),
            ) from error  # fmt: skip

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`, as the calling thread would meet it."""
        return self._storage.state

    def _mine(self) -> pybreaker.CircuitBreaker:
        found = getattr(self._local, "breaker", None)
        if isinstance(found, pybreaker.CircuitBreaker):
            return found
        made = self._local.breaker = pybreaker.CircuitBreaker(
            fail_max=self._failures,
            reset_timeout=self._reset_s,
            exclude=[_answered],
            listeners=self._listeners,
            state_storage=self._storage,
            name=self._dependency,
            throw_new_error_on_trip=False,
        )
        return made


class Storage(pybreaker.CircuitBreakerStorage):
    """The state of one dependency's calls, for the breakers of all threads."""

    def __init__(self, reset_s: float, clock: Callable[[], float]) -> None:
        super().__init__("threads")
        self._reset_s, self._clock = reset_s, clock
        self._lock = threading.Lock()
        self._state = STATE_CLOSED
        self._failures = self._successes = 0
        self._opened = self._tried = float("-inf")
        self._trier: int | None = None

    @property
    def state(self) -> str:
        """Return the state; half open is so only for the thread that tries."""
        with self._lock:
            other = self._state == STATE_HALF_OPEN and self._trier != threading.get_ident()
            return STATE_OPEN if other else self._state

    @state.setter
    def state(self, state: str) -> None:
        with self._lock:
            self._state = state
            if state != STATE_HALF_OPEN:
                self._trier = None

    @property
    def opened_at(self) -> datetime | None:
        """Return when it opened: so long ago as the monotonic clock says, and just now for all but one thread."""
        with self._lock:
            waited = self._clock() - self._opened
            if waited >= self._reset_s:
                # A trier that never came back must not keep the others out.
                if self._trier in (None, threading.get_ident()) or self._clock() - self._tried >= self._reset_s:
                    self._trier, self._tried = threading.get_ident(), self._clock()
                else:
                    waited = 0.0
            return datetime.now(UTC) - timedelta(seconds=min(waited, 10 * self._reset_s + 1))

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        with self._lock:
            self._opened = self._clock()

    @property
    def left_s(self) -> float:
        """Seconds until a call may try again; 0 if one may now."""
        with self._lock:
            return max(0.0, self._opened + self._reset_s - self._clock())

    @property
    def counter(self) -> int:
        """Failures in a row."""
        return self._failures

    def increment_counter(self) -> None:
        """Count a failure."""
        with self._lock:
            self._failures += 1

    def reset_counter(self) -> None:
        """Forget the failures."""
        with self._lock:
            self._failures = 0

    @property
    def success_counter(self) -> int:
        """Successes while half open."""
        return self._successes

    def increment_success_counter(self) -> None:
        """Count a success."""
        with self._lock:
            self._successes += 1

    def reset_success_counter(self) -> None:
        """Forget the successes."""
        with self._lock:
            self._successes = 0


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, told: Callable[[TapeError | None], None]) -> None:
        self._told = told

    def failure(self, cb: pybreaker.CircuitBreaker, exc: BaseException) -> None:
        self._told(classify(exc))

    def success(self, cb: pybreaker.CircuitBreaker) -> None:
        self._told(None)


def _answered(error: BaseException) -> bool:
    return classify(error).failure is not FailureClass.DEPENDENCY
