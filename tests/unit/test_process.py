"""Child processes are recognised by pid and birth, stopped for certain, and never mistaken for another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import wire
from schemas.errors import ConflictError, SetupError, TimeoutExceeded
from wire import process
from wire.process import Process, alive, free_port, load_state, locked, save_state, spawn, stop, tail, wait_until

READY = "import sys,signal;{setup};print('ready',flush=True);signal.pause()"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for one in running:
        stop(one, grace_s=0)


def launch(tmp_path: Path, started: list[Process], setup: str = "pass", tie: bool = False) -> tuple[Process, Path]:
    log = tmp_path / "logs" / "out.log"
    child = spawn([sys.executable, "-c", READY.format(setup=setup)], log=log, tie=tie)
    started.append(child)
    assert wait_until(lambda: "ready" in tail(log), deadline_s=10, process=child)
    return child, log


def test_spawned_process_lives_in_its_own_session_and_stops_by_itself(tmp_path: Path, started: list[Process]) -> None:
    child, log = launch(tmp_path, started)
    assert alive(child)
    assert os.getsid(child.pid) == child.pid
    assert log.stat().st_mode & 0o077 == 0
    assert stop(child) is True
    assert not alive(child)
    assert stop(child) is True  # again is harmless


def test_deaf_process_is_killed_after_the_grace(tmp_path: Path, started: list[Process]) -> None:
    child, _ = launch(tmp_path, started, "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert stop(child, grace_s=0.05) is False
    assert not alive(child)


def test_stop_reaches_grandchildren(tmp_path: Path, started: list[Process]) -> None:
    setup = "import subprocess;p=subprocess.Popen(['sleep','60']);print(p.pid,flush=True)"
    child, log = launch(tmp_path, started, setup)
    grandchild = int(log.read_text().split()[0])
    stop(child)
    assert wait_until(lambda: process._born(grandchild) is None, deadline_s=5)


def test_a_reused_pid_is_not_ours(tmp_path: Path, started: list[Process]) -> None:
    child, _ = launch(tmp_path, started)
    stranger = Process(child.pid, "1@other-boot")
    assert not alive(stranger)
    assert stop(stranger) is True
    assert alive(child), "the process that now has the pid was stopped"


def test_a_zombie_counts_as_ended_and_is_reaped(tmp_path: Path) -> None:
    child = spawn([sys.executable, "-c", "pass"], log=tmp_path / "log")
    assert wait_until(lambda: not alive(child), deadline_s=10)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


def test_tied_process_dies_with_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys; from pathlib import Path; from wire.process import spawn, wait_until, tail\n"
        f"log = Path({str(log)!r})\n"
        f"child = spawn([sys.executable, '-c', {READY.format(setup='pass')!r}], log=log, tie=True)\n"
        "assert wait_until(lambda: 'ready' in tail(log), deadline_s=10)\n"
        "print(child.pid, child.born, flush=True); input()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(wire.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as parent:
        assert parent.stdout is not None
        pid, born = parent.stdout.readline().split()
        child = Process(int(pid), born)
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_until(lambda: not alive(child), deadline_s=5)


def test_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no-such-program") as caught:
        spawn(["no-such-program"], log=tmp_path / "log")
    assert caught.value.code == "TAPE-8004"


def test_free_port_keeps_to_the_preferred_one_unless_it_is_taken() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert free_port(taken) != taken
        with pytest.raises(ConflictError) as caught:
            free_port(taken, strict=True)
        assert caught.value.code == "TAPE-3003"
    assert free_port(taken) == taken
    assert free_port() > 0


def test_free_port_on_a_foreign_address_is_an_error() -> None:
    with pytest.raises(ConflictError):
        free_port(host="192.0.2.1")


def test_wait_until_counts_on_the_probe() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), deadline_s=5, every_s=0)
    assert not wait_until(lambda: False, deadline_s=0)


def test_wait_until_gives_up_when_told_or_when_the_process_is_gone() -> None:
    halt = threading.Event()
    halt.set()
    assert not wait_until(lambda: False, deadline_s=60, halt=halt)
    assert not wait_until(lambda: False, deadline_s=60, process=Process(2**22 + 1, "never"))


def test_lock_excludes_and_is_freed(tmp_path: Path) -> None:
    path = tmp_path / "home" / "lock"
    with locked(path):
        with pytest.raises(TimeoutExceeded) as caught, locked(path, wait_s=0):
            raise AssertionError("both hold the lock")
        assert caught.value.code == "TAPE-7002"
    with locked(path, wait_s=0):
        pass


def test_state_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "home" / "state.json"
    assert load_state(path) is None
    save_state(path, Process(7, "now"), port=9000)
    assert load_state(path) == (Process(7, "now"), {"port": 9000})
    assert path.stat().st_mode & 0o077 == 0
    for damage in ("", "{", "[]", "{}", json.dumps({"process": {"pid": "x", "born": ""}}), json.dumps({"process": 1})):
        path.write_text(damage)
        assert load_state(path) is None


def test_tail_of_logs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_bytes(b"".join(b"%d\n" % n for n in range(50)) + b"\xff\n")
    assert tail(log, 2) == "49\n�"


def test_birth_without_proc_comes_from_ps(tmp_path: Path, started: list[Process]) -> None:
    child, _ = launch(tmp_path, started)
    assert process._born_by_ps(child.pid)
    assert process._born_by_ps(2**22 + 1) is None


def test_exit_is_noticed_without_pidfd(tmp_path: Path, started: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    child, _ = launch(tmp_path, started)
    monkeypatch.delattr(os, "pidfd_open")
    assert stop(child) is True


def test_a_process_lives_until_its_last_thread_has_ended(tmp_path: Path, started: list[Process]) -> None:
    code = (
        "import ctypes, threading, signal, sys\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    log = tmp_path / "log"
    child = spawn([sys.executable, "-c", code], log=log)
    started.append(child)
    zombie = lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # noqa: E731
    assert wait_until(zombie, deadline_s=10)
    assert alive(child), "its other threads may still hold a port"
    stop(child)
    assert not alive(child)
