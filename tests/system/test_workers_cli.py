"""Who works, why a job is not running, and sending a worker home: a real broker, a real worker process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, kill

from producers import Client, Request
from producers.fleet import Answer, Blocker, Lookout, why
from schemas.control import SILENT_S
from schemas.event import State
from wire.process import wait_until
from wire.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
MANY = 10_000
RUN = "import sys; from producers.cli import main; sys.exit(main())"


@pytest.fixture
def lookout(settings: Settings) -> Iterator[Lookout]:
    with closing(Lookout.open(settings)) as made:
        yield made


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    with Client(settings=fleet.settings) as made:
        yield made


def tape(fleet: Fleet, *argv: str, code: int = 0) -> Any:
    """Run `tape` as a process of its own; return what it printed as JSON."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TAPE_")}
    found = subprocess.run(
        [sys.executable, "-c", RUN, *argv, "--output", "json"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], env=clean | fleet.settings.environ(), timeout=60,
        check=False,
    )  # fmt: skip
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout) if found.stdout else found.stderr


def working(client: Client, fleet: Fleet, seconds: float, **options: Any) -> str:
    """Submit a job that leaves a mark when it starts."""
    params = {"do": "work", "seconds": seconds, "mark": str(fleet.folder / "marks")}
    return client.submit("trouble", params, **options).id


def until(lookout: Lookout, job: str, blocker: Blocker) -> Answer:
    """Ask until this is the answer: what workers say of themselves is some seconds old."""
    answers: list[Answer] = []

    def asked() -> bool:
        answers.append(why(lookout, job))
        return answers[-1].blocker is blocker

    assert wait_until(asked, deadline_s=30, every_s=0.2), answers[-1]
    return answers[-1]


def test_nobody_is_there(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    assert tape(fleet, "workers") == {"workers": [], "breakers": []}
    first, second = (working(client, fleet, 0.1) for _ in range(2))
    answer = tape(fleet, "why", first)
    assert (answer["state"], answer["blocker"]) == ("queued", "no-worker")
    assert answer["next"][0] == "tape worker --kinds trouble"
    fleet.work("plain", 0.1)  # a plain client tells no event
    assert why(lookout, "plain").blocker is Blocker.WORKERS
    assert (why(lookout, second).ahead or 0) <= 2
    assert "TAPE-2002" in tape(fleet, "why", "nobodys", code=3)
    client.cancel(first, "a slip")
    assert "a slip" in until(lookout, first, Blocker.CANCELLED).detail


def test_a_busy_worker(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    crew = fleet.start("--slots", "1", kinds="trouble")
    long = working(client, fleet, 60)
    fleet.started(long)
    running = until(lookout, long, Blocker.RUNNING)
    assert (running.state, running.facts["attempt"]) == (State.RUNNING, 1)
    others = [working(client, fleet, 0.1) for _ in range(12)]
    behind = max((why(lookout, job) for job in others), key=lambda answer: answer.ahead or 0)
    assert behind.blocker is Blocker.POSITION
    assert 2 <= (behind.ahead or 0) <= 12
    [row] = tape(fleet, "workers")["workers"]
    assert (row["worker"], row["kinds"], row["slots"]) == (running.facts["worker"], ["trouble"], 1)
    assert row["pid"] == crew.pid
    client.cancel(others[0])
    assert until(lookout, others[0], Blocker.CANCELLED).state is State.QUEUED
    client.cancel(long)
    assert client.job(others[-1]).result(60).status == "succeeded"
    assert until(lookout, others[-1], Blocker.ENDED).state is State.SUCCEEDED
    assert until(lookout, long, Blocker.ENDED).state is State.CANCELLED


def test_a_job_that_waits_for_its_time(fleet: Fleet, lookout: Lookout) -> None:
    fleet.start("--slots", "1", kinds="trouble")
    moment = datetime.now(UTC) + timedelta(minutes=5)
    fleet.work("later", 0.1, not_before=moment.isoformat())
    assert wait_until(lambda: bool(list(fleet.events())), deadline_s=30)
    answer = until(lookout, "later", Blocker.DELAYED)
    assert answer.state is State.POSTPONED
    assert answer.expected_start is not None
    assert abs(answer.expected_start - moment) < timedelta(seconds=1)


def test_sent_home(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    crew = fleet.start("--slots", "1", kinds="trouble")
    assert wait_until(lambda: bool(lookout.fleet().workers), deadline_s=20)
    [seen] = lookout.fleet().workers
    job = working(client, fleet, 3)
    fleet.started(job)
    assert tape(fleet, "workers", "drain", seen.id, "--reason", "a test")["status"] == "draining"
    left = working(client, fleet, 0.1)
    assert why(lookout, left).blocker in (Blocker.DRAINING, Blocker.WORKERS)
    assert crew.end() == 0
    assert client.job(job).result(30).status == "succeeded"
    found = lookout.fleet()
    assert (found.workers, dict(found.drains)) == ((), {})
    assert "TAPE-2007" in tape(fleet, "workers", "drain", seen.id, code=3)


def test_a_worker_that_died(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    crew = fleet.start("--slots", "1", kinds="trouble")
    job = working(client, fleet, 60)
    fleet.started(job)
    until(lookout, job, Blocker.RUNNING)
    kill(crew.pid)
    crew.process.wait()
    later = replace(lookout, now=lambda: datetime.now(UTC) + timedelta(seconds=SILENT_S + 1))
    assert why(later, job).blocker is Blocker.LOST
    assert [seen.silent for seen in later.fleet().workers] == [True]
    assert [seen.silent for seen in lookout.fleet().workers] == [False]


def test_a_long_line(fleet: Fleet, client: Client, lookout: Lookout) -> None:
    fleet.start("--slots", "1", kinds="trouble")
    blocking = working(client, fleet, 100)
    fleet.started(blocking)
    params = {"do": "work", "seconds": 100}
    jobs = [handle.id for handle in client.submit_many(Request("trouble", params) for _ in range(MANY))]
    # The first in the line is `next` until the worker's presence, said every ten seconds, tells that its slot is taken.
    # Behind the running job, in the same partition, it may be as far back as every other partition's first job.
    assert wait_until(lambda: any(seen.presence.full for seen in lookout.fleet().workers), deadline_s=25, every_s=0.5)
    first = why(lookout, jobs[0])
    assert first.ahead is not None
    assert first.ahead <= fleet.settings.partitions
    for job in (jobs[0], jobs[MANY // 2], jobs[-1]):
        began = time.monotonic()
        answer = why(lookout, job)
        took = time.monotonic() - began
        print(f"{took:.2f} s: {answer.detail}")
        assert took < 2.0
        assert answer.blocker in (Blocker.POSITION, Blocker.SLOTS)
        assert answer.facts["waiting"] >= MANY
    middle, end = why(lookout, jobs[MANY // 2]).ahead, why(lookout, jobs[-1]).ahead
    assert middle is not None
    assert end is not None
    assert abs(middle - MANY / 2) < MANY / 10
    assert abs(end - MANY) < MANY / 10
