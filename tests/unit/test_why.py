"""`tape why`: one answer for every blocker, whatever is known."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fleet_rig import NOW, ago, breaker, ended, event, failure, worker
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.fleet import Blocker, Facts, Fleet, Place, Rate, Seen, Standing, diagnose
from producers.fleet.facts import Turns
from schemas.control import SILENT_S, BreakerState, Cancel, Pause
from schemas.dead import Became, Fate
from schemas.errors import CODES
from schemas.event import Event, EventType, State
from schemas.ids import uuid7
from schemas.outcome import Status
from schemas.past import Hint, Past

TOPIC = "tape.jobs.heavy.bulk"


def fleet(*workers: Seen, **fields: Any) -> Fleet:
    return Fleet(workers=workers, **fields)


def place(offset: int = 10, **fields: Any) -> Place:
    return Place(topic=TOPIC, partition=0, offset=offset, **({"written": ago(60)} | fields))


def queued(**fields: Any) -> Facts:
    """A job in its queue, at the head, with an idle worker."""
    told = {
        "events": (event(),), "place": place(), "searched": True, "fleet": fleet(worker()),
        "queue": (Standing(TOPIC, 0, 10, 11, 1), Standing(TOPIC, 1, 0, 0, 0)),
    }  # fmt: skip
    return Facts(job="j", now=NOW, kind="heavy", **(told | fields))


def behind(**fields: Any) -> Facts:
    """A job with four others before it in its partition, and more elsewhere."""
    queue = (Standing(TOPIC, 0, 6, 20, 14), Standing(TOPIC, 1, 0, 50, 50), Standing(TOPIC, 2, 9, 11, 2))
    return queued(queue=queue, **fields)


WAIT = {"until": NOW + timedelta(seconds=40)}
DUE = {"until": ago(30)}
LATER = NOW + timedelta(hours=1)
RUNNING = (event(), event(EventType.RUNNING, 50, worker="w-1", attempt=1))
TWICE = (*RUNNING, event(EventType.RUNNING, 45, worker="w-2", attempt=2))
RETRIED = (*RUNNING, event(EventType.RETRYING, 40, attempt=1, failure=failure("TAPE-6001"), **DUE))
PAUSE = Pause(job="j", who="me@desk", reason="lunch", time=ago(90))
REST = event(EventType.POSTPONED, 1, failure=failure("TAPE-3011", "paused by me@desk"), **WAIT)
AGAIN = place(written=ago(20))

CASES: dict[str, tuple[Facts, Blocker, str]] = {
    "succeeded": (queued(events=ended(Status.SUCCEEDED)), Blocker.ENDED, "succeeded 3 s ago."),
    "failed": (queued(events=ended(Status.FAILED, "TAPE-6009")), Blocker.ENDED, "with TAPE-6009: it failed."),
    "dead": (queued(events=ended(Status.DEAD, "TAPE-1002")), Blocker.ENDED, "became a dead letter 3 s ago"),
    "expired, told": (queued(events=ended(Status.EXPIRED, "TAPE-6006")), Blocker.ENDED, "expired before it ran"),
    "cancelled, told": (queued(events=ended(Status.CANCELLED)), Blocker.ENDED, "was cancelled"),
    "cancelled": (
        queued(fleet=fleet(worker(), cancelled={"j": Cancel(job="j", time=ago(5), reason="a slip")})),
        Blocker.CANCELLED, "5 s ago (a slip); the worker that takes its record says so",
    ),
    "cancelled while it runs": (
        queued(events=RUNNING, fleet=fleet(worker(), cancelled={"j": Cancel(job="j", time=ago(5))})),
        Blocker.CANCELLED, "its worker stops it",
    ),
    "cancelled, but its handler never looks up": (
        queued(
            events=RUNNING,
            fleet=fleet(worker(running=("j",)), cancelled={"j": Cancel(job="j", time=ago(15))}),
        ),
        Blocker.CANCELLED, "w-1 still has it: a handler that runs in its worker's thread and never looks up",
    ),
    "cancelled, light, and in somebody's hands": (
        queued(fleet=fleet(worker(running=("j",)), cancelled={"j": Cancel(job="j", time=ago(5))})),
        Blocker.CANCELLED, "; its worker stops it.",
    ),
    "cancelled while its worker died": (
        queued(events=RUNNING, fleet=fleet(worker(age_s=60), cancelled={"j": Cancel(job="j", time=ago(50))})),
        Blocker.CANCELLED, "; its worker stops it.",
    ),
    "paused, but its handler never looks up": (
        queued(events=RUNNING, fleet=fleet(worker(running=("j",)), paused={"j": PAUSE})),
        Blocker.PAUSED, "w-1 still has it",
    ),
    "paused, and just looked at": (
        queued(events=(*RUNNING, REST), fleet=fleet(worker(running=("j",)), paused={"j": PAUSE})),
        Blocker.PAUSED, "it waits until it is resumed",
    ),
    "paused": (
        queued(fleet=fleet(worker(), paused={"j": PAUSE})), Blocker.PAUSED,
        "It was paused 90 s ago by me@desk (lunch); it waits until it is resumed.",
    ),
    "paused, and put off for that": (
        queued(events=(*RUNNING, REST), place=None, fleet=fleet(paused={"j": PAUSE})), Blocker.PAUSED, "it waits",
    ),
    "paused while it runs": (
        queued(events=RUNNING, fleet=fleet(worker(), paused={"j": PAUSE})), Blocker.PAUSED, "; its worker stops it.",
    ),
    "paused and cancelled": (
        queued(fleet=fleet(paused={"j": PAUSE}, cancelled={"j": Cancel(job="j", time=NOW)})), Blocker.CANCELLED, "",
    ),
    "resumed, but not looked at": (
        queued(events=(*RUNNING, REST), place=None), Blocker.DELAYED, "It is postponed and is taken in 40 s.",
    ),
    "running": (queued(events=RUNNING), Blocker.RUNNING, "It runs on w-1 since 50 s."),
    "running on a worker that never says so": (queued(events=RUNNING, fleet=fleet()), Blocker.RUNNING, "w-1"),
    "running, but light": (
        queued(fleet=fleet(worker("w-7", running=("j",)))), Blocker.RUNNING, "on w-7, or waits there for a slot",
    ),
    "its worker died": (
        queued(events=RUNNING, fleet=fleet(worker(age_s=47), worker("w-2"))), Blocker.LOST, "silent for 47 s",
    ),
    "its worker is gone": (queued(events=RUNNING, fleet=fleet(worker("w-2"))), Blocker.LOST, "silent for 50 s"),
    "its workers died": (
        queued(events=TWICE, fleet=fleet(worker("w-2", 60), worker("w-3"))), Blocker.SUSPECT, "2 workers took it",
    ),
    "retrying": (
        queued(events=(*RUNNING, event(EventType.RETRYING, 1, attempt=1, failure=failure("TAPE-6001"), **WAIT))),
        Blocker.DELAYED, "tried again in 40 s, because attempt 1 failed: it failed (TAPE-6001).",
    ),
    "scheduled": (queued(events=(event(EventType.POSTPONED, 1, **WAIT),)), Blocker.DELAYED, "postponed and is taken"),
    "postponed by a breaker": (
        queued(events=(event(EventType.POSTPONED, 1, failure=failure("TAPE-5010", "store is away"), **WAIT),)),
        Blocker.BREAKER, "waits for a dependency and is tried again in 40 s: store is away",
    ),
    "a copy": (
        queued(events=(event(EventType.POSTPONED, 1, failure=failure("TAPE-3008"), **WAIT),)),
        Blocker.ELSEWHERE, "Another worker runs this job",
    ),
    "not moved": (queued(events=RETRIED, place=None), Blocker.MOVER, "was due 30 s ago"),
    "moved": (queued(events=RETRIED, place=AGAIN), Blocker.NEXT, "It is the next"),
    "handed back": (queued(events=(*RUNNING, event(EventType.RETRYING, 9))), Blocker.NEXT, "It is the next"),
    "expired": (queued(place=place(expires_at=ago(7))), Blocker.EXPIRED, "It expired 7 s ago"),
    "no topic": (queued(queue=None, place=None), Blocker.KIND, "has no topic here"),
    "nobody": (queued(fleet=fleet()), Blocker.WORKERS, "No worker for the kind 'heavy' is running."),
    "others only": (queued(fleet=fleet(worker(kinds=("light",)))), Blocker.WORKERS, "one worker serves other kinds"),
    "another lane": (queued(fleet=fleet(worker(lanes=("interactive",)))), Blocker.WORKERS, "takes the lane 'bulk'"),
    "silent": (queued(fleet=fleet(worker(age_s=80), worker("w-2", 90))), Blocker.SILENT, "the last one for 80 s"),
    "draining": (queued(fleet=fleet(worker(draining=True))), Blocker.DRAINING, "is draining"),
    "breaker open": (
        queued(fleet=fleet(worker(), breakers=breaker(until=NOW + timedelta(seconds=12)))),
        Blocker.BREAKER, "store is away: 5 failures in a row; one job tries it again in 12 s",
    ),
    "breaker on trial": (
        queued(fleet=fleet(worker(), breakers=breaker(state=BreakerState.HALF_OPEN))),
        Blocker.BREAKER, "store is on trial: 5 failures in a row; w-9 tries it with one job.",
    ),
    "breaker open, with its cause": (
        queued(fleet=fleet(worker(), breakers=breaker(cause="TAPE-5002 the disk is full"))),
        Blocker.BREAKER, "store is away: 5 failures in a row (TAPE-5002 the disk is full); one job tries it again",
    ),
    "a broken kind": (queued(fleet=fleet(worker(), breakers=breaker("kind:heavy"))), Blocker.BREAKER, "kind:heavy is"),
    "workers say it is away": (
        queued(fleet=fleet(worker(breakers={"store": BreakerState.OPEN}))), Blocker.BREAKER, "store is away, say",
    ),
    "another's breaker": (queued(fleet=fleet(worker(), breakers=breaker("judge:x"))), Blocker.NEXT, "the next"),
    "refused to its only worker": (
        queued(fleet=fleet(worker(), breakers=breaker("store@w-1", fingerprint="TAPE-4002 refused"))), Blocker.BREAKER,
        "store refuses the credentials of w-1 (TAPE-4002): 5 failures in a row; one job tries it again any moment.",
    ),
    "refused to its only worker, which tries again": (
        queued(
            fleet=fleet(worker(), breakers=breaker(
                "store@w-1", state=BreakerState.HALF_OPEN, reason="one job tries it", cause="TAPE-4002 it refused"
            ))
        ),
        Blocker.BREAKER, "credentials of w-1 (TAPE-4002): it refused; w-9 tries it with one job.",
    ),
    "refused to another worker": (
        queued(fleet=fleet(worker(), worker("w-2"), breakers=breaker("store@w-2"))), Blocker.NEXT, "the next",
    ),
    "refused to its only worker, as it says": (
        queued(fleet=fleet(worker(breakers={"store@w-1": BreakerState.OPEN}))), Blocker.BREAKER,
        "store refuses the credentials of w-1, say the workers",
    ),
    "a suspect": (queued(place=place(past=Past(spent=1, hint=Hint.ALONE))), Blocker.SUSPECT, "It is a suspect"),
    "busy": (
        queued(fleet=fleet(worker(full=("heavy",), held=2, running=("a", "b")))), Blocker.SLOTS, "Every slot",
    ),
    "behind those that run": (
        queued(
            queue=(Standing(TOPIC, 0, 8, 11, 3),), fleet=fleet(worker(full=("heavy",), held=2, running=("a", "b")))
        ),
        Blocker.SLOTS, "it is among the next",
    ),
    "behind others": (behind(), Blocker.POSITION, "about 10 jobs are ahead."),
    "behind others, all busy": (
        behind(fleet=fleet(worker(full=("heavy",), held=2))), Blocker.POSITION, "ahead, and every slot is busy",
    ),
    "behind others, with a rate": (behind(rate=Rate(30, 60.0)), Blocker.POSITION, "starts in about 20 s"),
    "next": (queued(), Blocker.NEXT, "any moment"),
    "next, but too early": (
        queued(place=place(not_before=LATER)), Blocker.DELAYED, "It is not taken before 2030-01-02 10:00:00 UTC.",
    ),
    "too early, and nobody there": (
        queued(place=place(not_before=LATER), fleet=fleet()), Blocker.WORKERS, "is running. It is not taken before",
    ),
    "its moment has come": (queued(place=place(not_before=ago(1))), Blocker.NEXT, "any moment"),
    "only a record": (queued(events=()), Blocker.NEXT, "any moment"),
    "not found in time": (queued(place=None, searched=False), Blocker.NEXT, "It waits in its queue."),
    "just submitted": (queued(events=(event(at=1),), place=None), Blocker.NEXT, "just submitted"),
    "vanished": (queued(place=None), Blocker.MISSING, "not in the queue any more"),
    "unknown": (Facts(job="j", now=NOW, searched=True), Blocker.MISSING, "No event tells"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_answer(name: str) -> None:
    facts, blocker, words = CASES[name]
    answer = diagnose(facts)
    assert answer.blocker is blocker
    assert words in answer.detail
    assert answer.next
    json.dumps(answer.row(), default=str)


def test_every_blocker_has_a_case() -> None:
    reserved = {Blocker.QUOTA}
    assert {blocker for _, blocker, _ in CASES.values()} == set(Blocker) - reserved


class TestDiscarded:
    """What stays dead because somebody said so."""

    @staticmethod
    def fate(at: float) -> Fate:
        told = {"letter": "tape.dead.heavy/0/0", "job": "j", "kind": "heavy", "by": "eve@desk", "reason": "too old"}
        return Fate(became=Became.DISCARDED, time=ago(at), **told)

    def test_it_is_called_discarded(self) -> None:
        answer = diagnose(queued(events=ended(Status.DEAD, "TAPE-1002"), fate=self.fate(1)))
        assert answer.detail.endswith("It was discarded 1 s ago by eve@desk: too old.")
        assert (answer.blocker, answer.facts["by"], answer.facts["reason"]) == (Blocker.ENDED, "eve@desk", "too old")
        assert answer.next == ("tape dead show j", "tape dead discard j --undo --reason WHY")

    def test_a_letter_that_came_after_it_waits(self) -> None:
        answer = diagnose(queued(events=ended(Status.DEAD, "TAPE-1002"), fate=self.fate(50)))
        assert "discarded" not in answer.detail
        assert answer.next == ("tape dead show j", "tape dead redrive plan j")


def test_of_several_workers_that_were_refused_all_are_told() -> None:
    both = breaker("store@w-1", fingerprint="TAPE-4003 x") | breaker("store@w-2", fingerprint="TAPE-4003 x")
    answer = diagnose(queued(fleet=fleet(worker(), worker("w-2"), breakers=both)))
    assert answer.detail.startswith("store refuses the credentials of w-1 and of the others (TAPE-4003): ")
    assert (answer.facts["code"], answer.facts["way out"]) == ("TAPE-4003", CODES["TAPE-4003"].hint)


class TestEstimates:
    def test_ahead(self) -> None:
        answer = diagnose(behind())
        assert (answer.ahead, answer.position) == (4 + 4 + 2, 11)

    def test_what_ended_out_of_order_does_not_count(self) -> None:
        queue = (Standing(TOPIC, 0, 0, 20, 12),)  # 20 records from the start on, and 8 of them ended
        assert diagnose(queued(queue=queue)).ahead == 2

    def test_turns_by_weight(self) -> None:
        turns = Turns(own=2, others={"a": 100, "b": 1, "c": 100})
        weights = {"a": 1.0, "b": 1.0, "c": 0.5}
        assert turns.ahead(1.0, weights.__getitem__) == 2 + 3 + 1 + 2
        assert turns.ahead(3.0, weights.__getitem__) == 2 + 1 + 1 + 1
        assert diagnose(queued(turns=turns)).ahead == 2 + 3 + 1 + 3

    def test_a_group_that_never_read(self) -> None:
        queue = (Standing(TOPIC, 0, 3, 20, -1), Standing(TOPIC, 1, 0, 4, -1))
        assert diagnose(queued(queue=queue, fleet=fleet())).ahead == 7 + 4

    def test_a_start_is_only_told_where_it_is_known(self) -> None:
        assert diagnose(behind(rate=Rate(30, 60.0))).expected_start == NOW + timedelta(seconds=20)
        assert diagnose(behind(rate=Rate(4, 60.0))).expected_start is None
        assert diagnose(behind()).expected_start is None
        assert diagnose(behind(rate=Rate(30, 60.0), fleet=fleet())).expected_start is None
        assert diagnose(behind(rate=Rate(30, 60.0), fleet=fleet(worker(), breakers=breaker()))).expected_start is None

    def test_nothing_starts_before_the_moment_that_its_record_names(self) -> None:
        soon = NOW + timedelta(seconds=5)
        assert diagnose(behind(rate=Rate(30, 60.0), place=place(not_before=LATER))).expected_start == LATER
        assert diagnose(behind(rate=Rate(30, 60.0), place=place(not_before=soon))).expected_start == NOW + timedelta(
            seconds=20
        )
        assert diagnose(behind(place=place(not_before=LATER))).expected_start is None
        assert diagnose(queued(place=place(not_before=LATER))).expected_start == LATER

    def test_a_retry_starts_at_its_time_if_anybody_is_there(self) -> None:
        events = (event(), event(EventType.RETRYING, 1, failure=failure("TAPE-6001"), **WAIT))
        assert diagnose(queued(events=events)).expected_start == WAIT["until"]
        assert diagnose(queued(events=events, fleet=fleet())).expected_start is None

    def test_what_is_just_being_moved_starts_now(self) -> None:
        due = event(EventType.RETRYING, 1, failure=failure("TAPE-6001"), until=ago(1))
        assert diagnose(queued(events=(event(), due))).expected_start == NOW


EVENTS = st.builds(
    lambda kind, at, until, code, who: Event(
        id=uuid7(), type=kind, job="j", kind="heavy", time=ago(at), worker=who, attempt=1,
        until=None if until is None else ago(until), failure=None if code is None else failure(code),
    ),
    st.sampled_from(EventType), st.floats(-100, 100), st.none() | st.floats(-100, 100),
    st.none() | st.sampled_from(sorted(CODES)), st.none() | st.sampled_from(["w-1", "w-2"]),
)  # fmt: skip
SEENS = st.builds(
    lambda name, age, kinds, lanes, flags: worker(
        name, age, kinds=kinds, lanes=lanes, draining=flags[0], full=kinds if flags[1] else (), held=flags[2],
        running=("j",) if flags[3] else (), breakers={"store": BreakerState.OPEN} if flags[4] else {},
    ),
    st.sampled_from(["w-1", "w-2", "w-3"]), st.floats(0, 2 * SILENT_S),
    st.sampled_from([("heavy",), ("light",), ()]),
    st.sampled_from([("bulk",), ("interactive",), ("bulk", "interactive")]),
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 3), st.booleans(), st.booleans()),
)  # fmt: skip
SMALL = st.integers(-1, 30)
FACTS = st.builds(
    Facts,
    job=st.just("j"), now=st.just(NOW), kind=st.none() | st.just("heavy"),
    events=st.lists(EVENTS, max_size=5).map(tuple),
    place=st.none() | st.builds(
        place, SMALL, written=st.floats(-100, 100).map(ago), expires_at=st.none() | st.floats(-100, 100).map(ago),
        past=st.sampled_from([Past(), Past(hint=Hint.ALONE)]), not_before=st.none() | st.floats(-100, 100).map(ago),
    ),
    searched=st.booleans(),
    queue=st.none() | st.lists(st.builds(Standing, st.just(TOPIC), st.integers(0, 2), SMALL, SMALL, SMALL)).map(tuple),
    other=SMALL,
    fleet=st.builds(
        Fleet, st.lists(SEENS, max_size=3).map(tuple), st.sampled_from([{}, breaker(), breaker("kind:heavy")]),
        st.sampled_from([{}, {"j": Cancel(job="j", time=NOW)}]), paused=st.sampled_from([{}, {"j": PAUSE}]),
    ),
    rate=st.none() | st.builds(Rate, st.integers(0, 10**9), st.floats(0, 300)),
)  # fmt: skip


@given(FACTS)
@settings(max_examples=500, deadline=None)
def test_there_is_always_one_answer_and_it_holds_together(facts: Facts) -> None:
    answer = diagnose(facts)
    assert answer.detail.endswith(".")
    assert answer.job == "j"
    assert (answer.position is None) == (answer.ahead is None)
    assert answer.ahead is None or answer.ahead >= 0
    assert answer.expected_start is None or answer.expected_start >= facts.now
    if facts.early is not None and answer.blocker in (Blocker.POSITION, Blocker.SLOTS, Blocker.NEXT, Blocker.SUSPECT):
        assert answer.expected_start is None or answer.expected_start >= facts.early
    takers = [seen for seen in facts.fleet.workers if seen.takes and seen.serves("heavy", "bulk")]
    if answer.blocker in (Blocker.POSITION, Blocker.SLOTS) or answer.expected_start is not None:
        assert takers
    if "j" in facts.fleet.cancelled:
        assert answer.blocker in (Blocker.CANCELLED, Blocker.ENDED)
    elif "j" in facts.fleet.paused:
        assert answer.blocker in (Blocker.PAUSED, Blocker.ENDED)
    if answer.blocker is Blocker.ENDED:
        assert answer.state is not None
        assert answer.state not in (State.QUEUED, State.RUNNING, State.RETRYING, State.POSTPONED)
    json.dumps(answer.row(), default=str)
    assert diagnose(replace(facts)) == answer
