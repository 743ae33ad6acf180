"""Events folded into views: the order of arrival and repeats change nothing that they should not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from producers.fold import fold, newest
from schemas.event import FINAL, STATE_OF, TRANSITIONS, Event, EventType, State
from schemas.outcome import Failure

START = datetime(2026, 1, 1, tzinfo=UTC)


def event(kind: EventType, second: int = 0, job: str = "j", **fields: Any) -> Event:
    time = START + timedelta(seconds=second)
    return Event(id=f"{job}-{kind}-{second}", type=kind, job=job, kind="inference", time=time, **fields)


def test_a_life() -> None:
    failure = Failure(failure="transient", code="TAPE-6001", message="x")
    views = fold(
        [
            event(EventType.QUEUED, 0, labels={"a": "b"}),
            event(EventType.RUNNING, 1, attempt=1, worker="w1"),
            event(EventType.PROGRESS, 2, attempt=1, progress={"step": 1}),
            event(EventType.RETRYING, 3, attempt=1, failure=failure),
            event(EventType.RUNNING, 4, attempt=2, worker="w2"),
            event(EventType.SUCCEEDED, 9, attempt=2, worker="w2", started_at=START + timedelta(seconds=4)),
        ]
    )
    view = views["j"]
    assert (view.state, view.attempt, view.worker, view.code) == (State.SUCCEEDED, 2, "w2", None)
    assert (view.submitted, view.seconds, view.progress, view.labels) == (START, 5, {"step": 1}, {"a": "b"})
    assert view.final
    assert view.row()["state"] == "succeeded"


def test_a_life_after_the_dead_letters_counts_its_own_attempts() -> None:
    died = Failure(failure="resource", code="TAPE-6003", message="x")
    stopped = Failure(failure="permanent", code="TAPE-6005", message="x")
    stream = [
        event(EventType.QUEUED, 0, labels={"a": "b"}),
        event(EventType.RUNNING, 1, attempt=3, worker="w1"),
        event(EventType.PROGRESS, 2, attempt=3, worker="w1", progress={"step": 9}),
        event(EventType.DEAD, 3, attempt=3, worker="w1", failure=died),
        event(EventType.QUEUED, 0),  # the submitter's own may come late
    ]
    view = fold(stream)["j"]
    assert (view.state, view.attempt, view.code) == (State.DEAD, 3, "TAPE-6003")
    stream.append(event(EventType.QUEUED, 4, redrive=1))
    view = fold(stream)["j"]
    assert (view.state, view.attempt, view.worker, view.seconds, view.progress, view.code) == (
        State.QUEUED, 0, None, None, None, None,
    )  # fmt: skip
    assert (view.submitted, view.labels) == (START, {"a": "b"})
    stream += [event(EventType.RUNNING, 5, attempt=1), event(EventType.CANCELLED, 6, attempt=1, failure=stopped)]
    view = fold(stream)["j"]
    assert (view.state, view.attempt, view.code) == (State.CANCELLED, 1, "TAPE-6005")


def test_why_it_failed_is_kept() -> None:
    failure = Failure(failure="invalid", code="TAPE-1008", message="x")
    assert fold([event(EventType.QUEUED), event(EventType.FAILED, 1, failure=failure)])["j"].code == "TAPE-1008"
    assert fold([event(EventType.FAILED, 1, failure=failure)])["j"].code == "TAPE-1008"


def test_a_queued_event_that_comes_late_tells_when_it_was_submitted() -> None:
    view = fold([event(EventType.RUNNING, 1, attempt=1), event(EventType.QUEUED, 0)])["j"]
    assert (view.state, view.submitted) == (State.RUNNING, START)


def test_the_newest_is_the_one_that_moved_it_and_no_late_one() -> None:
    put_off, late = event(EventType.POSTPONED, 1), event(EventType.QUEUED, 0)
    assert newest([put_off, late]) is put_off
    assert newest([late, put_off, event(EventType.PROGRESS, 2)]) is put_off
    again = event(EventType.POSTPONED, 3)
    assert newest([late, put_off, again, late]) is again
    died = event(EventType.DEAD, 4)
    assert newest([died, late]) is died
    back = late.model_copy(update={"redrive": 1})
    assert newest([died, back]) is back
    assert newest([event(EventType.PROGRESS, 2)]) is None


@given(st.lists(st.sampled_from(EventType), max_size=12))
def test_the_newest_stands_for_the_state(stream: list[EventType]) -> None:
    events = [event(kind, second) for second, kind in enumerate(stream)]
    found = newest(events)
    assert found is None or STATE_OF[found.type] is fold(events)["j"].state


def test_the_past_may_be_missing() -> None:
    view = fold([event(EventType.PROGRESS, 5, progress={"step": 9})])["j"]
    assert (view.state, view.submitted, view.seconds) == (State.RUNNING, None, None)


def test_jobs_are_kept_apart_and_in_order() -> None:
    views = fold([event(EventType.QUEUED, 0, "b"), event(EventType.QUEUED, 1, "a"), event(EventType.RUNNING, 2, "b")])
    assert [(job, view.state) for job, view in views.items()] == [("b", State.RUNNING), ("a", State.QUEUED)]


@given(st.lists(st.tuples(st.sampled_from(EventType), st.integers(0, 20)), max_size=20))
def test_any_stream_gives_states_the_machine_allows(stream: list[tuple[EventType, int]]) -> None:
    events = [event(kind, second) for kind, second in stream]
    seen = [fold(events[:count])["j"].state for count in range(1, len(events) + 1)]
    for before, after in pairwise(seen):
        assert after == before or after in TRANSITIONS[before]
    if seen and seen[0] in FINAL - {State.DEAD}:
        assert set(seen) == {seen[0]}


@given(st.lists(st.sampled_from(EventType), min_size=1, max_size=8))
def test_a_repeat_of_the_last_event_changes_nothing(stream: list[EventType]) -> None:
    events = [event(kind, second) for second, kind in enumerate(stream)]
    assert fold(events)["j"] == fold([*events, events[-1]])["j"]
