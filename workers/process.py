"""The parent's side of a slot's child process: start it, feed it, watch it, and tell how it died."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from pydantic import TypeAdapter

from schemas.errors import JobError
from schemas.outcome import Cancelled, Failed, Failure, Usage, Verdict
from wire import telemetry
from wire.settings import PREFIX, Settings
from workers import oom
from workers.attempt import Attempt
from workers.failures import suspect
from workers.runner import Heard, Movement, Scratch, hear, unheard

_LOG = structlog.get_logger("tickertape.process")
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Idle OpenMP threads sleep: spinning ones make a training step many times slower beside any other load."""
_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
_FAILURE: TypeAdapter[Failure | None] = TypeAdapter(Failure | None)
EXIT_S = 5.0
"""How long a child may take to end once its socket is closed."""
LINE_BYTES = 65_536
BROKEN = "TAPE-6015"
"""The code of a device context that is broken, whoever broke it: all that follows in that process fails alike."""
WIDE = max(64, 8 * (os.cpu_count() or 1))
"""Threads of a child that stays warm: torch's pools never shrink, and idle threads count against the machine too."""
PROC = Path("/proc")
TICK_S = 0.2
"""How often a running job is checked for cancellation and deadline while its child is silent."""


class ChildRunner:
    """Runs handlers in a child process that is started ahead of the first job and stays warm.

    A segfault, an OOM kill or a hang costs the attempt, never the worker: the child is replaced.
    """

    def __init__(
        self,
        worker: str,
        settings: Settings,
        *,
        kinds: Sequence[str] = (),
        cancel_grace_s: float = 5.0,
        heard: Heard = unheard,
    ) -> None:
        self._worker, self._settings, self._grace_s = worker, settings, cancel_grace_s
        self._kinds, self._heard = tuple(kinds), heard
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._log: deque[str] = deque(maxlen=40)
        self._reader: threading.Thread | None = None
        self._runs = 0

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._process.pid if self._process else None

    def warm(self) -> None:
        """Start the child now if there is none: a second of imports that the next job need not wait for."""
        with suppress(OSError):  # the next job meets it again, and tells
            self._ensure()

    def run(self, attempt: Attempt, report: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]) -> Verdict:
        """Run the attempt in the child; kill it at the timeout, or when it ignores a cancellation.

        What `report` or `stopped` raise passes, and the child is gone then. What it says of other runs is dropped.
        """
        started = time.monotonic()
        self._runs += 1
        try:
            connection = self._ensure()
            assert self._process is not None
            killed = oom.watch(self._process.pid)
        except OSError as error:
            told = JobError(f"the job's process did not start: {error}", code="TAPE-6002")
            return Failed(failure=Failure.of(told))
        with Scratch(self._settings.home / "scratch") as scratch:  # not the child's: it may not live to remove it
            try:
                connection.send_bytes(json.dumps(self._message(attempt, scratch)).encode())
                verdict = self._await(connection, attempt, report, stopped)
                if isinstance(verdict, Failed) and (suspect(verdict.failure) or verdict.failure.code == BROKEN):
                    self.kill()  # it does not heal; the next job must not meet it
            except (EOFError, OSError):
                verdict = self._post_mortem(killed)
            except BaseException:
                self.kill()  # it would run on, beside the next job
                raise
        if self._process is not None and threads_of(self._process.pid) > WIDE:
            _LOG.info("child ended, its threads do not", job=attempt.id, most=WIDE)
            self.close()
        if verdict.usage.seconds == 0:
            usage = verdict.usage.model_copy(update={"seconds": time.monotonic() - started})
            verdict = verdict.model_copy(update={"usage": usage})
        return verdict

    def _message(self, attempt: Attempt, scratch: Path) -> dict[str, Any]:
        return {
            "type": "run",
            "job": attempt.id,
            "run": self._runs,
            "kind": attempt.kind.name,
            "params": attempt.params.model_dump(mode="json"),
            "attempt": attempt.number,
            "worker": self._worker,
            "tenant": attempt.job.tenant,
            "labels": attempt.job.labels,
            "timeout_s": attempt.timeout_s,
            "scratch": str(scratch),
            "carrier": telemetry.inject(),
        }

    def _await(
        self,
        connection: Connection,
        attempt: Attempt,
        report: Callable[[dict[str, Any]], None],
        stopped: Callable[[], bool],
    ) -> Verdict:
        deadline = time.monotonic() + attempt.timeout_s if attempt.timeout_s else float("inf")
        kill_at = float("inf")
        movement = Movement(attempt.job.stall_s)
        while True:
            if connection.poll(TICK_S):
                message = json.loads(connection.recv_bytes())
                if (message["job"], message["run"]) != (attempt.id, self._runs):
                    if message["job"]:  # of a thread that an earlier job left behind
                        _LOG.warning("message of another job dropped", job=attempt.id, other=message["job"])
                elif message["type"] == "verdict":
                    return _VERDICT.validate_python(message["verdict"])
                elif message["type"] == "progress":
                    movement.seen(message["progress"])
                    report(message["progress"])
                elif message["type"] == "call":
                    hear(self._heard, attempt, message["dependency"], _FAILURE.validate_python(message["failure"]))
            now = time.monotonic()
            if now > deadline:
                told = "the attempt was killed at its timeout"
                return self._hung(told, "TAPE-7001", timeout_s=attempt.timeout_s, hung=True)
            if movement.stalled():
                told = f"the attempt made no progress for {attempt.job.stall_s:g} s"
                return self._hung(told, "TAPE-7004", stall_s=attempt.job.stall_s, last=movement.told)
            if kill_at == float("inf") and stopped():
                connection.send_bytes(b'{"type": "cancel"}')
                kill_at = now + self._grace_s
            if now > kill_at:
                self.kill()
                return Cancelled(reason="killed: the handler did not stop in time")

    def _hung(self, told: str, code: str, **place: Any) -> Failed:
        self.kill()
        return Failed(failure=Failure.of(JobError(told, code=code, **place), detail=self._tail()))

    def _ensure(self) -> Connection:
        if self._process is not None and self._connection is not None and self._process.poll() is None:
            return self._connection
        self.kill()
        ours, theirs = socket.socketpair()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.child", str(theirs.fileno()), *self._kinds],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=QUIET | kept | self._settings.environ(),
                start_new_session=True,
            )
            undo.pop_all()
        self._log.clear()
        self._reader = threading.Thread(target=self._copy, args=(self._process,), name="child-log", daemon=True)
        self._reader.start()
        self._connection = Connection(ours.detach())
        return self._connection

    def _copy(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in iter(partial(process.stderr.readline, LINE_BYTES), b""):
            text = line.decode("utf-8", "replace")
            self._log.append(text)
            with suppress(OSError, ValueError):  # nobody reads our log: still read on, or the child would wait for us
                sys.stderr.write(text)
        process.stderr.close()

    def _tail(self) -> str:
        if self._reader is not None:
            self._reader.join(timeout=1.0)
        return "".join(self._log)

    def _post_mortem(self, killed: Callable[[], bool]) -> Failed:
        assert self._process is not None
        code, peak = _reap(self._process)
        if code == -signal.SIGKILL and killed():
            told, known = "was killed by the kernel, for memory", "TAPE-6003"
        else:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            told, known = f"ended {how}", "TAPE-6002"
        place: dict[str, Any] = {"pid": self._process.pid} | ({"peak_memory_bytes": peak} if peak else {})
        error = JobError(f"the job's process {told}", code=known, **place)
        trace.get_current_span().record_exception(error)
        tail = self._tail()
        self._forget()
        return Failed(failure=Failure.of(error, detail=tail), usage=Usage(peak_memory_bytes=peak))

    def kill(self) -> None:
        """End the child at once; the next job starts a new one."""
        if self._process is not None and self._process.poll() is None:
            _end(self._process)
        self._forget()

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._process = None

    def close(self) -> None:
        """Ask the child to end by closing its socket; kill it when it does not within two seconds."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                _end(self._process)
        self._process = None


def threads_of(pid: int, proc: Path = PROC) -> int:
    """Return how many threads a process has; 0 where that is not told."""
    with suppress(OSError, ValueError):
        for line in (proc / str(pid) / "status").read_text().splitlines():
            name, _, count = line.partition(":")
            if name == "Threads":
                return int(count)
    return 0


def _reap(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for the end of a child that hung up, or end it; return its exit code, and the memory it had at its peak."""
    until = time.monotonic() + EXIT_S
    while process.returncode is None:
        try:
            found, status, used = os.wait4(process.pid, os.WNOHANG)
        except ChildProcessError:
            return process.wait(), 0
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, used.ru_maxrss * 1024
        if time.monotonic() > until:  # it closed our socket but lives on
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.002)
    return process.returncode, 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and whatever it started: the child leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
