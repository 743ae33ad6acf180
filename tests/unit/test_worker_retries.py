"""What becomes of a job whose attempt failed: its next record, its failure or its dead letter."""

from __future__ import annotations

from datetime import timedelta

import pytest
from worker_twin import START, Bench, dead, kind, raising, record, request, tried

from schemas.errors import FailureClass, InvalidError, JobError, UnavailableError
from schemas.event import EventType
from schemas.outcome import TEXT_LIMIT, Status, Succeeded
from wire.share import AckType
from workers.context import Context

RAISED: list[tuple[BaseException, str, FailureClass]] = [
    (RuntimeError("odd"), "TAPE-6001", FailureClass.TRANSIENT),
    (ValueError("odd"), "TAPE-6014", FailureClass.PERMANENT),
    (MemoryError(), "TAPE-6003", FailureClass.RESOURCE),
    (FileNotFoundError(2, "gone", "rows.csv"), "TAPE-2003", FailureClass.INVALID),
    (InvalidError("bad line", code="TAPE-1008", line=3), "TAPE-1008", FailureClass.INVALID),
    (JobError("diverged", code="TAPE-6009"), "TAPE-6009", FailureClass.PERMANENT),
    (JobError("slow", code="TAPE-7001"), "TAPE-7001", FailureClass.TIMEOUT),
    (UnavailableError("no judge"), "TAPE-5001", FailureClass.DEPENDENCY),
    (JobError("odd", code="TAPE-6001", failure=FailureClass.CRASHED), "TAPE-6001", FailureClass.CRASHED),
    (ValueError("\udc80 is no text"), "TAPE-6014", FailureClass.PERMANENT),
    (ValueError("x" * 100_000), "TAPE-6014", FailureClass.PERMANENT),
]


FOLLOWS = {
    FailureClass.INVALID: (AckType.REJECT, EventType.DEAD),
    FailureClass.PERMANENT: (AckType.ACCEPT, EventType.FAILED),
    FailureClass.DEPENDENCY: (AckType.ACCEPT, EventType.POSTPONED),
}
"""What follows at once, whatever came before; all other classes are tried again, until their attempts are spent."""


@pytest.mark.parametrize(("error", "code", "failure"), RAISED, ids=[entry[1] + entry[2] for entry in RAISED])
@pytest.mark.parametrize("spent", [0, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_what_a_handler_raises_is_settled_by_its_class(
    error: BaseException, code: str, failure: FailureClass, spent: int, count: int
) -> None:
    bench = Bench(raising(error))
    past = tried(*[(FailureClass.TRANSIENT, "TAPE-6001")] * spent)
    given = record(count=count, past=past if spent else None)
    ack = bench.run(given)
    last = bench.events()[-1]
    assert last.failure is not None
    assert (last.failure.code, last.failure.failure) == (code, failure)
    assert 0 < len(last.failure.detail or "") <= TEXT_LIMIT
    assert len(last.failure.message) <= TEXT_LIMIT
    assert last.attempt == spent + 1, "whatever Kafka counts"
    again = (AckType.REJECT, EventType.DEAD) if spent else (AckType.ACCEPT, EventType.RETRYING)
    assert (ack, last.type) == FOLLOWS.get(failure, again)
    assert len(dead(bench)) == (ack is AckType.REJECT)
    if last.type is EventType.FAILED:
        assert bench.outcome("job-1").status is Status.FAILED
        return
    assert not bench.claim().held
    if ack is AckType.REJECT:
        assert (bench.outcome("job-1").status, bench.outcome("job-1").epoch) == (Status.DEAD, bench.claim().start.epoch)
        ((*_, letter),) = dead(bench)
        assert letter.past is not None
        told, told_spent = letter.past, spent + 1
    else:
        (waiting,) = bench.waiting()
        assert last.until is not None
        assert START < last.until <= waiting.due < last.until + timedelta(milliseconds=1)
        assert (waiting.record.topic, waiting.record.key, waiting.record.value) == (given.topic, given.key, given.value)
        assert dict(waiting.record.headers).items() >= dict(request()[2]).items()
        told, told_spent = waiting.past, spent + (failure is not FailureClass.DEPENDENCY)
    assert told.spent == told_spent
    assert [one.code for one in told.tries] == ["TAPE-6001"] * spent + [code]
    assert (told.tries[-1].worker, told.tries[-1].attempt) == ("w1", spent + 1)


def test_a_job_that_fails_twice_succeeds_at_its_third_attempt_with_its_story_told() -> None:
    attempts: list[int] = []

    def handler(context: Context, _: object) -> Succeeded:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise RuntimeError(f"odd {context.attempt}")
        return Succeeded()

    bench = Bench(kind(handler))
    assert bench.run(record(count=2)) is AckType.ACCEPT
    first = bench.next()
    waited = bench.clock.now() - START
    assert waited <= timedelta(seconds=5), "full jitter up to the base"
    other = Bench(kind(handler), log=bench.log, store=bench.store, worker="w2", clock=bench.clock)
    assert other.run(first) is AckType.ACCEPT
    second = bench.waiting()[-1]
    assert [(one.attempt, one.worker, one.message) for one in second.past.tries] == [
        (1, "w1", "RuntimeError: odd 1"), (2, "w2", "RuntimeError: odd 2"),
    ]  # fmt: skip
    bench.clock.advance(60)
    assert bench.run(second.record) is AckType.ACCEPT
    assert attempts == [1, 2, 3]
    assert bench.outcome("job-1").attempt == 3
    assert [event.type for event in bench.events() if event.type is not EventType.RUNNING] == [
        EventType.RETRYING, EventType.RETRYING, EventType.SUCCEEDED,
    ]  # fmt: skip


def test_a_handed_back_job_keeps_its_past_and_its_bytes() -> None:
    def handler(context: Context, _: object) -> Succeeded:
        bench.stopping = True
        context.check()
        raise AssertionError("check did not stop it")

    bench = Bench(kind(handler))
    given = record(past=tried((FailureClass.TRANSIENT, "TAPE-6001")))
    assert bench.run(given) is AckType.RELEASE
    assert bench.acks == [(given, AckType.RELEASE)]
    assert bench.waiting() == []
    assert bench.events()[-1].attempt == 2
