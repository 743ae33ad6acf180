"""Waiting for jobs and watching them, against the client's memory twin."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client_rig import PARAMS, end, event, outcome

from producers import Client
from producers.feed import Feed
from producers.handle import failure_of
from producers.log import Log
from producers.memory import MemoryPorts
from schemas.errors import (
    AuthError,
    InvalidError,
    JobError,
    TapeError,
    TimeoutExceeded,
    UnavailableError,
)
from schemas.event import EventType, State
from schemas.ids import checked, job_id, uuid7
from schemas.outcome import Failure, Status


class TestResult:
    def test_an_outcome_that_came_before_anybody_waited(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        ports.tell(end(handle.id, text="yes"))
        assert handle.result(timeout=5).result == {"text": "yes"}

    def test_an_outcome_that_comes_while_waiting(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        other = client.submit("inference", PARAMS)
        watching = handle.watch(timeout=5)
        assert next(watching).type == EventType.QUEUED
        ports.tell(end(other.id, text="other"))
        ports.tell(end(handle.id, text="mine"))
        assert handle.result(timeout=5).result == {"text": "mine"}
        assert other.result(timeout=5).result == {"text": "other"}
        assert ports.followers == 1

    def test_the_store_knows_what_the_events_forgot(self, client: Client, ports: MemoryPorts) -> None:
        job = job_id("default", "old")
        ports.blobs.create(f"runs/{job}/outcome.json", outcome(job).model_dump_json().encode())
        assert client.job(job).result(timeout=1).status == Status.SUCCEEDED
        assert ports.followers == 0

    def test_a_timeout_says_where_the_job_is(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        assert next(handle.watch(timeout=5)).type == EventType.QUEUED
        with pytest.raises(TimeoutExceeded) as caught:
            handle.result(timeout=0.02)
        assert caught.value.code == "TAPE-7002"
        assert caught.value.place["state"] == State.QUEUED

    def test_a_failure_raises_only_when_asked(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        failure = Failure(
            failure="invalid", code="TAPE-1008", message="line 3", hint="mend it", place={"code": 7, "line": 3}
        )
        ports.tell(event(handle.id, EventType.FAILED, outcome=outcome(handle.id, Status.FAILED, failure=failure)))
        assert handle.result(timeout=5).status == Status.FAILED
        with pytest.raises(JobError) as caught:
            handle.result(timeout=5, raise_on_failure=True)
        assert (caught.value.code, caught.value.place["line"]) == ("TAPE-1008", 3)

    @pytest.mark.parametrize(
        ("status", "code"),
        [(Status.CANCELLED, "TAPE-6005"), (Status.EXPIRED, "TAPE-6006"), (Status.DEAD, "TAPE-6001")],
    )
    def test_other_ends_have_their_codes(self, status: Status, code: str) -> None:
        assert failure_of(outcome("j", status)).code == code

    def test_a_code_of_a_newer_worker_is_still_a_failure(self) -> None:
        failure = Failure(failure="permanent", code="TAPE-6999", message="new")
        assert failure_of(outcome("j", Status.FAILED, failure=failure)).code == "TAPE-6001"

    def test_a_last_event_without_outcome_still_ends_the_wait(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        ports.tell(event(handle.id, EventType.CANCELLED, attempt=2))
        found = handle.result(timeout=5)
        assert (found.status, found.attempt, found.worker) == (Status.CANCELLED, 2, "unknown")

    def test_a_broker_that_goes_away_is_waited_for(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        watching = handle.watch(timeout=5)
        next(watching)
        ports.failure = UnavailableError("gone", code="TAPE-5001")
        while client.feed.trouble is None:
            threading.Event().wait(0.005)
        ports.failure = None
        ports.tell(end(handle.id))
        assert handle.result(timeout=5).status == Status.SUCCEEDED
        assert [event.type for event in handle.watch(timeout=5)] == [EventType.QUEUED, EventType.SUCCEEDED]

    def test_a_timeout_tells_of_the_broker(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        ports.failure = UnavailableError("no broker answered", code="TAPE-5001")
        with pytest.raises(TimeoutExceeded) as caught:
            handle.result(timeout=0.1)
        assert "no broker answered" in caught.value.message
        assert "TAPE_KAFKA_URL" in caught.value.hint

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_bug_in_the_feed_ends_the_wait_too(self, client: Client, ports: MemoryPorts) -> None:
        ports.follow = lambda *_: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(TapeError) as caught:
            client.submit("inference", PARAMS).result(timeout=5)
        assert caught.value.code == "TAPE-8006"

    def test_refused_credentials_end_the_wait(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        ports.failure = AuthError("no", code="TAPE-4001")
        with pytest.raises(AuthError):
            handle.result(timeout=5)
        with pytest.raises(AuthError):
            list(handle.watch(timeout=5))


class TestWatch:
    def test_repeats_are_dropped_and_the_end_ends(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        running = event(handle.id, EventType.RUNNING)
        last = end(handle.id)
        for told in (running, running, last, last, event(handle.id, EventType.RUNNING)):
            ports.tell(told)
        kinds = [told.type for told in handle.watch(timeout=5)]
        assert kinds == [EventType.QUEUED, EventType.RUNNING, EventType.SUCCEEDED]

    def test_it_times_out(self, client: Client) -> None:
        handle = client.submit("inference", PARAMS)
        with pytest.raises(TimeoutExceeded):
            list(handle.watch(timeout=0.02))

    def test_an_older_job_makes_the_feed_go_back(self, client: Client, ports: MemoryPorts) -> None:
        past = datetime.now(UTC) - timedelta(hours=2)
        ports.tell(event("old", EventType.RUNNING, at=past))
        ports.tell(event("old", EventType.SUCCEEDED, at=past + timedelta(minutes=1)))
        handle = client.submit("inference", PARAMS)
        next(handle.watch(timeout=5))
        kinds = [told.type for told in client.job("old", since=past).watch(timeout=5)]
        assert kinds == [EventType.RUNNING, EventType.SUCCEEDED]
        ports.tell(end(handle.id))
        assert handle.result(timeout=5).status == Status.SUCCEEDED
        assert ports.followers == 2

    def test_a_later_since_leaves_the_past_out(self, client: Client, ports: MemoryPorts) -> None:
        now = datetime.now(UTC)
        ports.tell(event("j", EventType.RUNNING, at=now - timedelta(hours=2)))
        ports.tell(event("j", EventType.SUCCEEDED, at=now))
        watched = client.job("j", since=now - timedelta(hours=1)).watch(timeout=5)
        assert [told.type for told in watched] == [EventType.SUCCEEDED]

    def test_an_unreadable_event_is_skipped(self, client: Client, ports: MemoryPorts) -> None:
        from producers.request import Message

        handle = client.submit("inference", PARAMS)
        ports.publish(Message("tape.events", handle.id, b"{", []))
        ports.tell(end(handle.id))
        assert handle.result(timeout=5).status == Status.SUCCEEDED
        assert len(list(client.scan(datetime.now(UTC) - timedelta(hours=1)))) == 2


class TestState:
    def test_it_follows_the_events(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        assert handle.state() == State.QUEUED
        ports.tell(event(handle.id, EventType.RUNNING))
        assert handle.state() == State.RUNNING
        ports.tell(end(handle.id))
        assert handle.result(timeout=5) is not None
        assert handle.state() == State.SUCCEEDED

    def test_nothing_is_known_of_an_unknown_job(self, client: Client) -> None:
        assert client.job(uuid7()).state() is None

    def test_the_store_is_asked_first(self, client: Client, ports: MemoryPorts) -> None:
        ports.blobs.create("runs/j/outcome.json", outcome("j", Status.FAILED).model_dump_json().encode())
        assert client.job("j").state() == State.FAILED

    def test_while_the_store_is_away_the_events_tell_it(
        self, client: Client, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handle = client.submit("inference", PARAMS)
        ports.tell(event(handle.id, EventType.RUNNING))

        def away(*_: Any, **__: Any) -> bytes:
            raise UnavailableError("the store does not answer", code="TAPE-5002")

        monkeypatch.setattr(ports.blobs, "read", away)
        assert client.job(handle.id).state() == State.RUNNING
        ports.tell(end(handle.id))
        watched = client.job(handle.id)
        assert watched.state() == State.SUCCEEDED
        assert [one.type for one in watched.watch(5)][-1] == EventType.SUCCEEDED
        with pytest.raises(UnavailableError, match="does not answer"):
            client.job(uuid7()).state()


class TestLog:
    def test_a_redrive_is_a_new_life(self) -> None:
        log = Log("j", datetime.now(UTC))
        log.add(event("j", EventType.DEAD))
        log.add(event("j", EventType.QUEUED))
        assert log.state == State.DEAD
        log.add(event("j", EventType.QUEUED, redrive=1))
        assert (log.state, log.final) == (State.QUEUED, None)

    def test_the_oldest_go_first(self) -> None:
        log = Log("j", datetime.now(UTC), limit=3)
        kept = [event("j", EventType.PROGRESS, progress={"n": index}) for index in range(5)]
        for told in [*kept, end("j")]:
            log.add(told)
        assert [told.progress for told in log.events(1) if told.progress] == [{"n": 3}, {"n": 4}]

    def test_dropped_handles_cost_nothing(self) -> None:
        feed = Feed(lambda since, stop: iter(()))
        feed.join("j", datetime.now(UTC), fresh=True)
        assert len(feed._logs) == 0

    def test_one_log_for_one_job(self) -> None:
        feed = Feed(lambda since, stop: iter(()))
        now = datetime.now(UTC)
        log = feed.join("j", now, fresh=True)
        assert feed.join("j", now - timedelta(hours=1)) is log
        assert log.since == now - timedelta(hours=1)
        assert not log.covered


@pytest.mark.parametrize(
    ("job", "told"), [("", "is empty"), ("x" * 129, "more than 128 characters"), ("a b", "other characters")]
)
def test_an_id_that_is_none_is_told_why(job: str, told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        checked(job)
    assert checked("x" * 128) == "x" * 128
