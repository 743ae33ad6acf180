"""Real workers on a real broker: jobs from a plain client, drains, locks that are outlived, brokers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from fleet import Fleet, restart

from producers import Client
from schemas.event import EventType
from schemas.outcome import Status
from wire.broker import NativeBroker
from wire.process import free_port, wait_until
from wire.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


def test_a_plain_client_publishes_and_every_kind_completes(fleet: Fleet) -> None:
    crew = fleet.start(kinds="echo,trouble,light")
    fleet.submit("echo-1", "echo", "interactive", params={"text": "hello"})
    fleet.submit("work-1", "trouble", params={"do": "work"}, labels={"desk": "equities"})
    fleet.submit("light-1", "light", params={"do": "work"})
    fleet.submit("bad-1", "echo", params={"txt": "a slip"})
    fleet.submit("gone-1", "trouble", params={"do": "raise"})
    fleet.submit("late-1", "trouble", params={}, expires_at="2020-01-01T00:00:00Z")
    fleet.all_ended()
    assert fleet.check() == {"succeeded": 3, "dead": 1, "failed": 1, "expired": 1}
    told = [event.type for event in fleet.events() if event.job == "work-1"]
    assert told == [EventType.RUNNING, EventType.PROGRESS, EventType.SUCCEEDED]
    crew.signal(signal.SIGTERM)
    assert crew.end() == 0
    assert crew.said("worker down")


def test_segfaults_cost_attempts_and_end_in_a_dead_letter(fleet: Fleet) -> None:
    crew = fleet.start()
    fleet.submit("poison", params={"do": "segfault"})
    fleet.submit("neighbour", params={"do": "work"})
    fleet.all_ended()
    assert fleet.check() == {"dead": 1, "succeeded": 1}
    (dead,) = (event for event in fleet.events() if event.type is EventType.DEAD)
    assert dead.failure is not None
    assert (dead.failure.code, dead.attempt) == ("TAPE-6002", 3)
    assert "SIGSEGV" in dead.failure.message
    assert dead.outcome is not None
    assert dead.outcome.usage.seconds > 0
    assert fleet.letters() == {"poison": b"poison"}
    assert crew.process.poll() is None


def test_sigterm_lets_the_running_job_end_and_hands_on_the_rest(fleet: Fleet) -> None:
    crew = fleet.start()
    fleet.work("running", 2.0)
    fleet.started("running")
    fleet.work("waiting", 0.0)
    crew.signal(signal.SIGTERM)
    assert crew.end() == 0
    assert [mark.attempt for mark in fleet.marks("running")] == [1]
    assert fleet.marks("waiting") == []
    assert set(fleet.ended()) == {"running"}
    fleet.start()
    fleet.all_ended()
    assert fleet.check() == {"succeeded": 2}
    assert [mark.attempt for mark in fleet.marks("running")] == [1]


@pytest.mark.parametrize("kind", ["trouble", "light"])
def test_after_the_grace_a_job_is_handed_back_at_once(fleet: Fleet, kind: str) -> None:
    crew = fleet.start("--grace", "0.5")
    fleet.work("long", 30.0, kind)
    first = fleet.started("long")[0]
    crew.signal(signal.SIGTERM)
    assert crew.end(30) == 0
    ended_at = time.time()
    other = fleet.start()
    second = fleet.started("long", 2)[1]
    assert second.pid == other.pid != first.pid
    assert second.at - ended_at < 20, "the lock had to run out"
    assert fleet.ended() == {}
    retrying = [event for event in fleet.events() if event.type is EventType.RETRYING]
    assert [event.failure.code for event in retrying if event.failure] == ["TAPE-3004"]


def test_a_job_that_hears_nothing_cannot_hold_up_the_end(fleet: Fleet) -> None:
    crew = fleet.start("--grace", "0.2")
    fleet.submit("deaf", params={"do": "deaf", "seconds": 300, "mark": str(fleet.folder / "marks")})
    fleet.started("deaf")
    began = time.monotonic()
    crew.signal(signal.SIGTERM)
    assert crew.end(40) == 0
    assert time.monotonic() - began < 15
    assert fleet.ended() == {}


@pytest.mark.timeout(200)
def test_a_job_far_longer_than_its_lock_runs_once(settings: Settings, tmp_path: Path) -> None:
    with Fleet(settings.model_copy(update={"lock_ms": 2_000}), tmp_path) as fleet:
        fleet.start()
        fleet.start()
        fleet.work("long", 15.0)
        fleet.work("long-light", 15.0, "light")
        fleet.all_ended()
        assert fleet.check() == {"succeeded": 2}
        assert len(fleet.marks()) == 2


@pytest.mark.timeout(300)
def test_a_broker_that_dies_and_comes_back_loses_nothing(single: NativeBroker, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, cache=single.cache, prefix="t.", kafka_url=single.status().url, partitions=2,
        store_url=f"dir:{tmp_path / 'store'}",
    )  # fmt: skip
    with Fleet(settings, tmp_path) as fleet:
        fleet.start("--slots", "2")
        fleet.start("--slots", "2")
        for number in range(30):
            fleet.work(f"job-{number}", 0.5, "light" if number % 3 == 0 else "trouble")
        fleet.work("long", 12.0)
        fleet.started("long", deadline_s=90)
        fleet.hush()
        restart(single)
        fleet.all_ended(deadline_s=150)
        assert fleet.check() == {"succeeded": 31}
        print(f"starts for 31 jobs: {len(fleet.marks())}")


def worker(*arguments: str, home: Path, **env: str) -> tuple[int, str, float]:
    """Run a worker that must end by itself; returns its status, what it said, and how long it took."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TAPE_")}
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", "workers", "--home", str(home), *arguments],
        capture_output=True, text=True, env=clean | env, timeout=100, check=False,
    )  # fmt: skip
    assert found.stdout == ""
    return found.returncode, found.stderr, time.monotonic() - began


def test_an_unreachable_broker_is_told_at_once(tmp_path: Path) -> None:
    port = free_port()
    env = {"TAPE_KAFKA_URL": f"127.0.0.1:{port}", "TAPE_KAFKA_TIMEOUT_S": "2"}
    code, err, took = worker("--kinds", "echo", home=tmp_path, **env)
    assert code == 69
    assert err.startswith("TAPE-5001")
    assert took < 15


def test_missing_topics_are_told_with_the_way_out(settings: Settings, tmp_path: Path) -> None:
    code, err, _ = worker("--kinds", "echo", home=tmp_path, **{**settings.environ(), "TAPE_PREFIX": "nobody."})
    assert code == 3
    assert err.startswith("TAPE-2004")
    assert "tape topics apply --kind echo" in err


def test_a_health_port_in_use_is_told(tmp_path: Path, fleet: Fleet) -> None:
    crew = fleet.start("--health-port", "0")
    assert wait_until(lambda: "health on" in crew.log.read_text(), deadline_s=10)
    url = crew.log.read_text().split("health on ")[1].split()[0]
    port = url.rsplit(":", 1)[1].split("/")[0]
    for probe in ("live", "ready"):
        with urllib.request.urlopen(url.replace("live", probe), timeout=10) as answer:
            assert answer.status == 200
    code, err, _ = worker("--kinds", "echo", "--health-port", port, home=tmp_path, **fleet.settings.environ())
    assert code == 5
    assert err.startswith("TAPE-3003")


def test_once_takes_one_job_and_ends(fleet: Fleet) -> None:
    for number in range(3):
        fleet.work(f"job-{number}", 0.0, "light")
    crew = fleet.start("--once", kinds="light,trouble")
    assert crew.end(60) == 0
    assert len(fleet.ended()) == 1
    assert len(fleet.marks()) == 1
    fleet.start()
    fleet.all_ended()
    assert fleet.check() == {"succeeded": 3}


def test_an_idle_worker_ends_when_told_to(fleet: Fleet) -> None:
    crew = fleet.start("--idle-exit", "0.5", wait=False)
    assert crew.end(60) == 0


def test_an_idle_worker_is_small_and_holds_no_torch(fleet: Fleet) -> None:
    names = ("training", "evaluation", "inference")
    fleet.prepare(*names)
    crew = fleet.start(kinds=",".join(names))
    process = psutil.Process(crew.pid)
    assert wait_until(lambda: len(process.children()) == 1, deadline_s=20)
    mapped = {entry.path for entry in process.memory_maps()}
    resident = process.memory_info().rss / 1e6
    (child,) = process.children()
    print(f"worker {resident:.1f} MB, idle child {child.memory_info().rss / 1e6:.1f} MB")
    assert not [path for path in mapped if "torch" in path or "numpy" in path]
    assert resident < (90 if "coverage" in sys.modules else 80), "what counts lines has memory of its own"


def test_a_dead_collector_neither_slows_nor_fails_jobs(fleet: Fleet) -> None:
    crew = fleet.start(TAPE_OTLP_ENDPOINT="http://127.0.0.1:9")
    for number in range(20):
        fleet.work(f"job-{number}", 0.0, "light" if number % 2 else "trouble")
    fleet.all_ended(30)
    assert fleet.check() == {"succeeded": 20}
    began = time.monotonic()
    crew.signal(signal.SIGTERM)
    assert crew.end() == 0
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("gone", ["dead", "events"])
def test_a_missing_topic_keeps_the_record_and_is_loud(fleet: Fleet, gone: str) -> None:
    crew = fleet.start(kinds="light")
    topic = fleet.names.dead("light") if gone == "dead" else fleet.names.events
    fleet.delete(topic)
    fleet.submit("poison", "light", params={"unknown": 1})
    assert wait_until(lambda: crew.said("not confirmed yet"), deadline_s=60), crew.log.read_text()
    fleet.prepare("light")
    fleet.all_ended()
    assert fleet.check() == {"dead": 1}


def test_an_unknown_kind_is_usage(tmp_path: Path) -> None:
    code, err, _ = worker("--kinds", "training,nothing", home=tmp_path)
    assert code == 2
    assert err.startswith("TAPE-1003")
    assert "training" in err


@pytest.mark.parametrize("kind", ["trouble", "light"])
def test_a_job_that_waits_for_its_time_is_cancelled_at_once_and_once(fleet: Fleet, kind: str) -> None:
    """The worker that meets its record when it is due must tell no other end, and run nothing."""
    fleet.start(kinds="trouble,light")
    due = datetime.now(UTC) + timedelta(seconds=12)
    fleet.submit("later", kind, params={"do": "work", "mark": str(fleet.folder / "marks")}, not_before=due.isoformat())
    put_off = wait_until(lambda: any(event.type is EventType.POSTPONED for event in fleet.events()), deadline_s=30)
    assert put_off
    with Client(settings=fleet.settings) as client:
        client.cancel("later", reason="enough")
        found = client.job("later").result(timeout=3)
        assert found.status is Status.CANCELLED
        assert datetime.now(UTC) < due
    fleet.submit("after", kind, params={"do": "work"}, not_before=(due + timedelta(seconds=1)).isoformat())
    assert wait_until(lambda: any(event.job == "after" and event.outcome for event in fleet.events()), deadline_s=60)
    ends = [event for event in fleet.events() if event.job == "later" and event.outcome is not None]
    assert len({event.id for event in ends}) == 1
    assert len(ends) == 2, "told again when it was due"
    assert {event.outcome.status for event in ends if event.outcome} == {Status.CANCELLED}
    assert not fleet.marks("later")
