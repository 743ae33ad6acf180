"""The kind `trouble`: fails in every way a job can. Put this folder on PYTHONPATH and workers find it."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from pydantic import Field

from schemas.errors import JobError
from schemas.model import Strict
from schemas.outcome import Succeeded, Usage, Verdict
from workers.context import Context
from workers.kinds import kind


class Trouble(Strict):
    """What to do, for how long, and where to leave a mark when it starts."""

    do: str = "work"
    seconds: float = Field(default=0.0, ge=0)
    size: int = 0
    mark: str | None = None
    url: str | None = None


def work(context: Context, params: Trouble) -> Verdict:
    """Work in small steps, with progress, and stop when asked."""
    context.progress(step="start", pid=os.getpid())
    until = time.monotonic() + params.seconds
    while (left := until - time.monotonic()) > 0:
        context.check()
        threading.Event().wait(min(left, 0.02))
    return Succeeded(result={"pid": os.getpid(), "ppid": os.getppid()}, usage=Usage(prompt_tokens=3))


def deaf(context: Context, params: Trouble) -> Verdict:
    """Work without ever looking up."""
    context.progress(step="start", pid=os.getpid())
    threading.Event().wait(params.seconds)
    return Succeeded()


def segfault(*_: Any) -> Verdict:
    """Read where nothing is."""
    sys.stderr.write("last words on stderr\n")
    print("last words on stdout")
    ctypes.string_at(0)
    raise AssertionError("unreachable")


def leave(*_: Any) -> Verdict:
    """End the process without a word."""
    os._exit(3)


def killed(*_: Any) -> Verdict:
    """Die as under the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def hang_up(context: Context, params: Trouble) -> Verdict:
    """Shut the line to the parent, and live on."""
    with socket.socket(fileno=os.dup(int(sys.argv[1]))) as line:
        line.shutdown(socket.SHUT_RDWR)
    threading.Event().wait(params.seconds)
    return Succeeded()


def family(context: Context, params: Trouble) -> Verdict:
    """Start a process of one's own, then never look up."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    context.progress(step="start", pid=child.pid)
    threading.Event().wait(params.seconds)
    return Succeeded()


def chatter(*_: Any) -> Verdict:
    """Print, where a protocol on stdout would break; one line is long and none of it is text."""
    print('{"type": "verdict"}')
    os.write(1, b"\xff\xfe" * 200_000 + b"\n")
    return Succeeded(result={"text": "said"})


def litter(context: Context, params: Trouble) -> Verdict:
    """Leave a file in scratch, and die if asked to wait."""
    (context.scratch / "litter").write_bytes(b"x" * 1000)
    context.progress(scratch=str(context.scratch))
    threading.Event().wait(params.seconds)
    return Succeeded(result={"scratch": str(context.scratch)})


def odd(context: Context, params: Trouble) -> Verdict:
    """Return what JSON cannot hold."""
    things: list[Any] = [math.nan, object(), "\ud800"]
    return Succeeded(result={"thing": things[params.size]})


def flood(context: Context, params: Trouble) -> Verdict:
    """Return and report much."""
    for step in range(200):
        context.progress(step=step)
    return Succeeded(result={"text": "x" * params.size})


def device(*_: Any) -> Verdict:
    """Meet an accelerator that is broken."""
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")


def launch(*_: Any) -> Verdict:
    """Break the context of an accelerator."""
    raise RuntimeError("CUDA error: unspecified launch failure")


def ask(context: Context, params: Trouble) -> Verdict:
    """Ask a judge over HTTP, as often as told and at least once."""
    asked = Request(params.url or "")

    def once() -> str:
        with urlopen(asked, timeout=2.0) as answer:
            return str(answer.read().decode())

    said = [context.call("judge", once) for _ in range(max(1, params.size))]
    return Succeeded(result={"said": said})


def climb(context: Context, params: Trouble) -> Verdict:
    """Go on from the checkpoint, `size` steps in all, and die after every second one."""
    kept = Path(params.url or "")
    for step in range(int(kept.read_text()) if kept.exists() else 0, params.size):
        threading.Event().wait(params.seconds)
        kept.write_text(str(step + 1))
        context.advanced(step + 1)
        if step % 2:
            os._exit(9)
    return Succeeded(result={"steps": params.size})


def tread(context: Context, params: Trouble) -> Verdict:
    """Tell a step ten times, then the next, `size` steps in all; the numbers beside it change all the time."""
    for told in range(params.size * 10):
        context.progress(step=told // 10, seconds=time.monotonic())
        time.sleep(params.seconds)
    return Succeeded()


def haunt(context: Context, params: Trouble) -> Verdict:
    """Report on behalf of the jobs before, as threads would that they left behind."""
    for other in _LEFT:
        other.progress(of=other.job)
    _LEFT.append(context)
    context.progress(of=context.job)
    return Succeeded()


_LEFT: list[Context] = []
DEEDS = {
    deed.__name__: deed
    for deed in (
        work,
        deaf,
        segfault,
        leave,
        killed,
        hang_up,
        family,
        chatter,
        litter,
        odd,
        flood,
        device,
        launch,
        ask,
        climb,
        haunt,
        tread,
    )
}


def perform(context: Context, params: Trouble) -> Verdict:
    """Do it."""
    if params.mark:
        with Path(params.mark).open("a", encoding="utf-8") as file:
            file.write(f"{context.job} {context.worker} {context.attempt} {time.time():.6f}\n")
    if params.do == "raise":
        raise JobError("as asked", code="TAPE-6009")
    if params.do == "none":
        return None  # type: ignore[return-value]
    return DEEDS[params.do](context, params)


trouble = kind("trouble", params=Trouble, max_attempts=3)(perform)
judged = kind("judged", params=Trouble, max_attempts=3, needs=("judge",))(perform)
light = kind("light", params=Trouble, max_attempts=3, isolation="thread")(perform)
