"""Settling a job while the store, the publisher or the worker itself is in trouble."""

from __future__ import annotations

from typing import Any

import pytest
from worker_twin import NAMES, START, Bench, Waiting, dead, events, kind, raising, raw, record, tried

from schemas.dead import DISPOSITION
from schemas.errors import (
    AuthError,
    FailureClass,
    InvalidError,
    JobError,
    TapeError,
    UnavailableError,
)
from schemas.event import EventType
from schemas.outcome import Succeeded, outcome_name
from schemas.past import read
from wire.blobs import Blobs
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher
from wire.share import AckType, MemoryLog


class Outage(Memory):
    """A store that answers with an error while `down`."""

    def __init__(self, error: TapeError) -> None:
        super().__init__()
        self.error, self.down = error, True

    def _refuse(self) -> None:
        if self.down:
            raise self.error

    def put(self, name: str, *args: Any, **options: Any) -> Any:
        self._refuse()
        return super().put(name, *args, **options)

    def get(self, name: str, **options: Any) -> Any:
        self._refuse()
        return super().get(name, **options)

    def stat(self, name: str) -> Any:
        self._refuse()
        return super().stat(name)


@pytest.mark.parametrize("error", [UnavailableError("down", code="TAPE-5002"), AuthError("no", code="TAPE-4002")])
def test_a_job_waits_for_the_store_and_spends_nothing(error: TapeError) -> None:
    store = Outage(error)
    bench = Bench(store=store)
    assert bench.run(record()) is AckType.ACCEPT
    told = [(event.type, event.attempt) for event in bench.events()]
    assert told == [(EventType.POSTPONED, 1)]
    store.down = False
    again = bench.next()
    assert bench.clock.now() > START
    assert bench.run(again) is AckType.ACCEPT
    assert bench.outcome("job-1").attempt == 1


def test_a_job_waits_under_its_lease_for_what_is_no_dependency() -> None:
    store = Outage(AuthError("no"))
    bench = Bench(store=store)
    assert bench.run(record()) is None
    assert bench.events() == []
    bench.clock.advance(60)
    assert bench.again.run() == 1
    store.down = False
    assert bench.run(bench.given[0]) is AckType.ACCEPT


def test_an_outage_of_the_store_pushes_nothing_out_of_the_story() -> None:
    store = Outage(UnavailableError("down", code="TAPE-5002"))
    bench = Bench(store=store)
    given = record(past=tried((FailureClass.TRANSIENT, "TAPE-6001")))
    for _ in range(12):
        assert bench.run(given) is AckType.ACCEPT
        given = bench.waiting()[-1].record
        bench.clock.advance(600)
    past = bench.waiting()[-1].past
    assert past.spent == 1
    assert [one.code for one in past.tries] == ["TAPE-6001", bench.events()[-1].failure.code]  # type: ignore[union-attr]


def test_an_outcome_waits_for_the_store_without_running_the_job_again() -> None:
    ran: list[int] = []
    store = Outage(UnavailableError("down", code="TAPE-5002"))
    store.down = False

    def handler(*_: object) -> Succeeded:
        ran.append(1)
        bench.clock.advance(60)  # long enough for the claim to be doubtful
        store.down = True
        return Succeeded()

    def meanwhile() -> None:
        assert bench.acks == []
        store.down = bench.slept < 100

    bench = Bench(kind(handler), store=store)
    bench.meanwhile = meanwhile
    assert bench.run(record()) is AckType.ACCEPT
    assert bench.slept == 100
    assert ran == [1]
    assert bench.outcome("job-1").attempt == 1


def test_an_outcome_whose_claim_is_fresh_waits_without_a_slot() -> None:
    ran: list[int] = []
    store = Outage(UnavailableError("down", code="TAPE-5002"))
    store.down = False

    def handler(*_: object) -> Succeeded:
        ran.append(1)
        store.down = True
        return Succeeded()

    bench = Bench(kind(handler), store=store)
    assert bench.run(record()) is None
    for _ in range(3):
        bench.clock.advance(60)
        assert bench.again.run() == 1
        assert bench.acks == []
    store.down = False
    bench.clock.advance(60)
    bench.again.run()
    assert [ack for _, ack in bench.acks] == [AckType.ACCEPT]
    assert ran == [1]


def test_a_worker_that_ends_waits_for_the_store_no_longer() -> None:
    store = Outage(UnavailableError("down", code="TAPE-5002"))
    store.down = False

    def handler(*_: object) -> Succeeded:
        bench.clock.advance(60)
        store.down = True
        return Succeeded()

    bench = Bench(kind(handler), store=store)
    bench.ended = True
    assert bench.run(record()) is None
    assert bench.slept == 1
    store.down = False
    bench.clock.advance(60)
    bench.again.run()
    assert [ack for _, ack in bench.acks] == [AckType.ACCEPT]


def test_a_dead_letter_waits_for_the_store_too() -> None:
    store = Outage(UnavailableError("down", code="TAPE-5002"))
    store.down = False

    def handler(*_: object) -> Succeeded:
        store.down = True
        raise InvalidError("bad")

    def meanwhile() -> None:
        assert (bench.acks, dead(bench)) == ([], [])
        store.down = bench.slept < 10

    bench = Bench(kind(handler), store=store)
    bench.meanwhile = meanwhile
    assert bench.run(record()) is AckType.REJECT
    assert bench.slept == 10
    assert len(dead(bench)) == 1


def test_a_corrupt_outcome_is_a_dead_letter_and_not_an_endless_wait() -> None:
    bench = Bench()
    bench.store.create(outcome_name("job-1"), b"{rot")
    assert bench.run(record()) is AckType.REJECT
    assert len(dead(bench)) == 1


class Deaf(MemoryPublisher):
    """A publisher whose records are not confirmed while `down`: some are lost, some are in the log all the same."""

    def __init__(self, log: MemoryLog, topic: str, *, written: bool) -> None:
        super().__init__(log)
        self.topic, self.written, self.down, self.tries = topic, written, True, 0

    def publish(self, topic: str, **options: Any) -> Any:
        if topic != self.topic or not self.down:
            return super().publish(topic, **options)
        self.tries += 1
        if self.written:
            super().publish(topic, **options)
        raise UnavailableError("not confirmed", code="TAPE-5003")


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("topic", [NAMES.events, NAMES.dead("say")])
@pytest.mark.parametrize("good", [True, False])
def test_nothing_is_acknowledged_before_the_event_or_letter_is_confirmed(written: bool, topic: str, good: bool) -> None:
    log = MemoryLog()
    publisher = Deaf(log, topic, written=written)
    bench = Bench(log=log, publisher=publisher)
    if good and topic == NAMES.dead("say"):
        assert bench.run(record()) is AckType.ACCEPT
        return
    assert bench.run(record() if good else raw(b"{")) is None
    for _ in range(3):
        bench.clock.advance(60)
        assert bench.again.run() >= 1
        assert bench.acks == []
    publisher.down = False
    bench.clock.advance(60)
    bench.again.run()
    assert [ack for _, ack in bench.acks] == [AckType.ACCEPT if good else AckType.REJECT]
    assert len({event.id for event in bench.events() if event.outcome is not None}) == 1
    if not good:
        assert {letter.offset for _, _, _, letter in dead(bench)} == {9}


def test_a_defect_in_the_worker_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def run(self, *_: object) -> None:
            raise AssertionError("ours")

        def close(self) -> None: ...

    bench = Bench()
    bench.runner = Broken()  # type: ignore[assignment]
    assert bench.run(record()) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-6010"


def test_what_cannot_even_be_buried_stays_leased(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("ours")

    bench = Bench()
    monkeypatch.setattr(bench.settler, "bury_raw", broken)
    assert bench.run(raw(b"{")) is None
    assert bench.again.pending == 1


def test_an_outcome_the_store_refuses_for_good_is_a_dead_letter() -> None:
    class Picky(Memory):
        def put(self, name: str, *args: Any, **options: Any) -> Any:
            raise InvalidError("too large for me")

    store: Blobs = Picky()
    bench = Bench(store=store)
    assert bench.run(record()) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-1002"


@pytest.mark.parametrize("written", [True, False])
def test_a_retry_is_written_before_the_lease_is_let_go(written: bool) -> None:
    log = MemoryLog()
    publisher = Deaf(log, "t.retry.5s", written=written)
    bench = Bench(raising(JobError("odd")), log=log, publisher=publisher)
    assert bench.run(record()) is None
    for _ in range(3):
        bench.clock.advance(1)
        bench.again.run()
        assert bench.acks == []
        assert bench.events()[-1].type is EventType.RUNNING
    publisher.down = False
    bench.clock.advance(60)
    bench.again.run()
    assert [ack for _, ack in bench.acks] == [AckType.ACCEPT]
    assert {one.past.spent for one in bench.waiting()} | {one.past.spent for one in late(log)} == {1}
    assert bench.events()[-1].type is EventType.RETRYING


def late(log: MemoryLog) -> list[Any]:
    """Records that were due already when they were written, so that they went to their topic at once."""
    return [Waiting(START, entry, read(entry.headers), ("", 0, 0)) for entry in log.read(NAMES.jobs("say", "bulk"), 0)]  # type: ignore[arg-type]


def test_a_dead_letter_tells_the_whole_story() -> None:
    bench = Bench(raising(JobError("odd")))
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    given = record(
        past=tried((FailureClass.TRANSIENT, "TAPE-6001"), (FailureClass.TIMEOUT, "TAPE-7001"), replays=2),
        tenant="acme", extensions=trace,
    )  # fmt: skip
    assert bench.run(given) is AckType.REJECT
    ((_, value, _, letter),) = dead(bench)
    assert value == given.value
    assert letter.past is not None
    assert [one.code for one in letter.past.tries] == ["TAPE-6001", "TAPE-7001", "TAPE-6001"]
    assert (letter.attempts, letter.replays, letter.tenant) == (3, 2, "acme")
    assert letter.trace == "0af7651916cd43dd8448eb211c80319c"
    assert letter.first_failed_at == letter.past.tries[0].ended_at
    assert letter.last_failed_at == bench.clock.now()
    assert letter.disposition == "none"
    (end,) = [event for event in events(bench.log) if event.type is EventType.DEAD]
    assert end.outcome is not None
    assert end.outcome.usage.seconds == letter.gpu_seconds != 0.0, "what the last attempt cost is told with its end"


@pytest.mark.parametrize(("told", "verdict"), [("no", b"poison"), ("odd", b"none")])
def test_the_verdict_on_a_dead_letter_is_a_header(told: str, verdict: bytes) -> None:
    bench = Bench(raising(JobError(told)))  # "no" is what it failed with before, on another worker
    bench.run(record(past=tried((FailureClass.TRANSIENT, "TAPE-6001"), (FailureClass.TRANSIENT, "TAPE-6001"))))
    (entry,) = bench.log.read(NAMES.dead("say"), 0)
    assert dict(entry.headers)[DISPOSITION] == verdict


def test_a_job_that_is_buried_after_crashes_is_poison() -> None:
    crash = JobError("the job's process ended by signal SIGSEGV", code="TAPE-6002")
    for worker in ("w0", "w1"):
        bench = Bench(raising(crash))
        crashes = (FailureClass.CRASHED, "TAPE-6002")
        assert bench.run(record(past=tried(crashes, crashes, worker=worker))) is AckType.REJECT
        (entry,) = bench.log.read(NAMES.dead("say"), 0)
        assert dict(entry.headers)[DISPOSITION] == b"poison"
