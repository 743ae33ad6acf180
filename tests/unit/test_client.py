"""Submitting with the client against its memory twin: what is published, what is refused, what a key means."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from client_rig import PARAMS, end, event, outcome

from producers import Client, Request
from producers.handle import SKEW, born
from producers.memory import MemoryPorts
from producers.request import Options
from schemas import codec
from schemas.control import Cancel
from schemas.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    TimeoutExceeded,
    UnavailableError,
)
from schemas.event import Event, EventType
from schemas.ids import derived_id, job_id, uuid7
from schemas.job import Inference, Job, Training
from schemas.outcome import Outcome, Status
from schemas.topics import MESSAGE_LIMIT
from wire.settings import Settings


class TestSubmit:
    def test_the_record_is_the_documented_one(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS, lane="interactive", tenant="acme", timeout_s=5, labels={"a": "b"})
        (record,) = ports.of("tape.jobs.inference.interactive")
        assert record.key == handle.id.encode()
        assert record.value is not None
        job = Job.model_validate_json(record.value)
        assert (job.params, job.tenant, job.timeout_s, job.labels) == (PARAMS, "acme", 5, {"a": "b"})
        envelope = codec.decode(record.value, record.headers)
        assert envelope.type == "tape.request.inference.v1"
        assert envelope.subject == handle.id
        assert envelope.source == "/tickertape/client/acme"
        assert datetime.fromisoformat(envelope.time or "") <= datetime.now(UTC)

    def test_a_queued_event_follows_the_request(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit(Inference(model="builtin:m", prompt="hi"))
        assert [record.topic for record in ports.records] == ["tape.jobs.inference.bulk", "tape.events"]
        (record,) = ports.of("tape.events")
        told = Event.model_validate_json(record.value or b"")
        assert (told.type, told.job, told.lane) == (EventType.QUEUED, handle.id, "bulk")
        assert codec.decode(record.value, record.headers).type == "tape.event.queued.v1"

    def test_defaults_are_left_to_the_worker(self, client: Client, ports: MemoryPorts) -> None:
        client.submit(Training(base="b", data="d", seed=3))
        (record,) = ports.of("tape.jobs.training.bulk")
        assert json.loads(record.value or b"")["params"] == {"base": "b", "data": "d", "seed": 3}

    def test_nothing_is_told_of_a_job_that_was_not_taken(self, client: Client, ports: MemoryPorts) -> None:
        ports.known.discard("tape.jobs.inference.bulk")
        with pytest.raises(NotFoundError) as caught:
            client.submit("inference", PARAMS)
        assert caught.value.code == "TAPE-2004"
        assert ports.of("tape.events") == []

    @pytest.mark.parametrize(
        ("params", "options", "code", "field"),
        [
            ({"model": 3, "prompt": "x"}, {}, "TAPE-1002", "model"),
            ({"model": "m", "promt": "x"}, {}, "TAPE-1002", "promt"),
            (PARAMS, {"lane": "fast"}, "TAPE-1002", "lane"),
            (PARAMS, {"timeout_s": -1}, "TAPE-1002", "timeout_s"),
            (PARAMS, {"max_attempts": 0}, "TAPE-1002", "max_attempts"),
        ],
    )
    def test_wrong_fields_are_named(
        self, client: Client, ports: MemoryPorts, params: Any, options: Any, code: str, field: str
    ) -> None:
        with pytest.raises(InvalidError) as caught:
            client.submit("inference", params, **options)
        assert caught.value.code == code
        assert caught.value.place["field"] == field
        assert ports.records == []

    def test_an_unknown_kind_lists_the_known(self, client: Client) -> None:
        with pytest.raises(InvalidError) as caught:
            client.submit("translation", {})
        assert caught.value.code == "TAPE-1003"
        assert "evaluation, indexing, inference, training" in caught.value.hint

    def test_a_kind_with_a_topic_is_known(self, client: Client, ports: MemoryPorts) -> None:
        ports.known |= {"tape.jobs.echo.bulk", "unrelated"}
        client.submit("echo", {"text": "x"})
        assert len(ports.of("tape.jobs.echo.bulk")) == 1

    def test_parameters_of_no_kind_are_refused(self, client: Client) -> None:
        from schemas.job import Lora

        with pytest.raises(InvalidError) as caught:
            client.submit(Lora())
        assert caught.value.code == "TAPE-1003"

    @pytest.mark.parametrize("later", [0, 1])
    def test_a_job_that_would_expire_before_it_may_start_is_refused(
        self, client: Client, ports: MemoryPorts, later: int
    ) -> None:
        end = datetime.now(UTC) + timedelta(hours=1)
        options: Options = {"expires_at": end, "not_before": end + timedelta(seconds=later)}
        with pytest.raises(InvalidError) as caught:
            client.submit("inference", {"model": "m", "prompt": "x"}, **options)
        assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1002", "not_before")
        assert "could never run" in caught.value.message
        assert ports.of("tape.jobs.inference.bulk") == []
        client.submit("inference", {"model": "m", "prompt": "x"}, not_before=end - timedelta(seconds=1), expires_at=end)

    def test_too_large_names_the_claim_check(self, client: Client, ports: MemoryPorts) -> None:
        with pytest.raises(InvalidError) as caught:
            client.submit("inference", {"model": "m", "prompt": "x" * MESSAGE_LIMIT})
        assert caught.value.code == "TAPE-1006"
        assert "client.upload" in caught.value.hint
        assert ports.records == []

    def test_an_unconfirmed_publish_says_so(self, client: Client, ports: MemoryPorts) -> None:
        from concurrent.futures import Future

        ports.publish_timeout_s = 0.01
        ports.publish = lambda message: Future()  # type: ignore[method-assign, assignment]
        with pytest.raises(UnavailableError) as caught:
            client.submit("inference", PARAMS)
        assert caught.value.code == "TAPE-5003"

    def test_trace_context_travels(self, client: Client, ports: MemoryPorts) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(spans))
        client._tracer = provider.get_tracer("test")
        handle = client.submit("inference", PARAMS)
        (span,) = spans.get_finished_spans()
        carried = dict(ports.of("tape.jobs.inference.bulk")[0].headers)["traceparent"].decode()
        assert span.context is not None
        assert carried.split("-")[1] == f"{span.context.trace_id:032x}"
        assert span.attributes is not None
        assert span.attributes["tape.job"] == handle.id


class TestMany:
    def test_handles_come_in_order(self, client: Client, ports: MemoryPorts) -> None:
        requests = [Request("inference", {"model": "m", "prompt": str(index)}) for index in range(7)]
        handles = list(client.submit_many(requests, window=3))
        records = ports.of("tape.jobs.inference.bulk")
        assert [handle.id.encode() for handle in handles] == [record.key for record in records]
        assert len(ports.of("tape.events")) == 7

    def test_never_more_on_the_way_than_the_window(self, client: Client) -> None:
        from concurrent.futures import Future

        open_futures: list[Future[Any]] = []
        taken: list[int] = []

        def requests() -> Iterator[Inference]:
            for index in range(6):
                taken.append(index)
                yield Inference(model="m", prompt=str(index))

        def publish(message: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if message.topic == "tape.events":
                future.set_result(None)
            else:
                open_futures.append(future)
            return future

        client._ports.publish = publish  # type: ignore[method-assign]
        handles = client.submit_many(requests(), window=2)
        client._ports.publish_timeout_s = 0.01
        with pytest.raises(UnavailableError):
            next(handles)
        assert taken == [0, 1]

    def test_the_ones_before_a_wrong_one_are_handed_out(self, client: Client) -> None:
        handles = client.submit_many([Inference(model="m", prompt="a"), Request("nope", {}), Request("inference", {})])
        next(handles)
        with pytest.raises(InvalidError) as caught:
            next(handles)
        assert caught.value.code == "TAPE-1003"

    def test_leaving_early_still_tells_of_what_was_sent(self, client: Client, ports: MemoryPorts) -> None:
        handles = client.submit_many((Inference(model="m", prompt=str(index)) for index in range(9)), window=4)
        next(handles)
        handles.close()
        assert len(ports.of("tape.events")) == len(ports.of("tape.jobs.inference.bulk")) == 4


class TestKeys:
    def test_the_same_key_is_the_same_job(self, client: Client, ports: MemoryPorts) -> None:
        first = client.submit("inference", PARAMS, key="k")
        again = client.submit("inference", {**PARAMS, "seed": 0}, key="k", lane="interactive")
        assert first.id == again.id == job_id("default", "k")
        assert client.submit("inference", PARAMS, key="k", tenant="other").id != first.id

    def test_another_request_under_the_key_is_refused(self, client: Client, ports: MemoryPorts) -> None:
        client.submit("inference", PARAMS, key="k")
        before = len(ports.records)
        with pytest.raises(ConflictError) as caught:
            client.submit("inference", {"model": "builtin:m", "prompt": "other"}, key="k")
        assert caught.value.code == "TAPE-3005"
        assert len(ports.records) == before

    def test_a_done_job_is_not_sent_again(self, client: Client, ports: MemoryPorts) -> None:
        job = client.submit("inference", PARAMS, key="k").id
        ports.blobs.create(f"runs/{job}/outcome.json", outcome(job, result={"text": "x"}).model_dump_json().encode())
        again = client.submit("inference", PARAMS, key="k")
        assert len(ports.of("tape.jobs.inference.bulk")) == 1
        assert again.result(timeout=1).result == {"text": "x"}

    def test_an_undone_job_is_sent_again(self, client: Client, ports: MemoryPorts) -> None:
        client.submit("inference", PARAMS, key="k")
        client.submit("inference", PARAMS, key="k")
        assert len(ports.of("tape.jobs.inference.bulk")) == 2
        assert len({record.value for record in ports.of("tape.jobs.inference.bulk")}) == 1

    def test_a_second_client_finds_the_events_of_the_first(self, client: Client, ports: MemoryPorts) -> None:
        job = client.submit("inference", PARAMS, key="k").id
        ports.tell(end(job))
        with Client(settings=Settings(), ports=ports) as other:
            kinds = [event.type for event in other.submit("inference", PARAMS, key="k").watch(timeout=5)]
        assert kinds == [EventType.QUEUED, EventType.SUCCEEDED]

    def test_the_first_handle_of_a_key_goes_on(self, client: Client, ports: MemoryPorts) -> None:
        first = client.submit("inference", PARAMS, key="k")
        next(first.watch(timeout=5))
        again = client.submit("inference", PARAMS, key="k")
        ports.tell(end(first.id, text="one"))
        assert first.result(timeout=5) == again.result(timeout=5)

    def test_a_dead_job_that_is_sent_again_is_waited_for_anew(self, client: Client, ports: MemoryPorts) -> None:
        job = client.submit("inference", PARAMS, key="k").id
        ports.tell(event(job, EventType.DEAD, at=datetime.now(UTC), outcome=outcome(job, Status.DEAD)))
        again = client.submit("inference", PARAMS, key="k")
        with pytest.raises(TimeoutExceeded):
            again.result(timeout=0.05)
        ports.tell(end(job, text="alive"))
        assert again.result(timeout=5).result == {"text": "alive"}


class TestOthers:
    def test_cancel_is_keyed_by_the_job(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        handle.cancel("enough")
        (record,) = ports.of("tape.control")
        assert record.key == handle.id.encode()
        order = Cancel.model_validate_json(record.value or b"")
        assert (order.job, order.reason) == (handle.id, "enough")

    def test_a_job_that_waits_in_its_queue_ends_at_once(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        handle.cancel("enough")
        assert handle.result(timeout=5).status is Status.CANCELLED
        assert client.outcome(handle.id) == handle.result(timeout=5)

    @pytest.mark.parametrize("seconds", [3600, 2, -60], ids=["later", "now", "by an open breaker"])
    @pytest.mark.parametrize("kind", [EventType.POSTPONED, EventType.RETRYING])
    def test_a_job_that_is_put_off_ends_at_once(
        self, client: Client, ports: MemoryPorts, kind: EventType, seconds: float
    ) -> None:
        handle = client.submit("inference", PARAMS, labels={"a": "b"})
        ports.tell(event(handle.id, kind, until=datetime.now(UTC) + timedelta(seconds=seconds), attempt=2))
        handle.cancel("enough")
        found = handle.result(timeout=5)
        assert (found.status, found.attempt) == (Status.CANCELLED, 2)
        assert found.failure is not None and found.failure.message == "enough"
        assert client.outcome(handle.id) == found
        last = Event.model_validate_json(ports.of("tape.events")[-1].value or b"")
        assert last.id == derived_id(handle.id, "outcome"), "a worker that meets the job tells the same event again"

    @pytest.mark.parametrize(
        ("last", "seconds", "kind"),
        [
            (EventType.RUNNING, None, "inference"),
            (EventType.SUCCEEDED, None, "inference"),
            (EventType.QUEUED, None, "echo"),  # no outcome is kept of it, which could stop the other
            (EventType.POSTPONED, 2, "echo"),
            (EventType.RETRYING, None, "echo"),
        ],
    )
    def test_a_worker_ends_what_may_run(
        self, client: Client, ports: MemoryPorts, last: EventType, seconds: float | None, kind: str
    ) -> None:
        job, now = uuid7(), datetime.now(UTC)
        until = None if seconds is None else now + timedelta(seconds=seconds)
        ports.tell(event(job, EventType.QUEUED).model_copy(update={"kind": kind}))
        ports.tell(event(job, last, until=until).model_copy(update={"kind": kind}))
        client.cancel(job, "enough")
        assert client.outcome(job) is None
        assert all(one.outcome is None for one in client.scan(born(job), job=job))

    def test_a_job_that_was_sent_back_from_the_dead_letters_ends_at_once(
        self, client: Client, ports: MemoryPorts
    ) -> None:
        handle = client.submit("inference", PARAMS)
        death = outcome(handle.id, Status.DEAD, epoch=3)
        ports.blobs.create(f"runs/{handle.id}/outcome.json", codec.dump(death))
        ports.tell(event(handle.id, EventType.DEAD, outcome=death))
        ports.tell(event(handle.id, EventType.QUEUED, redrive=1))
        handle.cancel("enough")
        found = client.outcome(handle.id)
        assert found is not None and (found.status, found.epoch) == (Status.CANCELLED, 3)

    def test_a_death_that_nobody_told_of_yet_stands(self, client: Client, ports: MemoryPorts) -> None:
        """Its dead letter is on the way."""
        handle = client.submit("inference", PARAMS)
        first, second = (outcome(handle.id, Status.DEAD, epoch=epoch) for epoch in (1, 2))
        ports.tell(event(handle.id, EventType.DEAD, outcome=first))
        ports.tell(event(handle.id, EventType.QUEUED, redrive=1))
        ports.blobs.create(f"runs/{handle.id}/outcome.json", codec.dump(second))
        handle.cancel("enough")
        assert codec.parse(Outcome, ports.blobs.read(f"runs/{handle.id}/outcome.json")) == second
        assert not [one for one in client.scan(born(handle.id), job=handle.id) if one.type is EventType.CANCELLED]

    def test_a_light_job_that_is_put_off_for_a_while_ends_at_once(self, client: Client, ports: MemoryPorts) -> None:
        job, due = uuid7(), datetime.now(UTC) + timedelta(minutes=1)
        ports.tell(event(job, EventType.POSTPONED, until=due).model_copy(update={"kind": "echo"}))
        client.cancel(job, "enough")
        assert [one.type for one in client.scan(born(job), job=job)][-1] is EventType.CANCELLED

    def test_an_outcome_that_is_there_stands(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", PARAMS)
        ports.tell(event(handle.id, EventType.POSTPONED, until=datetime.now(UTC) + timedelta(hours=1)))
        first = outcome(handle.id)
        ports.blobs.create(f"runs/{handle.id}/outcome.json", codec.dump(first))
        handle.cancel("enough")
        assert client.outcome(handle.id) == first
        assert all(one.outcome is None for one in client.scan(born(handle.id), job=handle.id))

    def test_a_death_is_no_outcome(self, client: Client, ports: MemoryPorts) -> None:
        """A redrive may bring one, and a keyed job that is buried may be sent again, mended."""
        handle = client.submit("inference", PARAMS, key="k")
        ports.blobs.create(f"runs/{handle.id}/outcome.json", codec.dump(outcome(handle.id, Status.DEAD)))
        assert client.outcome(handle.id) is None
        before = len(ports.of("tape.jobs.inference.bulk"))
        assert client.submit("inference", PARAMS, key="k").id == handle.id
        assert len(ports.of("tape.jobs.inference.bulk")) == before + 1

    def test_an_upload_is_named_by_its_content(self, client: Client, ports: MemoryPorts, tmp_path: Path) -> None:
        path = tmp_path / "rows.JSONL"
        path.write_text('{"a": 1}\n')
        ref = client.upload(path)
        assert ref.startswith("blob:uploads/")
        assert ref.endswith(".jsonl")
        etag = ports.blobs.stat(ref.removeprefix("blob:")).etag
        assert client.upload(str(path)) == ref
        assert ports.blobs.stat(ref.removeprefix("blob:")).etag == etag
        assert ports.blobs.read(ref.removeprefix("blob:")) == b'{"a": 1}\n'

    def test_odd_suffixes_are_left_out(self, client: Client, tmp_path: Path) -> None:
        path = tmp_path / "rows.j s"
        path.write_text("x")
        assert " " not in client.upload(path)

    def test_a_folder_is_an_artifact(self, client: Client, ports: MemoryPorts, tmp_path: Path) -> None:
        (tmp_path / "my model").mkdir()
        (tmp_path / "my model" / "config.json").write_text("{}")
        reference = client.upload(tmp_path / "my model")
        assert reference == "artifact:artifacts/uploads/my-model/manifest.json"
        assert b"config.json" in ports.blobs.read(reference.removeprefix("artifact:"))
        assert client.upload(tmp_path / "my model") == reference

    def test_a_missing_file_is_named(self, client: Client, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError) as caught:
            client.upload(tmp_path / "nothing.jsonl")
        assert caught.value.code == "TAPE-2003"
        assert "nothing.jsonl" in caught.value.place["file"]

    def test_leaving_closes(self, ports: MemoryPorts) -> None:
        with Client(settings=Settings(), ports=ports) as client:
            client.submit("inference", PARAMS).watch(timeout=1)
        assert ports.closed
        assert not [thread for thread in threading.enumerate() if thread.name == "tape-feed"]

    def test_a_url_wins_over_settings(self) -> None:
        assert Client("b:1", settings=Settings(), ports=MemoryPorts()).settings.kafka_url == "b:1"

    def test_born_reads_the_time_of_an_id(self) -> None:
        now = datetime.now(UTC)
        assert abs(born(uuid7()) - (now - SKEW)) < timedelta(seconds=1)
        assert now - born(job_id("t", "k")) > timedelta(days=6)
        assert now - born("not-an-id") > timedelta(days=6)

    def test_the_package_names_what_it_lacks(self) -> None:
        import producers

        with pytest.raises(AttributeError, match="nothing"):
            _ = producers.nothing  # type: ignore[attr-defined]
