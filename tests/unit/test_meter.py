"""What a worker measures: counted from real events, read as Prometheus text and by a collector, and all documented."""

from __future__ import annotations

import re
import threading
import urllib.request
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_worker_whole import Rig, light
from worker_twin import NAMES, Bench, Clock, kind, raising, raw, record

from schemas.control import Breaker, BreakerState
from schemas.errors import JobError, SetupError, UnavailableError
from schemas.outcome import Failed, Failure, Succeeded
from wire import metrics
from wire.publish import MemoryPublisher, Sent
from wire.settings import Settings
from wire.share import MemoryLog
from workers.breaker import Breakers
from workers.meter import METRICS, Meter

ROOT = Path(__file__).parents[2]
Page = dict[str, dict[tuple[tuple[str, str], ...], float]]


def read(page: bytes) -> Page:
    """Every sample by its name and labels."""
    found: Page = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def at(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name.rstrip("_"), value) for name, value in labels.items()))


class Measured:
    """A bench whose events and slots are measured."""

    def __init__(self, *kinds: Any, publisher: Any = MemoryPublisher) -> None:
        self.metrics = metrics.configure(Settings(), "worker", page=True)
        self.meter = Meter(self.metrics.meter, NAMES, {one.name: one for one in kinds})
        clock = Clock()
        log = MemoryLog(clock=lambda: clock.seconds)
        self.bench = Bench(*kinds, log=log, clock=clock, publisher=publisher(log), told=self.meter.told)

    def run(self, *records: Any) -> Page:
        work = self.meter.slots(self.bench.executor.execute)
        for one in records:
            work(one, self.bench.runner)
        return self.page()

    def page(self) -> Page:
        told, page = self.metrics.page()
        assert told.startswith("text/plain")
        return read(page)


def test_every_end_is_counted_with_its_kind_lane_status_and_class() -> None:
    say, shout = kind(), kind(raising_for(JobError("no", code="TAPE-6014")), "shout")
    measured = Measured(say, shout)
    page = measured.run(
        record("a"), record("b", lane="interactive"), record("c", kind_name="shout"), raw(b"no JSON"), record("a")
    )  # the second `a` is a repeat, told again
    ended = page["tape_jobs_ended_total"]
    assert ended[at(kind="say", lane="bulk", status="succeeded", class_="")] == 2
    assert ended[at(kind="say", lane="interactive", status="succeeded", class_="")] == 1
    assert ended[at(kind="shout", lane="bulk", status="failed", class_="permanent")] == 1
    assert ended[at(kind="say", lane="bulk", status="dead", class_="invalid")] == 1
    assert page["tape_jobs_dead_total"] == {at(kind="say", class_="invalid", code="TAPE-1004"): 1}
    assert page["tape_jobs_taken_total"][at(kind="say", lane="bulk")] == 3
    assert page["tape_jobs_seconds_count"] == {at(kind="say"): 4, at(kind="shout"): 1}
    assert page["tape_jobs_seconds_bucket"][at(kind="say", le="0.1")] == 4
    assert 0 < page["tape_slots_busy_seconds_total"][at(kind="say")] < 5


def raising_for(error: Exception) -> Any:
    return raising(error).handler


def test_attempts_that_are_tried_again_and_jobs_put_off_are_counted_apart() -> None:
    errors: list[Exception] = [
        JobError("once more", code="TAPE-6001"),
        UnavailableError("away", code="TAPE-5007", dependency="judge"),
        UnavailableError("away", code="TAPE-5008"),
    ]

    def handler(*_: object) -> Succeeded:
        raise errors.pop(0)

    measured = Measured(kind(handler))
    late = datetime(2027, 1, 1, tzinfo=UTC).isoformat()
    page = measured.run(record("a"), record("b"), record("c"), record("d", not_before=late))
    assert page["tape_jobs_retried_total"] == {at(kind="say", lane="bulk", class_="transient"): 1}
    assert page["tape_jobs_postponed_total"] == {
        at(kind="say", lane="bulk", reason=reason): 1 for reason in ("judge", "TAPE-5008", "scheduled")
    }
    assert "tape_jobs_ended_total" not in page


class Refusing(MemoryPublisher):
    """Refuses the first record."""

    refused = False

    def publish(self, topic: str, **fields: Any) -> Future[Sent]:
        if not self.refused:
            self.refused = True
            failed: Future[Sent] = Future()
            failed.set_exception(UnavailableError("not confirmed", code="TAPE-5003"))
            return failed
        return super().publish(topic, **fields)


def test_what_the_broker_did_not_take_is_not_counted_and_then_once() -> None:
    measured = Measured(kind(isolation="thread"), publisher=Refusing)
    assert "tape_jobs_ended_total" not in measured.run(record("a"))
    measured.bench.clock.advance(60)
    measured.bench.again.run()
    assert sum(measured.page()["tape_jobs_ended_total"].values()) == 1


def test_a_light_job_has_no_histogram() -> None:
    page = Measured(kind(isolation="thread")).run(record("a"))
    assert "tape_jobs_seconds_count" not in page
    assert at(kind="say") in page["tape_slots_busy_seconds_total"]


def step(epoch: int, state: BreakerState, worker: str = "w2", ago_s: float = -1.0) -> Breaker:
    since = datetime.now(UTC) - timedelta(seconds=ago_s)
    return Breaker(
        dependency="store", state=state, epoch=epoch, worker=worker, since=since, until=since + timedelta(seconds=60)
    )


def test_a_breaker_that_opens_is_counted_once_whoever_says_so() -> None:
    measured = Measured()
    breakers = Breakers("w1", lambda: datetime.now(UTC), lambda _: None)
    opens = []
    for message in (
        step(1, BreakerState.OPEN, ago_s=600),  # from before this worker came
        step(2, BreakerState.CLOSED),
        step(3, BreakerState.OPEN),
        step(3, BreakerState.OPEN, "w3"),  # too late: the first of an epoch counts
        step(4, BreakerState.HALF_OPEN),
        step(5, BreakerState.OPEN),
    ):
        measured.meter.breaker(breakers, message)
        opens.append(sum(measured.page().get("tape_breaker_opens_total", {}).values()))
    assert opens == [0, 0, 1, 1, 1, 2]
    assert breakers.states()["store"].epoch == 5


def test_a_worker_shows_all_it_measures_on_its_health_port(tmp_path: Path) -> None:
    going, free = threading.Event(), threading.Event()

    def handler(*_: object) -> Any:
        going.set()
        assert free.wait(20)
        return Failed(failure=Failure.of(JobError("no", code="TAPE-6014")))

    with Rig(tmp_path, light(handler), slots=3, health_port=0).running() as rig:
        assert rig.worker.health is not None

        def look() -> Page:
            assert rig.worker.health is not None
            address = f"http://127.0.0.1:{rig.worker.health.port}/metrics"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return read(answer.read())

        rig.send("a", "say", "bulk")
        assert going.wait(20)
        page = look()
        assert page["tape_leases"] == {at(kind="say"): 1}
        assert page["tape_slots"] == {at(pool="thread"): 3}
        assert page["tape_settling"] == {(): 0}
        assert 0 <= page["tape_loop_age_seconds"][()] < 10
        rig.worker._meter.breaker(rig.worker._breakers, step(1, BreakerState.HALF_OPEN))
        assert look()["tape_breaker_state"] == {at(dependency="store"): 1}
        free.set()
        rig.wait(lambda: "a" in rig.ended())
        rig.wait(lambda: rig.lag() == 0)
        page = look()
        assert page["tape_jobs_ended_total"] == {at(kind="say", lane="bulk", status="failed", class_="permanent"): 1}
        assert page["tape_jobs_taken_total"] == {at(kind="say", lane="bulk"): 1}


def test_a_collector_gets_the_numbers_at_the_latest_when_the_worker_ends() -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        told = metrics.configure(Settings(otlp_endpoint=f"http://127.0.0.1:{server.server_port}"), "worker")
        told.meter.create_counter("tape.test").add(1)
        told.close()
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/metrics"
    assert b"tape.test" in body


def test_a_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(SetupError) as caught:
        metrics.configure(Settings(otlp_endpoint="http://127.0.0.1:1"), "worker")
    assert caught.value.code == "TAPE-8003"


def test_every_metric_is_in_the_runbook_and_no_other() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    table = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = {}
    for line in table.splitlines():
        if found := re.match(r"\| `(tape_\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*?) \|$", line):
            rows[found[1]] = (found[2], tuple(re.findall(r"`(\w+)`", found[3])), found[4])
    assert rows == {page_name(one.name): (one.sort, one.labels, one.told) for one in METRICS.values()}


def page_name(name: str) -> str:
    """What Prometheus calls a metric."""
    one = METRICS[name]
    full = name.replace(".", "_") + ("_seconds" if one.unit == "s" and not name.endswith("seconds") else "")
    return full + ("_total" if one.sort == "counter" else "")
