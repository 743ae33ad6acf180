"""Zombies and resurrections: a worker frozen past its lock, and a broker that forgets every lock, end each job once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Crew, Fleet, Mark, restart

from schemas.event import Event
from wire.broker import NativeBroker
from wire.process import wait_until
from wire.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
LOCK_MS = 2_000


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(settings.model_copy(update={"lock_ms": LOCK_MS}), tmp_path) as one:
        yield one


def two(fleet: Fleet, job: str, seconds: float, kind: str = "trouble") -> tuple[Crew, Crew, Mark]:
    """Start two workers and a job; return who runs it, who does not, and when it began."""
    one, other = fleet.start(), fleet.start()
    fleet.work(job, seconds, kind)
    first = fleet.started(job)[0]
    return (one, other, first) if first.pid == one.pid else (other, one, first)


def refusals(fleet: Fleet, job: str) -> list[Event]:
    """The events that tell of an outcome that came too late."""
    return [
        event for event in fleet.events() if event.job == job and event.failure and event.failure.code == "TAPE-3009"
    ]


def test_a_zombie_that_thaws_in_the_middle_stops_and_says_so(fleet: Fleet) -> None:
    frozen, other, first = two(fleet, "job", 8.0)
    frozen.signal(signal.SIGSTOP)
    second = fleet.started("job", 2)[1]
    assert second.pid == other.pid
    assert (first.attempt, second.attempt) == (1, 2)
    frozen.signal(signal.SIGCONT)
    assert wait_until(lambda: refusals(fleet, "job"), deadline_s=30, every_s=0.5), fleet.logs()
    (refused,) = refusals(fleet, "job")
    assert refused.worker is not None
    assert refused.worker.split("-")[-2] == str(frozen.pid)
    assert frozen.said("claim lost")
    assert frozen.said("late outcome refused")
    fleet.all_ended()
    assert fleet.check() == {"succeeded": 1}
    (winner,) = (event.worker for event in fleet.events() if event.outcome is not None)
    assert winner is not None
    assert winner.split("-")[-2] == str(other.pid)
    assert len(fleet.marks("job")) == 2


def test_a_zombie_that_thaws_after_the_end_cannot_end_the_job_again(fleet: Fleet) -> None:
    frozen, other, _ = two(fleet, "job", 1.5)
    frozen.signal(signal.SIGSTOP)
    assert fleet.started("job", 2)[1].pid == other.pid
    fleet.all_ended()
    frozen.signal(signal.SIGCONT)
    assert wait_until(lambda: frozen.said("late outcome refused"), deadline_s=30), fleet.logs()
    assert fleet.check() == {"succeeded": 1}
    fleet.work("next", 0.0)
    fleet.work("next-light", 0.0, "light")
    fleet.all_ended()
    assert fleet.check() == {"succeeded": 3}
    assert frozen.process.poll() is None


def test_a_worker_that_is_frozen_more_briefly_than_its_lock_keeps_its_job(fleet: Fleet) -> None:
    frozen, _, _ = two(fleet, "job", 4.0)
    frozen.signal(signal.SIGSTOP)
    time.sleep(LOCK_MS / 4000)
    frozen.signal(signal.SIGCONT)
    fleet.all_ended()
    assert fleet.check() == {"succeeded": 1}
    assert len(fleet.marks("job")) == 1
    assert refusals(fleet, "job") == []


@pytest.mark.timeout(240)
def test_a_broker_that_forgets_its_locks_does_not_make_a_job_run_twice(single: NativeBroker, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, cache=single.cache, prefix="t.", kafka_url=single.status().url, partitions=2,
        store_url=f"dir:{tmp_path / 'store'}", lock_ms=LOCK_MS,
    )  # fmt: skip
    with Fleet(settings, tmp_path) as fleet:
        two(fleet, "long", 25.0)
        fleet.hush()
        restart(single)
        fleet.all_ended(deadline_s=120)
        assert fleet.check() == {"succeeded": 1}
        assert len(fleet.marks("long")) == 1, "it ran twice: the claim did not keep the second worker away"
