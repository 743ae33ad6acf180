"""Calls of a handler to a service over HTTP: a real server that is busy, slow, rude or away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from schemas.errors import FailureClass, JobError, TapeError, UnavailableError
from schemas.outcome import Cancelled, Failed, Failure, Succeeded
from schemas.past import Past
from wire.blobs.memory import Memory
from workers.context import CancelledByRequest, Context
from workers.guard import PATIENCE_S, TRIES, Guards
from workers.kinds import Kind
from workers.policy import Policy, Postpone, decide
from workers.runner import call

Answer = tuple[int, dict[str, str]] | str


class Judge:
    """Answers as its script says, then 200 for ever. `drop` closes the line, `slow` holds it until the end."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.asked = 0
        self.ended = threading.Event()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                judge.asked += 1
                answer = judge.script.pop(0) if judge.script else (200, {})
                if answer == "slow":
                    judge.ended.wait(20)
                if isinstance(answer, str):
                    self.close_connection = True
                    return
                status, headers = answer
                self.send_response(status)
                for name, value in {"content-length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def ask(self) -> str:
        try:
            with urlopen(self.url, timeout=0.5) as answer:
                return str(answer.read().decode())
        except HTTPError as error:
            error.close()
            raise

    def close(self) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
        self.http.server_close()


@pytest.fixture
def judge() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.close()


class Desk:
    """A context whose pauses are written down instead of waited."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.said: list[str | None] = []
        self.cancel_after: float | None = None
        self.context = Context(
            job="j", kind="say", attempt=1, worker="w", tenant="t", cache=Path(), scratch=Path(),
            open_store=Memory, report=lambda _: None, stopped=self.stopped,
            guards=Guards(sleep=self.slept.append), told=self.told,
        )  # fmt: skip

    def stopped(self) -> bool:
        return self.cancel_after is not None and sum(self.slept) >= self.cancel_after

    def told(self, dependency: str, error: TapeError | None) -> None:
        assert dependency == "judge"
        self.said.append(error.code if error else None)

    def call(self, judge: Judge) -> str:
        return self.context.call("judge", judge.ask)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(judge: Judge, status: int) -> None:
    desk = Desk()
    judge.script = [(status, {"Retry-After": "3"}), (status, {"Retry-After": "2"})]
    assert desk.call(judge) == "ok"
    assert (judge.asked, round(sum(desk.slept), 3)) == (3, 5.0)
    assert desk.said == [None]  # to the breaker it was one call, and it went well


def test_retry_after_may_be_a_moment(judge: Judge) -> None:
    desk = Desk()
    due = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    judge.script = [(503, {"Retry-After": due})]
    assert desk.call(judge) == "ok"
    assert 7 < sum(desk.slept) <= 10.2


@pytest.mark.parametrize("trouble", ["drop", "slow", (500, {}), (502, {})])
def test_what_is_over_in_a_moment_costs_a_moment(judge: Judge, trouble: Answer) -> None:
    desk = Desk()
    judge.script = [trouble, trouble]
    assert desk.call(judge) == "ok"
    assert judge.asked == 3
    assert 0 < sum(desk.slept) < PATIENCE_S


def test_who_asks_for_more_than_there_is_patience_is_left_alone_so_long(judge: Judge) -> None:
    desk = Desk()
    judge.script = [(429, {"Retry-After": "600"})]
    with pytest.raises(UnavailableError) as caught:
        desk.call(judge)
    assert (judge.asked, desk.slept) == (1, [])
    failure = Failure.of(caught.value)
    assert (failure.code, failure.failure) == ("TAPE-5008", FailureClass.DEPENDENCY)
    assert (failure.place["dependency"], failure.place["retry_after"]) == ("judge", 600.0)
    decision = decide(Policy(), failure, Past(), attempt=1, now=datetime.now(UTC), chance=0.0)
    assert decision == Postpone(600.0)


def test_one_that_stays_busy_is_asked_a_few_times_and_then_refused(judge: Judge) -> None:
    desk = Desk()
    judge.script = [(503, {})] * 100
    codes = []
    for _ in range(7):
        with pytest.raises(UnavailableError) as caught:
            desk.call(judge)
        codes.append(caught.value.code)
    assert codes == ["TAPE-5007"] * 5 + ["TAPE-5010"] * 2
    assert judge.asked == 5 * TRIES
    assert desk.said == ["TAPE-5007"] * 5


def test_one_that_is_away_is_named(judge: Judge) -> None:
    desk = Desk()
    judge.close()
    with pytest.raises(UnavailableError) as caught:
        desk.call(judge)
    assert (caught.value.code, caught.value.place["dependency"]) == ("TAPE-5007", "judge")
    assert len(desk.slept) > 0


@pytest.mark.parametrize(("status", "code"), [(400, "TAPE-1013"), (403, "TAPE-4003"), (404, "TAPE-2001")])
def test_an_answer_is_not_asked_for_twice(judge: Judge, status: int, code: str) -> None:
    desk = Desk()
    judge.script = [(status, {})]
    verdict = call(Kind("say", Any, lambda context, _: desk.call(judge)), desk.context, None)  # type: ignore[arg-type]
    assert isinstance(verdict, Failed)
    assert verdict.failure.code == code
    assert (judge.asked, desk.said) == (1, [None])


def test_refused_credentials_are_the_dependencys_and_not_repeated(judge: Judge) -> None:
    desk = Desk()
    judge.script = [(401, {})]
    with pytest.raises(TapeError) as caught:
        desk.call(judge)
    assert (caught.value.code, caught.value.place["dependency"]) == ("TAPE-4004", "judge")
    assert (judge.asked, desk.said) == (1, ["TAPE-4004"])


def test_a_job_that_is_cancelled_does_not_wait_to_the_end(judge: Judge) -> None:
    desk = Desk()
    desk.cancel_after = 1.0
    judge.script = [(503, {"Retry-After": "20"})]
    with pytest.raises(CancelledByRequest):
        desk.call(judge)
    assert (judge.asked, round(sum(desk.slept), 3)) == (1, 1.0)
    assert desk.said == ["TAPE-5007"]


def test_nor_does_one_whose_time_is_over(judge: Judge) -> None:
    desk = Desk()
    desk.context.deadline = 0.0
    judge.script = [(503, {"Retry-After": "20"})]
    with pytest.raises(JobError) as caught:
        desk.call(judge)
    assert (caught.value.code, judge.asked, desk.slept) == ("TAPE-7001", 1, [])


def test_a_handler_needs_nothing_but_the_call(judge: Judge) -> None:
    desk = Desk()

    def handler(context: Context, _: Any) -> Succeeded:
        return Succeeded(result={"said": context.call("judge", judge.ask)})

    kind = Kind("say", Any, handler, needs=("judge",))  # type: ignore[arg-type]
    judge.script = [(503, {}), "drop"]
    verdict = call(kind, desk.context, None)
    assert isinstance(verdict, Succeeded)
    assert verdict.result == {"said": "ok"}
    desk.cancel_after = 0.0
    judge.script = [(503, {})]
    assert isinstance(call(kind, desk.context, None), Cancelled)
