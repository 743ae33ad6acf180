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
    one.taken(fresh=True)
    one.end(spent=1)
    one.taken(place=at(8), spent=1)
    one.end(spent=2, buried=True)
    assert isinstance(one.take(fresh=True), Over), "the client's own record, which came back"
    redriven = one.taken(place=at(10), replays=1)
    assert (redriven.start.attempt, redriven.start.replays) == (1, 1)
    assert isinstance(two.take(place=at(8), spent=1), Over), "of the life before"
    one.end(spent=1, buried=True)
    mended = one.taken(place=at(11), fresh=True)
    assert (mended.start.attempt, mended.origin) == (1, at(11))


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
