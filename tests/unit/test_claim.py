"""Claims: one worker runs a job, whoever is silent loses it, and every death is in the ledger once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from claim_rig import JOB, PLACE, Fleet, make_store, together

from schemas.claim import Claim
from schemas.errors import InvalidError, UnavailableError
from wire.blobs.memory import Memory
from workers.claim import (
    BEAT_S,
    DOUBT_S,
    FAST_S,
    GONE_S,
    LOOK_S,
    SILENT_S,
    SURE_S,
    Busy,
    Claims,
    Copy,
    claim_name,
)


@pytest.fixture(params=["memory", "directory"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Fleet:
    return Fleet(make_store(request.param, tmp_path))


def test_the_times_rest_on_each_other() -> None:
    assert SURE_S < GONE_S < SILENT_S
    assert FAST_S + LOOK_S < GONE_S, "a holder in doubt beats before it is given up"
    assert 2 * BEAT_S < SILENT_S, "one lost beat is not a death"


def test_a_job_is_claimed_kept_and_freed(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    claim = one.taken(spent=4)
    assert (claim.start.attempt, claim.start.epoch, claim.start.worker, claim.start.place) == (5, 1, "w1", PLACE)
    assert one.claims.sure(JOB)
    assert not two.claims.sure(JOB)
    fleet.wait(60)
    kept = fleet.claim()
    assert kept is not None
    assert kept.start == claim.start
    assert 10 <= kept.beat <= 13, "every five seconds, and not more"
    assert one.end()
    freed = fleet.claim()
    assert freed is not None
    assert (freed.held, freed.lost) == (False, ())
    assert not one.claims.sure(JOB)
    before = fleet.time
    again = two.taken(spent=5)
    assert (again.start.attempt, again.start.epoch, again.lost) == (6, 2, ())
    assert fleet.time == before, "nobody waits for what is free"


@pytest.mark.parametrize("wall_h", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("clock_s", [-50_000.0, 0.0, 90_000.0])
@pytest.mark.parametrize(
    ("redelivered", "patience_s"), [(False, SILENT_S), (True, GONE_S)], ids=["another record", "the same record"]
)
def test_the_dead_are_given_up_after_a_silence_on_the_observers_clock(
    fleet: Fleet, redelivered: bool, patience_s: float, clock_s: float, wall_h: float
) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2", clock_s=clock_s, wall_h=wall_h)
    first = one.taken()
    one.alive = False
    fleet.wait(3600)
    before = fleet.time
    taken = two.taken(redelivered=redelivered)
    assert patience_s - 1e-6 <= fleet.time - before <= patience_s + 2 * LOOK_S
    assert taken.lost == (first.start,)
    assert (taken.start.attempt, taken.start.epoch) == (2, 2)


def test_whoever_holds_another_record_of_the_job_is_given_time(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    before = fleet.time
    assert two.take(redelivered=True, place="t.jobs.say.bulk/0/8") == Busy("w1")
    assert GONE_S < fleet.time - before < SILENT_S
    assert one.claims.sure(JOB)


def test_a_holder_that_beats_keeps_its_claim(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    for _ in range(5):
        assert two.take() == Busy("w1")
        fleet.wait(7.3)
    assert one.claims.sure(JOB)
    assert {claim.start.epoch for claim in fleet.writes} == {1}


def test_a_holder_in_doubt_beats_fast_enough_for_whoever_has_its_record(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    fleet.wait(1)
    one.claims.doubt()
    assert two.take(redelivered=True) == Busy("w1")
    assert one.claims.sure(JOB)
    beats = len(fleet.writes)
    fleet.wait(DOUBT_S - 5)
    assert len(fleet.writes) - beats > 40
    fleet.wait(10)
    beats = len(fleet.writes)
    fleet.wait(20)
    assert len(fleet.writes) - beats <= 5, "and calms down"


def test_a_frozen_holder_that_thaws_is_fenced_and_cannot_undo_the_new_one(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    one.frozen = True
    taken = two.taken(redelivered=True)
    one.frozen = False
    assert not one.claims.fenced(JOB), "it does not know yet"
    assert not one.claims.sure(JOB)
    assert one.claims.fenced(JOB)
    assert one.take() == Busy("w1"), "its attempt is not over yet"
    assert not one.end()
    fleet.wait(30)
    assert two.claims.sure(JOB)
    found = fleet.claim()
    assert found is not None
    assert found.start == taken.start
    assert found.held


def test_a_beat_tells_a_thawed_holder_too(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    one.frozen = True
    two.taken(redelivered=True)
    one.frozen = False
    fleet.wait(BEAT_S)
    assert one.claims.fenced(JOB)
    assert not one.claims.sure(JOB)


def test_nobody_is_sure_long_after_a_beat_without_asking(fleet: Fleet) -> None:
    one = fleet.hire("w1")
    one.taken()
    assert one.certain()
    one.frozen = True
    fleet.wait(SURE_S)
    assert not one.certain()
    one.view.down = True
    with pytest.raises(UnavailableError):
        one.claims.sure(JOB)


@pytest.mark.parametrize("fail", ["before", "after"])
def test_a_lost_answer_to_taking_is_no_death(fleet: Fleet, fail: str) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.view.fail = fail
    with pytest.raises(UnavailableError):
        one.take()
    assert not one.claims.sure(JOB)
    taken = two.taken(place="t.jobs.say.bulk/0/8", redelivered=True)
    assert taken.lost == ()
    assert taken.start.attempt == 1
    assert fleet.time < SILENT_S


def test_a_ghost_is_not_taken_for_anothers_claim(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.view.fail = "before"
    with pytest.raises(UnavailableError):
        one.take()
    two.taken()
    fleet.wait(30)
    assert two.claims.sure(JOB)
    found = fleet.claim()
    assert found is not None
    assert (found.held, found.start.worker) == (True, "w2")


def test_whoever_lost_the_answer_may_take_it_again_at_once(fleet: Fleet) -> None:
    one = fleet.hire("w1")
    one.view.fail = "after"
    with pytest.raises(UnavailableError):
        one.take()
    taken = one.taken(redelivered=True)
    assert (taken.lost, taken.start.attempt, taken.start.epoch) == ((), 1, 2)
    assert fleet.time == 0.0
    fleet.wait(60)
    assert one.claims.sure(JOB)
    found = fleet.claim()
    assert found is not None
    assert found.held, "the ghost of the first try is gone"


@pytest.mark.parametrize("fail", ["before", "after"])
@pytest.mark.parametrize("what", ["sure", "beat", "free"])
def test_a_lost_answer_to_a_later_write_is_recognised_as_ours(fleet: Fleet, what: str, fail: str) -> None:
    one = fleet.hire("w1")
    first = one.taken()
    fleet.time += BEAT_S
    one.view.fail = fail
    if what == "beat":
        one.claims.beat()
    else:
        with pytest.raises(UnavailableError):
            getattr(one.claims, what)(JOB)
    assert not one.claims.fenced(JOB)
    if what == "free":
        assert one.claims.free(JOB)
        found = fleet.claim()
        assert found is not None
        assert not found.held
    else:
        fleet.time += BEAT_S
        assert one.claims.sure(JOB)
        found = fleet.claim()
        assert found is not None
        assert (found.start, found.held) == (first.start, True)


@pytest.mark.parametrize("held", [True, False])
def test_a_free_whose_answer_was_lost_may_have_let_another_in(fleet: Fleet, held: bool) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    one.view.fail = "before" if held else "after"
    with pytest.raises(UnavailableError):
        one.claims.free(JOB)
    found = two.take()
    assert isinstance(found, Busy) is held
    assert one.claims.free(JOB) is held


def test_a_hand_back_keeps_the_deaths_and_an_end_does_not(fleet: Fleet) -> None:
    one, two, three = (fleet.hire(name) for name in ("w1", "w2", "w3"))
    first = one.taken()
    one.alive = False
    two.taken(redelivered=True)
    assert two.claims.free(JOB)
    taken = three.taken(redelivered=True)
    assert taken.lost == (first.start,)
    assert taken.start.attempt == 2
    assert three.end()
    found = fleet.claim()
    assert found is not None
    assert found.lost == ()


def test_what_was_abandoned_is_freed_as_soon_as_the_store_answers(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    one.view.down = True
    one.claims.abandon(JOB)
    fleet.wait(8)
    found = fleet.claim()
    assert found is not None
    assert found.held
    assert found.beat <= 1, "it does not beat any more"
    one.view.down = False
    fleet.wait(BEAT_S + 1)
    taken = two.taken()
    assert (taken.lost, taken.start.attempt) == ((), 1)


def test_what_was_dropped_falls_silent(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    first = one.taken()
    one.claims.drop(JOB)
    fleet.wait(30)
    assert fleet.writes == [first]
    assert two.taken().lost == (first.start,)


UNREADABLE = [b"", b"{", b"\xff\xfe", b"[]", b'{"held": "perhaps"}']


@pytest.mark.parametrize("data", UNREADABLE)
def test_a_claim_that_nobody_can_read_is_written_over(fleet: Fleet, data: bytes) -> None:
    fleet.store.put(claim_name(JOB), data)
    taken = fleet.hire("w1").taken()
    assert (taken.start.epoch, taken.lost) == (1, ())
    assert fleet.claim() == taken


@pytest.mark.parametrize("data", UNREADABLE)
def test_a_holder_whose_claim_was_destroyed_is_not_sure(fleet: Fleet, data: bytes) -> None:
    one = fleet.hire("w1")
    one.taken()
    fleet.store.put(claim_name(JOB), data)
    fleet.time += BEAT_S
    assert not one.claims.sure(JOB)
    assert one.claims.fenced(JOB)


def test_a_claim_that_was_removed_is_lost(fleet: Fleet) -> None:
    one = fleet.hire("w1")
    one.taken()
    fleet.store.delete(claim_name(JOB))
    fleet.time += BEAT_S
    assert not one.claims.sure(JOB)
    assert fleet.claim() is None


def test_only_the_last_deaths_are_kept(fleet: Fleet) -> None:
    for number in range(14):
        member = fleet.hire(f"w{number}")
        taken = member.taken(redelivered=True)
        member.alive = False
    assert [start.worker for start in taken.lost] == [f"w{number}" for number in range(3, 13)]
    assert taken.start.epoch == 14


def test_a_worker_that_ends_stops_waiting(fleet: Fleet) -> None:
    fleet.hire("w1").taken()
    fleet.members[0].alive = False
    two = Claims(
        worker="w2", store=lambda: fleet.store, now=lambda: fleet.members[0]._wall(0), clock=lambda: fleet.time,
        wait=lambda _: True,
    )  # fmt: skip
    assert two.take(JOB, Copy(PLACE, PLACE, redelivered=True)) == Busy("w1")


def test_of_two_slots_of_one_worker_one_runs_the_job(fleet: Fleet) -> None:
    one = fleet.hire("w1")
    for _ in range(20):
        results = together(one.take, one.take)
        assert sorted(type(result).__name__ for result in results) == ["Busy", "Claim"]
        assert one.take() == Busy("w1")
        assert one.claims.free(JOB)
    assert [claim.start.epoch for claim in fleet.writes if claim.held] == list(range(1, 21))


def test_of_many_workers_that_race_one_wins(fleet: Fleet) -> None:
    workers = [fleet.hire(f"w{number}") for number in range(4)]
    for worker in workers:  # nobody waits: what is asked here is who is first
        worker.claims._wait = lambda _: True
    for _ in range(10):
        results = together(*(worker.take for worker in workers))
        (won,) = (result for result in results if isinstance(result, Claim))
        (winner,) = (worker for worker in workers if worker.name == won.start.worker)
        assert {result.worker for result in results if isinstance(result, Busy)} == {winner.name}
        assert winner.claims.free(JOB)


def test_the_thread_beats_until_it_is_stopped() -> None:
    class Noted(Memory):
        beaten = threading.Event()

        def put(self, name: str, source: Any, **options: Any) -> Any:
            if b'"beat":1' in bytes(source).replace(b" ", b""):
                self.beaten.set()
            return super().put(name, source, **options)

    store = Noted()
    fleet = Fleet(store)
    claims = Claims(worker="w1", store=lambda: store, now=lambda: fleet.hire("w")._wall(0))
    claims.start()
    assert isinstance(claims.take(JOB, Copy(PLACE, PLACE)), Claim)
    claims.doubt()
    assert store.beaten.wait(20)
    claims.stop()
    assert not claims._thread.is_alive()


@pytest.mark.parametrize("error", [UnavailableError("down"), InvalidError("odd"), OSError("odd"), ValueError("odd")])
def test_trouble_with_one_claim_does_not_silence_the_others(error: Exception) -> None:
    class Picky(Memory):
        picky = False

        def put(self, name: str, source: Any, **options: Any) -> Any:
            if self.picky and "bad" in name:
                raise error
            return super().put(name, source, **options)

    store = Picky()
    fleet = Fleet(store)
    one = fleet.hire("w1")
    for job in ("bad", JOB):
        one.claims.take(job, Copy(PLACE, PLACE))
    store.picky = True
    fleet.wait(BEAT_S + 1)
    found = fleet.claim()
    assert found is not None
    assert found.beat == 1
