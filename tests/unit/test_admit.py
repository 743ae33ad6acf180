"""Admission: which jobs may run here and now, and what becomes of the others."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from worker_twin import START, Bench, Say, begun, dead, kind, pair, raising, record, tried

from schemas.claim import Claim
from schemas.control import Breaker, BreakerState
from schemas.errors import FailureClass, UnavailableError
from schemas.event import EventType
from schemas.outcome import Status, Succeeded, Usage
from schemas.past import Hint, Past
from schemas.past import read as read_past
from wire.blobs.memory import Memory
from wire.share import AckType
from workers.admit import BUSY_S, REWRITTEN
from workers.attempt import SUSPECT
from workers.claim import BEAT_S, GONE_S, SILENT_S, claim_name
from workers.context import Context
from workers.kinds import Kind
from workers.pace import KEPT, LEAST, Pace

CRASH = (FailureClass.CRASHED, "TAPE-6008")
MEMORY = (FailureClass.RESOURCE, "TAPE-6003")


class Batched(Say):
    batch_size: int = 8
    accumulation: int = 3


class Shared(Batched):
    devices: int = 2


class Sized(Say):
    batch_size: int = 8


def never() -> Kind:
    """A kind whose jobs must not run."""
    found: Kind = raising(AssertionError("it ran"))
    return found


def test_a_job_that_may_run_is_counted_and_claimed_before_it_does() -> None:
    seen: list[Claim] = []

    def handler(context: Context, _: object) -> Succeeded:
        seen.append(bench.claim())
        assert context.attempt == 3
        return Succeeded()

    bench = Bench(kind(handler))
    past = tried((FailureClass.TRANSIENT, "TAPE-6001"), (FailureClass.TRANSIENT, "TAPE-6001"))
    assert bench.run(record(past=past, count=2)) is AckType.ACCEPT
    (claim,) = seen
    assert (claim.held, claim.start.attempt, claim.start.worker) == (True, 3, "w1")
    assert (claim.start.place, claim.start.spent) == ("t.jobs.say.bulk/0/7", 2)
    assert bench.outcome("job-1").attempt == 3


def test_a_job_is_not_started_before_its_time_and_spends_nothing_till_then() -> None:
    bench = Bench()
    moment = START + timedelta(seconds=90)
    early = record(not_before=moment.isoformat())
    assert bench.run(early) is AckType.ACCEPT
    (told,) = bench.events()
    assert (told.type, told.until, told.failure) == (EventType.POSTPONED, moment, None)
    (waiting,) = bench.waiting()
    assert (waiting.due, waiting.past) == (moment, Past())
    assert waiting.record.value == early.value
    assert list(bench.store.list()) == []
    assert bench.run(bench.next()) is AckType.ACCEPT
    outcome = bench.outcome("job-1")
    assert (outcome.status, outcome.attempt, outcome.finished_at) == (Status.SUCCEEDED, 1, moment)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T09:00:00-14:00"])
def test_the_last_moments_that_there_are_are_waited_for(text: str) -> None:
    bench = Bench()
    assert bench.run(record(not_before=text)) is AckType.ACCEPT
    (told,) = bench.events()
    assert told.until is not None
    assert (told.type, datetime.fromisoformat(text) - told.until < timedelta(seconds=1)) == (EventType.POSTPONED, True)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
@pytest.mark.parametrize("field", ["not_before", "expires_at", "expirytime"])
def test_a_date_that_utc_does_not_have_is_an_invalid_request(field: str, text: str) -> None:
    bench = Bench()
    wrong = record(extensions={field: text}) if field == "expirytime" else record(**{field: text})
    assert bench.run(wrong) is AckType.REJECT
    failure = bench.events()[-1].failure
    assert failure is not None
    code, place = ("TAPE-1004", "ce_expirytime") if field == "expirytime" else ("TAPE-1002", field)
    assert (failure.code, failure.place["field"]) == (code, place)
    assert "not within the years 1 to 9999" in failure.message


def test_a_job_that_needs_more_than_there_is_here_is_left_to_others_once() -> None:
    one, two = pair()
    short = tried(MEMORY, MEMORY, worker="w1", hint=Hint.ELSEWHERE)
    assert one.run(record(past=short)) is AckType.RELEASE
    assert one.events()[-1].type is EventType.RETRYING
    assert list(one.store.list()) == [], "nothing was begun"
    assert one.run(record(past=short, count=2)) is AckType.ACCEPT, "nobody else took it"
    assert one.outcome("job-1").status is Status.SUCCEEDED
    assert two.run(record("job-2", past=short)) is AckType.ACCEPT, "this is elsewhere"
    assert two.outcome("job-2").worker == "w2"


@pytest.mark.parametrize(
    ("params", "size", "past", "expected"),
    [
        (Batched, 8, tried(MEMORY, hint=Hint.SMALLER), (4, 6)),
        (Batched, 9, tried(MEMORY, hint=Hint.SMALLER), (3, 9)),
        (Batched, 7, tried(MEMORY, hint=Hint.SMALLER), (1, 21)),
        (Batched, 1, tried(MEMORY, hint=Hint.SMALLER), (1, 3)),
        (Sized, 7, tried(MEMORY, hint=Hint.SMALLER), (3, None)),
        (Shared, 8, tried(MEMORY, hint=Hint.SMALLER), (4, 6)),
        (Shared, 6, tried(MEMORY, hint=Hint.SMALLER), (2, 9)),
        (Shared, 2, tried(MEMORY, hint=Hint.SMALLER), (2, 3)),
        (Batched, 8, tried(MEMORY, MEMORY, worker="w0", hint=Hint.ELSEWHERE), (4, 6)),
        (Batched, 8, tried(MEMORY, CRASH, hint=Hint.ALONE), (4, 6)),
        (Batched, 8, tried(CRASH, hint=Hint.ALONE), (8, 3)),
        (Batched, 8, tried((FailureClass.RESOURCE, "TAPE-6013"), worker="w0", hint=Hint.ELSEWHERE), (8, 3)),
        (Batched, 8, tried(MEMORY, spent=False), (8, 3)),
        (Batched, 8, tried((FailureClass.TRANSIENT, "TAPE-6001")), (8, 3)),
    ],
)
def test_a_job_that_ran_out_of_memory_takes_less_at_a_time_and_learns_the_same(
    params: type[Sized], size: int, past: Past, expected: tuple[int, int | None]
) -> None:
    seen: list[tuple[int, int | None]] = []

    def handler(_: Context, given: Sized) -> Succeeded:
        seen.append((given.batch_size, getattr(given, "accumulation", None)))
        return Succeeded()

    bench = Bench(Kind("say", params, handler, max_attempts=5))
    given = record(past=past, params={"text": "hello", "batch_size": size})
    assert bench.run(given) is AckType.ACCEPT
    assert seen == [expected]
    if expected[1] is not None:
        assert expected[0] * expected[1] == size * 3, "as many examples a step"


def test_a_job_without_a_batch_is_run_as_it_is() -> None:
    bench = Bench()
    assert bench.run(record(past=tried(MEMORY, hint=Hint.SMALLER))) is AckType.ACCEPT
    assert bench.outcome("job-1").result == {"text": "hello"}


@pytest.mark.parametrize("deaths", [1, 2])
def test_deaths_of_workers_are_attempts(deaths: int) -> None:
    bench = Bench(kind(max_attempts=5))
    begun(bench, lost=deaths - 1)
    before = bench.clock.now()
    assert bench.run(record(count=2)) is AckType.ACCEPT
    assert bench.outcome("job-1").attempt == deaths + 1
    assert bench.clock.now() - before < timedelta(seconds=GONE_S + 1)


@pytest.mark.parametrize("limit", [3, 8])
def test_a_job_that_killed_three_workers_is_a_dead_letter_with_the_story(limit: int) -> None:
    bench = Bench(never())
    begun(bench, lost=2)
    given = record(count=2, max_attempts=limit)
    assert bench.run(given) is AckType.REJECT
    ((key, value, _, letter),) = dead(bench)
    assert (key, value) == (given.key, given.value)
    assert (letter.failure.code, letter.failure.failure, letter.attempts) == ("TAPE-6008", FailureClass.CRASHED, 4)
    assert letter.past is not None
    deaths = letter.past.tries[:3]
    assert [(one.attempt, one.worker, one.failure, one.started_at) for one in deaths] == [
        (number, f"w9-{number}", FailureClass.CRASHED, START) for number in (1, 2, 3)
    ]
    assert not bench.claim().held
    assert bench.claim().lost == (), "a redrive does not start with deaths"
    assert (bench.outcome("job-1").status, bench.outcome("job-1").epoch) == (Status.DEAD, bench.claim().start.epoch)


def test_deaths_and_crashes_before_count_together() -> None:
    bench = Bench(never())
    begun(bench, spent=2)
    assert bench.run(record(past=tried(CRASH, CRASH, hint=Hint.ALONE), count=2)) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-6008"


def test_crashes_of_a_life_before_the_redrive_do_not_count() -> None:
    bench = Bench()
    past = tried(CRASH, CRASH, CRASH, spent=False, replays=1)
    assert bench.run(record(past=past)) is AckType.ACCEPT
    assert bench.outcome("job-1").attempt == 1


def test_a_death_at_the_last_attempt_is_the_end() -> None:
    bench = Bench(raising(AssertionError("it ran")))
    begun(bench)
    assert bench.run(record(count=2, max_attempts=1)) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-6008"


@pytest.mark.parametrize("isolation", ["process", "thread"])
@pytest.mark.parametrize("count", [REWRITTEN, REWRITTEN + 1])
def test_a_record_that_kafka_would_soon_drop_is_written_anew_and_spends_nothing(isolation: str, count: int) -> None:
    bench = Bench(kind(isolation=isolation))
    worn = record(count=count)
    assert bench.run(worn) is AckType.ACCEPT
    assert [event.type for event in bench.events()] == [EventType.RETRYING]
    (entry,) = bench.log.read(worn.topic, 0)
    assert (entry.key, entry.value) == (worn.key, worn.value)
    assert read_past(entry.headers) == Past()
    assert not bench.claim().held
    anew = worn._replace(offset=8, headers=entry.headers, delivery_count=1)
    assert bench.run(anew) is AckType.ACCEPT
    assert bench.events()[-1].type is EventType.SUCCEEDED
    assert bench.events()[-1].attempt == 1


def test_a_worn_record_takes_its_deaths_along() -> None:
    bench = Bench(never())
    begun(bench)
    worn = record(count=REWRITTEN)
    assert bench.run(worn) is AckType.ACCEPT
    (entry,) = bench.log.read(worn.topic, 0)
    past = read_past(entry.headers)
    assert (past.spent, past.hint, [one.failure for one in past.tries]) == (1, Hint.ALONE, [FailureClass.CRASHED])


@pytest.mark.parametrize("count", [1, REWRITTEN - 1])
def test_below_that_nothing_is_rewritten(count: int) -> None:
    bench = Bench()
    assert bench.run(record(count=count)) is AckType.ACCEPT
    assert bench.outcome("job-1").attempt == 1, "deliveries are not attempts"


@pytest.mark.parametrize(("count", "ledgered"), [(1, False), (SUSPECT - 1, False), (SUSPECT, True)])
def test_light_jobs_are_ledgered_once_they_are_suspect(count: int, ledgered: bool) -> None:
    seen: list[bool] = []

    def handler(*_: object) -> Succeeded:
        seen.extend(bench.claim().held for _ in bench.store.list())
        return Succeeded()

    bench = Bench(kind(handler, isolation="thread"))
    assert bench.run(record(count=count)) is AckType.ACCEPT
    assert seen == [True] * ledgered
    if ledgered:
        assert not bench.claim().held, "its end must not look like a death"


def test_a_light_suspect_that_kills_three_workers_is_buried() -> None:
    bench = Bench(kind(lambda *_: None, isolation="thread"))
    begun(bench, lost=2)
    assert bench.run(record(count=SUSPECT + 3)) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-6008"


@pytest.mark.parametrize(("past", "count"), [(None, SUSPECT), (tried(CRASH, hint=Hint.ALONE), 1)])
def test_suspects_run_one_at_a_time_and_others_beside_them(past: Past | None, count: int) -> None:
    apart: list[bool] = []

    def handler(context: Context, _: object) -> Succeeded:
        apart.append(bench.executor._alone.locked())
        if context.job == "job-1":
            bench.run(record("job-2", offset=8))
        return Succeeded()

    bench = Bench(kind(handler))
    bench.executor.execute(record(past=past, count=count), bench.runner)
    assert apart == [True, True], "the other runs while the suspect does"
    assert not bench.executor._alone.locked()
    apart.clear()
    bench.run(record("job-3", offset=9))
    assert apart == [False]


@pytest.mark.parametrize("count", [1, 2])
def test_a_copy_waits_while_another_worker_runs_the_job(count: int) -> None:
    one, two = pair()
    late: list[AckType | None] = []

    def handler(*_: object) -> Succeeded:
        two.meanwhile = one.claims.beat
        one.claims.doubt()
        late.append(two.run(record(count=count, offset=8, past=tried((FailureClass.TRANSIENT, "TAPE-6001")))))
        return Succeeded()

    one = Bench(kind(handler), log=two.log, store=two.store, clock=two.clock, worker="w1")
    assert one.run(record(past=tried((FailureClass.TRANSIENT, "TAPE-6001")))) is AckType.ACCEPT
    assert late == [AckType.ACCEPT]
    (waiting,) = two.waiting()
    told = next(event for event in two.events() if event.type is EventType.POSTPONED)
    assert told.failure is not None
    assert (told.failure.code, told.worker) == ("TAPE-3008", "w2")
    assert told.until is not None
    assert (told.until - told.time).total_seconds() == BUSY_S
    assert waiting.past.spent == 1
    assert [one.code for one in waiting.past.tries] == ["TAPE-6001"], "no try of the job"
    assert two.run(two.next()) is AckType.ACCEPT
    assert two.outcome("job-1").worker == "w1"


def test_waiting_for_another_worker_never_ends_in_a_dead_letter() -> None:
    bench = Bench(never())
    begun(bench)
    beats = iter(range(1000))

    def meanwhile() -> None:
        begun(bench, beat=next(beats) + 4)

    bench.meanwhile = meanwhile
    given = record()
    for _ in range(30):
        assert bench.run(given) is AckType.ACCEPT
        given = bench.waiting()[-1].record
        bench.clock.advance(BUSY_S)
    assert bench.waiting()[-1].past == Past()
    assert dead(bench) == []


class Cut(Memory):
    """A store that is cut off at the write of a claim for which `when` holds; before it is done, or after."""

    def __init__(self, when: bytes, *, after: bool) -> None:
        super().__init__()
        self.when, self.after, self.cut = when, after, True

    def put(self, name: str, source: Any, **options: Any) -> Any:
        hit = self.cut and name == claim_name("job-1") and self.when in bytes(source)
        if hit and not self.after:
            raise UnavailableError("down", code="TAPE-5002")
        blob = super().put(name, source, **options)
        if hit:
            raise UnavailableError("cut off", code="TAPE-5002")
        return blob


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("when", [b'"held":true', b'"held":false'])
def test_trouble_while_a_claim_is_taken_or_freed_leaves_no_beating_claim_and_no_death(when: bytes, after: bool) -> None:
    store = Cut(when, after=after)
    one = Bench(never(), store=store)
    given = record(count=REWRITTEN if when == b'"held":false' else 1)  # a worn one is taken, and freed at once
    assert one.run(given) is AckType.ACCEPT
    assert one.events()[-1].type is EventType.POSTPONED
    assert not one.claims.fenced("job-1")
    beats = store.read(claim_name("job-1")) if after or when == b'"held":false' else b""
    one.clock.advance(BEAT_S + 1)
    one.claims.beat()
    if beats:
        assert b'"beat":0' in store.read(claim_name("job-1")), "nobody beats for what nobody runs"
    store.cut = False
    one.clock.advance(BEAT_S)
    one.claims.beat()
    two = Bench(log=one.log, store=store, clock=one.clock, worker="w2")
    before = two.clock.seconds
    assert two.run(one.waiting()[-1].record) is AckType.ACCEPT
    assert two.outcome("job-1").attempt == 1
    assert two.clock.seconds - before < SILENT_S


def test_a_defect_after_the_claim_was_taken_leaves_no_beating_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    bench = Bench()
    monkeypatch.setattr("workers.admit._eased", broken)
    assert bench.run(record()) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-6010"
    bench.clock.advance(60)
    bench.claims.beat()
    assert not bench.claim().held
    assert bench.claim().beat == 0


def test_while_the_store_is_known_to_be_away_jobs_are_postponed_unread() -> None:
    bench = Bench(never())
    opened = {"dependency": "store", "state": BreakerState.OPEN, "epoch": 1, "worker": "w2"}
    times = {"since": START, "time": START, "until": START + timedelta(seconds=60)}
    bench.breakers.apply(Breaker.model_validate(opened | times))
    assert bench.run(record()) is AckType.ACCEPT
    last = bench.events()[-1]
    assert last.type is EventType.POSTPONED
    assert last.failure is not None
    assert last.failure.failure is FailureClass.DEPENDENCY
    (waiting,) = bench.waiting()
    assert waiting.past.spent == 0
    assert list(bench.store.list()) == []


def test_an_open_breaker_puts_off_no_end() -> None:
    bench = Bench(kind(isolation="thread"))
    opened = {"dependency": "kind:say", "state": BreakerState.OPEN, "epoch": 1, "worker": "w2"}
    times = {"since": START, "time": START, "until": START + timedelta(seconds=60)}
    bench.breakers.apply(Breaker.model_validate(opened | times))
    bench.cancel("job-1")
    bench.run(record("job-1"))
    bench.run(record("job-2", expires_at=(START - timedelta(seconds=1)).isoformat()))
    bench.run(record("job-3"))
    assert [event.type for event in bench.events()] == [EventType.CANCELLED, EventType.EXPIRED, EventType.POSTPONED]


class Takes:
    """A runner whose jobs all succeed after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ran = 0

    def warm(self) -> None: ...

    def close(self) -> None: ...

    def run(self, *_: object) -> Succeeded:
        self.ran += 1
        return Succeeded(usage=Usage(seconds=self.seconds))


def test_a_job_that_cannot_end_before_it_expires_is_not_begun() -> None:
    bench, runner = Bench(), Takes(10.0)
    bench.runner = runner

    def ask(job: str, seconds: float) -> Status:
        bench.run(record(job, expires_at=(START + timedelta(seconds=seconds)).isoformat()))
        return bench.outcome(job).status

    assert ask("unknown", 1) is Status.SUCCEEDED, "nobody knows yet how long such a job takes"
    for number in range(LEAST - 1):
        bench.run(record(f"job-{number}"))
    ran = runner.ran
    assert ask("short", 9.9) is Status.EXPIRED
    assert runner.ran == ran
    failure = bench.outcome("short").failure
    assert failure is not None
    assert failure.code == "TAPE-6018"
    assert ask("enough", 10) is Status.SUCCEEDED
    for number in range(KEPT):
        runner.seconds = 1.0
        bench.run(record(f"quick-{number}"))
    assert ask("quicker", 9.9) is Status.SUCCEEDED


def test_the_pace_is_the_time_in_which_95_of_100_jobs_end() -> None:
    pace = Pace()
    for seconds in range(1, LEAST):
        pace.add("say", float(seconds))
    assert pace.p95("say") is None
    assert pace.p95("shout") is None
    pace.add("say", float(LEAST))
    assert pace.p95("say") == 19.0
    for seconds in range(1, 101):
        pace.add("shout", float(seconds))
    assert pace.p95("shout") == 95.0


@pytest.mark.parametrize(
    ("former", "waits_s"), [("t.jobs.say.bulk/0/7", 2.0), ("t.jobs.say.bulk/0/8", 14.0), ("", 14.0)]
)
def test_a_record_put_aside_tells_that_its_first_lease_is_over(former: str, waits_s: float) -> None:
    """The worker that took the record died; the next one wrote it anew elsewhere, where it was delivered once."""
    bench = Bench()
    begun(bench)
    moved = record(offset=99)
    headers = (*moved.headers, ("tape-line", b"t.jobs.say.bulk/0/7"), ("tape-former", former.encode()))
    began = bench.clock()
    bench.run(moved._replace(headers=headers))
    assert bench.outcome("job-1").attempt == 2
    assert waits_s - 2.0 <= bench.clock() - began <= waits_s
