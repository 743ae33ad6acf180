"""Handlers in real child processes: how they end, how they are ended, and what is left of them."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from worker_twin import START, record

from schemas.errors import FailureClass
from schemas.outcome import Cancelled, Failed, Succeeded, Verdict
from wire.process import wait_until
from wire.settings import Settings
from workers.attempt import Attempt, read
from workers.kinds import load
from workers.process import WIDE, ChildRunner, threads_of

TESTS = Path(__file__).parents[1]
TROUBLE = TESTS / "trouble"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The kind `trouble` can be found, here and in child processes."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(TROUBLE))
    paths = [str(TROUBLE), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def settings(home: Path) -> Settings:
    return Settings(home=home, cache=home / "cache", store_url=f"dir:{home / 'store'}", prefix="")


@pytest.fixture(scope="module")
def shared(settings: Settings) -> Iterator[ChildRunner]:
    """One runner for all tests that leave its child alive: starting one takes a second."""
    runner = ChildRunner("w1", settings, cancel_grace_s=0.3)
    yield runner
    runner.close()


@pytest.fixture
def runner(shared: ChildRunner) -> ChildRunner:
    return shared


def attempt(
    do: str = "work", *, kind: str = "trouble", timeout_s: float | None = None, stall_s: float | None = None,
    **params: Any,
) -> Attempt:  # fmt: skip
    limits = {name: found for name, found in (("timeout_s", timeout_s), ("stall_s", stall_s)) if found}
    job = record(kind_name=kind, params={"do": do, **params}, **limits)
    return read(job, load([kind])[kind], "bulk", START)


def run(
    runner: ChildRunner,
    job: Attempt,
    *,
    told: list[dict[str, Any]] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Verdict:
    return runner.run(job, (told if told is not None else []).append, stopped)


def failure(verdict: Verdict) -> Any:
    assert isinstance(verdict, Failed), verdict
    return verdict.failure


def scratch(home: Path) -> list[Path]:
    return list((home / "scratch").iterdir()) if (home / "scratch").exists() else []


def test_a_job_succeeds_with_progress_usage_and_a_warm_child(runner: ChildRunner) -> None:
    told: list[dict[str, Any]] = []
    first = run(runner, attempt(), told=told)
    assert isinstance(first, Succeeded)
    assert told == [{"step": "start", "pid": first.result["pid"]}]
    assert first.usage.prompt_tokens == 3
    assert first.usage.peak_memory_bytes > 10_000_000
    assert (first.usage.energy_source, first.usage.cost) in {("estimated", None), ("measured", None)}
    assert first.usage.energy_wh is not None
    again = run(runner, attempt())
    assert isinstance(again, Succeeded)
    assert again.result["pid"] == first.result["pid"] == runner.pid != os.getpid()


@pytest.mark.parametrize(("do", "code"), [("device", "TAPE-6016"), ("launch", "TAPE-6015")])
def test_a_child_that_met_a_broken_device_is_not_used_again(runner: ChildRunner, do: str, code: str) -> None:
    run(runner, attempt())
    before = runner.pid
    told = failure(run(runner, attempt(do)))
    assert told.code == code
    assert (told.place.get("device") == "suspect") == (do == "device"), "a launch may fail for the job's own code"
    assert runner.pid is None
    assert isinstance(run(runner, attempt()), Succeeded)
    assert runner.pid not in (None, before)


@pytest.mark.parametrize(("do", "code"), [("raise", "TAPE-6009"), ("none", "TAPE-6004")])
def test_failures_cross_the_socket_whole(runner: ChildRunner, do: str, code: str) -> None:
    assert failure(run(runner, attempt(do))).code == code
    assert runner.pid is not None


def test_what_a_child_finds_of_a_dependency_is_heard_while_the_job_runs(settings: Settings) -> None:
    heard: list[tuple[str, str | None]] = []
    runner = ChildRunner("w1", settings, heard=lambda _, name, found: heard.append((name, found and found.code)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Critic) as judge:
        serving = threading.Thread(target=judge.serve_forever, args=(0.05,))
        serving.start()
        url = f"http://127.0.0.1:{judge.server_port}"
        try:
            assert isinstance(run(runner, attempt("ask", kind="judged", size=3, url=f"{url}/200")), Succeeded)
            assert heard == [("judge", None)]  # the second time it is no news
            told = failure(run(runner, attempt("ask", kind="judged", url=f"{url}/401")))
            assert (told.code, told.failure, told.place["dependency"]) == (
                "TAPE-4004",
                FailureClass.DEPENDENCY,
                "judge",
            )
            assert heard[1:] == [("judge", "TAPE-4004")]
            run(runner, attempt("ask", url=f"{url}/401"))  # a kind that does not declare it: nobody asks its breaker
            assert len(heard) == 2
        finally:
            runner.close()
            judge.shutdown()
            serving.join()


class Critic(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def test_a_child_whose_report_fails_is_ended_and_the_next_job_has_its_own_verdict(runner: ChildRunner) -> None:
    pids: list[int] = []

    def report(progress: dict[str, Any]) -> None:
        pids.append(progress["pid"])
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        runner.run(attempt(), report, lambda: False)
    assert runner.pid is None
    assert not running(pids[0])
    assert failure(run(runner, attempt("raise"))).code == "TAPE-6009"


def test_what_a_child_says_of_another_job_is_not_believed(settings: Settings) -> None:
    runner, told = ChildRunner("w1", settings), list[dict[str, Any]]()
    try:
        for job in ("job-1", "job-2", "job-2"):
            found = replace(attempt("haunt"), id=job)
            assert isinstance(run(runner, found, told=told), Succeeded)
    finally:
        runner.close()
    assert told == [{"of": "job-1"}, {"of": "job-2"}, {"of": "job-2"}]


@pytest.mark.parametrize("which", range(3))
def test_a_result_that_is_not_json_fails_its_job_and_not_the_child(runner: ChildRunner, which: int) -> None:
    run(runner, attempt())
    before = runner.pid
    assert failure(run(runner, attempt("odd", size=which))).code == "TAPE-6011"
    assert runner.pid == before


def test_a_large_result_passes_and_a_huge_one_fails(runner: ChildRunner) -> None:
    told: list[dict[str, Any]] = []
    verdict = run(runner, attempt("flood", size=400_000), told=told)
    assert isinstance(verdict, Succeeded)
    assert len(verdict.result["text"]) == 400_000
    assert [entry["step"] for entry in told] == list(range(200))
    assert failure(run(runner, attempt("flood", size=5_000_000))).code == "TAPE-6011"


def test_what_a_handler_prints_harms_nothing(runner: ChildRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()  # a thread writes to it: what `capfd` reads meanwhile may be truncated away
    monkeypatch.setattr(sys, "stderr", printed)
    verdict = run(runner, attempt("chatter"))
    assert isinstance(verdict, Succeeded)
    assert verdict.result == {"text": "said"}
    assert wait_until(lambda: "verdict" in printed.getvalue(), deadline_s=5)


def test_a_cancelled_job_stops_and_its_child_lives_on(runner: ChildRunner) -> None:
    told: list[dict[str, Any]] = []
    verdict = run(runner, attempt("work", seconds=60), told=told, stopped=lambda: bool(told))
    assert isinstance(verdict, Cancelled)
    assert runner.pid == told[0]["pid"]
    assert isinstance(run(runner, attempt()), Succeeded), "the cancellation stuck to the next job"


def test_a_job_that_ignores_its_cancellation_is_killed(runner: ChildRunner) -> None:
    told: list[dict[str, Any]] = []
    verdict = run(runner, attempt("deaf", seconds=60), told=told, stopped=lambda: bool(told))
    assert isinstance(verdict, Cancelled)
    assert "did not stop" in verdict.reason
    assert runner.pid is None
    assert not psutil.pid_exists(told[0]["pid"])


def test_a_job_that_talks_and_does_not_move_is_hung(runner: ChildRunner) -> None:
    assert isinstance(run(runner, attempt()), Succeeded), "the process is there: its start is no part of what follows"
    verdict = run(runner, attempt("tread", size=2, seconds=0.2, stall_s=1.0))
    assert (failure(verdict).code, failure(verdict).failure) == ("TAPE-7004", FailureClass.TIMEOUT)
    assert failure(verdict).place["stall_s"] == 1.0
    assert "'step': 0" in failure(verdict).place["last"]
    assert "hung" not in failure(verdict).place, "a tenant's small limit is no reason to doubt the device"
    assert isinstance(run(runner, attempt("tread", size=4, seconds=0.1, stall_s=3.0)), Succeeded), "slow is not hung"


def test_a_job_is_killed_at_its_timeout_with_all_it_started(runner: ChildRunner, home: Path) -> None:
    told: list[dict[str, Any]] = []
    verdict = run(runner, attempt("family", seconds=60, timeout_s=2.5), told=told)
    assert (failure(verdict).code, failure(verdict).failure) == ("TAPE-7001", FailureClass.TIMEOUT)
    assert failure(verdict).place["hung"], "the worker must doubt the device"
    assert 2.5 <= verdict.usage.seconds < 20
    (grandchild,) = (entry["pid"] for entry in told)
    assert wait_until(lambda: not running(grandchild), deadline_s=5)
    assert scratch(home) == []
    verdict = run(runner, attempt())
    assert isinstance(verdict, Succeeded), "no new child was started"


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("do", "how"), [("segfault", "by signal SIGSEGV"), ("leave", "with exit code 3"), ("killed", "by signal SIGKILL")]
)
def test_a_child_that_dies_costs_one_attempt(runner: ChildRunner, do: str, how: str) -> None:
    run(runner, attempt())
    pid = runner.pid
    verdict = run(runner, attempt(do))
    told = failure(verdict)
    assert (told.code, told.failure, told.place["pid"]) == ("TAPE-6002", FailureClass.CRASHED, pid)
    assert 10_000_000 < told.place["peak_memory_bytes"] == verdict.usage.peak_memory_bytes
    assert how in told.message
    if do == "segfault":
        assert "last words on stderr" in told.detail
        assert "last words on stdout" in told.detail
    verdict = run(runner, attempt())
    assert isinstance(verdict, Succeeded)
    assert verdict.result["pid"] != pid


def test_a_child_that_hangs_up_but_lives_on_is_ended(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.process.EXIT_S", 0.2)
    runner = ChildRunner("w1", settings)
    told = failure(run(runner, attempt("hang_up", seconds=60)))
    assert told.code == "TAPE-6002"
    assert runner.pid is None


def test_a_child_that_is_left_with_too_many_threads_does_not_stay_warm(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's pools never shrink: what one job asked for would lie on the machine for as long as the worker lives."""
    runner = ChildRunner("w1", settings)
    assert isinstance(run(runner, attempt()), Succeeded)
    pid = runner.pid
    assert pid is not None and 0 < threads_of(pid) < WIDE, "as a rule it stays"
    monkeypatch.setattr("workers.process.WIDE", threads_of(pid) - 1)
    assert isinstance(run(runner, attempt()), Succeeded)
    assert runner.pid is None and not running(pid)
    assert isinstance(run(runner, attempt()), Succeeded), "the next job has another"


def test_threads_that_are_not_told_are_none(tmp_path: Path) -> None:
    assert threads_of(7, proc=tmp_path) == 0
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nThreads:\t31773\n")
    assert threads_of(7, proc=tmp_path) == 31773


def test_scratch_is_gone_however_the_job_ends(runner: ChildRunner, home: Path) -> None:
    verdict = run(runner, attempt("litter"))
    assert isinstance(verdict, Succeeded)
    assert not Path(verdict.result["scratch"]).exists()
    told: list[dict[str, Any]] = []
    run(runner, attempt("litter", seconds=60), told=told, stopped=lambda: bool(told))
    assert Path(told[0]["scratch"]).parent == home / "scratch"
    assert scratch(home) == []


def test_a_closed_runner_leaves_no_process(settings: Settings) -> None:
    runner = ChildRunner("w1", settings)
    run(runner, attempt())
    pid = runner.pid
    assert pid is not None
    runner.close()
    assert not running(pid)
    runner.close()


def test_a_worker_with_a_price_tells_what_an_attempt_cost_however_it_ended(settings: Settings) -> None:
    runner = ChildRunner("w1", settings.model_copy(update={"price_per_hour": 36_000.0}))
    try:
        verdicts = [run(runner, attempt()), run(runner, attempt("raise"))]
    finally:
        runner.close()
    assert isinstance(verdicts[1], Failed)
    for verdict in verdicts:
        assert verdict.usage.cost is not None
        assert 10 * verdict.usage.seconds <= verdict.usage.cost + 1e-6 < 10 * (verdict.usage.seconds + 1)


def test_a_child_that_cannot_start_fails_the_attempt(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    told = failure(run(ChildRunner("w1", settings), attempt()))
    assert (told.code, told.failure) == ("TAPE-6002", FailureClass.CRASHED)
    assert "did not start" in told.message


def test_a_child_has_its_parents_settings_and_no_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("TAPE_PREFIX", "other.")
    monkeypatch.setenv("TAPE_OTLP_ENDPOINT", "http://127.0.0.1:1")
    runner = ChildRunner("w1", settings)
    try:
        assert isinstance(run(runner, attempt()), Succeeded)
        assert runner.pid is not None
        environment = psutil.Process(runner.pid).environ()
    finally:
        runner.close()
    assert environment["TAPE_PREFIX"] == ""
    assert "TAPE_OTLP_ENDPOINT" not in environment
    assert Settings.load(env={key: environment[key] for key in environment if key.startswith("TAPE_")}) == settings


PARENT = """
import sys, threading
from pathlib import Path
sys.path[:0] = [{unit!r}, {trouble!r}]
import test_worker_child as tests
from wire.settings import Settings
from workers.process import ChildRunner
home = Path({home!r})
runner = ChildRunner("w1", Settings(home=home, cache=home, store_url=f"dir:{{home}}/store"))
def told(progress):
    print(progress["pid"], flush=True)
threading.Thread(target=lambda: runner.run(tests.attempt("deaf", seconds=60), told, lambda: False)).start()
"""


def test_a_parents_death_takes_its_child_along(tmp_path: Path) -> None:
    code = PARENT.format(unit=str(Path(__file__).parent), trouble=str(TROUBLE), home=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_until(lambda: not running(pid), deadline_s=5)


def test_a_child_that_nobody_listens_to_any_more_ends_without_a_word(settings: Settings, home: Path) -> None:
    """A worker that is hurried lets go of a job that still runs; its child's log is read for other things."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "workers.child", str(theirs.fileno()), "trouble"]
    env = os.environ | settings.environ()
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, text=True, env=env) as child:
        theirs.close()
        talk = Connection(ours.detach())
        made = ChildRunner("w1", settings)
        talk.send_bytes(json.dumps(made._message(attempt("work", seconds=1.0), home)).encode())
        kinds = [json.loads(talk.recv_bytes())["type"] for _ in range(2)]
        assert kinds == ["ready", "progress"]
        talk.close()
        _, told = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "Traceback" not in told


def test_a_child_outlives_the_thread_that_waits_for_others(settings: Settings) -> None:
    """The kernel's parent-death signal counts the thread that started the child: it must be the slot's own."""
    runner = ChildRunner("w1", settings)
    ended = threading.Event()
    verdicts: list[Verdict] = []

    def slot() -> None:
        for _ in range(2):
            threading.Thread(target=lambda: None).start()
            verdicts.append(run(runner, attempt()))
        runner.close()
        ended.set()

    threading.Thread(target=slot).start()
    assert ended.wait(30)
    assert len({verdict.result["pid"] for verdict in verdicts if isinstance(verdict, Succeeded)}) == 1
