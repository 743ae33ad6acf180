"""Breakers around single calls: refused after failures, tried again by one thread, never waiting for each other."""

from __future__ import annotations

import threading

import pytest

from schemas.errors import InvalidError, TapeError, UnavailableError
from workers.guard import Guard


class Calls:
    """A dependency, a clock, and a guard between."""

    def __init__(self) -> None:
        self.time, self.made = 0.0, 0
        self.error: Exception | None = None
        self.told: list[TapeError | None] = []
        self.guard = Guard("judge", failures=3, reset_s=10.0, told=self.told.append, clock=lambda: self.time)

    def once(self) -> str:
        self.made += 1
        if self.error:
            raise self.error
        return "ok"

    def attempt(self) -> str:
        try:
            return self.guard.call(self.once)
        except TapeError as error:
            return error.code
        except Exception as error:
            return type(error).__name__


def test_calls_are_refused_after_several_failures_and_tried_again_later() -> None:
    calls = Calls()
    calls.error = ConnectionRefusedError(111, "refused")
    assert [calls.attempt() for _ in range(5)] == ["ConnectionRefusedError"] * 3 + ["TAPE-5010"] * 2
    assert calls.made == 3
    calls.time += 4
    with pytest.raises(UnavailableError) as caught:
        calls.guard.call(calls.once)
    assert caught.value.place == {"dependency": "judge", "retry_after": 6.0}
    calls.time += 6
    assert calls.attempt() == "ConnectionRefusedError"  # one call tried it
    assert calls.attempt() == "TAPE-5010"
    calls.time += 10
    calls.error = None
    assert [calls.attempt() for _ in range(2)] == ["ok", "ok"]
    assert calls.guard.state == "closed"
    assert [error.code if error else None for error in calls.told] == ["TAPE-5007"] * 4 + [None] * 2


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(2, "gone"), InvalidError("no")])
def test_an_answer_that_is_an_error_shows_that_the_dependency_is_there(error: Exception) -> None:
    calls = Calls()
    calls.error = error
    for _ in range(10):
        calls.attempt()
    assert (calls.made, calls.guard.state, set(calls.told)) == (10, "closed", {None})


def test_threads_share_the_state_and_do_not_wait_for_each_other() -> None:
    calls = Calls()
    inside, go, found = threading.Barrier(3), threading.Event(), []

    def slow() -> str:
        inside.wait(timeout=10)  # both threads are in a call at the same time
        go.wait(timeout=10)
        raise ConnectionResetError("gone")

    def work() -> None:
        with pytest.raises(ConnectionResetError):
            calls.guard.call(slow)
        found.append(calls.guard.state)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(timeout=10)
    go.set()
    for thread in threads:
        thread.join()
    calls.error = ConnectionResetError("gone")
    assert calls.attempt() == "ConnectionResetError"
    assert calls.attempt() == "TAPE-5010"


def test_one_thread_tries_while_the_others_are_refused() -> None:
    calls = Calls()
    calls.error = ConnectionResetError("gone")
    for _ in range(3):
        calls.attempt()
    calls.time += 10
    calls.error = None
    inside, go = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        assert go.wait(timeout=10)
        return "ok"

    thread = threading.Thread(target=lambda: calls.guard.call(slow))
    thread.start()
    assert inside.wait(timeout=10)
    assert calls.attempt() == "TAPE-5010"
    go.set()
    thread.join()
    assert calls.attempt() == "ok"
