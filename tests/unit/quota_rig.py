"""A fleet of workers under one tenant's quota: each has a clock of its own, and may freeze, be cut off, or die."""

from __future__ import annotations

from typing import Any
from zlib import crc32

from claim_rig import View
from worker_twin import NAMES, START, kind, record

from schemas.codec import parse
from schemas.control import Tenant
from schemas.errors import NotFoundError, UnavailableError
from schemas.past import Past
from schemas.quota import Tally, tally_name
from wire.blobs import Blobs
from wire.blobs.memory import Memory
from workers.attempt import Attempt, read
from workers.quota import Quotas, Wait

KIND = kind(isolation="thread")


def quota(**fields: Any) -> Tenant:
    return Tenant(tenant="acme", time=START, **fields)


def attempt(
    job: str, *, past: Past | None = None, offset: int | None = None, tenant: str = "acme", count: int = 1
) -> Attempt:
    place = crc32(job.encode()) if offset is None else offset
    found = record(job, past=past, offset=place, tenant=tenant, count=count, topic=NAMES.jobs("say", "bulk"))
    return read(found, KIND, "bulk", START)


class Hand:
    """One worker's quotas. What runs here is in `jobs`."""

    def __init__(self, fleet: Crew, name: str, *, clock_s: float = 0.0) -> None:
        self.fleet, self.name = fleet, name
        self.view = View(fleet.store)
        self.alive, self.frozen = True, False
        self.jobs: dict[str, Attempt] = {}
        self.heard_at = fleet.time
        self._due = fleet.time
        self.quotas = Quotas(
            worker=name,
            store=lambda: self.view,  # type: ignore[arg-type, return-value]
            tenant=fleet.tenants.get,
            clock=lambda: fleet.time + clock_s,
            chance=lambda: fleet.chance,
            pause=fleet.paused.append,
        )

    @property
    def working(self) -> bool:
        return self.alive and not self.frozen

    def enter(self, job: str, **fields: Any) -> Wait | None:
        """Ask for a job; it runs if it may."""
        asked = attempt(job, **fields)
        wait = self.quotas.enter(asked)
        if wait is None:
            self.jobs[job] = asked
        return wait

    def tried(self, job: str, **fields: Any) -> Wait | UnavailableError | None:
        """Ask for a job; the error if the store did not answer, after which the attempt is over."""
        try:
            return self.enter(job, **fields)
        except UnavailableError as error:
            self.quotas.leave(attempt(job, **fields))
            return error

    def leave(self, job: str) -> None:
        self.quotas.leave(self.jobs.pop(job))
        self._due = self.fleet.time  # the thread is woken

    def step(self) -> None:
        """What the thread does when time has passed, as far as it is its time."""
        if self.fleet.time >= self._due:
            self._due = self.fleet.time + self.quotas.beat()
            if not self.view.down:
                self.heard_at = self.fleet.time


class Crew:
    """Workers on one store, in one time."""

    def __init__(self, *quotas: Tenant, store: Blobs | None = None) -> None:
        self.time, self.chance = 100.0, 0.5
        self.store = store or Memory()
        self.tenants = {one.tenant: one for one in quotas}
        self.paused: list[float] = []
        self.hands: list[Hand] = []

    def hire(self, name: str, **clocks: float) -> Hand:
        hand = Hand(self, name, **clocks)
        self.hands.append(hand)
        return hand

    def pass_(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass; whoever works signs now and then."""
        until = self.time + seconds
        while self.time < until:
            self.time = min(until, self.time + step)
            for hand in self.hands:
                if hand.working:
                    hand.step()

    def tally(self, tenant: str = "acme") -> Tally:
        """What the store says."""
        return parse(Tally, self.store.read(tally_name(tenant)))

    def running(self) -> frozenset[str]:
        """The jobs in flight as the store knows them."""
        try:
            return self.tally().running
        except NotFoundError:
            return frozenset()
