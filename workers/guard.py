"""Breakers around single calls: pybreaker, one object a dependency and process, shared by all its threads.

How it stands to `workers.breaker`: that one is the fleet's, counts jobs and decides which jobs are taken; it lives in
the worker's own process. This one counts calls, in whatever process makes them (a job's child too), and spares a
caller the wait for a dependency that has just failed several times: the call is refused with TAPE-5010, of the class
`dependency`, so the job is postponed. What calls came to reaches the fleet's breaker by `told`, while the job runs.

pybreaker holds its lock while a function runs, but not while a `with` block does: threads never wait for each other's
calls. It measures by the wall clock, which may jump; its storage is given times that fit the monotonic one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pybreaker
import tenacity

from schemas.errors import FailureClass, TapeError, UnavailableError
from wire.blobs import Blob, Blobs, Reader, Source
from workers.failures import REFUSED, classify

T = TypeVar("T")
Told = Callable[[str, TapeError | None], None]
"""Hears of a call that was made: the dependency, and the failure if it was to blame; None: it answered."""
FAILURES = 5
RESET_S = 2.0
"""Shorter than the fleet's first pause: its probe must not be refused by what it comes to try."""
TRIES, PATIENCE_S = 4, 30.0
AGAIN = frozenset({"TAPE-5002", "TAPE-5007", "TAPE-5008"})
"""Codes of what may be over in a moment; credentials and an open breaker are not."""
LOOK_S = 0.2
_enough = tenacity.stop_after_attempt(TRIES) | tenacity.stop_before_delay(PATIENCE_S)
_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=8.0)


def nobody(_dependency: str, _error: TapeError | None) -> None:
    """Tell nobody."""


class Guard:
    """Guards the calls to one dependency; thread-safe. What a call raises that does not blame it shows it answers."""

    def __init__(
        self,
        dependency: str,
        *,
        failures: int = FAILURES,
        reset_s: float = RESET_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.dependency, self._failures, self._sleep = dependency, failures, sleep
        self._storage = _Storage(reset_s, clock)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=failures, reset_timeout=reset_s, exclude=[lambda error: not self._down(error)],
            state_storage=self._storage, name=dependency, throw_new_error_on_trip=False,
        )  # fmt: skip

    def call(self, what: Callable[[], T], *, told: Told = nobody) -> T:
        """Call `what` and return its result.

        Raises what it raises, where the dependency is to blame as an error of ours that names it; `UnavailableError`
        (TAPE-5010) without a call while the breaker is open.
        """
        try:
            with self._breaker.calling():
                result = what()
        except pybreaker.CircuitBreakerError as error:
            raise UnavailableError(
                f"{self.dependency} has failed {self._failures} times in a row",
                code="TAPE-5010", dependency=self.dependency, retry_after=round(self._storage.left_s, 3),
            ) from error  # fmt: skip
        except Exception as error:
            if not self._blamed(error):
                told(self.dependency, None)
                raise
            failure = classify(error)
            failure.place["dependency"] = self.dependency
            told(self.dependency, failure)
            if failure is error:
                raise
            raise failure from error
        told(self.dependency, None)
        return result

    def patiently(self, what: Callable[[], T], *, stopped: Callable[[], bool], told: Told = nobody) -> T:
        """Call `what`, again a few times where the dependency is busy or lost the call; a `Retry-After` is obeyed.

        Not for longer than `PATIENCE_S`, and not once `stopped` holds; the last error is the caller's. To the breaker
        it is one call.
        """
        failed: list[Exception] = []

        def once() -> T:
            if failed and stopped():
                raise failed[-1]
            try:
                return what()
            except Exception as error:
                failed.append(error)
                raise

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: classify(error).code in AGAIN),
            stop=lambda state: stopped() or _enough(state),
            wait=_wait,
            sleep=lambda seconds: self._pause(seconds, stopped),
            reraise=True,
        )
        return self.call(lambda: trying(once), told=told)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._breaker.current_state

    def _blamed(self, error: BaseException) -> bool:
        told = classify(error)
        return told.failure is FailureClass.DEPENDENCY and told.place.get("dependency") in (None, self.dependency)

    def _down(self, error: BaseException) -> bool:
        """Whether to spare others the wait: who is refused its credentials has its answer at once."""
        return self._blamed(error) and classify(error).code not in REFUSED

    def _pause(self, seconds: float, stopped: Callable[[], bool]) -> None:
        while seconds > 0 and not stopped():
            self._sleep(min(seconds, LOOK_S))
            seconds -= LOOK_S


class Guards:
    """The guards of one process, each made when it is first asked for. Thread-safe; takes what `Guard` takes."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._guards: dict[str, Guard] = {}

    def of(self, dependency: str) -> Guard:
        """Return the guard of a dependency."""
        found = self._guards.get(dependency)
        return found or self._guards.setdefault(dependency, Guard(dependency, **self._options))


class Guarded(Blobs):
    """A store behind its guard, opened by the first call. Listing is lazy, and goes past the guard."""

    def __init__(self, guard: Guard, open_store: Callable[[], Blobs], *, told: Told = nobody) -> None:
        self._guard, self._open, self._told = guard, open_store, told
        self._opening = threading.Lock()
        self._store: Blobs | None = None

    @property
    def store(self) -> Blobs:
        """The store itself. Raises what opening it raises."""
        if self._store is None:
            with self._opening:
                self._store = self._store or self._open()
        return self._store

    @property
    def atomic_create(self) -> bool:
        return self._call(lambda store: store.atomic_create)

    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        return self._call(
            lambda store: store.put(name, source, sha256=sha256, content_type=content_type, expect=expect)
        )

    def get(self, name: str, *, sha256: str | None = None) -> Reader:
        return self._call(lambda store: store.get(name, sha256=sha256))

    def stat(self, name: str) -> Blob:
        return self._call(lambda store: store.stat(name))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        return self.store.list(prefix)

    def delete(self, name: str) -> None:
        self._call(lambda store: store.delete(name))

    def link(self, name: str, expires_s: int = 3600) -> str:
        return self._call(lambda store: store.link(name, expires_s))

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        return self._call(lambda store: store.read(name, sha256=sha256))

    def fetch(self, name: str, path: Path, *, sha256: str | None = None) -> Blob:
        return self._call(lambda store: store.fetch(name, path, sha256=sha256))

    def _call(self, what: Callable[[Blobs], T]) -> T:
        return self._guard.call(lambda: what(self.store), told=self._told)


class _Storage(pybreaker.CircuitMemoryStorage):
    """The breaker's state, with the monotonic clock."""

    def __init__(self, reset_s: float, clock: Callable[[], float]) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self._reset_s, self._clock = reset_s, clock
        self._at = float("-inf")

    @property
    def opened_at(self) -> datetime:
        """Return when it opened: so long ago as the monotonic clock says."""
        left_s = self.left_s
        waited_s = self._reset_s - left_s if left_s else self._reset_s + 1  # that it is over is all that counts
        return datetime.now(UTC) - timedelta(seconds=waited_s)

    @opened_at.setter
    def opened_at(self, _: datetime) -> None:
        self._at = self._clock()

    @property
    def left_s(self) -> float:
        """Seconds until a call may try again; 0 if one may now."""
        return max(0.0, self._at + self._reset_s - self._clock())


def _wait(state: tenacity.RetryCallState) -> float:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    with suppress(KeyError, TypeError, ValueError):
        return float(classify(error).place["retry_after"])
    return _backoff(state)
