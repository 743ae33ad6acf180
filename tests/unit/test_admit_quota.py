"""Admission under a quota: a job over it is postponed, and whatever became of a job, its room is free again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from worker_twin import START, Bench, dead, kind, pair, raising, record, tried

from schemas.codec import parse
from schemas.errors import FailureClass, JobError, NotFoundError, UnavailableError
from schemas.event import EventType
from schemas.outcome import Status, Succeeded
from schemas.past import ATTEMPT, LINE, QUOTA
from schemas.quota import Holder, Tally, tally_name
from wire.blobs.memory import Memory
from wire.share import AckType
from workers.claim import BEAT_S, claim_name
from workers.context import Context


def tally(bench: Bench, tenant: str = "default") -> Tally:
    return parse(Tally, bench.store.read(tally_name(tenant)))


def busy(bench: Bench, *jobs: str, beat: int = 5, lines: tuple[str, ...] = ()) -> None:
    """Another worker runs these jobs, and lives."""
    holder = Holder(beat=beat, jobs=jobs, lines=lines or tuple(f"of {job}" for job in jobs))
    found = Tally(tenant="default", writes=beat, workers={"w9": holder})
    bench.store.put(tally_name("default"), found.model_dump_json().encode())


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_job_over_the_quota_is_postponed_and_nothing_is_spent(isolation: Any) -> None:
    bench = Bench(kind(isolation=isolation))
    bench.allow(in_flight=1)
    busy(bench, "other")
    first = record()
    assert bench.run(first) is AckType.ACCEPT
    (told,) = bench.events()
    assert told.type is EventType.POSTPONED
    assert told.failure is not None
    assert (told.failure.code, told.failure.failure) == ("TAPE-5011", FailureClass.DEPENDENCY)
    (waits,) = bench.waiting()
    assert told.until is not None
    assert abs(told.until - waits.due) <= timedelta(milliseconds=1)
    headers = dict(waits.record.headers)
    assert (headers[ATTEMPT], headers[QUOTA], headers[LINE]) == (b"0", b"1/0", b"t.jobs.say.bulk/0/7")
    assert waits.record.value == first.value
    assert dead(bench) == []
    with pytest.raises(NotFoundError):
        bench.store.stat(claim_name("job-1"))
    busy(bench)
    assert bench.run(bench.next()) is AckType.ACCEPT
    assert bench.events()[-1].type is EventType.SUCCEEDED
    assert bench.events()[-1].attempt == 1


def test_it_waits_for_weeks_and_is_never_buried() -> None:
    bench = Bench(kind(isolation="thread"))
    bench.allow(in_flight=1)
    entry, count = record(past=tried((FailureClass.TRANSIENT, "TAPE-6001"))), 0
    while bench.clock.now() < START + timedelta(days=21):
        count += 1
        busy(bench, "other", beat=count)
        assert bench.run(entry) is AckType.ACCEPT
        found = bench.waiting()[-1]
        bench.clock.seconds += (found.due - bench.clock.now()).total_seconds()
        bench.clock.seconds += 3_600 * 12  # nobody was there to take it
        entry = found.record
    assert bench.waiting()[-1].past.put_off == count > 40
    assert len(bench.waiting()[-1].past.tries) == 1
    assert {event.type for event in bench.events()} == {EventType.POSTPONED}
    busy(bench)
    assert bench.run(entry) is AckType.ACCEPT
    last = bench.events()[-1]
    assert (last.type, last.attempt) == (EventType.SUCCEEDED, 2)


ENDS = {
    "succeeded": lambda *_: Succeeded(),
    "tried again": raising(UnavailableError("away", code="TAPE-5007")).handler,
    "failed": raising(JobError("no", code="TAPE-6009")).handler,
    "a defect": lambda *_: "nonsense",
}


@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_whatever_comes_of_it_its_room_is_free(end: str, isolation: Any) -> None:
    seen: list[frozenset[str]] = []

    def handler(context: Context, params: Any) -> Any:
        seen.append(tally(bench).running)
        return ENDS[end](context, params)

    bench = Bench(kind(handler, isolation=isolation))
    bench.allow(in_flight=1)
    assert bench.run(record()) is not None
    assert seen == [{"job-1"}]
    bench.quotas.beat()
    assert tally(bench).workers == {}


def test_one_that_ends_before_it_runs_takes_no_room() -> None:
    bench = Bench()
    bench.allow(in_flight=1, rate=1)
    bench.cancel("job-1")
    bench.run(record())
    bench.run(record("job-2", expires_at=START.isoformat()))
    bench.clock.advance(1)
    bench.run(record("job-3", expires_at=START.isoformat()))
    assert bench.outcome("job-3").status is Status.EXPIRED
    assert tally(bench).tokens is not None


def test_one_that_another_worker_runs_leaves_that_ones_room_alone() -> None:
    one, two = pair(kind())
    for bench in (one, two):
        bench.allow(in_flight=1)

    def handler(*_: Any) -> Succeeded:
        two.meanwhile = lambda: one.claims.beat() and None
        one.clock.advance(BEAT_S + 1)
        assert two.run(record(offset=8)) is AckType.ACCEPT
        two.quotas.beat()
        assert tally(one).running == {"job-1"}
        assert two.run(record("job-2", offset=9)) is AckType.ACCEPT
        assert two.events("job-2")[-1].failure.code == "TAPE-5011"  # type: ignore[union-attr]
        return Succeeded()

    one.kinds["say"] = one.executor._kinds["say"] = kind(handler)  # type: ignore[index]
    assert one.run(record()) is AckType.ACCEPT
    assert one.events("job-1")[0].type is EventType.RUNNING


class Down(Memory):
    """A store that does not answer for tenants."""

    def get(self, name: str, **options: Any) -> Any:
        if name.startswith("tenants/"):
            raise UnavailableError("no answer", code="TAPE-5002")
        return super().get(name, **options)


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_without_the_store_nobody_runs_unchecked(isolation: Any) -> None:
    bench = Bench(kind(isolation=isolation), store=Down())
    bench.allow(in_flight=1)
    for number in range(20):
        assert bench.run(record(f"job-{number}", offset=number)) is AckType.ACCEPT
    assert {event.type for event in bench.events()} == {EventType.POSTPONED}
    opened = {name for name, circuit in bench.breakers.states().items()}
    assert opened <= {"store"}, "the kind itself is well"
    if isolation == "thread":
        assert bench.run(record("free", tenant="other", offset=99)) is AckType.ACCEPT
        assert bench.events("free")[-1].type is EventType.SUCCEEDED


def test_what_nobody_can_know_is_waited_for() -> None:
    bench = Bench(kind(isolation="thread"))

    def tenant(name: str) -> None:
        raise UnavailableError("the control topic is not read yet", code="TAPE-5001")

    bench.quotas._tenant = tenant
    assert bench.run(record()) is AckType.ACCEPT
    assert bench.events()[-1].type is EventType.POSTPONED
    assert bench.breakers.states() == {}


def test_a_retry_stands_in_line_anew() -> None:
    bench = Bench(raising(UnavailableError("away", code="TAPE-5008")), kind(name="shout"))
    bench.allow(rate=0.1)
    assert bench.run(record("first", kind_name="shout", offset=1)) is AckType.ACCEPT
    assert bench.run(record()) is AckType.ACCEPT
    (waits,) = bench.waiting()
    assert (waits.past.put_off, waits.past.ticket) == (1, 1)
    assert (waits.due - bench.clock.now()).total_seconds() == pytest.approx(10)
    assert bench.run(bench.next()) is AckType.ACCEPT
    assert bench.waiting()[-1].past.put_off == bench.waiting()[-1].past.ticket == 0


def test_one_that_expires_while_it_waits_is_told_so_then() -> None:
    bench = Bench(kind())
    bench.allow(rate=0.001)
    end = START + timedelta(seconds=30)
    bench.run(record("first", offset=1))
    assert bench.run(record(expires_at=end.isoformat())) is AckType.ACCEPT
    (waits,) = bench.waiting()
    assert end < waits.due <= end + timedelta(seconds=1)
    assert bench.run(bench.next()) is AckType.ACCEPT
    assert bench.outcome("job-1").status is Status.EXPIRED


def test_a_job_that_was_handed_over_by_a_dead_worker_need_not_wait() -> None:
    bench = Bench(kind(isolation="thread"))
    bench.allow(in_flight=1)
    busy(bench, "job-1", lines=("t.jobs.say.bulk/0/7",))
    assert bench.run(record(count=2)) is AckType.ACCEPT
    assert bench.events()[-1].type is EventType.SUCCEEDED
    assert bench.run(record(offset=8)) is AckType.ACCEPT
    assert bench.events()[-1].type is EventType.POSTPONED, "another record of that job is not the one that it ran"
