"""Quotas in use: which of a tenant's jobs run where, and how many more may start; an object per tenant in the store."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from schemas.model import Open

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_STRANGE = re.compile(r"[^A-Za-z0-9._-]")


class Holder(Open):
    """A worker and the tenant's jobs that it runs. `beat` is the number of its last write: it rises while it lives."""

    beat: int = Field(default=0, ge=0)
    jobs: tuple[str, ...] = ()
    lines: tuple[str, ...] = Field(default=(), description="the line of the record by which each of `jobs` runs")

    @property
    def held(self) -> Counter[str]:
        """How often each line is held; two records of one job are two."""
        return Counter(self.lines if len(self.lines) == len(self.jobs) else self.jobs)


def together(holders: Iterable[Holder]) -> Counter[str]:
    """Return what all of them hold; a record that two workers have, for one of them is dead, is one."""
    found: Counter[str] = Counter()
    for holder in holders:
        found |= holder.held
    return found


class Tally(Open):
    """`tenants/NAME.json`: what a tenant's jobs have taken of its quota; changed by compare-and-swap only.

    `time` is the tenant's own, in seconds since the object was made, told on by whoever writes it: no two clocks are
    ever compared. Who may not start for the rate's sake draws a ticket; `head` of all `tail` tickets are called by now.
    """

    schema_version: int = 1
    tenant: str
    writes: int = Field(default=0, ge=0)
    workers: dict[str, Holder] = Field(default_factory=dict)
    time: float = Field(default=0.0, ge=0)
    tokens: float | None = Field(default=None, description="jobs that may start at once; none: as many as may at most")
    head: float = Field(default=0.0, ge=0)
    tail: int = Field(default=0, ge=0)

    @property
    def running(self) -> frozenset[str]:
        """The jobs in flight, by name."""
        return frozenset(job for holder in self.workers.values() for job in holder.jobs)

    @property
    def in_flight(self) -> int:
        """How many there are: each record of a job counts, a redelivered one once."""
        return together(self.workers.values()).total()

    @property
    def waiting(self) -> int:
        """Tickets that are not called yet."""
        return max(0, math.ceil(self.tail - self.head - 1e-6))


def tally_name(tenant: str) -> str:
    """Return the name of a tenant's object in the store; two tenants never share one."""
    if _PLAIN.fullmatch(tenant):
        return f"tenants/{tenant}.json"
    digest = hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()
    return f"tenants/{_STRANGE.sub('_', tenant)[:64]}~{digest[:32]}.json"
