"""Settling a job while the store, the publisher or the worker itself is in trouble."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_twin import NAMES, Bench, dead, kind, raw, record

from schemas.errors import (
    AuthError,
    FailureClass,
    InvalidError,
    JobError,
    TapeError,
    UnavailableError,
)
from schemas.outcome import Failure, Succeeded
from wire.blobs import Blobs
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher
from wire.share import AckType, MemoryLog
from workers.retry import FINAL, Decision, decide
from workers.settle import outcome_name


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


@pytest.mark.parametrize(
    "error", [UnavailableError("down", code="TAPE-5002"), AuthError("no", code="TAPE-4002"), AuthError("no")]
)
def test_a_job_waits_for_the_store_and_spends_nothing(error: TapeError) -> None:
    store = Outage(error)
    bench = Bench(store=store)
    assert bench.run(record()) is None
    assert bench.events() == []
    bench.clock.advance(60)
    assert bench.again.run() == 1
    assert bench.given == [bench.given[0]]
    store.down = False
    assert bench.run(bench.given[0]) is AckType.ACCEPT


def test_an_outcome_waits_for_the_store_without_running_the_job_again() -> None:
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


def test_a_dead_letter_waits_for_the_store_too() -> None:
    store = Outage(UnavailableError("down", code="TAPE-5002"))
    store.down = False

    def handler(*_: object) -> Succeeded:
        store.down = True
        raise InvalidError("bad")

    bench = Bench(kind(handler), store=store)
    assert bench.run(record()) is None
    assert dead(bench) == []
    store.down = False
    bench.clock.advance(60)
    bench.again.run()
    assert [ack for _, ack in bench.acks] == [AckType.REJECT]
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


def test_a_late_outcome_loses_and_the_first_one_is_told() -> None:
    log, store = MemoryLog(), Memory()
    winner = Bench(log=log, store=store, worker="w2")

    def handler(*_: object) -> Succeeded:
        winner.run(record(count=2))
        return Succeeded(result={"text": "late"})

    zombie = Bench(kind(handler), log=log, store=store)
    assert zombie.run(record()) is AckType.ACCEPT
    final = [event for event in zombie.events() if event.outcome is not None]
    assert len({event.id for event in final}) == 1
    assert {event.outcome.worker for event in final if event.outcome} == {"w2"}
    assert zombie.outcome("job-1").result == {"text": "hello"}


def test_a_zombie_makes_no_dead_letter_of_a_job_that_succeeded_elsewhere() -> None:
    log, store = MemoryLog(), Memory()
    winner = Bench(log=log, store=store, worker="w2")

    def handler(*_: object) -> Succeeded:
        winner.run(record(count=2))
        raise InvalidError("bad")

    zombie = Bench(kind(handler), log=log, store=store)
    assert zombie.run(record()) is AckType.ACCEPT
    assert dead(zombie) == []


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


@given(failure=st.sampled_from(FailureClass), attempt=st.integers(1, 12), limit=st.integers(1, 8))
def test_the_retry_table(failure: FailureClass, attempt: int, limit: int) -> None:
    told = Failure.of(JobError("x", failure=failure))
    decision = decide(told, attempt=attempt, limit=limit)
    if failure is FailureClass.INVALID:
        assert decision is Decision.BURY
    elif failure is FailureClass.PERMANENT:
        assert decision is Decision.FAIL
    else:
        assert decision is (Decision.RELEASE if attempt < limit else Decision.BURY)


def test_every_class_has_its_row() -> None:
    assert set(FINAL) == set(FailureClass)
