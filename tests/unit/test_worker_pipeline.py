"""One record through the pipeline: every branch from bytes to settlement, on twins in memory."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_twin import NAMES, START, Bench, Entry, dead, kind, raising, raw, record, request

from schemas.errors import (
    FailureClass,
    JobError,
)
from schemas.event import EventType
from schemas.outcome import Cancelled, Failed, Failure, Outcome, Status, Succeeded, Usage, Verdict, outcome_name
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher
from wire.share import AckType, MemoryLog
from workers.claim import claim_name
from workers.context import Context
from workers.runner import RESULT_LIMIT
from workers.settle import EVENT_LIMIT

FATAL = Failure(failure="permanent", code="TAPE-6014", message="odd")


def test_a_good_job_is_stored_told_and_accepted_in_this_order() -> None:
    order: list[str] = []

    class Store(Memory):
        def put(self, name: str, *args: Any, **options: Any) -> Any:
            order.append(f"store {name}")
            return super().put(name, *args, **options)

    class Told(MemoryPublisher):
        def publish(self, topic: str, **options: Any) -> Any:
            order.append(f"tell {json.loads(options['value'])['type']}")
            return super().publish(topic, **options)

    log = MemoryLog()
    bench = Bench(log=log, store=Store(), publisher=Told(log))
    assert bench.run(record()) is AckType.ACCEPT
    assert order == [
        f"store {claim_name('job-1')}", "tell running", f"store {outcome_name('job-1')}", "tell succeeded",
    ]  # fmt: skip
    outcome = bench.outcome("job-1")
    assert (outcome.status, outcome.result, outcome.attempt, outcome.worker) == (
        Status.SUCCEEDED, {"text": "hello"}, 1, "w1",
    )  # fmt: skip
    last = bench.events()[-1]
    assert last.outcome == outcome
    assert last.lane == "bulk"
    assert last.started_at == START


def test_light_jobs_have_one_event_and_nothing_in_the_store() -> None:
    bench = Bench(kind(isolation="thread"))
    assert bench.run(record()) is AckType.ACCEPT
    assert [event.type for event in bench.events()] == [EventType.SUCCEEDED]
    assert list(bench.store.list()) == []


BROKEN: dict[str, tuple[bytes | None, tuple[tuple[str, bytes | None], ...], str]] = {
    "not json": (b"{", tuple(request()[2]), "TAPE-1001"),
    "not utf-8": (b'{"params": "\xff"}', tuple(request()[2]), "TAPE-1001"),
    "no value": (None, tuple(request()[2]), "TAPE-1001"),
    "an array": (b"[]", tuple(request()[2]), "TAPE-1001"),
    "no envelope": (b"{}", (), "TAPE-1004"),
    "a header that is not utf-8": (b"{}", (*request()[2], ("ce_id", b"\xff\xfe")), "TAPE-1004"),
    "no params": (b"{}", tuple(request()[2]), "TAPE-1002"),
    "a wrong parameter": (b'{"params": {"number": "many"}}', tuple(request()[2]), "TAPE-1002"),
    "an unknown parameter": (b'{"params": {"txt": "slip"}}', tuple(request()[2]), "TAPE-1002"),
    "an expiry that is no time": (b'{"params": {}}', (*request()[2], ("ce_expirytime", b"soon")), "TAPE-1004"),
    "an unknown version": (b'{"params": {}}', (*request()[2], ("ce_type", b"tape.request.say.v9")), "TAPE-1005"),
    "a foreign type": (b'{"params": {}}', (*request()[2], ("ce_type", b"com.acme.order")), "TAPE-1005"),
    "another kind": (b'{"params": {}}', (*request()[2], ("ce_type", b"tape.request.shout.v1")), "TAPE-1005"),
    "an id that leaves its folder": (b'{"params": {}}', (*request()[2], ("ce_subject", b"../../x")), "TAPE-1004"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_a_dead_letter_with_the_bytes_verbatim(name: str) -> None:
    value, headers, code = BROKEN[name]
    bench = Bench()
    broken = raw(value, (*headers, ("x-mine", None), ("x-bytes", b"\x00\xff")))
    assert bench.run(broken) is AckType.REJECT
    ((key, kept, original, letter),) = dead(bench)
    assert (key, kept) == (broken.key, value)
    assert original == dict(broken.headers)
    assert (letter.failure.code, letter.failure.failure) == (code, FailureClass.INVALID)
    assert (letter.topic, letter.partition, letter.offset, letter.worker) == (broken.topic, 1, 9, "w1")
    (event,) = bench.events()
    assert event.type is EventType.DEAD
    assert event.outcome is not None
    assert event.outcome.status is Status.DEAD
    assert event.failure == letter.failure
    assert letter.job == event.job


HEADERS = st.lists(st.tuples(st.text(max_size=12), st.none() | st.binary(max_size=20)), max_size=6)


@given(value=st.none() | st.binary(max_size=60), headers=HEADERS, key=st.none() | st.binary(max_size=20))
def test_no_bytes_wedge_a_slot(value: bytes | None, headers: list[tuple[str, bytes | None]], key: bytes | None) -> None:
    bench = Bench()
    junk = raw(value, tuple(headers), key)
    assert bench.run(junk) is AckType.REJECT
    ((kept_key, kept, _, _),) = dead(bench)
    assert (kept_key, kept) == (key, value)


def test_records_of_another_topic_or_kind_do_not_cost_the_slot() -> None:
    bench = Bench()
    assert bench.run(record(topic="elsewhere")) is AckType.REJECT
    assert dead(bench, "unknown")[0][3].failure.code == "TAPE-2004"
    assert bench.run(record(topic=NAMES.jobs("shout", "bulk"))) is AckType.REJECT
    assert dead(bench, "shout")[0][3].failure.code == "TAPE-1003"


def test_a_defect_of_the_decoder_is_a_dead_letter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecursionError("too deep")

    bench = Bench()
    monkeypatch.setattr("workers.execute.read", broken)
    assert bench.run(record()) is AckType.REJECT
    assert dead(bench)[0][3].failure.code == "TAPE-6010"


def test_a_structured_event_without_subject_or_key_has_the_id_of_its_source_and_id() -> None:
    event = {"specversion": "1.0", "id": "7", "type": "tape.request.say.v1", "source": "/acme", "data": {"params": {}}}
    headers = (("content-type", b"application/cloudevents+json"),)
    first, second = Bench(), Bench()
    first.run(raw(json.dumps(event).encode(), headers, None))
    second.run(raw(json.dumps(event).encode(), headers, None)._replace(offset=8, partition=0))
    assert first.events()[-1].type is EventType.SUCCEEDED
    assert first.events()[-1].job == second.events()[-1].job


def test_a_job_that_is_settled_already_is_told_again_and_not_run() -> None:
    ran: list[str] = []

    def handler(context: Context, _: object) -> Succeeded:
        ran.append(context.job)
        return Succeeded()

    bench = Bench(kind(handler))
    assert bench.run(record()) is AckType.ACCEPT
    assert bench.run(record(count=2)) is AckType.ACCEPT
    assert ran == ["job-1"]
    first, again = (event for event in bench.events() if event.type is EventType.SUCCEEDED)
    assert (first.id, first.outcome) == (again.id, again.outcome)


def test_a_cancelled_job_is_not_run() -> None:
    bench = Bench(raising(AssertionError("it ran")))
    bench.cancel("job-1", "not needed")
    assert bench.run(record()) is AckType.ACCEPT
    outcome = bench.outcome("job-1")
    assert outcome.status is Status.CANCELLED
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.message) == ("TAPE-6005", "not needed")


def test_a_tombstone_takes_a_cancellation_back() -> None:
    bench = Bench()
    bench.cancel("job-1")
    bench.control.apply(Entry(b"job-1", None))
    assert bench.run(record()) is AckType.ACCEPT
    assert bench.outcome("job-1").status is Status.SUCCEEDED


def test_a_job_cancelled_while_it_runs_ends_cancelled_with_the_reason() -> None:
    def handler(context: Context, _: object) -> Succeeded:
        context.check()
        bench.cancel(context.job, "changed my mind")
        assert context.cancelled
        context.check()
        raise AssertionError("check did not stop it")

    bench = Bench(kind(handler))
    assert bench.run(record()) is AckType.ACCEPT
    outcome = bench.outcome("job-1")
    assert outcome.status is Status.CANCELLED
    assert outcome.failure is not None
    assert outcome.failure.message == "changed my mind"


@pytest.mark.parametrize("late", [Succeeded(), Failed(failure=FATAL)], ids=["succeeded", "failed"])
def test_a_light_job_that_never_looks_up_ends_once_as_its_handler_says(late: Verdict) -> None:
    def handler(context: Context, _: object) -> Verdict:
        bench.cancel(context.job)
        return late

    bench = Bench(kind(handler, isolation="thread"))
    assert bench.run(record()) is AckType.ACCEPT
    assert [event.type.value for event in bench.events()] == [late.verdict]
    assert bench.waiting() == []


def test_a_light_job_that_never_looks_up_and_is_tried_again_ends_cancelled() -> None:
    def handler(context: Context, _: object) -> Verdict:
        bench.cancel(context.job)
        raise OSError("the line broke")

    bench = Bench(kind(handler, isolation="thread"))
    bench.run(record())
    assert bench.run(bench.next()) is AckType.ACCEPT
    assert [event.type for event in bench.events()] == [EventType.RETRYING, EventType.CANCELLED]


def test_a_handler_may_end_its_job_as_cancelled_by_itself() -> None:
    bench = Bench(kind(lambda *_: Cancelled(reason="nothing to do")))
    assert bench.run(record()) is AckType.ACCEPT
    assert bench.outcome("job-1").status is Status.CANCELLED


def test_a_job_stopped_with_its_worker_is_handed_back_and_not_ended() -> None:
    def handler(context: Context, _: object) -> Succeeded:
        bench.stopping = True
        context.check()
        raise AssertionError("check did not stop it")

    bench = Bench(kind(handler))
    assert bench.run(record()) is AckType.RELEASE
    last = bench.events()[-1]
    assert last.type is EventType.RETRYING
    assert last.failure is not None
    assert last.failure.code == "TAPE-3004"
    assert not bench.claim().held
    assert [blob.name for blob in bench.store.list()] == [claim_name("job-1")]
    other = Bench(log=bench.log, store=bench.store, worker="w2", clock=bench.clock)
    assert other.run(record(count=2)) is AckType.ACCEPT
    assert other.outcome("job-1").attempt == 1, "nothing was spent"


@pytest.mark.parametrize("where", ["field", "header"])
@pytest.mark.parametrize(("seconds", "status"), [(-1, Status.EXPIRED), (1, Status.SUCCEEDED)])
def test_a_job_is_not_started_after_its_expiry(where: str, seconds: int, status: Status) -> None:
    moment = (START + timedelta(seconds=seconds)).isoformat()
    late = record(expires_at=moment) if where == "field" else record(extensions={"expirytime": moment})
    bench = Bench()
    assert bench.run(late) is AckType.ACCEPT
    outcome = bench.outcome("job-1")
    assert outcome.status is status
    if status is Status.EXPIRED:
        assert outcome.failure is not None
        assert outcome.failure.code == "TAPE-6006"


def test_the_requests_own_expiry_wins_over_the_header() -> None:
    past, future = ((START + timedelta(seconds=seconds)).isoformat() for seconds in (-5, 5))
    bench = Bench()
    bench.run(record(expires_at=future, extensions={"expirytime": past}))
    assert bench.outcome("job-1").status is Status.SUCCEEDED


def test_an_expiry_header_without_a_zone_is_in_utc() -> None:
    bench = Bench()
    bench.run(record(extensions={"expirytime": (START - timedelta(seconds=1)).replace(tzinfo=None).isoformat()}))
    assert bench.outcome("job-1").status is Status.EXPIRED


@pytest.mark.parametrize("value", [None, True, {"result": 1}, "done", Outcome, Failure.of(JobError("x"))])
def test_anything_but_an_outcome_is_a_failure(value: object) -> None:
    bench = Bench(kind(lambda *_: value))
    assert bench.run(record()) is AckType.ACCEPT
    outcome = bench.outcome("job-1")
    assert outcome.status is Status.FAILED
    assert outcome.failure is not None
    assert outcome.failure.code == "TAPE-6004"


def test_a_failed_verdict_is_believed() -> None:
    told = Failed(failure=Failure.of(JobError("no", code="TAPE-6009")), usage=Usage(prompt_tokens=5))
    bench = Bench(kind(lambda *_: told))
    bench.run(record())
    outcome = bench.outcome("job-1")
    assert outcome.failure == told.failure
    assert outcome.usage.prompt_tokens == 5


ODD_RESULTS: dict[str, Any] = {
    "not a number": {"loss": math.nan},
    "infinity": {"deep": [{"loss": math.inf}]},
    "an object": {"thing": object()},
    "half a surrogate pair": {"text": "\ud800"},
    "too large": {"text": "x" * (RESULT_LIMIT + 1)},
}


@pytest.mark.parametrize("name", ODD_RESULTS)
@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_result_that_cannot_be_kept_is_a_clear_failure(name: str, isolation: str) -> None:
    bench = Bench(kind(lambda *_: Succeeded(result=ODD_RESULTS[name]), isolation=isolation))
    assert bench.run(record()) is AckType.ACCEPT
    last = bench.events()[-1]
    assert last.type is EventType.FAILED
    assert last.failure is not None
    assert (last.failure.code, last.failure.place) == ("TAPE-6011", {"field": "result"})


def test_a_circular_result_is_a_clear_failure() -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    bench = Bench(kind(lambda *_: Succeeded.model_construct(result=circle, artifacts=[], usage=Usage())))
    bench.run(record())
    failure = bench.events()[-1].failure
    assert failure is not None
    assert failure.code == "TAPE-6011"


def test_the_largest_result_fits_into_an_event_whatever_the_labels() -> None:
    text = "x" * (RESULT_LIMIT - 20)
    bench = Bench(kind(lambda *_: Succeeded(result={"text": text})))
    assert bench.run(record(labels={"note": "y" * 600_000})) is AckType.ACCEPT
    last = bench.events()[-1]
    assert last.type is EventType.SUCCEEDED
    assert last.labels == {}
    assert len(last.model_dump_json()) < EVENT_LIMIT


def test_progress_is_told_and_small_labels_are_kept() -> None:
    def handler(context: Context, _: object) -> Succeeded:
        context.progress(step=3, loss=0.5)
        return Succeeded()

    bench = Bench(kind(handler))
    bench.run(record(labels={"team": "desk"}))
    told = [event for event in bench.events() if event.type is EventType.PROGRESS]
    assert [event.progress for event in told] == [{"step": 3, "loss": 0.5}]
    assert all(event.labels == {"team": "desk"} for event in bench.events())


@pytest.mark.parametrize("data", [{"text": "\ud800"}, {"what": object()}, {"checkpoint": 10**400, "text": "\ud800"}])
def test_progress_that_cannot_be_told_is_dropped_and_harms_no_job(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(context: Context, _: object) -> Succeeded:
        context.progress(**data)
        context.progress(step=2)
        return Succeeded(result={"done": True})

    bench = Bench(kind(handler))
    logs: list[dict[str, Any]] = []
    told = SimpleNamespace(
        info=lambda *_, **__: None, warning=lambda event, **more: logs.append({"event": event, **more})
    )
    monkeypatch.setattr("workers.execute._LOG", told)
    bench.run(record())
    assert bench.outcome("job-1").result == {"done": True}
    assert [event.progress for event in bench.events() if event.progress] == [{"step": 2}]
    (warning,) = logs
    assert (warning["event"], warning["job"]) == ("progress dropped, it cannot be told", "job-1")
    assert warning["error"].isascii()


def test_a_timeout_is_obeyed_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 0.0, 11.0, 11.0])
    monkeypatch.setattr("time.monotonic", lambda: next(moments, 12.0))

    def handler(context: Context, _: object) -> Succeeded:
        context.check()
        raise AssertionError("check did not stop it")

    bench = Bench(kind(handler, timeout_s=99))
    assert bench.run(record(timeout_s=10)) is AckType.ACCEPT
    last = bench.events()[-1]
    assert last.type is EventType.RETRYING
    assert last.failure is not None
    assert last.failure.failure is FailureClass.TIMEOUT
