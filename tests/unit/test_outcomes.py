"""The one object in which a job's end is decided: an outcome stands for ever, a death gives way to what is later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_twin import START, Bench, Clock, dead, kind, raising, record

from schemas.codec import dump
from schemas.errors import InvalidError, JobError, NotFoundError, UnavailableError
from schemas.event import EventType
from schemas.outcome import Failure, Outcome, Status, Succeeded, outcome_name
from schemas.past import Past
from wire.blobs.memory import Memory
from wire.share import AckType, MemoryLog
from workers.attempt import read
from workers.outcomes import Outcomes

NAME = outcome_name("job-1")


def came(status: Status, epoch: int, worker: str = "w1") -> Outcome:
    return Outcome(
        job="job-1", kind="say", status=status, attempt=1, worker=worker, finished_at=START, epoch=epoch
    )  # fmt: skip


DEAD, DONE = Status.DEAD, Status.SUCCEEDED


class Busy(Memory):
    """A store in which somebody else writes right before we do."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def put(self, name: str, source: Any, **options: Any) -> Any:
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().put(name, source, **options)


@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        (came(DONE, 1), came(DEAD, 2, "w2"), "first"),
        (came(DONE, 1), came(DONE, 2, "w2"), "first"),
        (came(DEAD, 2), came(DONE, 1, "w2"), "first"),
        (came(DEAD, 2), came(DONE, 2, "w2"), "first"),
        (came(DEAD, 2), came(DONE, 3, "w2"), "second"),
        (came(DEAD, 2), came(DEAD, 1, "w2"), "first"),
        (came(DEAD, 2), came(DEAD, 2, "w2"), "second"),
        (came(DEAD, 2), came(DEAD, 3, "w2"), "second"),
        (came(DEAD, 0), came(DONE, 1, "w2"), "second"),
    ],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_of_two_ends_one_stands_whoever_comes_in_between(
    first: Outcome, second: Outcome, stands: str, at_once: bool
) -> None:
    store = Busy()
    outcomes = Outcomes(lambda: store)
    if at_once:
        store.meanwhile.append(lambda: outcomes.settle(first))
    else:
        assert outcomes.settle(first) == first
    told = outcomes.settle(second)
    assert told == (first if stands == "first" else second)
    assert outcomes.read("job-1") == told


@given(st.lists(st.tuples(st.sampled_from([DEAD, DONE, Status.FAILED]), st.integers(1, 4)), max_size=8), st.data())
def test_what_is_told_to_stand_is_what_is_kept(ends: list[tuple[Status, int]], data: st.DataObject) -> None:
    """Each end is written while others come in between: whoever is told that its own stands has seen it kept."""
    store = Busy()
    outcomes = Outcomes(lambda: store)
    finals: set[str] = set()

    def end(number: int, left: int) -> None:
        status, epoch = ends[number]
        mine = came(status, epoch, f"w{number}")
        if left and data.draw(st.booleans()):
            other = data.draw(st.integers(0, len(ends) - 1))
            store.meanwhile.append(lambda: end(other, left - 1))
        stands = outcomes.settle(mine)
        kept = outcomes.read("job-1")
        assert kept is not None
        if stands.final:
            finals.add(stands.worker)
            assert kept == stands
        elif stands is not mine:
            assert not mine.final or mine.epoch <= stands.epoch

    for number in range(len(ends)):
        end(number, 3)
    assert len(finals) <= 1, "a job ended twice"


def test_a_lost_answer_changes_nothing() -> None:
    store = Memory()
    outcomes = Outcomes(lambda: store)
    for mine in (came(DEAD, 1), came(DEAD, 2), came(DONE, 3)):
        assert outcomes.settle(mine) == mine
        assert outcomes.settle(mine) == mine
    assert outcomes.read("job-1") == came(DONE, 3)


@pytest.mark.parametrize("there", [b"{rot", dump(came(DONE, 1)).replace(b'"succeeded"', b'"mostly"')])
def test_what_nobody_can_read_is_left_alone(there: bytes) -> None:
    """It may be the outcome of a newer version. The job is a dead letter all the same: nobody can say how it ended."""
    store = Memory()
    store.create(NAME, there)
    outcomes = Outcomes(lambda: store)
    for mine in (came(DONE, 9), came(DEAD, 9)):
        with pytest.raises(InvalidError):
            outcomes.settle(mine)
    bench = Bench(store=store)
    assert bench.run(record()) is AckType.REJECT
    assert len(dead(bench)) == 1
    assert store.read(NAME) == there


def test_what_came_between_the_look_and_the_write_stands() -> None:
    class Slow(Memory):
        """A store in which somebody writes right after we have read."""

        after: Callable[[], object] | None = None

        def get(self, name: str, **options: Any) -> Any:
            found = super().get(name, **options)
            after, self.after = self.after, None
            if after is not None:
                after()
            return found

    store = Slow()
    outcomes = Outcomes(lambda: store)
    outcomes.settle(came(DEAD, 1))
    other = came(DONE, 2, "w2")
    store.after = lambda: outcomes.settle(other)
    assert outcomes.settle(came(DONE, 3)) == other
    assert outcomes.read("job-1") == other


@pytest.mark.parametrize("buried", [True, False])
def test_who_freezes_between_its_last_look_at_the_claim_and_its_outcome_is_refused(buried: bool) -> None:
    """It was sure that the job was its own, and stood still for twelve seconds while another worker buried it."""
    clock, store = Clock(), Busy()
    log = MemoryLog(clock=clock)
    other = Bench(raising(JobError("no", code="TAPE-6003")), log=log, store=store, worker="w2", clock=clock)

    def meanwhile() -> None:
        late.claims.beat = lambda: 1.0  # type: ignore[method-assign]
        assert other.run(record(count=3, max_attempts=2)) is (AckType.REJECT if buried else AckType.ACCEPT)

    def settle(attempt: Any, verdict: Any) -> None:
        store.meanwhile.append(meanwhile)
        finish(attempt, verdict)

    late = Bench(log=log, store=store, clock=clock)
    finish, late.settler.finish = late.settler.finish, settle  # type: ignore[method-assign]
    if not buried:
        other = Bench(log=log, store=store, worker="w2", clock=clock)
    told = late.run(record(max_attempts=2))
    ends = {event.outcome.status for event in late.events() if event.outcome is not None}
    if buried:
        assert (told, ends, len(dead(late))) == (AckType.RELEASE, {Status.DEAD}, 1)
        assert late.events()[-1].progress == {"refused": "w1"}
        assert (late.outcome("job-1").status, late.outcome("job-1").worker) == (Status.DEAD, "w2")
    else:
        assert (told, ends, dead(late)) == (AckType.ACCEPT, {Status.SUCCEEDED}, [])
        assert late.outcome("job-1").worker == "w2"


def test_a_burial_finds_an_outcome_that_came_at_the_last_moment() -> None:
    """The other way round: the letter is not written where the one that was taken for dead was faster."""
    store = Busy()
    bench = Bench(raising(InvalidError("bad", code="TAPE-1008")), store=store)
    bury = bench.settler.bury

    def late(*args: Any, **options: Any) -> None:
        store.meanwhile.append(lambda: Memory.create(store, NAME, dump(came(DONE, 1, "w0"))))
        bury(*args, **options)

    bench.settler.bury = late  # type: ignore[method-assign]
    assert bench.run(record()) is AckType.ACCEPT
    assert dead(bench) == []
    assert [event.type for event in bench.events() if event.outcome] == [EventType.SUCCEEDED]


def test_the_outcome_of_a_redriven_job_takes_the_place_of_its_death() -> None:
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    bench = Bench(raising(InvalidError("bad", code="TAPE-1008")), log=log, store=store, clock=clock)
    assert bench.run(record()) is AckType.REJECT
    assert bench.outcome("job-1").epoch == 1
    again = Bench(log=log, store=store, worker="w2", clock=clock)
    assert again.run(record(past=Past(replays=1), offset=9)) is AckType.ACCEPT
    assert (again.outcome("job-1").status, again.outcome("job-1").epoch) == (Status.SUCCEEDED, 2)


def test_a_lost_claim_does_not_make_a_redrive_older_than_the_death() -> None:
    store = Memory()
    store.create(NAME, dump(came(DEAD, 7)))
    bench = Bench(store=store)
    assert bench.run(record(past=Past(replays=1))) is AckType.ACCEPT
    assert (bench.outcome("job-1").status, bench.outcome("job-1").epoch) == (Status.SUCCEEDED, 8)


def test_who_buries_without_a_claim_speaks_for_the_newest() -> None:
    """A record that waited for too long is buried unclaimed: whoever runs the job at that moment is refused."""
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    other = Bench(log=log, store=store, worker="w2", clock=clock)

    def handler(*_: object) -> Succeeded:
        attempt = read(record(count=2), other.kinds["say"], "bulk", START)
        other.settler.bury(attempt, Failure.of(UnavailableError("gone", code="TAPE-5001")))
        return Succeeded()

    bench = Bench(kind(handler), log=log, store=store, clock=clock)
    assert bench.run(record()) is AckType.RELEASE
    assert bench.outcome("job-1").status is Status.DEAD
    assert len(dead(bench)) == 1


def test_who_buries_without_a_claim_is_no_older_than_the_death_that_stands() -> None:
    """The claim was lost: without the letter the redriven record would come back until the broker drops it."""
    store = Memory()
    store.create(NAME, dump(came(DEAD, 7)))
    bench = Bench(store=store)
    attempt = read(record(past=Past(replays=1)), bench.kinds["say"], "bulk", START)
    bench.settler.bury(attempt, Failure.of(UnavailableError("gone", code="TAPE-5001")))
    assert [ack for _, ack in bench.acks] == [AckType.REJECT]
    assert len(dead(bench)) == 1


def test_two_letters_of_one_job_may_both_live_again() -> None:
    """One was redriven, failed and was buried again; then the other one is redriven, mended, and runs."""
    failing: list[Any] = [InvalidError("bad", code="TAPE-1008")] * 3

    def handler(*_: object) -> Succeeded:
        if failing:
            raise failing.pop()
        return Succeeded()

    bench = Bench(kind(handler, max_attempts=2))
    for offset, past in ((7, None), (8, None), (9, Past(replays=1))):
        assert bench.run(record(offset=offset, past=past)) is AckType.REJECT
    assert len(dead(bench)) == 3
    assert bench.run(record(offset=10, past=Past(replays=1))) is AckType.ACCEPT
    assert bench.outcome("job-1").status is Status.SUCCEEDED


def test_a_mended_request_that_its_quota_put_off_is_not_taken_for_a_left_over() -> None:
    bench = Bench(raising(InvalidError("bad", code="TAPE-1008")))
    assert bench.run(record(offset=7)) is AckType.REJECT
    again = Bench(log=bench.log, store=bench.store, clock=bench.clock, worker="w2")
    again.allow("default", in_flight=1)
    other = again.quotas.enter(read(record("other", offset=20), again.kinds["say"], "bulk", START))
    assert other is None, "another job of the tenant runs"
    assert again.run(record(offset=8)) is AckType.ACCEPT
    put_off = again.next()
    again.quotas.leave(read(record("other", offset=20), again.kinds["say"], "bulk", START))
    again.clock.advance(60)
    assert again.run(put_off) is AckType.ACCEPT
    assert again.outcome("job-1").status is Status.SUCCEEDED


def test_a_death_that_a_later_one_overtook_is_let_go_of() -> None:
    store = Busy()
    bench = Bench(raising(InvalidError("bad", code="TAPE-1008")), store=store)
    bury = bench.settler.bury

    def late(*args: Any, **options: Any) -> None:
        store.create(NAME, dump(came(DEAD, 5, "w9")))
        bury(*args, **options)

    bench.settler.bury = late  # type: ignore[method-assign]
    assert bench.run(record()) is AckType.RELEASE
    assert dead(bench) == []
    assert bench.outcome("job-1").worker == "w9"


def test_a_death_that_cannot_be_written_is_a_dead_letter_all_the_same() -> None:
    class Refusing(Memory):
        def put(self, name: str, source: Any, **options: Any) -> Any:
            if name == NAME:
                raise InvalidError("too long", code="TAPE-2003")
            return super().put(name, source, **options)

    bench = Bench(raising(InvalidError("bad", code="TAPE-1008")), store=Refusing())
    assert bench.run(record()) is AckType.REJECT
    assert len(dead(bench)) == 1
    with pytest.raises(NotFoundError):
        bench.outcome("job-1")


def test_a_death_waits_for_the_store() -> None:
    class Away(Memory):
        away = False

        def put(self, name: str, source: Any, **options: Any) -> Any:
            if self.away and name == NAME:
                self.away = False
                raise UnavailableError("gone", code="TAPE-5002")
            return super().put(name, source, **options)

    store = Away()
    bench = Bench(raising(InvalidError("bad", code="TAPE-1008")), store=store)
    store.away = True
    assert bench.run(record()) is None
    assert dead(bench) == []
    bench.clock.advance(60)
    assert bench.again.run() == 1
    assert [ack for _, ack in bench.acks] == [AckType.REJECT]
    assert (len(dead(bench)), bench.outcome("job-1").status) == (1, Status.DEAD)
