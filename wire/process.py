"""Native services as child processes: started once, recognised again, stopped for certain.

A pid alone says little: it may belong to somebody else by tomorrow. A `Process` is a pid with the moment the kernel
started it, so a state file that outlived a reboot never leads to the wrong process being stopped.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ConflictError, SetupError, TimeoutExceeded

# Becomes the service after asking the kernel for SIGTERM at the parent's death: nothing is run between fork and exec
# in a process with threads, which `preexec_fn` would do. The check after it closes the race with a dying parent.
_TIE = (
    "import ctypes,os,sys;"
    "sys.platform=='linux' and ctypes.CDLL(None).prctl(1,15);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(0);"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Process:
    """One running program: its pid and when the kernel started it."""

    pid: int
    born: str


def spawn(command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, tie: bool = False) -> Process:
    """Start `command` in a session of its own, its output appended to `log`.

    With `tie`, the kernel ends it when the calling thread ends (Linux), so a test run that is killed leaves nothing.
    Raises `SetupError` (TAPE-8004) when the program cannot be started.
    """
    argv = [str(part) for part in command]
    if tie:
        argv = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        pid = os.posix_spawnp(
            argv[0], argv, dict(os.environ if env is None else env), file_actions=actions, setsid=True
        )
    except OSError as error:
        raise SetupError(
            f"{command[0]} cannot be started: {error.strerror}",
            code="TAPE-8004",
            file=str(command[0]),
            hint="check that the program is installed and the log's folder can be written",
        ) from error
    return Process(pid, _born(pid) or "gone")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux; PR_SET_PDEATHSIG of prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def alive(process: Process) -> bool:
    """Tell whether this very process still runs; a zombie child of ours is reaped and counts as ended."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return _born(process.pid) == process.born


def stop(process: Process, *, grace_s: float = 10.0) -> bool:
    """End the process and its session: SIGTERM, then SIGKILL after `grace_s` seconds.

    Returns whether it went by itself (nothing had to be killed). A process that is gone, or whose pid now belongs
    to somebody else, is left alone.
    """
    if not alive(process):
        return True
    _signal(process, signal.SIGTERM)
    if _wait_exit(process, grace_s):
        return True
    _signal(process, signal.SIGKILL)
    _wait_exit(process, 5.0)
    return False


def free_port(preferred: int | None = None, *, strict: bool = False, host: str = "127.0.0.1") -> int:
    """Return a TCP port nobody listens on: the preferred one if it is free, else one the kernel picks.

    With `strict`, a preferred port in use raises `ConflictError` (TAPE-3003).
    """
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return int(probe.getsockname()[1])
            except OSError as error:
                if strict or port == 0:
                    raise ConflictError(
                        f"port {port} on {host} cannot be listened on: {error.strerror}", code="TAPE-3003", port=port
                    ) from error
    raise AssertionError("unreachable")  # pragma: no cover - port 0 returns or raises


def wait_until(
    probe: Callable[[], object],
    *,
    deadline_s: float,
    every_s: float = 0.05,
    process: Process | None = None,
    halt: threading.Event | None = None,
) -> bool:
    """Ask `probe` again and again until it answers true; False when that takes longer than `deadline_s` seconds.

    Gives up early when `process` ends or `halt` is set. Errors of the probe are its own business and pass through.
    """
    halt = halt or threading.Event()
    end = time.monotonic() + deadline_s
    while not probe():
        if process is not None and not alive(process):
            return bool(probe())
        if time.monotonic() >= end or halt.wait(min(every_s, max(0.0, end - time.monotonic()))):
            return False
    return True


@contextmanager
def locked(path: Path, *, wait_s: float = 30.0) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that two commands never start the same service twice.

    The kernel frees it when the holder ends, however it ends. Raises `TimeoutExceeded` (TAPE-7002).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not wait_until(lambda: _try_lock(file.fileno()), deadline_s=wait_s):
            raise TimeoutExceeded(
                f"another command has held the lock for {wait_s:g} s",
                code="TAPE-7002",
                file=str(path),
                hint="wait for it to end, then try again",
            )
        yield


def save_state(path: Path, process: Process, **extra: Any) -> None:
    """Write what is needed to find the service again, atomically and for the owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        json.dump({"process": asdict(process), **extra}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)


def load_state(path: Path) -> tuple[Process, dict[str, Any]] | None:
    """Read a state file back; None when there is none, or when it is not one (an interrupted disk, another tool)."""
    try:
        found = json.loads(path.read_text())
        process = found.pop("process")
        return Process(int(process["pid"]), str(process["born"])), found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log, or an empty string when there is none."""
    try:
        with log.open(errors="replace") as file:
            return "".join(deque(file, maxlen=lines)).rstrip()
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When the kernel started the process, unique across reboots; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = text.rpartition(")")[2].split()
        # The first thread may be a zombie while others still hold ports and files: not ended before the last one.
        ended = state in "ZX" and int(fields[16]) <= 1
        return None if ended else f"{fields[18]}@{_boot()}"
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _born_by_ps(pid)
    except (OSError, IndexError):
        return None


def _born_by_ps(pid: int) -> str | None:
    # Systems without /proc (macOS): the start time in whole seconds is all there is.
    answer = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    state, _, started = answer.partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)


def _wait_exit(process: Process, seconds: float) -> bool:
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return wait_until(lambda: not alive(process), deadline_s=seconds)
    try:
        select.select([handle], [], [], seconds)
    finally:
        os.close(handle)
    return not alive(process)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
