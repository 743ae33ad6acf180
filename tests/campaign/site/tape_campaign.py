"""The kinds of the fault campaign, and the points at which its workers die.

`CAMPAIGN_POINT` names a point (acquire, run, artifact, outcome, acknowledge) and `CAMPAIGN_ONCE` a file: the first
worker that comes to the point makes the file and ends with SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from schemas.errors import UnavailableError
from schemas.model import Strict
from schemas.outcome import Succeeded, Verdict
from workers.context import Context
from workers.kinds import kind
from workers.policy import Policy

POINT = os.environ.get("CAMPAIGN_POINT", "")
PATIENCE = Policy(base_s=0.5, cap_s=3.0)


class Task(Strict):
    """What to do, how long, what to leave behind, and when to fail."""

    do: str = "work"
    seconds: float = Field(default=0.0, ge=0)
    size: int = 0
    batch_size: int = 8
    data: str | None = None
    mark: str | None = None
    failing: str | None = None


def content(job: str, size: int) -> bytes:
    """Return the bytes that a job's artifact must have."""
    return random.Random(job).randbytes(size)


def die(at: str, pid: int | None = None) -> None:
    """End a worker here, once in all."""
    if at == POINT:
        try:
            os.close(os.open(os.environ["CAMPAIGN_ONCE"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(pid or os.getpid(), signal.SIGKILL)
        threading.Event().wait(5)  # a child outlives its worker by a moment, and must not go on


def work(context: Context, task: Task) -> Verdict:
    """Read what is to be read, take the time, leave an artifact."""
    found = len(context.store.read(task.data.partition("@")[0], sha256=task.data.partition("@")[2])) if task.data else 0
    until = time.monotonic() + task.seconds
    while (left := until - time.monotonic()) > 0:
        context.check()
        threading.Event().wait(min(left, 0.02))
    die("run", os.getppid())
    if not task.size:
        return Succeeded(result={"read": found})
    folder = context.scratch / "made"
    folder.mkdir()
    (folder / "data.bin").write_bytes(content(context.job, task.size))
    artifact = context.keep("made", folder)
    die("artifact", os.getppid())
    return Succeeded(result={"read": found}, artifacts=[artifact])


def segfault(*_: Any) -> Verdict:
    """Read where nothing is."""
    ctypes.string_at(0)
    raise AssertionError("unreachable")


def once(context: Context, task: Task) -> Verdict:
    """Segfault the first time, and succeed if there should be a second."""
    if task.failing and Path(task.failing).exists():
        Path(task.failing).unlink()
        ctypes.string_at(0)
    return Succeeded()


def fail(context: Context, task: Task) -> Verdict:
    """Fail as long as a file is there, as a model server that is away does."""
    if task.failing and Path(task.failing).exists():
        raise UnavailableError("the model does not answer", code="TAPE-5007")
    return Succeeded()


def hog(context: Context, task: Task) -> Verdict:
    """Use memory in proportion to the batch; whoever set a limit ends it."""
    return Succeeded(result={"bytes": len(b"x" * (task.batch_size * task.size))})


def hog_limited(context: Context, task: Task) -> Verdict:
    """The same, under a limit that this process sets itself: it is told instead of killed."""
    soft = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, soft[1]))
    try:
        return hog(context, task)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, soft)


def use_device() -> None:
    """Use the fake device: a file that says how it is. Raises what torch raises; may hang where no signal reaches."""
    state = Path(os.environ["CAMPAIGN_DEVICE"]).read_text() if "CAMPAIGN_DEVICE" in os.environ else "well"
    if state == "ecc":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if state == "hang":
        ctypes.PyDLL(None).pause()  # holds the interpreter's lock, as a driver's call may
    if state == "gone":
        os.kill(os.getpid(), signal.SIGKILL)


def device(*_: Any) -> Verdict:
    """Compute on the fake device."""
    use_device()
    return Succeeded()


def spill(context: Context, task: Task) -> Verdict:
    """Write more into scratch than the disk holds."""
    (context.scratch / "much").write_bytes(bytes(task.size))
    return Succeeded()


DEEDS: dict[str, Callable[[Context, Task], Verdict]] = {
    deed.__name__: deed for deed in (work, segfault, once, fail, hog, hog_limited, device, spill)
}


def perform(context: Context, task: Task) -> Verdict:
    """Do it, and say so when it begins."""
    if task.mark:
        with Path(task.mark).open("a", encoding="utf-8") as file:
            file.write(f"{context.job} {context.worker} {context.attempt} {time.monotonic():.6f}\n")
    return DEEDS[task.do](context, task)


heavy = kind("heavy", params=Task, retry=PATIENCE, probe=use_device)(perform)
quick = kind("quick", params=Task, isolation="thread", retry=PATIENCE)(perform)


def _before(owner: Any, name: str, point: str) -> None:
    real = getattr(owner, name)

    def wrapped(*given: Any, **named: Any) -> Any:
        die(point)
        return real(*given, **named)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, point: str) -> None:
    real = getattr(owner, name)

    def wrapped(*given: Any, **named: Any) -> Any:
        found = real(*given, **named)
        die(point)
        return found

    setattr(owner, name, wrapped)


if POINT and "workers.child" not in sys.argv[0] and not sys.argv[0].endswith("child.py"):
    from workers.execute import Executor
    from workers.lease import LeaseLoop
    from workers.outcomes import Outcomes

    _before(Executor, "_attempt", "acquire")
    _after(Outcomes, "settle", "outcome")
    _before(LeaseLoop, "done", "acknowledge")
