"""A fleet of workers' claims on one store: each has a clock of its own, beats while it lives, and may freeze or die."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from worker_twin import START

from schemas.claim import Claim, End, Start
from schemas.codec import parse
from schemas.errors import NotFoundError, UnavailableError
from schemas.past import Past
from wire.blobs import Blobs
from wire.blobs.directory import Directory
from wire.blobs.memory import Memory
from workers.claim import Busy, Claims, Copy, Over, claim_name

JOB = "job-1"
PLACE = "t.jobs.say.bulk/0/7"
STEP_S = 0.05


def make_store(name: str, folder: Path) -> Blobs:
    return Memory() if name == "memory" else Directory(folder / "store")


class View:
    """One worker's way to the store: it may be down, and the next write may fail before or after it is done."""

    def __init__(self, inner: Blobs, written: Callable[[], object] = lambda: None) -> None:
        self.inner, self._written = inner, written
        self.down = False
        self.fail: str | None = None

    def _try(self, write: Callable[..., Any], *args: Any) -> Any:
        self._refuse()
        fail, self.fail = self.fail, None
        if fail == "before":
            raise UnavailableError("lost", code="TAPE-5002")
        blob = write(*args)
        self._written()
        if fail == "after":
            raise UnavailableError("written, not confirmed", code="TAPE-5002")
        return blob

    def _refuse(self) -> None:
        if self.down:
            raise UnavailableError("down", code="TAPE-5002")

    def create(self, *args: Any) -> Any:
        return self._try(self.inner.create, *args)

    def replace(self, *args: Any) -> Any:
        return self._try(self.inner.replace, *args)

    def get(self, name: str) -> Any:
        self._refuse()
        return self.inner.get(name)

    def stat(self, name: str) -> Any:
        self._refuse()
        return self.inner.stat(name)


class Member:
    """One worker: its claims, its own clocks, and whether it lives."""

    def __init__(self, fleet: Fleet, name: str, *, clock_s: float = 0.0, wall_h: float = 0.0) -> None:
        self.fleet, self.name = fleet, name
        self.view = View(fleet.store, fleet.written)
        self.alive, self.frozen = True, False
        self.claims = Claims(
            worker=name,
            store=lambda: self.view,  # type: ignore[arg-type, return-value]
            now=lambda: self._wall(wall_h),
            clock=lambda: fleet.time + clock_s,
            wait=fleet.wait,
        )

    def _wall(self, hours: float) -> datetime:
        return START + timedelta(hours=hours, seconds=self.fleet.time)

    @property
    def working(self) -> bool:
        return self.alive and not self.frozen

    def take(self, *, place: str = PLACE, line: str | None = None, **copy: Any) -> Claim | Busy | Over:
        return self.claims.take(JOB, Copy(place, line or place, **copy))

    def end(self, *, spent: int = 1, buried: bool = False) -> bool:
        """Free the claim: its attempt is over, and what follows will tell of so many that were spent."""
        return self.claims.free(JOB, End(past=Past(spent=spent), buried=buried))

    def taken(self, **options: Any) -> Claim:
        """Take the claim, which must succeed."""
        found = self.take(**options)
        assert isinstance(found, Claim), found
        return found

    def certain(self) -> bool:
        """Whether it is sure without asking the store."""
        self.view.down = True
        try:
            return self.claims.sure(JOB)
        except UnavailableError:
            return False
        finally:
            self.view.down = False


class Fleet:
    """Workers on one store, in one time. While anybody waits, the claims of all beat and what is planned happens."""

    def __init__(self, store: Blobs | None = None) -> None:
        self.time = 0.0
        self.store = store or Memory()
        self.members: list[Member] = []
        self.planned: list[tuple[float, Callable[[], object]]] = []
        self.writes: list[Claim] = []

    def hire(self, name: str, **clocks: float) -> Member:
        member = Member(self, name, **clocks)
        self.members.append(member)
        return member

    def wait(self, seconds: float) -> bool:
        """Let time pass; the signature that `Claims` wants."""
        end = self.time + seconds
        while self.time < end - 1e-9:
            self.time = min(end, self.time + STEP_S)
            self._happen()
            for member in self.members:
                if member.working:
                    member.claims.beat()
        return False

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Plan something for while time passes."""
        self.planned.append((self.time + seconds, call))

    def _happen(self) -> None:
        due = [entry for entry in self.planned if entry[0] <= self.time]
        self.planned = [entry for entry in self.planned if entry[0] > self.time]
        for _, call in due:
            call()

    def claim(self) -> Claim | None:
        """What the store says."""
        try:
            return parse(Claim, self.store.read(claim_name(JOB)))
        except NotFoundError:
            return None

    def written(self) -> None:
        """Keep what was written, in order."""
        found = self.claim()
        if found is not None:
            self.writes.append(found)


def same(one: Start, other: Start) -> bool:
    return (one.worker, one.epoch) == (other.worker, other.epoch)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Call all at once, each in a thread, and return what they returned."""
    gate, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number: int) -> None:
        gate.wait(10)
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results
