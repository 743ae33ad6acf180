"""The recovery benchmark's kinds: a job that says when it starts, in a child process and in a thread."""

from __future__ import annotations

import os
import time
from pathlib import Path

from schemas.model import Strict
from schemas.outcome import Succeeded
from workers.context import Context
from workers.kinds import kind

NAMES = ("hold", "brief")


class Hold(Strict):
    """The job's number, and how long it takes in seconds."""

    number: int
    seconds: float


def run(context: Context, params: Hold) -> Succeeded:
    """Leave the mark of the peers: the job's number, the worker, the time. Then take so many seconds."""
    worker = int(context.worker.rsplit("-", 2)[1])
    line = b"%d %d %.6f\n" % (params.number, worker, time.time())
    with Path(os.environ["BENCH_LOG"]).open("ab", buffering=0) as file:
        file.write(line)
    time.sleep(params.seconds)
    return Succeeded()


hold = kind("hold", params=Hold)(run)
brief = kind("brief", params=Hold, isolation="thread")(run)
