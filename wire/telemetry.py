"""Traces and logs: W3C context through record headers, spans to OTLP or a local file, JSON log lines on stderr.

Without a collector every process appends its spans to `<home>/traces/<service>-<pid>.jsonl`, one object a line, which
`tape trace JOB` draws. A collector that is down costs nothing but the spans: the queue is bounded and drops are counted
by the OpenTelemetry SDK.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas.errors import SetupError
from wire.settings import Settings

_PROPAGATOR = TraceContextTextMapPropagator()
CLOSE_S = 3.0
"""How long a process that ends waits for its last spans to be taken; a dead collector would hold it half a minute."""


def bounded(end: Callable[[], object]) -> None:
    """Let an exporter end, and wait for it `CLOSE_S` at most."""
    last = threading.Thread(target=end, name="last-telemetry", daemon=True)
    last.start()
    last.join(CLOSE_S)


class _Provider(TracerProvider):
    """A provider whose end is bounded."""

    def shutdown(self) -> None:
        """Send what is left, for `CLOSE_S` at most."""
        bounded(super().shutdown)


class FileExporter(SpanExporter):
    """Appends spans to a JSONL file: name, ids (hex), start and end (ns of the epoch), service, status, attributes."""

    def __init__(self, path: Path, service: str) -> None:
        self._path, self._service = path, service
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans as lines; a full disk costs the spans, never the job."""
        lines = "".join(json.dumps(_row(span, self._service), default=str) + "\n" for span in spans)
        try:
            with self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:
                    file.write(lines.encode())  # in one call: other processes may append to the same file
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def _row(span: ReadableSpan, service: str) -> dict[str, Any]:
    ids = span.context
    assert ids is not None
    return {
        "name": span.name,
        "trace_id": f"{ids.trace_id:032x}",
        "span_id": f"{ids.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "service": service,
        "status": span.status.status_code.name.lower(),
        "attributes": dict(span.attributes or {}),
    }


class _Stderr(io.TextIOBase):
    """Whatever is standard error now. That nobody reads the log, or that it is closed, must never harm a job."""

    def write(self, text: str, /) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


_STDERR = _Stderr()


def configure(settings: Settings, service: str, *, traces: bool = True) -> TracerProvider | None:
    """Set up this process's logs and, unless `traces` is false, its spans; call `shutdown` of what it returns at exit.

    Raises `SetupError` (TAPE-8003) when a collector is configured but the exporter's package is missing.
    """
    _logs(settings)
    if not traces:
        return None
    provider = _Provider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(_exporter(settings, service), max_queue_size=4096, schedule_delay_millis=500)
    )
    trace.set_tracer_provider(provider)
    return provider


def traces_folder(settings: Settings) -> Path:
    """Return the folder of local span files."""
    return settings.trace_file.parent if settings.trace_file else settings.home / "traces"


def no_exporter() -> SetupError:
    """Return what to raise where a collector is configured, but not what speaks to it."""
    return SetupError(
        "a collector is configured but its exporter is not installed",
        code="TAPE-8003",
        hint="pip install 'tickertape[otlp]', or unset TAPE_OTLP_ENDPOINT",
    )


def _exporter(settings: Settings, service: str) -> SpanExporter:
    if settings.otlp_endpoint is None:
        path = settings.trace_file or traces_folder(settings) / f"{service}-{os.getpid()}.jsonl"
        return FileExporter(path, service)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise no_exporter() from error
    return OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces", timeout=5)


def _logs(settings: Settings) -> None:
    level = getattr(logging, settings.log_level.upper())
    render: Any = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _trace_ids,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _STDERR)),
        cache_logger_on_first_use=True,
    )


def _trace_ids(_logger: Any, _method: str, event: Any) -> Any:
    ids = trace.get_current_span().get_span_context()
    if ids.is_valid:
        event["trace_id"], event["span_id"] = f"{ids.trace_id:032x}", f"{ids.span_id:016x}"
    return event


def inject() -> dict[str, str]:
    """Return `traceparent` (and `tracestate`) of the current span; empty when none is recording."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def extract(carrier: Mapping[str, str]) -> otel.Context:
    """Return the context that `traceparent` and `tracestate` name; an empty one when they are missing or malformed."""
    return _PROPAGATOR.extract(carrier, context=otel.Context())


def read_spans(folder: Path) -> Iterable[dict[str, Any]]:
    """Yield the spans of all local files; a last line cut short by a kill is skipped."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue
