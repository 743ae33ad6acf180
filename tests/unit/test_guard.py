"""Breakers around single calls: refused after failures, tried again later, and nobody waits for another's call."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from schemas.errors import AuthError, InvalidError, TapeError, UnavailableError
from wire.blobs import Blob, Blobs, Source
from wire.blobs.memory import Memory
from workers.circuit import Rules
from workers.guard import RESET_S, Guard, Guarded, Guards


class Calls:
    """A dependency, a clock, and a guard between."""

    def __init__(self) -> None:
        self.time, self.made = 0.0, 0
        self.error: Exception | None = None
        self.said: list[tuple[str, str | None]] = []
        self.guard = Guard("judge", failures=3, reset_s=10.0, clock=lambda: self.time)

    def once(self) -> str:
        self.made += 1
        if self.error:
            raise self.error
        return "ok"

    def told(self, dependency: str, error: TapeError | None) -> None:
        self.said.append((dependency, error.code if error else None))

    def attempt(self) -> str:
        try:
            return self.guard.call(self.once, told=self.told)
        except TapeError as error:
            return error.code
        except Exception as error:
            return type(error).__name__


def test_calls_are_refused_after_several_failures_and_tried_again_later() -> None:
    calls = Calls()
    calls.error = ConnectionRefusedError(111, "refused")
    assert [calls.attempt() for _ in range(5)] == ["TAPE-5007"] * 3 + ["TAPE-5010"] * 2
    assert calls.made == 3
    calls.time += 4
    with pytest.raises(UnavailableError) as caught:
        calls.guard.call(calls.once)
    assert caught.value.place == {"dependency": "judge", "retry_after": 6.0}
    calls.time += 6
    assert calls.attempt() == "TAPE-5007"  # one call tried it
    assert calls.attempt() == "TAPE-5010"
    calls.time += 10
    calls.error = None
    assert [calls.attempt() for _ in range(2)] == ["ok", "ok"]
    assert calls.guard.state == "closed"
    assert calls.said == [("judge", "TAPE-5007")] * 4 + [("judge", None)] * 2


def test_refused_credentials_are_told_each_time_and_stop_no_call() -> None:
    calls = Calls()
    calls.error = AuthError("the key is refused", code="TAPE-4004")
    assert [calls.attempt() for _ in range(9)] == ["TAPE-4004"] * 9
    assert calls.said == [("judge", "TAPE-4004")] * 9


def test_what_fails_names_its_dependency() -> None:
    calls = Calls()
    calls.error = ConnectionRefusedError(111, "refused")
    with pytest.raises(UnavailableError) as caught:
        calls.guard.call(calls.once)
    assert caught.value.place["dependency"] == "judge"
    assert caught.value.__cause__ is calls.error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        FileNotFoundError(2, "gone"),
        InvalidError("no"),
        UnavailableError("away", code="TAPE-5002", dependency="store"),
    ],
)
def test_an_answer_that_is_an_error_shows_that_the_dependency_is_there(error: Exception) -> None:
    calls = Calls()
    calls.error = error
    for _ in range(10):
        calls.attempt()
    assert (calls.made, calls.guard.state, set(calls.said)) == (10, "closed", {("judge", None)})
    with pytest.raises(type(error)) as caught:
        calls.guard.call(calls.once)
    assert caught.value is error


def test_threads_share_the_state_and_do_not_wait_for_each_other() -> None:
    calls = Calls()
    inside, go = threading.Barrier(3), threading.Event()

    def slow() -> str:
        inside.wait(timeout=10)  # both threads are in a call at the same time
        assert go.wait(timeout=10)
        raise ConnectionResetError("gone")

    def work() -> None:
        with pytest.raises(UnavailableError):
            calls.guard.call(slow)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(timeout=10)
    assert calls.attempt() == "ok"
    go.set()
    for thread in threads:
        thread.join()
    calls.error = ConnectionResetError("gone")
    assert calls.attempt() == "TAPE-5007"
    assert calls.attempt() == "TAPE-5010"


def test_the_fleets_probe_is_not_refused_by_what_it_comes_to_try() -> None:
    assert Rules().pause(1, 0.0) > RESET_S


def test_there_is_one_guard_for_each_dependency() -> None:
    guards = Guards(failures=1)
    assert guards.of("a") is guards.of("a") is not guards.of("b")
    with pytest.raises(UnavailableError):
        guards.of("a").call(lambda: (_ for _ in ()).throw(ConnectionResetError("gone")))
    assert (guards.of("a").state, guards.of("b").state) == ("open", "closed")


# --- the store


class Moody(Memory):
    """A store that is away when told so."""

    away = False

    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        if self.away:
            raise UnavailableError("the store does not answer", code="TAPE-5002")
        return super().put(name, source, sha256=sha256, content_type=content_type, expect=expect)


def test_a_store_that_fails_is_left_alone_for_a_while(tmp_path: Path) -> None:
    inner, now, told = Moody(), [0.0], []
    store = Guarded(
        Guard("store", failures=2, reset_s=5.0, clock=lambda: now[0]),
        lambda: inner,
        told=lambda name, error: told.append((name, error.code if error else None)),
    )
    inner.away = True
    for code in ("TAPE-5002", "TAPE-5002", "TAPE-5010", "TAPE-5010"):
        with pytest.raises(UnavailableError) as caught:
            store.create("a", b"1")
        assert (caught.value.code, caught.value.place["dependency"]) == (code, "store")
    with pytest.raises(UnavailableError):
        store.read("a")  # every call is refused, not only what failed
    inner.away = False
    now[0] += 5.0
    store.create("a", b"1")
    assert store.fetch("a", tmp_path / "a").size == store.stat("a").size == 1
    assert [blob.name for blob in store.list()] == ["a"]
    assert told == [("store", "TAPE-5002")] * 2 + [("store", None)] * 3


def test_a_store_is_opened_by_the_first_call_and_again_after_it_could_not_be() -> None:
    opened: list[Blobs] = []

    def open_store() -> Blobs:
        opened.append(Memory())
        if len(opened) == 1:
            raise UnavailableError("nobody answers", code="TAPE-5002")
        return opened[-1]

    store = Guarded(Guard("store"), open_store)
    assert not opened
    with pytest.raises(UnavailableError):
        store.put("a", b"1")
    store.put("a", b"1")
    assert store.read("a") == b"1"
    assert store.atomic_create
    assert len(opened) == 2
