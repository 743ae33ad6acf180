"""The benchmark's own kinds: the payload, the work and the mark of the peers, under Tickertape's worker.

They are found through the entry points of a distribution that `rig.services` writes into a temporary folder.
"""

from __future__ import annotations

import time

from benchmarks.peers.body import LOG, work
from schemas.model import Strict
from schemas.outcome import Succeeded
from workers.context import Context
from workers.kinds import kind

NAMES = ("noop", "burn")
TOPICS = (*NAMES, "sink")
"""Nobody takes the jobs of `sink`: they are for measuring how fast jobs are submitted."""
CPU_S = 0.001


class Load(Strict):
    """The peers' payload."""

    kind: str
    to: str
    tenant: int
    tags: list[str]
    text: str
    number: int
    seconds: float
    made: float


@kind("noop", params=Load, isolation="thread")
def noop(context: Context, params: Load) -> Succeeded:
    """Do nothing, or sleep, and leave the mark."""
    work({"number": params.number, "seconds": params.seconds, "made": params.made})
    return Succeeded()


@kind("burn", params=Load, isolation="thread")
def burn(context: Context, params: Load) -> Succeeded:
    """Use a millisecond of CPU and leave the mark."""
    start, until = time.time(), time.thread_time() + CPU_S
    while time.thread_time() < until:
        pass
    LOG.mark(params.number, params.made, start)
    return Succeeded()
