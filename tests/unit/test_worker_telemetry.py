"""Settings and telemetry: what wins, what is masked, where spans go, and that no collector can harm a job."""

from __future__ import annotations

import builtins
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from pydantic import SecretStr

from schemas.errors import InvalidError, SetupError
from wire import telemetry
from wire.settings import PREFIX, Settings
from wire.telemetry import FileExporter, extract, inject, read_spans

SECRET = "hunter2-and-more"


@pytest.fixture
def own_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `configure` sets for the whole process is undone."""
    monkeypatch.setattr(trace, "set_tracer_provider", lambda _: None)
    before = structlog.get_config()
    yield
    structlog.configure(**before)


# --- settings


def load(home: Path, env: dict[str, str] | None = None, **given_: Any) -> Settings:
    return Settings.load(env={"TAPE_HOME": str(home), **(env or {})}, **given_)


def profile(home: Path, **values: Any) -> None:
    (home / "profile.json").write_text(json.dumps(values))


def test_argument_beats_environment_beats_profile_beats_default(tmp_path: Path) -> None:
    assert load(tmp_path).partitions == 8
    profile(tmp_path, partitions=3, kafka_url="profile:1")
    assert load(tmp_path).partitions == 3
    assert load(tmp_path, {"TAPE_PARTITIONS": "4"}).partitions == 4
    assert load(tmp_path, {"TAPE_PARTITIONS": "4"}, partitions=5).partitions == 5
    assert load(tmp_path, {"TAPE_PARTITIONS": "4"}, partitions=None).partitions == 4
    assert load(tmp_path, {"TAPE_PARTITIONS": ""}).kafka_servers == ["profile:1"]
    assert load(tmp_path).store_url == f"dir:{tmp_path / 'store'}"


@pytest.mark.parametrize(
    ("env", "field"),
    [
        ({"TAPE_KAKFA_URL": "a:1"}, "TAPE_KAKFA_URL"),
        ({"TAPE_KAFKA_URL": "nowhere"}, "TAPE_KAFKA_URL"),
        ({"TAPE_KAFKA_URL": "a:1,b:99999"}, "TAPE_KAFKA_URL"),
        ({"TAPE_STORE_URL": "ftp://x"}, "TAPE_STORE_URL"),
        ({"TAPE_PARTITIONS": "many"}, "TAPE_PARTITIONS"),
        ({"TAPE_PREFIX": "no spaces"}, "TAPE_PREFIX"),
        ({"TAPE_LOG_LEVEL": "loud"}, "TAPE_LOG_LEVEL"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, env: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidError) as raised:
        load(tmp_path, env)
    assert (raised.value.code, raised.value.place["field"]) == ("TAPE-1007", field)


@pytest.mark.parametrize("text", ["{", "[]", '{"colour": "red"}'])
def test_a_wrong_profile_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(InvalidError) as raised:
        load(tmp_path)
    assert raised.value.code == "TAPE-1007"


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_masked_wherever_settings_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, own_provider: None
) -> None:
    secrets = {"TAPE_KAFKA_PASSWORD": SECRET, "TAPE_STORE_SECRET_KEY": SECRET}
    settings = load(tmp_path, {**secrets, "TAPE_LOG_FORMAT": form})
    telemetry.configure(settings, "worker", traces=False)
    structlog.get_logger().info("started", settings=settings)
    logged = capsys.readouterr().err
    assert "started" in logged
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())]
    assert all(SECRET not in text for text in [*shown, logged])
    assert settings.environ()["TAPE_KAFKA_PASSWORD"] == SECRET


OPTIONAL = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@given(
    prefix=st.sampled_from(["", "tape.", "a-b_c."]),
    username=OPTIONAL,
    password=OPTIONAL,
    endpoint=st.none() | st.just("http://127.0.0.1:4318"),
    partitions=st.integers(1, 99),
    timeout=st.floats(0.001, 1e6),
)
def test_environ_makes_another_process_load_the_same(
    prefix: str, username: str | None, password: str | None, endpoint: str | None, partitions: int, timeout: float
) -> None:
    settings = Settings(
        home=Path("/nonexistent/home"), prefix=prefix, kafka_username=username, partitions=partitions,
        kafka_password=SecretStr(password) if password else None, otlp_endpoint=endpoint, kafka_timeout_s=timeout,
    )  # fmt: skip
    assert Settings.load(env=settings.environ()) == settings
    assert all(name.startswith(PREFIX) for name in settings.environ())


# --- spans


@pytest.fixture
def tracer() -> Iterator[Any]:
    provider = TracerProvider()
    yield provider
    provider.shutdown()


def test_spans_become_lines(tracer: TracerProvider, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "spans.jsonl"
    tracer.add_span_processor(SimpleSpanProcessor(FileExporter(path, "worker")))
    start = tracer.get_tracer("t").start_as_current_span
    with start("outer", attributes={"tape.job": "j"}) as outer, start("inner"):
        pass
    inner_row, outer_row = read_spans(path.parent)
    assert (inner_row["name"], outer_row["name"]) == ("inner", "outer")
    assert inner_row["parent_id"] == outer_row["span_id"]
    assert inner_row["trace_id"] == outer_row["trace_id"] == f"{outer.get_span_context().trace_id:032x}"
    assert outer_row["parent_id"] is None
    assert outer_row["attributes"] == {"tape.job": "j"}
    assert (outer_row["service"], outer_row["status"]) == ("worker", "unset")
    assert outer_row["start_ns"] <= inner_row["start_ns"] <= inner_row["end_ns"] <= outer_row["end_ns"]


def test_a_span_cut_short_by_a_kill_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"name": "whole"}\n{"name": "cu')
    assert [row["name"] for row in read_spans(tmp_path)] == ["whole"]


def test_a_full_disk_costs_the_spans_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    exporter = FileExporter(tmp_path / "file" / "spans.jsonl", "worker")
    assert exporter.export([]) is SpanExportResult.FAILURE


def test_context_travels_as_w3c_headers(tracer: TracerProvider) -> None:
    assert inject() == {}
    with tracer.get_tracer("t").start_as_current_span("here") as span:
        carrier = inject()
    ids = span.get_span_context()
    assert carrier["traceparent"].startswith(f"00-{ids.trace_id:032x}-{ids.span_id:016x}-0")
    found = trace.get_current_span(extract(carrier)).get_span_context()
    assert (found.trace_id, found.span_id, found.is_remote) == (ids.trace_id, ids.span_id, True)


@pytest.mark.parametrize("carrier", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-0-0-00"}])
def test_a_malformed_context_is_an_empty_one(carrier: dict[str, str]) -> None:
    assert not trace.get_current_span(extract(carrier)).get_span_context().is_valid


@pytest.mark.usefixtures("own_provider")
def test_without_a_collector_spans_go_to_a_file_of_the_process(tmp_path: Path) -> None:
    provider = telemetry.configure(Settings(home=tmp_path), "worker")
    assert provider is not None
    with provider.get_tracer("t").start_as_current_span("one"):
        pass
    provider.shutdown()
    (path,) = (tmp_path / "traces").glob("worker-*.jsonl")
    assert json.loads(path.read_text())["name"] == "one"
    assert telemetry.configure(Settings(home=tmp_path), "cli", traces=False) is None


@pytest.mark.usefixtures("own_provider")
def test_a_missing_exporter_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def no_otlp(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_otlp)
    with pytest.raises(SetupError) as raised:
        telemetry.configure(Settings(home=tmp_path, otlp_endpoint="http://127.0.0.1:1"), "worker")
    assert raised.value.code == "TAPE-8003"
    assert "tickertape[otlp]" in raised.value.hint


@pytest.mark.usefixtures("own_provider")
def test_a_collector_gets_the_spans(tmp_path: Path) -> None:
    got: list[tuple[str, bytes]] = []
    arrived = threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}/"
        provider = telemetry.configure(Settings(home=tmp_path, otlp_endpoint=endpoint), "worker")
        assert provider is not None
        with provider.get_tracer("t").start_as_current_span("a span for the collector"):
            pass
        provider.shutdown()
        assert arrived.wait(20)
        server.shutdown()
        thread.join()
    (path, body) = got[0]
    assert path == "/v1/traces"
    assert b"a span for the collector" in body


@pytest.mark.usefixtures("own_provider")
def test_a_dead_collector_takes_no_time_from_jobs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="opentelemetry")
    settings = Settings(home=tmp_path, otlp_endpoint="http://127.0.0.1:9")
    provider = telemetry.configure(settings, "worker")
    assert provider is not None
    tracer = provider.get_tracer("t")
    ended = threading.Event()

    def jobs() -> None:
        for _ in range(10_000):  # more than the queue holds
            with tracer.start_as_current_span("job"):
                pass
        ended.set()

    threading.Thread(target=jobs, daemon=True).start()
    assert ended.wait(20), "jobs waited for a collector that is not there"
    closed = threading.Thread(target=provider.shutdown)
    closed.start()
    closed.join(20)
    assert not closed.is_alive(), "the worker's end waited for a collector that is not there"


def test_a_closed_standard_error_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    telemetry.configure(Settings(home=tmp_path), "test", traces=False)
    log = structlog.get_logger("test")
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    log.warning("one")
    first.close()
    log.warning("lost, and nobody is harmed")
    monkeypatch.setattr(sys, "stderr", second)
    log.warning("two")
    assert json.loads(second.getvalue())["event"] == "two"
