"""Jobs that are paused and resumed, on a real broker with real workers, of which some die meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from fleet import Fleet, kill

from producers import Client
from producers.fleet import Blocker, Lookout, why
from schemas.event import Event, EventType
from schemas.outcome import Status
from wire.process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(300)]
REST = "TAPE-3011"


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    with Client(settings=fleet.settings) as made:
        yield made


def rests(fleet: Fleet, job: str) -> list[Event]:
    """What workers told of a job that they put off because it is paused."""
    return [event for event in fleet.events() if event.job == job and event.failure and event.failure.code == REST]


def rested(fleet: Fleet, job: str, looks: int = 1) -> None:
    assert wait_until(lambda: len(rests(fleet, job)) >= looks, deadline_s=60, every_s=0.02), fleet.logs()


@pytest.mark.parametrize("kind", ["trouble", "light"])
def test_a_running_job_stops_soon_and_begins_again_when_it_is_resumed(fleet: Fleet, client: Client, kind: str) -> None:
    first = fleet.start("--slots", "1")
    fleet.work("long", 6.0, kind, max_attempts=1)
    fleet.started("long")
    began = time.time()
    client.pause("long", "the market closes", who="me@desk")
    rested(fleet, "long")
    took = rests(fleet, "long")[0].time.timestamp() - began
    print(f"{kind}: handed back within {took:.2f} s")
    assert took < 2.0
    fleet.work("other", 0.0, kind)
    fleet.started("other")  # its slot is free
    kill(first.pid)
    fleet.start("--slots", "1")
    rested(fleet, "long", looks=2)
    with closing(Lookout.open(fleet.settings)) as lookout:
        answer = why(lookout, "long")
    assert answer.blocker is Blocker.PAUSED
    assert "by me@desk (the market closes); it waits until it is resumed" in answer.detail
    assert answer.next[0] == "tape resume long"
    assert len(fleet.marks("long")) == 1
    began = time.monotonic()
    client.resume("long")
    fleet.started("long", times=2)
    print(f"{kind}: goes on {time.monotonic() - began:.1f} s after it was resumed")
    fleet.all_ended()
    assert fleet.check() == Counter(succeeded=2)
    assert [mark.attempt for mark in fleet.marks("long")] == [1, 1]


def test_what_is_paused_before_it_begins_starts_nowhere_however_often_it_is_sent(fleet: Fleet, client: Client) -> None:
    client.pause("later")
    fleet.work("later", 0.0)
    fleet.work("later", 0.0, lane="interactive")
    first = fleet.start()
    rested(fleet, "later", looks=4)
    kill(first.pid)
    fleet.start()
    fleet.work("other", 0.0)
    fleet.started("other")
    assert not fleet.marks("later")
    client.resume("later")
    fleet.all_ended()
    assert fleet.check() == Counter(succeeded=2)
    assert len(fleet.marks("later")) == 1


def test_a_paused_job_is_cancelled_and_its_deadline_holds(fleet: Fleet, client: Client) -> None:
    fleet.start()
    for job in ("unwanted", "late"):
        client.pause(job)
    fleet.work("unwanted", 0.0)
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 8))
    fleet.work("late", 0.0, expires_at=expires)
    rested(fleet, "unwanted")
    rested(fleet, "late")
    client.cancel("unwanted", "enough")  # no client knows that this kind's outcomes are kept: a worker's look ends it
    assert client.job("unwanted").result(timeout=15).status is Status.CANCELLED
    assert client.job("late").result(timeout=30).status is Status.EXPIRED
    assert not fleet.marks()


def test_a_worker_that_just_comes_knows_of_the_pause(fleet: Fleet, client: Client) -> None:
    """It reads what was said before it takes anything up: jobs wait in the queue when it starts."""
    jobs = [f"job-{number}" for number in range(20)]
    for job in jobs:
        client.pause(job)
        fleet.work(job, 0.0)
    for _ in range(2):
        crew = fleet.start("--slots", "4")
        assert wait_until(lambda: all(rests(fleet, job) for job in jobs), deadline_s=60), fleet.logs()
        kill(crew.pid)
    assert not fleet.marks()
    assert not [event for event in fleet.events() if event.type is EventType.RUNNING]
