"""How a busy store is treated: single HTTP calls are retried with full jitter, politely and not for long."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import certifi
import tenacity
import urllib3

BUSY = frozenset({429, 500, 502, 503, 504})
ATTEMPTS = 5
BUDGET_S = 6.0
CONNECT_S = 2.0
READ_S = 30.0
"""A store that is silent for so long hangs: three jobs that find that out open its breaker within its window."""


class Transport(urllib3.PoolManager):
    """A pool of connections that repeats a call the server was too busy for, or that the network lost.

    At most `ATTEMPTS` times, and never beyond `budget_s` seconds: a `Retry-After` that asks for more ends the trying at
    once. The last answer or error is the caller's. Safe after a fork: a child never talks on its parent's sockets.
    """

    def __init__(self, *, budget_s: float = BUDGET_S, sleep: Callable[[float], None] | None = None) -> None:
        super().__init__(
            maxsize=16,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        self._owner = os.getpid()
        self._budget_s = budget_s
        self._sleep = sleep or tenacity.sleep_using_event(threading.Event())

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; the body must be bytes, so that it can be sent again."""
        if self._owner != os.getpid():
            self.clear()
            self._owner = os.getpid()
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_lost) | tenacity.retry_if_result(lambda answer: answer.status in BUSY),
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_before_delay(self._budget_s),
            wait=_wait,
            before_sleep=_release,
            sleep=self._sleep,
            retry_error_callback=_last,
        )(super().urlopen, method, url, redirect, **kw)


_jitter = tenacity.wait_random_exponential(multiplier=0.1, max=2.0)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds a `Retry-After` header asks for (RFC 9110 §10.2.3), or None when it asks for nothing."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    with suppress(ValueError, TypeError):
        due = parsedate_to_datetime(value)
        return max(0.0, (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp() - now.timestamp())
    return None


def _lost(error: BaseException) -> bool:
    # A certificate that is wrong stays wrong.
    return isinstance(error, urllib3.exceptions.HTTPError) and not isinstance(error, urllib3.exceptions.SSLError)


def _answer(state: tenacity.RetryCallState) -> urllib3.BaseHTTPResponse | None:
    outcome = state.outcome
    return None if outcome is None or outcome.failed else outcome.result()


def _wait(state: tenacity.RetryCallState) -> float:
    answer = _answer(state)
    asked = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC)) if answer is not None else None
    return _jitter(state) if asked is None else asked


def _release(state: tenacity.RetryCallState) -> None:
    if (answer := _answer(state)) is not None:
        answer.drain_conn()
        answer.release_conn()


def _last(state: tenacity.RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()
