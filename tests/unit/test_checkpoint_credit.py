"""An attempt that moved its job's checkpoint on is not spent: however it ended, and whoever died."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from worker_twin import START, Bench, begun, dead, kind, record, tried

from schemas.claim import Claim
from schemas.errors import FailureClass, JobError, UnavailableError
from schemas.outcome import Cancelled, Succeeded
from schemas.past import Past, read, write
from wire.blobs.memory import Memory
from wire.share import AckType
from workers.checkpoint import Checkpoints, found_of
from workers.claim import Claims, Copy, claim_name
from workers.context import Context
from workers.policy import CREDITS


def climbing(*tops: float, last: float = 10.0) -> Any:
    """A handler whose attempts come so far and fail; the one after them ends."""
    left = list(tops)

    def handler(context: Context, _: Any) -> Succeeded:
        if not left:
            return Succeeded(result={"steps": last})
        context.advanced(left.pop(0), loss=0.5)
        raise JobError("the node went away", code="TAPE-6001")

    return kind(handler, max_attempts=2)


def test_who_comes_further_each_time_comes_to_an_end() -> None:
    bench = Bench(climbing(*range(1, 8)))
    found = record()
    for step in range(1, 8):
        assert bench.run(found) is AckType.ACCEPT
        past = bench.waiting()[-1].past
        assert (past.spent, past.reached) == (0, float(step))
        found = bench.waiting()[-1].record
        bench.clock.advance(3600)
    bench.run(found)
    assert bench.outcome("job-1").result == {"steps": 10.0}
    assert next(event.progress for event in bench.events() if event.progress) == {"checkpoint": 1, "loss": 0.5}


def test_who_stays_where_it_was_spends_its_attempts() -> None:
    bench = Bench(climbing(5, 5, 4, 6))
    bench.run(record())
    (first,) = bench.waiting()
    assert (first.past.spent, first.past.reached) == (0, 5.0)
    bench.clock.advance(3600)
    bench.run(first.record)
    second = bench.waiting()[-1]
    assert (second.past.spent, second.past.reached) == (1, 5.0)
    bench.clock.advance(3600)
    assert bench.run(second.record) is AckType.REJECT
    [(_, _, _, letter)] = dead(bench)
    assert letter.failure.code == "TAPE-6001"


def test_steps_that_lead_nowhere_are_spent_at_last() -> None:
    bench, found = Bench(climbing(*(number * 1e-9 for number in range(1, CREDITS + 9)))), record()
    for number in range(1, CREDITS + 1):
        assert bench.run(found) is AckType.ACCEPT
        past = bench.waiting()[-1].past
        assert (past.spent, past.credits) == (0, number)
        found = bench.waiting()[-1].record
        bench.clock.advance(3600)
    assert bench.run(found) is AckType.ACCEPT
    assert bench.waiting()[-1].past.spent == 1
    bench.clock.advance(3600)
    assert bench.run(bench.waiting()[-1].record) is AckType.REJECT
    [(_, _, _, letter)] = dead(bench)
    assert (letter.past.spent, letter.past.credits) == (2, CREDITS)


@pytest.mark.parametrize(("unspent", "attempt"), [(CREDITS - 1, 1), (CREDITS, 2)])
def test_deaths_have_no_more_credit_than_that_either(unspent: int, attempt: int) -> None:
    bench = Bench(kind(max_attempts=3))
    begun(bench)
    claim = bench.claim().model_copy(update={"reached": 40.0})
    bench.store.put(claim_name("job-1"), claim.model_dump_json().encode())
    assert bench.run(record(count=2, past=Past(credits=unspent))) is AckType.ACCEPT
    assert bench.outcome("job-1").attempt == attempt


def test_who_comes_less_far_than_an_attempt_that_died_is_spent() -> None:
    bench = Bench(climbing(30.0))
    begun(bench)
    claim = bench.claim().model_copy(update={"reached": 40.0})
    bench.store.put(claim_name("job-1"), claim.model_dump_json().encode())
    bench.run(record(count=2))
    (waits,) = bench.waiting()
    assert (waits.past.spent, waits.past.reached, waits.past.credits) == (1, 40.0, 1)


def test_a_death_is_no_attempt_where_the_checkpoint_came_further() -> None:
    bench = Bench(kind(max_attempts=1))
    begun(bench)
    claim = bench.claim().model_copy(update={"reached": 40.0})
    bench.store.put(claim_name("job-1"), claim.model_dump_json().encode())
    assert bench.run(record(count=2)) is AckType.ACCEPT
    assert bench.outcome("job-1").attempt == 1


def test_a_death_without_progress_is_spent() -> None:
    bench = Bench(kind(max_attempts=3))
    begun(bench)
    bench.run(record(count=2, past=Past(reached=40.0)))
    assert bench.outcome("job-1").attempt == 2


def test_the_claim_tells_at_once_how_far_the_job_is() -> None:
    seen: list[Claim] = []

    def handler(context: Context, _: Any) -> Succeeded:
        for step in (3.0, 1.0, 7.5):
            context.advanced(step)
            bench.claims.beat()
            seen.append(bench.claim())
        context.progress(checkpoint="nine")
        context.progress(checkpoint=math.inf)
        bench.claims.beat()
        seen.append(bench.claim())
        return Succeeded()

    bench = Bench(kind(handler))
    bench.run(record())
    assert [claim.reached for claim in seen] == [3.0, 3.0, 7.5, 7.5]
    assert [claim.beat for claim in seen] == [1, 1, 2, 2], "written when there is something to write, and not before"
    assert len({claim.start.epoch for claim in seen}) == 1


def test_the_thread_writes_a_checkpoint_down_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted(Memory):
        kept = threading.Event()

        def put(self, name: str, source: Any, **options: Any) -> Any:
            if b'"reached":40' in bytes(source).replace(b" ", b""):
                self.kept.set()
            return super().put(name, source, **options)

    monkeypatch.setattr("workers.claim.BEAT_S", 3_600.0)  # no beat comes to its aid
    store = Noted()
    claims = Claims(worker="w1", store=lambda: store, now=lambda: START)
    assert isinstance(claims.take("job-1", Copy("t/0/7", "t/0/7")), Claim)
    slept = threading.Event()
    real = claims._hurry.wait
    monkeypatch.setattr(claims._hurry, "wait", lambda seconds: (slept.set(), real(seconds)))
    claims.start()
    try:
        assert slept.wait(20)
        claims.reach("job-1", 40.0)
        assert store.kept.wait(20)
    finally:
        claims.stop()


@pytest.mark.parametrize("checkpoint", [-1.0, math.inf, math.nan, 10**400, "1", None])
def test_what_is_no_checkpoint(checkpoint: Any) -> None:
    bench = Bench(kind(lambda context, _: context.advanced(checkpoint)))
    bench.run(record())
    assert bench.outcome("job-1").failure is not None
    assert bench.outcome("job-1").failure.code == "TAPE-6014"  # type: ignore[union-attr]


@pytest.mark.parametrize("reached", [0.0, 1.0, 1e-3, 123456.75, 1e300])
def test_the_header_keeps_the_measure(reached: float) -> None:
    update = {"reached": reached, "credits": 7 if reached else 0}
    past = tried((FailureClass.TRANSIENT, "TAPE-6001")).model_copy(update=update)
    headers = write([("mine", b"1")], past)
    assert read(headers) == past
    assert (("tape-checkpoint" in dict(headers)) is True) == (reached > 0)


@pytest.mark.parametrize("raw", [b"nan", b"-1", b"inf/x", b"x/-1", b"/", b"", b"1" * 4000, None])
def test_a_strange_header_counts_as_nothing(raw: bytes | None) -> None:
    past = read([("tape-checkpoint", raw), ("tape-attempt", b"2")])
    assert past.spent == 2
    assert past.reached in (0.0, float("1" * 40))


def keeping(verdict: Any, *, step: int = 3) -> Any:
    """A handler that keeps a checkpoint and ends so."""

    def handler(context: Context, _: Any) -> Any:
        folder = context.scratch / "state"
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
        with context.checkpoints() as kept:
            kept.keep(step, folder)
        return verdict

    return kind(handler, max_attempts=2)


@pytest.mark.parametrize(
    ("verdict", "left"), [(Succeeded(), 0), (Cancelled(reason="enough"), 1)], ids=["succeeded", "cancelled"]
)
def test_checkpoints_go_when_the_job_has_succeeded_and_stay_when_it_was_cancelled(verdict: Any, left: int) -> None:
    bench = Bench(keeping(verdict))
    bench.run(record())
    assert bench.outcome("job-1").status.value == verdict.verdict
    assert len(list(found_of(bench.store, "job-1"))) == left


def test_who_only_took_a_checkpoint_up_leaves_none(tmp_path: Path) -> None:
    """It was drained, and the next one succeeded without a checkpoint of its own; or the outcome was told again."""
    bench = Bench(kind(lambda *_: Succeeded(), max_attempts=2))
    for number in range(2):
        folder = tmp_path / f"state-{number}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
        with Checkpoints(lambda: bench.store, job="job-1", kind="say", attempt=1, advanced=lambda _: None) as kept:
            kept.keep(3, folder)
        bench.run(record(offset=number))
        assert not list(found_of(bench.store, "job-1"))
    assert len([event for event in bench.events() if event.outcome is not None]) == 2


def test_checkpoints_that_cannot_be_deleted_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(keeping(Succeeded()))

    def refuse(*_: Any) -> None:
        raise UnavailableError("the store is away", code="TAPE-5002")

    monkeypatch.setattr("workers.settle.checkpoint.clear", refuse)
    assert bench.run(record()) is AckType.ACCEPT
    assert bench.outcome("job-1").status.value == "succeeded"
    assert len(list(found_of(bench.store, "job-1"))) == 1
