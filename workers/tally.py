"""Who of a tenant may start now: pure rules over what its jobs have taken of its quota.

Jobs in flight are counted by who runs them. The rate is a bucket of tokens, one for each start. Who finds it empty
draws a ticket; tickets are called in their order, as fast as tokens come, and whoever comes without one waits behind
all of them. So each job is told when to come back, jobs come back as fast as they can start, and no faster. Tickets
are places, not moments: when the rate is changed, all of them are called by the new one.

Sources: token bucket, Turner, "New directions in communications" (1986); tickets: Lamport's bakery (1974).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from schemas.control import Tenant
from schemas.quota import Holder, Tally, together

BLOCK_S = 0.5
"""A worker draws as many tickets at a time as are called within this; what it keeps for itself may be wasted."""
TINY = 1e-6
"""Part of a token or a ticket that sums of fractions may be off by."""


class Held(NamedTuple):
    """A job that runs, and the line of the record by which it does."""

    job: str
    line: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that wants to start, the line of its record, and its ticket; 0: none.

    `again`: the broker delivered that very record before.
    """

    job: str
    line: str
    ticket: int = 0
    again: bool = False


@dataclass(frozen=True, slots=True)
class Full:
    """Not now: which limit, how many jobs are in flight, and for the rate the seconds until it is this job's turn.

    `due`: its turn has come already, but the tokens are gone; who comes late has to try.
    """

    limit: Literal["in_flight", "rate"]
    running: int
    ticket: int = 0
    seconds: float = 0.0
    due: bool = False


def passed(tally: Tally, quota: Tenant, now: float) -> Tally:
    """Return the tally at a later moment: tokens have come and tickets were called."""
    now = max(now, tally.time)
    if quota.rate is None:
        return tally.model_copy(update={"time": now, "tokens": None, "head": float(tally.tail)})
    came = (now - tally.time) * quota.rate
    tokens = quota.depth if tally.tokens is None else min(quota.depth, tally.tokens + came)
    return tally.model_copy(
        update={"time": now, "tokens": float(tokens), "head": min(float(tally.tail), tally.head + came)}
    )


def ask(
    tally: Tally, quota: Tenant, asks: Iterable[Ask], *, worker: str, mine: Collection[Held], spare: Sequence[int] = ()
) -> tuple[Tally, list[Full | None], tuple[int, ...]]:
    """Return the tally after several jobs of one worker have asked, in their order, and what each was told.

    None: it may start. `mine` are the tenant's jobs that the worker runs: what the tally says of that is overwritten,
    because nobody knows better. A record that is in flight, here or where its worker died, takes nothing more when it
    is delivered again; another record of the same job does, for both may run. Tickets are drawn several at a time;
    `spare` are those that the worker has left, and so is the last thing that is returned.
    """
    left = [ticket for ticket in spare if ticket <= tally.tail]
    others = together(holder for name, holder in tally.workers.items() if name != worker)
    own, lines = list(mine), Counter(one.line for one in mine)
    running = (others | lines).total()
    answers: list[Full | None] = []
    for one in asks:
        if one.again and one.line in lines:
            answers.append(None)
            continue
        if more := lines[one.line] >= others[one.line]:
            if quota.in_flight is not None and running >= quota.in_flight:
                answers.append(Full("in_flight", running, one.ticket))
                continue
            tally, full = _start(tally, quota, one, running, left)
            if full is not None:
                answers.append(full)
                continue
        if quota.in_flight is not None:
            own.append(Held(one.job, one.line))
            lines[one.line] += 1
            running += more
        answers.append(None)
    return signed(tally, worker, own), answers, tuple(left)


def signed(tally: Tally, worker: str, mine: Collection[Held]) -> Tally:
    """Return the tally with what a worker runs now, and its next beat; nothing is kept of one that runs nothing."""
    workers, writes = {name: one for name, one in tally.workers.items() if name != worker}, tally.writes + 1
    if mine:
        workers[worker] = Holder(
            beat=writes, jobs=tuple(one.job for one in mine), lines=tuple(one.line for one in mine)
        )
    return tally.model_copy(update={"workers": workers, "writes": writes})


def without(tally: Tally, gone: Collection[str]) -> Tally:
    """Return the tally without the workers that are gone."""
    return tally.model_copy(update={"workers": {name: one for name, one in tally.workers.items() if name not in gone}})


def _start(tally: Tally, quota: Tenant, one: Ask, running: int, spare: list[int]) -> tuple[Tally, Full | None]:
    """Take a token, or a ticket where there is none."""
    tokens = tally.tokens
    if quota.rate is None or tokens is None:
        return tally, None
    ticket = one.ticket if one.ticket <= tally.tail else 0  # of an object that was lost, or made up
    if not ticket and spare and spare[0] <= tally.head:  # called already, and nobody had it
        ticket = spare.pop(0)
    called = tally.head >= (ticket or tally.tail) - TINY
    if called and tokens >= 1 - TINY:
        return tally.model_copy(update={"tokens": tokens - 1}), None
    if not ticket:
        if not spare:
            # The first in the line is called when the next token is there.
            head = tally.head if tally.waiting else tally.tail + min(1.0, tokens)
            last = tally.tail + max(1, int(quota.rate * BLOCK_S))
            spare += range(tally.tail + 1, last + 1)
            tally = tally.model_copy(update={"tail": last, "head": max(0.0, head)})
        ticket = spare.pop(0)
        called = tally.head >= ticket - TINY
    wait = (1 - tokens if called else ticket - tally.head) / quota.rate
    return tally, Full("rate", running, ticket, max(0.0, wait), called)
