"""Workers that freeze, thaw and bring an end to a job that another one has: it is refused, and they say so."""

from __future__ import annotations

from typing import Any

import pytest
from worker_twin import START, Bench, Clock, dead, kind, record

from schemas.claim import Claim, Start
from schemas.errors import InvalidError, JobError
from schemas.event import EventType
from schemas.outcome import Succeeded
from wire.blobs.memory import Memory
from wire.share import AckType, MemoryLog
from workers.claim import claim_name
from workers.context import Context


def frozen(zombie: Bench, winner: Bench) -> None:
    """The zombie stands still while the winner is handed its record, takes the job over and settles it."""
    before = zombie.claims.beat
    zombie.claims.beat = lambda: 1.0  # type: ignore[method-assign]
    assert winner.run(record(count=2)) is AckType.ACCEPT
    zombie.claims.beat = before  # type: ignore[method-assign]


@pytest.mark.parametrize("beaten", [True, False])
@pytest.mark.parametrize("error", [None, InvalidError("bad"), JobError("odd"), JobError("no", code="TAPE-6009")])
def test_a_zombies_end_is_refused_and_says_so(error: Exception | None, beaten: bool) -> None:
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    winner = Bench(log=log, store=store, worker="w2", clock=clock)

    def handler(*_: object) -> Succeeded:
        frozen(zombie, winner)
        if beaten:
            zombie.clock.advance(5)
            zombie.claims.beat()
        if error is not None:
            raise error
        return Succeeded(result={"text": "late"})

    zombie = Bench(kind(handler), log=log, store=store, clock=clock)
    assert zombie.run(record()) is AckType.RELEASE
    told = zombie.events()
    assert [event.worker for event in told if event.outcome is not None] == ["w2"]
    (refused,) = [event for event in told if event.progress is not None]
    assert (refused.type, refused.progress) == (EventType.PROGRESS, {"refused": "w1"})
    assert refused.failure is not None
    assert refused.failure.code == "TAPE-3009"
    assert zombie.outcome("job-1").result == {"text": "hello"}
    assert zombie.outcome("job-1").attempt == 2, "the zombie was taken for dead"
    assert (dead(zombie), zombie.waiting()) == ([], [])


def test_a_zombie_that_is_handed_its_job_again_tells_the_outcome_of_the_other() -> None:
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    winner = Bench(log=log, store=store, worker="w2", clock=clock)

    def handler(*_: object) -> Succeeded:
        frozen(zombie, winner)
        return Succeeded(result={"text": "late"})

    zombie = Bench(kind(handler), log=log, store=store, clock=clock)
    zombie.run(record())
    assert zombie.run(record(count=3)) is AckType.ACCEPT
    final = [event for event in zombie.events() if event.outcome is not None]
    assert len({event.id for event in final}) == 1
    assert {event.outcome.worker for event in final if event.outcome} == {"w2"}


def test_a_handler_ends_when_its_job_was_taken_over() -> None:
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    winner = Bench(log=log, store=store, worker="w2", clock=clock)

    def handler(context: Context, _: object) -> Succeeded:
        frozen(zombie, winner)
        context.check()
        zombie.clock.advance(5)
        zombie.claims.beat()
        context.check()
        raise AssertionError("check did not stop it")

    zombie = Bench(kind(handler), log=log, store=store, clock=clock)
    assert zombie.run(record()) is AckType.RELEASE
    assert zombie.outcome("job-1").worker == "w2"


def test_where_a_claim_is_destroyed_the_first_outcome_still_stands() -> None:
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    winner = Bench(log=log, store=store, worker="w2", clock=clock)

    def handler(*_: object) -> Succeeded:
        store.delete(claim_name("job-1"))
        assert winner.run(record(count=2)) is AckType.ACCEPT
        return Succeeded(result={"text": "late"})

    late = Bench(kind(handler), log=log, store=store, clock=clock)
    assert late.run(record()) is AckType.ACCEPT
    final = [event for event in late.events() if event.outcome is not None]
    assert len({event.id for event in final}) == 1
    assert {event.outcome.worker for event in final if event.outcome} == {"w2"}


class Seized(Memory):
    """A store where another worker has the claim when this one frees it."""

    seize = False

    def put(self, name: str, source: Any, **options: Any) -> Any:
        if self.seize and name == claim_name("job-1") and b'"held": false' in bytes(source).replace(b":f", b": f"):
            self.seize = False
            other = Claim(job="job-1", held=True, start=Start(attempt=2, worker="w2", epoch=2, started_at=START))
            super().put(name, other.model_dump_json().encode())
        return super().put(name, source, **options)


@pytest.mark.parametrize("stop", [True, False])
def test_a_job_that_is_lost_at_the_last_moment_is_neither_retried_nor_handed_back(stop: bool) -> None:
    store = Seized()

    def handler(context: Context, _: object) -> Succeeded:
        store.seize = True
        bench.stopping = stop
        context.check()
        raise JobError("odd")

    bench = Bench(kind(handler), store=store)
    assert bench.run(record()) is AckType.RELEASE
    last = bench.events()[-1]
    assert (last.type, last.progress) == (EventType.PROGRESS, {"refused": "w1"})
    assert bench.waiting() == []
    assert bench.claim().start.worker == "w2"
