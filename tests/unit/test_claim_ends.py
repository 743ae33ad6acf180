"""Records of a job that come back, or come twice: each attempt is made once, and what follows is never missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from claim_rig import JOB, PLACE, Fleet, make_store

from workers.claim import Busy, Over


@pytest.fixture(params=["memory", "directory"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Fleet:
    return Fleet(make_store(request.param, tmp_path))


def at(offset: int) -> str:
    return f"t.jobs.say.bulk/0/{offset}"


def test_a_record_whose_attempt_ended_is_not_run_again(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    first = one.taken()
    assert one.end(spent=1)
    over = two.take(redelivered=True)
    assert isinstance(over, Over)
    assert over.end is not None
    assert (over.end.past.spent, over.end.buried, over.line, over.left_over) == (1, False, PLACE, False)
    found = fleet.claim()
    assert found is not None
    assert found.start == first.start, "nothing was taken"
    following = two.taken(place=at(8), spent=1)
    assert (following.start.attempt, following.end) == (2, None)


def test_what_follows_is_written_for_copies_too_and_dropped_once_it_is_taken(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken()
    one.end(spent=1)
    assert isinstance(two.take(place=at(9), line=PLACE), Over)
    assert isinstance(two.take(place=at(9)), Over)
    one.taken(place=at(8), spent=1)
    assert two.take() == Over(None, at(8), left_over=True)
    assert one.claims.free(JOB)
    assert two.take() == Over(None, at(8), left_over=True)
    one.taken(place=at(8), spent=1)
    assert one.end(spent=2)
    assert two.take() == Over(None, at(8), left_over=True)


def test_of_equal_records_one_is_run_at_a_time_and_then_the_other_is_over(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken(place=at(8), line=PLACE)
    assert two.take(place=at(9), line=PLACE, redelivered=True) == Busy("w1")
    one.end(spent=0)  # postponed
    two.taken(place=at(9), line=PLACE)
    two.end(spent=1)
    assert isinstance(one.take(place=at(8), line=PLACE), Over)


@pytest.mark.parametrize(("line", "left_over"), [(PLACE, False), (at(3), True)])
def test_a_buried_job_is_buried_again_only_by_the_line_that_buried_it(fleet: Fleet, line: str, left_over: bool) -> None:
    one = fleet.hire("w1")
    one.taken(spent=2)
    one.end(spent=3, buried=True)
    over = one.take(place=at(9), line=line, spent=2)
    assert isinstance(over, Over)
    assert over.end is not None
    assert (over.end.buried, over.line, over.left_over) == (True, PLACE, left_over)
    early = one.take(place=at(4), spent=1)
    assert isinstance(early, Over)
    assert (early.end, early.left_over) == (over.end, True)


def test_a_job_may_live_again_redriven_or_sent_again(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken(life=PLACE)
    one.end(spent=1)
    one.taken(place=at(8), spent=1, life=PLACE)
    one.end(spent=2, buried=True)
    assert isinstance(one.take(life=PLACE), Over), "the client's own record, which came back"
    redriven = one.taken(place=at(10), replays=1, life=at(10))
    assert (redriven.start.attempt, redriven.start.replays) == (1, 1)
    assert isinstance(two.take(place=at(8), spent=1, life=PLACE), Over), "of the life before"
    one.end(spent=1, buried=True)
    mended = one.taken(place=at(11), life=at(11))
    assert (mended.start.attempt, mended.origin, mended.lives) == (1, at(11), (PLACE, at(10)))


def test_two_letters_of_one_job_are_two_lives(fleet: Fleet) -> None:
    """The second one's letter was written before the first one was redriven, died twice and was buried again."""
    one = fleet.hire("w1")
    one.taken(life=PLACE, place=at(10), replays=1)
    one.end(spent=1)
    one.taken(life=PLACE, place=at(11), replays=1, spent=1)
    one.end(spent=2, buried=True)
    second = one.taken(life=at(12), place=at(12), replays=1)
    assert (second.start.attempt, second.origin) == (1, at(12))
    one.end(spent=1)
    late = one.take(life=PLACE, place=at(13), replays=1, spent=2)
    assert isinstance(late, Over)
    assert (late.end, late.left_over) == (None, True), "what is left over of a life that is over is let go of"


def test_another_life_waits_while_one_runs(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    one.taken(life=PLACE, spent=2)
    assert isinstance(two.take(life=at(9), place=at(9), replays=1), Busy), "its number says nothing of another life"
    one.end(spent=3)
    over = two.take(life=at(3), place=at(3))
    assert isinstance(over, Over), "a client's second copy, while a retry waits"
    assert over.left_over


def test_a_record_of_an_older_version_belongs_to_the_life_there_is(fleet: Fleet) -> None:
    one = fleet.hire("w1")
    one.taken(life=PLACE)
    one.end(spent=1)
    assert one.taken(place=at(8), spent=1).origin == PLACE
    one.end(spent=2, buried=True)
    assert isinstance(one.take(place=at(8), spent=1), Over)


def test_what_a_holder_wrote_at_its_end_says_that_it_ended(fleet: Fleet) -> None:
    one, two = fleet.hire("w1"), fleet.hire("w2")
    zero = fleet.hire("w0")
    zero.taken()
    zero.alive = False
    one.taken(redelivered=True)
    one.alive = False  # it could not free its claim, but its job's next record is here
    before = fleet.time
    following = two.taken(place=at(8), spent=2)
    assert fleet.time == before
    assert (following.lost, following.start.attempt) == ((), 3), "the first death is in the record's past"
