"""A tenant's quota on a real broker: two worker processes, a kill, and a rate; never over it, nothing lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from fleet import Fleet, kill

from producers import Client, Request
from producers.fleet import Blocker, Lookout, allow, disallow, tenants, why
from schemas.event import EventType
from schemas.outcome import Outcome, Status
from wire.process import wait_until
from wire.settings import Settings
from workers.desk import SILENT_S

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    with Client(settings=fleet.settings) as made:
        yield made


@pytest.fixture
def lookout(settings: Settings) -> Iterator[Lookout]:
    with closing(Lookout.open(settings)) as made:
        yield made


def submit(client: Client, fleet: Fleet, count: int, seconds: float, kind: str = "trouble", **more: Any) -> list[str]:
    params = {"do": "work", "seconds": seconds, "mark": str(fleet.folder / "marks")}
    return [handle.id for handle in client.submit_many([Request(kind, params, **more) for _ in range(count)])]


def ended(fleet: Fleet, jobs: list[str]) -> dict[str, Outcome]:
    found = {event.job: event.outcome for event in fleet.events() if event.outcome is not None}
    return {job: outcome for job, outcome in found.items() if job in jobs}


def most(spans: list[tuple[float, float]]) -> int:
    """How many of these were going on at once."""
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    found = now = 0
    for _, step in edges:
        now += step
        found = max(found, now)
    return found


@pytest.mark.parametrize("kind", ["trouble", "light"])
def test_never_more_in_flight_than_may_and_all_end(fleet: Fleet, client: Client, lookout: Lookout, kind: str) -> None:
    allow(lookout, "acme", {"in_flight": 2})
    for _ in range(2):
        fleet.start("--slots", "4", kinds=kind)
    seconds = 0.5
    jobs = submit(client, fleet, 12, seconds, kind, tenant="acme")
    free = submit(client, fleet, 2, seconds, kind, tenant="other")
    assert wait_until(lambda: len(ended(fleet, free)) == 2, deadline_s=30)
    assert wait_until(lambda: len(ended(fleet, jobs)) == 12, deadline_s=120, every_s=0.5)
    outcomes = ended(fleet, jobs)
    assert {outcome.status for outcome in outcomes.values()} == {Status.SUCCEEDED}
    assert {outcome.attempt for outcome in outcomes.values()} == {1}
    marks = {mark.job: mark for mark in fleet.marks()}
    assert len(fleet.marks()) == 14, "each ran once"
    assert most([(marks[job].at, marks[job].at + seconds) for job in jobs]) == 2
    events = [event for event in fleet.events() if event.job in jobs]
    put_off = [event for event in events if event.type is EventType.POSTPONED]
    assert {event.failure.code for event in put_off if event.failure} == {"TAPE-5011"}
    assert not [event for event in events if event.type in (EventType.DEAD, EventType.RETRYING, EventType.FAILED)]
    print(f"{kind}: {len(put_off)} postponements for 12 jobs")
    assert wait_until(lambda: tenants(lookout)[0].row()["running"] == 0, deadline_s=10)


def test_a_killed_workers_room_comes_free(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    allow(lookout, "acme", {"in_flight": 2})
    doomed = fleet.start("--slots", "2", kinds="trouble")
    [first, second] = submit(client, fleet, 2, 3_000.0, tenant="acme")
    assert wait_until(lambda: len(fleet.marks()) == 2, deadline_s=30)
    fleet.start("--slots", "2", kinds="trouble")
    [third] = submit(client, fleet, 1, 0.1, tenant="acme")
    assert wait_until(lambda: why(lookout, third).blocker is Blocker.QUOTA, deadline_s=30)
    answer = why(lookout, third)
    assert (answer.facts["tenant"], answer.facts["may run"], answer.facts["in flight"]) == ("acme", 2, 2)
    [used] = tenants(lookout)
    assert used.row()["jobs"] == sorted([first, second])
    kill(doomed.pid)
    began = time.monotonic()
    # Its jobs are redelivered at once, and need no room but their own.
    assert wait_until(lambda: len(fleet.marks()) == 4, deadline_s=30)
    print(f"both run again {time.monotonic() - began:.1f} s after the kill")
    assert {mark.job for mark in fleet.marks()} == {first, second}
    for job in (first, second):
        client.cancel(job)
    assert wait_until(lambda: third in ended(fleet, [third]), deadline_s=SILENT_S + 90, every_s=0.5)
    print(f"the third ended {time.monotonic() - began:.1f} s after the kill")
    assert wait_until(lambda: tenants(lookout)[0].row()["running"] == 0, deadline_s=SILENT_S + 20)


def test_starts_a_second_and_a_quota_that_is_taken_back(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    allow(lookout, "acme", {"rate": 2, "burst": 1})
    for _ in range(2):
        fleet.start("--slots", "4", kinds="light")
    jobs = submit(client, fleet, 20, 0.0, "light", tenant="acme")
    assert wait_until(lambda: len(ended(fleet, jobs)) == 20, deadline_s=60)
    times = sorted(mark.at for mark in fleet.marks())
    for gap in range(1, 20):
        for first, last in zip(times, times[gap:], strict=False):
            # A mark is written a moment after its job was let in.
            assert gap + 1 <= 1 + 2 * (last - first) + 0.5
    put_off = [event for event in fleet.events() if event.type is EventType.POSTPONED]
    print(f"20 jobs at 2/s took {times[-1] - times[0]:.1f} s, {len(put_off)} postponements")
    allow(lookout, "acme", {"rate": 0.01})
    late = submit(client, fleet, 3, 0.0, "light", tenant="acme")
    assert wait_until(lambda: why(lookout, late[-1]).blocker is Blocker.QUOTA, deadline_s=30)
    disallow(lookout, "acme")
    new = submit(client, fleet, 3, 0.0, "light", tenant="acme")
    assert wait_until(lambda: len(ended(fleet, new)) == 3, deadline_s=30)
