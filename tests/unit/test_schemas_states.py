"""The state machine, identities and topic names."""

from __future__ import annotations

import re
import time
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ids
from schemas.errors import CODES, FailureClass, InvalidError
from schemas.event import EVENT_OF, FINAL, STATE_OF, TRANSITIONS, Event, EventType, State, follow
from schemas.job import PARAMS, Indexing, Lane, Training, kind_of
from schemas.model import Strict
from schemas.outcome import Status
from schemas.topics import MESSAGE_LIMIT, Names, groups, topics

TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def event(kind: EventType, redrive: int = 0) -> Event:
    return Event(id="1", type=kind, redrive=redrive, job="j", kind="echo", time=datetime(2026, 1, 2, tzinfo=UTC))


def test_the_enums_are_closed_and_every_value_is_handled() -> None:
    assert set(TRANSITIONS) == set(State)
    assert set(STATE_OF) == set(EventType)
    assert set(EVENT_OF) == set(Status)
    assert {STATE_OF[EVENT_OF[status]] for status in Status} == FINAL
    assert {state for state in STATE_OF.values() if state} == set(State)
    assert {entry.failure for entry in CODES.values()} == set(FailureClass)


@given(st.lists(st.tuples(st.sampled_from(EventType), st.integers(0, 2))))
def test_a_settled_state_is_never_left_and_a_dead_one_not_by_a_late_word(told: list[tuple[EventType, int]]) -> None:
    state: State | None = None
    for kind, redrive in told:
        before, state = state, follow(state, event(kind, redrive))
        if before is not None and state is not before:
            assert state in TRANSITIONS[before]
        if before in FINAL and state is not before:
            assert before is State.DEAD
            assert state is not State.QUEUED or redrive > 0


def test_a_job_that_died_before_its_submitter_told_of_it_stays_dead() -> None:
    assert follow(State.DEAD, event(EventType.QUEUED)) is State.DEAD
    assert follow(State.DEAD, event(EventType.QUEUED, redrive=1)) is State.QUEUED


def test_a_mended_job_under_the_id_of_a_dead_one_counts() -> None:
    assert follow(State.DEAD, event(EventType.RUNNING)) is State.RUNNING
    assert follow(State.DEAD, event(EventType.SUCCEEDED)) is State.SUCCEEDED
    assert follow(State.SUCCEEDED, event(EventType.DEAD)) is State.SUCCEEDED


@given(st.none() | st.sampled_from(State), st.sampled_from(EventType), st.integers(0, 2))
def test_a_repeated_event_changes_nothing(state: State | None, kind: EventType, redrive: int) -> None:
    once = follow(state, event(kind, redrive))
    assert follow(once, event(kind, redrive)) is once


@given(st.sampled_from(State))
def test_progress_never_moves_a_job(state: State) -> None:
    assert follow(state, event(EventType.PROGRESS)) is state


def test_a_view_that_starts_late_still_finds_the_state() -> None:
    assert follow(None, event(EventType.PROGRESS)) is State.RUNNING
    assert follow(None, event(EventType.DEAD)) is State.DEAD


def test_every_unfinished_state_can_end_every_way() -> None:
    for state in set(State) - FINAL:
        assert TRANSITIONS[state] >= FINAL


def test_uuid7_is_what_rfc_9562_says() -> None:
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(ids.uuid7()) for _ in range(100)]
    after = time.time_ns() // 1_000_000
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    stamps = [one.int >> 80 for one in made]
    assert stamps == sorted(stamps)
    assert before <= stamps[0] <= stamps[-1] <= after
    assert len(set(made)) == 100


def test_uuid7_sorts_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1_700_000_000_000_000_000, 1_700_000_000_001_000_000, 1_900_000_000_000_000_000])
    monkeypatch.setattr(ids.time, "time_ns", lambda: next(moments))
    made = [ids.uuid7() for _ in range(3)]
    assert made == sorted(made)
    assert made[0].startswith("018bcfe5-6800-7")


def test_a_key_makes_the_same_job_and_none_a_new_one() -> None:
    assert ids.job_id("t", "k") == ids.job_id("t", "k") != ids.job_id("u", "k")
    assert uuid.UUID(ids.job_id("t", "k")).version == 5
    assert ids.job_id("t", None) != ids.job_id("t", None)


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_derived_ids_are_equal_only_for_equal_parts(one: list[str], other: list[str]) -> None:
    assert (ids.derived_id(*one) == ids.derived_id(*other)) is (one == other)


def test_tenants_cannot_reach_one_anothers_jobs() -> None:
    assert ids.job_id("a\nb", "c") != ids.job_id("a", "b\nc")
    assert ids.derived_id("\ud800")


@pytest.mark.parametrize("job", ["a", "018bcfe5-6800-7abc-8def-0123456789ab", "desk:7", "A.b_c-1", "x" * 128])
def test_safe_job_ids_pass(job: str) -> None:
    assert ids.checked(job) == job


@pytest.mark.parametrize("job", ["", ".", "../a", "a/b", "a\\b", "a b", "a\n", "é", "x" * 129, "-rf"])
def test_unsafe_job_ids_are_refused(job: str) -> None:
    with pytest.raises(InvalidError) as caught:
        ids.checked(job, field="key")
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1004", "key")
    assert "ce_" not in caught.value.hint, "whoever types an id knows nothing of headers"
    assert ("is empty" in caught.value.message) == (not job)


def test_an_unsafe_id_in_an_envelope_is_told_of_headers() -> None:
    with pytest.raises(InvalidError) as caught:
        ids.checked("a b")
    assert "ce_" in caught.value.hint


@given(st.from_regex(r"[a-z][a-z0-9_.-]{0,30}", fullmatch=True), st.sampled_from(Lane), st.sampled_from(["tape.", ""]))
def test_job_topics_round_trip(kind: str, lane: Lane, prefix: str) -> None:
    names = Names(prefix)
    assert names.parse_jobs(names.jobs(kind, lane)) == (kind, lane)
    assert TOPIC.fullmatch(names.jobs(kind, lane))


@pytest.mark.parametrize(
    "topic", ["", "tape.events", "tape.jobs.", "tape.jobs.echo", "tape.jobs.echo.x", "jobs.echo.bulk"]
)
def test_other_topics_are_no_job_topics(topic: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Names().parse_jobs(topic)
    assert caught.value.code == "TAPE-2004"


def test_topics_hold_what_is_promised() -> None:
    names = Names("x.")
    made = {topic.name: topic for topic in topics(names, ("echo",), partitions=8)}
    delays = [f"x.retry.{delay}" for delay in ("5s", "1m", "10m", "1h")]
    assert list(made) == [
        "x.jobs.echo.interactive", "x.jobs.echo.bulk", "x.dead.echo", "x.dead.unknown", *delays,
        "x.recurring", "x.events", "x.control", "x.letters",
    ]  # fmt: skip
    jobs, dead = made["x.jobs.echo.bulk"], made["x.dead.echo"]
    assert jobs.configs["retention.ms"] == dead.configs["retention.ms"] == "-1", "age must never delete a job"
    assert int(dead.configs["max.message.bytes"]) > MESSAGE_LIMIT, "a dead letter is its job and more headers"
    assert made["x.control"].configs["cleanup.policy"] == "compact"
    ahead = {int(topic.configs["message.timestamp.after.max.ms"]) for topic in made.values()}
    assert ahead == {(1 << 63) - 1}, "a worker whose clock is hours ahead could tell nothing"
    assert [(topic.partitions) for topic in made.values()] == [8, 8, 2, 2, 16, 16, 16, 16, 1, 8, 1, 1]
    assert all(TOPIC.fullmatch(topic.name) for topic in topics(Names()))


def test_every_job_topic_has_its_group() -> None:
    names = Names()
    taken = {topic for group in groups(names) for topic in group.topics}
    assert taken == {names.jobs(kind, lane) for kind in PARAMS for lane in Lane}
    assert {group.name for group in groups(names)} == {f"tape.{kind}" for kind in PARAMS}
    assert all(group.configs["share.isolation.level"] == "read_committed" for group in groups(names))


def test_parameters_know_their_kind() -> None:
    assert kind_of(Training(base="b", data="d")) == "training"
    assert kind_of(Indexing(documents=["d"], encoder="e", index="i")) == "indexing"
    with pytest.raises(KeyError):
        kind_of(Strict())
