"""A paused job waits where it is, whatever happens meanwhile, and goes on where it was: nothing is spent for it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from worker_twin import START, Bench, Entry, Steps, begun, dead, events, kind, pair, raising, record, tried

from schemas.claim import Start
from schemas.control import Breaker, BreakerState, Pause, Resume, key
from schemas.errors import FailureClass, JobError, NotFoundError
from schemas.event import EventType
from schemas.outcome import Cancelled, Status, Succeeded
from schemas.past import ATTEMPT, LINE, Past
from wire.share import AckType
from workers import control as module
from workers.admit import FIRST_S, LONGEST_S, PAST_S
from workers.claim import claim_name
from workers.context import Context
from workers.control import Controls
from workers.kinds import Kind

TRIED = (FailureClass.TRANSIENT, "TAPE-6001")


def never() -> Kind:
    """A kind whose jobs must not run."""
    found: Kind = raising(AssertionError("it ran"))
    return found


def stopped(bench: list[Bench], *, resumed: bool = False, reached: float = 0.0) -> Any:
    """A handler that is paused at its first attempt, and looks; the second one goes through."""
    ran: list[int] = []

    def handler(context: Context, _: object) -> Succeeded:
        ran.append(context.attempt)
        if len(ran) == 1:
            if reached:
                context.advanced(reached)
            bench[0].pause()
            assert context.cancelled
            if resumed:
                bench[0].resume()
            context.check()
            raise AssertionError("check did not stop it")
        return Succeeded(result={"ran": ran})

    return handler


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_paused_job_is_not_run_until_it_is_resumed(isolation: Any) -> None:
    bench = Bench(kind(isolation=isolation))
    bench.pause()
    first = record()
    assert bench.run(first) is AckType.ACCEPT
    (told,) = bench.events()
    assert (told.type, told.attempt) == (EventType.POSTPONED, 1)
    assert told.failure is not None
    assert (told.failure.code, told.failure.message) == ("TAPE-3011", "paused by me@desk (lunch)")
    assert "tape resume job-1" in told.failure.hint
    assert told.failure.place == {"who": "me@desk", "since": START.isoformat()}
    (waits,) = bench.waiting()
    assert told.until == waits.due == START + timedelta(seconds=FIRST_S)
    headers = dict(waits.record.headers)
    assert (headers[ATTEMPT], headers[LINE], waits.record.value) == (b"0", b"t.jobs.say.bulk/0/7", first.value)
    with pytest.raises(NotFoundError):
        bench.store.stat(claim_name("job-1"))
    bench.resume()
    assert bench.run(bench.next()) is AckType.ACCEPT
    last = bench.events()[-1]
    assert (last.type, last.attempt) == (EventType.SUCCEEDED, 1)


def test_the_looks_get_rarer_and_months_do_no_harm() -> None:
    bench, found, waits = Bench(never()), record(past=tried(TRIED)), []
    bench.pause()
    while bench.clock.now() < START + timedelta(minutes=30):
        assert bench.run(found) is AckType.ACCEPT
        found, due = bench.waiting()[-1].record, bench.waiting()[-1].due
        waits.append((due - bench.clock.now()).total_seconds())
        bench.clock.seconds += waits[-1]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (FIRST_S, LONGEST_S)
    assert len(waits) < 50
    bench.clock.advance(90 * 86_400.0)
    bench.run(found)
    assert bench.waiting()[-1].past == tried(TRIED), "no try, no attempt"
    assert {event.type for event in bench.events()} == {EventType.POSTPONED}
    assert dead(bench) == []


@pytest.mark.parametrize("ahead_s", [-86_400.0, 86_400.0])
def test_whose_clock_is_wrong_pauses_all_the_same(ahead_s: float) -> None:
    bench = Bench(never())
    bench.control.apply(told(Pause(job="job-1", time=START + timedelta(seconds=ahead_s))))
    bench.run(record())
    assert bench.waiting()[0].due - START in (timedelta(seconds=FIRST_S), timedelta(seconds=LONGEST_S))


@pytest.mark.parametrize("resumed", [False, True], ids=["paused", "resumed before it stopped"])
@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_job_paused_while_it_runs_is_handed_back_and_another_worker_goes_on(isolation: Any, resumed: bool) -> None:
    benches: list[Bench] = []
    one, two = pair(kind(stopped(benches, resumed=resumed), isolation=isolation, max_attempts=1))
    benches.append(one)
    assert one.run(record()) is AckType.ACCEPT
    last = one.events()[-1]
    assert (last.type, last.attempt) == (EventType.POSTPONED, 1)
    assert last.failure is not None
    assert last.failure.code == "TAPE-3011"
    (waits,) = one.waiting()
    assert (waits.past, waits.due) == (Past(), START + timedelta(seconds=FIRST_S))
    assert isolation == "thread" or not one.claim().held
    assert two.run(two.next()) is AckType.ACCEPT
    end = events(one.log)[-1]
    assert (end.type, end.attempt, end.worker) == (EventType.SUCCEEDED, 1, "w2")
    assert end.outcome is not None
    assert end.outcome.result == {"ran": [1, 1]}


def test_how_far_its_checkpoint_is_goes_along() -> None:
    benches: list[Bench] = []
    bench = Bench(kind(stopped(benches, reached=40.0)))
    benches.append(bench)
    bench.run(record())
    assert bench.waiting()[0].past == Past(reached=40.0), "who comes no further later has no credit for it"


@pytest.mark.parametrize("spent", [True, False], ids=["a death", "a death that came further"])
def test_deaths_before_a_pause_are_counted_once(spent: bool) -> None:
    benches: list[Bench] = []
    bench = Bench(kind(stopped(benches), max_attempts=5))
    benches.append(bench)
    begun(bench)
    if not spent:
        claim = bench.claim().model_copy(update={"reached": 40.0})
        bench.store.put(claim_name("job-1"), claim.model_dump_json().encode())
    bench.run(record(count=2))
    bench.resume()
    past = bench.waiting()[0].past
    assert (past.spent, past.credits, len(past.tries)) == (int(spent), int(not spent), 1)
    assert bench.run(bench.next()) is AckType.ACCEPT
    assert bench.claim().lost == ()
    assert bench.outcome("job-1").attempt == 1 + spent


def test_deaths_of_a_job_that_was_paused_before_anybody_noticed_are_not_forgotten() -> None:
    bench = Bench()
    begun(bench)
    bench.pause()
    bench.run(record(count=2))
    assert isinstance(bench.claim().start, Start)
    bench.resume()
    bench.run(bench.next())
    assert bench.outcome("job-1").attempt == 2


def test_one_that_is_paused_while_its_claim_is_waited_for_does_not_begin() -> None:
    bench = Bench(never())
    begun(bench)
    bench.meanwhile = bench.pause
    assert bench.run(record()) is AckType.ACCEPT
    assert [event.type for event in bench.events()] == [EventType.POSTPONED]
    assert bench.waiting()[0].past.spent == 1, "the death that was waited for"
    assert not bench.claim().held


def test_a_handler_that_ends_before_it_looks_has_ended() -> None:
    def handler(*_: object) -> Succeeded:
        bench.pause()
        return Succeeded()

    bench = Bench(kind(handler))
    bench.run(record())
    assert bench.outcome("job-1").status is Status.SUCCEEDED
    assert bench.run(record(count=2)) is AckType.ACCEPT, "its left-over record is told its end, and waits no more"
    assert bench.waiting() == []


def test_one_that_fails_while_it_is_paused_waits_with_its_attempt_spent() -> None:
    def handler(*_: object) -> Succeeded:
        bench.pause()
        raise JobError("no")

    bench = Bench(kind(handler))
    bench.run(record())
    bench.run(bench.next())
    assert [event.type for event in bench.events()][1:] == [EventType.RETRYING, EventType.POSTPONED]
    assert bench.waiting()[-1].past.spent == 1


def test_a_job_that_was_taken_over_meanwhile_is_not_put_off() -> None:
    benches: list[Bench] = []
    handler = stopped(benches)

    def fenced(context: Context, params: object) -> Succeeded:
        claim = bench.claim()
        other = claim.start.model_copy(update={"epoch": 9, "worker": "w2"})
        bench.store.put(claim_name("job-1"), claim.model_copy(update={"start": other}).model_dump_json().encode())
        bench.clock.advance(10)
        found: Succeeded = handler(context, params)
        return found

    bench = Bench(kind(fenced))
    benches.append(bench)
    assert bench.run(record()) is AckType.RELEASE
    assert bench.waiting() == []


# --- what is stronger, and what is weaker


def test_a_cancellation_ends_a_paused_job() -> None:
    bench = Bench(never())
    bench.pause()
    bench.run(record())
    bench.cancel("job-1")
    bench.run(bench.next())
    assert bench.outcome("job-1").status is Status.CANCELLED


def test_a_running_job_that_is_paused_and_cancelled_ends() -> None:
    def handler(context: Context, _: object) -> Succeeded:
        bench.pause()
        assert context.cancelled
        bench.cancel("job-1")
        context.check()
        raise AssertionError("check did not stop it")

    bench = Bench(kind(handler))
    bench.run(record())
    assert bench.outcome("job-1").status is Status.CANCELLED


def test_one_that_ends_itself_is_cancelled_though_others_are_paused() -> None:
    bench = Bench(kind(lambda *_: Cancelled(reason="nothing to do")))
    bench.pause("job-2")
    bench.run(record())
    assert bench.outcome("job-1").status is Status.CANCELLED


def test_a_deadline_holds_and_is_told_in_time() -> None:
    bench = Bench(never())
    bench.pause()
    end = START + timedelta(seconds=3)
    bench.run(record(expires_at=end.isoformat()))
    (waits,) = bench.waiting()
    assert abs(waits.due - end - timedelta(seconds=PAST_S)) <= timedelta(milliseconds=1)
    bench.run(bench.next())
    assert bench.outcome("job-1").status is Status.EXPIRED


def test_a_job_whose_time_has_not_come_is_not_looked_at_before() -> None:
    bench, moment = Bench(), START + timedelta(hours=5)
    bench.pause()
    bench.run(record(not_before=moment.isoformat()))
    assert bench.waiting()[0].due == moment
    bench.resume()
    bench.run(bench.next())
    assert bench.outcome("job-1").status is Status.SUCCEEDED


def test_it_takes_no_room_of_its_tenants_quota() -> None:
    bench = Bench()
    bench.allow(in_flight=1)
    bench.pause()
    bench.run(record())
    bench.run(record("job-2", offset=8))
    assert bench.outcome("job-2").status is Status.SUCCEEDED


def test_it_neither_tries_a_dependency_nor_waits_for_it() -> None:
    bench = Bench(kind(max_attempts=1))
    half = Breaker(dependency="kind:say", state=BreakerState.OPEN, epoch=1, worker="w9", since=START, until=START)
    bench.breakers.apply(half)
    bench.clock.advance(600)
    bench.pause()
    bench.run(record())
    assert bench.said == [], "no probe was taken"
    assert [event.failure.code for event in bench.events() if event.failure] == ["TAPE-3011"]


def test_a_pause_is_no_wait_for_a_dependency() -> None:
    past = tried((FailureClass.DEPENDENCY, "TAPE-5007"), spent=False)
    bench = Bench(never())
    bench.pause()
    bench.run(record(past=past))
    last = bench.waiting()[0].past.tries[-1]
    assert last.started_at == START + timedelta(seconds=FIRST_S), "as if it had begun so much later"


# --- who knows of it


def test_a_second_record_of_the_job_waits_too_and_so_does_a_redriven_one() -> None:
    bench = Bench(never())
    bench.pause()
    for offset, past in ((7, None), (8, None), (9, Past(replays=1))):
        assert bench.run(record(offset=offset, past=past)) is AckType.ACCEPT
    assert len(bench.waiting()) == 3


def test_one_that_was_resumed_runs_once_however_many_records_it_has() -> None:
    bench = Bench()
    bench.pause()
    bench.run(record())
    bench.run(record(offset=8))
    bench.resume()
    for waits in bench.waiting():
        bench.clock.seconds = 2_000.0
        bench.run(waits.record)
    assert len([event for event in bench.events() if event.type is EventType.RUNNING]) == 1


def told(message: Pause | Resume) -> Entry:
    return Entry(key(message).encode(), message.model_dump_json().encode())


def test_the_newest_word_counts_and_a_tombstone_is_one() -> None:
    control = Controls()
    first, second = Pause(job="j", reason="one", time=START), Pause(job="j", reason="two", time=START)
    for message, expected in ((first, first), (second, second), (Resume(job="j", time=START), None), (first, first)):
        control.apply(told(message))
        assert control.paused("j") == expected
    control.apply(Entry(b"j", None))
    assert control.paused("j") == first, "that took a cancellation back"
    control.apply(Entry(b"pause/j", None))
    assert control.paused("j") is None
    control.close()


def test_no_pause_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    control = Controls()
    for number in range(10):
        control.apply(told(Pause(job=f"j{number}", time=START)))
    assert all(control.paused(f"j{number}") for number in range(10))
    control.close()


def test_who_just_came_asks_first_and_where_nobody_answers_the_job_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no breaker hears of it: the job's kind is not to blame."""
    monkeypatch.setattr(module, "INFORMED_S", 0.0)
    over = threading.Event()

    def silent(stop: threading.Event) -> Any:
        yield from ()
        over.wait(20)

    bench = Bench(never())
    bench.control = Controls(silent)
    object.__setattr__(bench.executor._signals, "paused", bench.control.paused)
    assert bench.run(record()) is AckType.ACCEPT
    over.set()
    (event,) = bench.events()
    assert event.failure is not None
    assert (event.type, event.failure.code) == (EventType.POSTPONED, "TAPE-5001")
    assert bench.breakers.calm
    assert isinstance(bench.again, Steps)
    bench.control.close()
