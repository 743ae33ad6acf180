"""Store calls make spans, and nothing but spans."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.errors import NotFoundError
from wire.blobs.memory import Memory
from wire.blobs.traced import Traced


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def store(spans: InMemorySpanExporter) -> Traced:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    traced = Traced(Memory())
    traced._tracer = provider.get_tracer("test")
    return traced


def test_every_call_makes_one_span(store: Traced, spans: InMemorySpanExporter, tmp_path: Path) -> None:
    store.put("x", b"four")
    made = store.create("y", b"1")
    store.replace("y", b"12", made.etag)
    with store.get("x") as reader:
        assert reader.read() == b"four"
    assert store.read("x") == b"four"
    store.fetch("x", tmp_path / "x")
    store.stat("x")
    store.link("x")
    assert [blob.name for blob in store.list()] == ["x", "y"]
    store.delete("x")
    assert store.atomic_create
    told = [
        (span.name, (span.attributes or {}).get("store.name"), (span.attributes or {}).get("store.size"))
        for span in spans.get_finished_spans()
    ]
    assert told == [
        ("store.put", "x", 4),
        ("store.create", "y", 1),
        ("store.replace", "y", 2),
        ("store.get", "x", 4),
        ("store.read", "x", 4),
        ("store.fetch", "x", 4),
        ("store.stat", "x", 4),
        ("store.link", "x", None),
        ("store.delete", "x", None),
    ]


def test_failure_is_on_the_span(store: Traced, spans: InMemorySpanExporter) -> None:
    with pytest.raises(NotFoundError):
        store.read("nothing")
    (span,) = spans.get_finished_spans()
    assert not span.status.is_ok
    assert "TAPE-2001" in str(span.status.description)
