"""What a worker that dies leaves behind: records whose attempt is over, and copies of records."""

from __future__ import annotations

from datetime import timedelta

from worker_twin import START, begun, dead, kind, pair, raising, record, tried

from schemas.errors import FailureClass
from schemas.event import EventType
from schemas.outcome import Succeeded
from wire.share import AckType
from workers.context import Context


def test_a_record_that_comes_back_after_its_end_has_what_follows_written_not_run_again() -> None:
    one, two = pair(raising(RuntimeError("odd")))
    one.run(record())
    assert two.run(record(count=2)) is AckType.ACCEPT
    first, again = one.waiting()
    assert first.past == again.past
    assert [event.worker for event in two.events() if event.type is EventType.RUNNING] == ["w1"]
    for waiting in (first, again):
        assert waiting.past.spent == 1


def test_of_two_records_of_one_attempt_only_one_runs_and_the_job_is_buried_once() -> None:
    ran: list[int] = []

    def handler(context: Context, _: object) -> Succeeded:
        ran.append(context.attempt)
        raise RuntimeError("odd")

    one, two = pair(kind(handler))
    one.run(record())
    two.run(record(count=2))  # the first worker died before it let the record go
    gone: set[tuple[str, int, int]] = set()
    for _ in range(10):
        for waiting in one.waiting():
            if waiting.place not in gone:
                gone.add(waiting.place)
                one.clock.advance(600)
                (one if len(gone) % 2 else two).run(waiting.record._replace(offset=100 + len(gone)))
    assert ran == [1, 2, 3]
    assert len(dead(one)) == 1
    assert len({event.id for event in one.events() if event.outcome is not None}) == 1
    assert one.events()[-1].type is EventType.DEAD, "the left-over does not hide it"
    assert one.acks or two.acks


def test_a_burial_that_was_cut_off_is_made_up_for() -> None:
    one, two = pair(raising(RuntimeError("odd")))
    told = tried((FailureClass.TRANSIENT, "TAPE-6001"), (FailureClass.TRANSIENT, "TAPE-6001"))
    one.settler.bury = lambda *_, **__: None  # type: ignore[method-assign]
    assert one.run(record(past=told)) is None
    assert dead(one) == []
    assert two.run(record(past=told, count=2)) is AckType.REJECT
    ((*_, letter),) = dead(two)
    assert (letter.attempts, letter.failure.code, letter.failure.message) == (3, "TAPE-6001", "RuntimeError: odd")
    assert letter.past is not None
    assert [one.worker for one in letter.past.tries] == ["w0", "w0", "w2"]
    assert [event.type for event in two.events()] == [EventType.RUNNING, EventType.DEAD]


def test_a_job_that_is_handed_back_keeps_its_deaths() -> None:
    def handler(context: Context, _: object) -> Succeeded:
        assert context.attempt == 2
        if context.worker == "w1":
            one.stopping = True
            context.check()
        return Succeeded()

    one, two = pair(kind(handler))
    begun(one)
    assert one.run(record(count=2)) is AckType.RELEASE
    assert [start.worker for start in one.claim().lost] == ["w9-1"]
    assert two.run(record(count=3)) is AckType.ACCEPT
    assert two.outcome("job-1").attempt == 2


def test_copies_of_a_record_stand_for_the_same() -> None:
    one, two = pair(raising(RuntimeError("odd")))
    moment = START + timedelta(seconds=5)
    one.run(record(not_before=moment.isoformat()))
    (waiting,) = one.waiting()
    assert dict(waiting.record.headers)["tape-line"] == b"t.jobs.say.bulk/0/7"
    one.clock.advance(6)
    two.run(waiting.record)
    following = two.waiting()[-1]
    assert following.past.spent == 1
    assert "tape-line" not in dict(following.record.headers), "that one stands for itself"
