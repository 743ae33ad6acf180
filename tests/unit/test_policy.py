"""What follows a failed attempt: every class, every limit, and what holds for any story."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import FailureClass
from schemas.outcome import Failure
from schemas.past import HINT, KEPT, Hint, Past, Try, read, write
from workers.policy import (
    LIMIT,
    POLICIES,
    Bury,
    Decision,
    Fail,
    Policy,
    Postpone,
    Retry,
    asked_s,
    decide,
    policy,
    waited_s,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SPENDING = [FailureClass.TRANSIENT, FailureClass.RESOURCE, FailureClass.CRASHED, FailureClass.TIMEOUT]
LONGEST = Policy(attempts=LIMIT)
CODES = {FailureClass.RESOURCE: "TAPE-6003"}


def failed(kind: FailureClass, code: str | None = None, **place: Any) -> Failure:
    return Failure(failure=kind, code=code or CODES.get(kind, "TAPE-6001"), message="it broke", place=place)


def tried(failure: Failure, *, spent: bool = True, worker: str = "w1", ended: datetime = NOW, attempt: int = 1) -> Try:
    return Try.of(failure, attempt=attempt, ended_at=ended, worker=worker, spent=spent)


def past_of(*kinds: FailureClass) -> Past:
    past = Past()
    for number, kind in enumerate(kinds, 1):
        past = past.after(tried(failed(kind), attempt=number))
    return past


def asked(past: Past, failure: Failure, *, rules: Policy = LONGEST, **given_: Any) -> Decision:
    arguments = {"attempt": past.spent + 1, "now": NOW, "chance": 0.5} | given_
    return decide(rules, failure, past, **arguments)


# Each class


def test_invalid_is_buried_and_permanent_fails_at_once() -> None:
    assert isinstance(asked(Past(), failed(FailureClass.INVALID)), Bury)
    assert asked(Past(), failed(FailureClass.PERMANENT)) == Fail()
    assert asked(Past(), failed(FailureClass.PERMANENT), advanced=True) == Fail()


def test_transient_backs_off_until_the_attempts_are_spent() -> None:
    rules = Policy(attempts=4, base_s=5, cap_s=12)
    past, delays = Past(), []
    while isinstance(found := asked(past, failed(FailureClass.TRANSIENT), rules=rules, chance=0.999), Retry):
        delays.append(round(found.delay_s))
        past = past.after(tried(failed(FailureClass.TRANSIENT)))
    assert delays == [5, 10, 12]
    assert found == Bury("all 4 attempts are spent")


def test_full_jitter_spreads_the_delay_from_nothing_to_the_whole() -> None:
    rules = Policy(base_s=8)
    delays = [asked(Past(), failed(FailureClass.TRANSIENT), rules=rules, chance=part / 4) for part in range(4)]
    assert delays == [Retry(0.0), Retry(2.0), Retry(4.0), Retry(6.0)]


def test_memory_is_retried_smaller_then_elsewhere_then_buried() -> None:
    kind = FailureClass.RESOURCE
    found = [asked(past_of(*[kind] * number), failed(kind)) for number in range(3)]
    assert [one.hint for one in found[:2] if isinstance(one, Retry)] == [Hint.SMALLER, Hint.ELSEWHERE]
    assert found[2] == Bury("short of resources 3 times, on another worker too")


def test_a_full_disk_is_not_cured_by_a_smaller_batch() -> None:
    found = asked(Past(), failed(FailureClass.RESOURCE, code="TAPE-6012"))
    assert isinstance(found, Retry) and found.hint is Hint.ELSEWHERE


def test_a_broken_device_sends_the_job_to_another_worker() -> None:
    broken = failed(FailureClass.CRASHED, code="TAPE-6015").model_copy(update={"place": {"device": "suspect"}})
    found = asked(Past(), broken)
    assert isinstance(found, Retry) and found.hint is Hint.ELSEWHERE
    alone = asked(Past(hint=Hint.ALONE), broken)
    assert isinstance(alone, Retry) and alone.hint is Hint.ALONE, "a suspect stays one"


def test_a_hint_stays_when_the_next_attempt_fails_for_another_reason() -> None:
    past = past_of(FailureClass.RESOURCE).model_copy(update={"hint": Hint.SMALLER})
    found = asked(past, failed(FailureClass.TRANSIENT))
    assert isinstance(found, Retry) and found.hint is Hint.SMALLER


def test_a_crash_is_retried_alone_and_the_third_is_buried() -> None:
    kind = FailureClass.CRASHED
    found = [asked(past_of(*[kind] * number), failed(kind)) for number in range(3)]
    assert [one.hint for one in found[:2] if isinstance(one, Retry)] == [Hint.ALONE, Hint.ALONE]
    assert found[2] == Bury("crashed 3 times")


def test_crashes_are_counted_apart_from_other_failures() -> None:
    past = past_of(FailureClass.CRASHED, FailureClass.TRANSIENT, FailureClass.TRANSIENT)
    assert isinstance(asked(past, failed(FailureClass.CRASHED)), Retry)
    assert isinstance(asked(past.after(tried(failed(FailureClass.CRASHED))), failed(FailureClass.CRASHED)), Bury)


def test_attempts_that_died_with_their_worker_are_crashes() -> None:
    rules = Policy(attempts=8)
    assert asked(Past(), failed(FailureClass.CRASHED), rules=rules, attempt=3) == Bury("crashed 3 times")
    found = asked(Past(), failed(FailureClass.TRANSIENT), rules=rules, attempt=2)
    assert isinstance(found, Retry) and found.hint is Hint.ALONE
    assert isinstance(asked(Past(), failed(FailureClass.TRANSIENT), rules=rules, attempt=8), Bury)


def test_a_timeout_is_retried_once() -> None:
    kind = FailureClass.TIMEOUT
    assert isinstance(asked(Past(), failed(kind)), Retry)
    assert asked(past_of(kind), failed(kind)) == Bury("timed out 2 times")
    assert isinstance(asked(past_of(kind), failed(kind), rules=Policy(attempts=8, timeouts=2)), Retry)


@pytest.mark.parametrize("kind", SPENDING)
def test_an_attempt_that_advanced_spends_nothing(kind: FailureClass) -> None:
    past = past_of(*[kind] * 7)
    assert isinstance(asked(past, failed(kind)), Bury)
    found = asked(past, failed(kind), advanced=True)
    assert isinstance(found, Retry) and not found.spent


# Waiting for a dependency


def test_a_dependency_postpones_with_a_doubling_wait_and_gives_up_after_a_day() -> None:
    rules, failure = Policy(base_s=5, cap_s=600, wait_s=86_400), failed(FailureClass.DEPENDENCY)
    past, now, delays = Past(spent=2), NOW, []
    while isinstance(found := asked(past, failure, rules=rules, now=now, chance=0.9), Postpone):
        delays.append(found.delay_s)
        past = past.after(tried(failure, spent=False, ended=now))
        now += timedelta(seconds=found.delay_s)
    assert isinstance(found, Bury)
    assert (past.spent, len(past.tries)) == (2, 1)
    assert now - NOW >= timedelta(days=1)
    assert delays[0] == pytest.approx(4.75) and max(delays) <= 600
    assert 100 < len(delays) < 200


def test_a_wait_that_was_broken_by_a_run_begins_anew() -> None:
    failure = failed(FailureClass.DEPENDENCY)
    past = Past().after(tried(failure, spent=False, ended=NOW - timedelta(days=3)))
    assert isinstance(asked(past, failure), Bury)
    assert isinstance(asked(past.after(tried(failed(FailureClass.TRANSIENT))), failure), Postpone)


def test_retry_after_is_the_least_delay() -> None:
    for kind in (FailureClass.DEPENDENCY, FailureClass.TRANSIENT):
        found = asked(Past(), failed(kind, retry_after=900))
        assert isinstance(found, Postpone | Retry) and found.delay_s == 900
        found = asked(Past(), failed(kind, retry_after=10**9))
        assert isinstance(found, Postpone | Retry) and found.delay_s == Policy().wait_s


@pytest.mark.parametrize("told", ["", "soon", "-3", "nan", "inf", "1e999", "None"])
def test_a_retry_after_that_says_nothing_is_ignored(told: str) -> None:
    assert asked_s(failed(FailureClass.TRANSIENT, retry_after=told)) == 0


# Whose policy


def test_the_request_wins_over_the_kind_and_neither_over_the_limit() -> None:
    assert policy("training").base_s == POLICIES["training"].base_s
    assert [policy("x", default=2).attempts, policy("x", default=2, asked=5).attempts] == [2, 5]
    assert policy("x", asked=99).attempts == LIMIT
    assert policy("x") == Policy()


# What holds for every story

kinds = st.sampled_from(list(FailureClass))
spending = st.sampled_from(SPENDING)
rules_ = st.builds(
    Policy,
    attempts=st.integers(1, LIMIT),
    base_s=st.floats(0, 1e3),
    factor=st.floats(1, 10),
    cap_s=st.floats(0, 1e4),
    crashes=st.integers(1, 5),
    timeouts=st.integers(0, 5),
)
chances = st.floats(0, 1, exclude_max=True)


@given(rules_, st.lists(spending, min_size=LIMIT, max_size=LIMIT), chances, st.booleans())
def test_a_job_ends_within_its_attempts_whatever_fails(
    rules: Policy, story: list[FailureClass], chance: float, stranger: bool
) -> None:
    past, runs = Past(), 0
    for kind in story:
        runs += 1
        found = asked(past, failed(kind), rules=rules, chance=chance)
        if not isinstance(found, Retry):
            break
        assert 0 <= found.delay_s <= rules.cap_s
        past = past.after(tried(failed(kind))).model_copy(update={"hint": found.hint})
        past = Past(spent=past.spent) if stranger else read(write([], past))  # the story may be lost, the number not
    assert isinstance(found, Bury)
    assert runs <= rules.attempts


@given(rules_, st.lists(spending, max_size=20), kinds, st.booleans(), chances)
def test_the_same_story_has_the_same_end(
    rules: Policy, story: list[FailureClass], last: FailureClass, advanced: bool, chance: float
) -> None:
    past = past_of(*story)
    found = [asked(past, failed(last), rules=rules, chance=chance, advanced=advanced) for _ in range(2)]
    assert found[0] == found[1]
    if last in (FailureClass.INVALID, FailureClass.PERMANENT):
        assert isinstance(found[0], Bury | Fail)
    if last is FailureClass.DEPENDENCY:
        assert isinstance(found[0], Postpone)


@given(rules_, st.lists(spending, max_size=8), spending, spending)
def test_a_longer_past_never_brings_a_job_back(
    rules: Policy, story: list[FailureClass], more: FailureClass, last: FailureClass
) -> None:
    past = past_of(*story)
    before, after = (asked(one, failed(last), rules=rules) for one in (past, past.after(tried(failed(more)))))
    if isinstance(before, Bury):
        assert isinstance(after, Bury)
    elif isinstance(before, Retry) and isinstance(after, Retry):
        assert after.delay_s >= before.delay_s
        assert list(Hint).index(after.hint) >= list(Hint).index(before.hint)


@given(rules_, st.lists(spending, max_size=8), spending)
def test_progress_never_shortens_a_jobs_life(rules: Policy, story: list[FailureClass], last: FailureClass) -> None:
    past = past_of(*story)
    moved = past.after(tried(failed(last), spent=False))
    assert isinstance(asked(past, failed(last), rules=rules, advanced=True), Retry)
    assert moved.spent == past.spent
    assert type(asked(moved, failed(last), rules=rules)) is type(asked(past, failed(last), rules=rules))


# The past in headers


@given(st.sampled_from(list(Hint)), st.integers(0, 9))
def test_the_hint_travels_in_a_header_of_its_own(hint: Hint, spent: int) -> None:
    headers = write([("theirs", b"x"), (HINT, b"alone")], Past(spent=spent, hint=hint))
    assert headers[0] == ("theirs", b"x")
    assert [raw for name, raw in headers if name == HINT] == ([] if hint is Hint.NONE else [hint.value.encode()])
    assert read(headers) == Past(spent=spent, hint=hint)


@pytest.mark.parametrize("raw", [b"", b"louder", b"\xff", None])
def test_a_hint_that_says_nothing_is_none(raw: bytes | None) -> None:
    assert read([(HINT, raw)]).hint is Hint.NONE


def test_waiting_does_not_push_the_attempts_out_of_the_past() -> None:
    past = past_of(*[FailureClass.TRANSIENT] * 3)
    start = NOW - timedelta(hours=2)
    for minute in range(100):
        waits = tried(failed(FailureClass.DEPENDENCY), spent=False, ended=start + timedelta(minutes=minute))
        past = past.after(waits)
    assert len(past.tries) == 4 < KEPT
    assert (past.tries[-1].started_at, past.tries[-1].ended_at) == (start, start + timedelta(minutes=99))


def test_the_time_a_job_runs_is_no_waiting() -> None:
    past, now, failure = Past(), NOW, failed(FailureClass.DEPENDENCY)
    for _ in range(10):  # it runs for ten hours, its dependency goes away, and it waits for one
        begun, now = now, now + timedelta(hours=10)
        waits = tried(failure, spent=False, ended=now).model_copy(update={"started_at": begun})
        assert isinstance(asked(past, failure, now=begun), Postpone)
        past, now = past.after(waits), now + timedelta(hours=1)
    assert waited_s(past, now) == 10 * 3600
    assert len(past.tries) == 1
