"""Spans around store calls, by wrapping: where a job's time goes shows whether the store was slow.

| span | attributes |
|---|---|
| `store.put`, `store.create`, `store.replace` | `store.name`, `store.size` |
| `store.get` (opening only), `store.read`, `store.fetch`, `store.stat` | `store.name`, `store.size` |
| `store.delete`, `store.link` | `store.name` |

Listing is lazy, so it has no span of its own. Without a configured tracer a span costs some ten microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opentelemetry import trace

from wire.blobs.port import ABSENT, Blob, Blobs, Reader, Source


class Traced(Blobs):
    """A store whose calls make spans; everything else is the wrapped store's."""

    def __init__(self, store: Blobs) -> None:
        self.store = store
        self._tracer = trace.get_tracer("tickertape.store")

    @property
    def atomic_create(self) -> bool:
        return self.store.atomic_create

    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        operation = "put" if expect is None else "create" if expect == ABSENT else "replace"
        with self._span(operation, name) as span:
            blob = self.store.put(name, source, sha256=sha256, content_type=content_type, expect=expect)
            return _sized(span, blob)

    def get(self, name: str, *, sha256: str | None = None) -> Reader:
        with self._span("get", name) as span:
            reader = self.store.get(name, sha256=sha256)
            _sized(span, reader.blob)
            return reader

    def stat(self, name: str) -> Blob:
        with self._span("stat", name) as span:
            return _sized(span, self.store.stat(name))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        return self.store.list(prefix)

    def delete(self, name: str) -> None:
        with self._span("delete", name):
            self.store.delete(name)

    def link(self, name: str, expires_s: int = 3600) -> str:
        with self._span("link", name):
            return self.store.link(name, expires_s)

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        with self._span("read", name) as span:
            data = self.store.read(name, sha256=sha256)
            span.set_attribute("store.size", len(data))
            return data

    def fetch(self, name: str, path: Path, *, sha256: str | None = None) -> Blob:
        with self._span("fetch", name) as span:
            return _sized(span, self.store.fetch(name, path, sha256=sha256))

    @contextmanager
    def _span(self, operation: str, name: str) -> Iterator[trace.Span]:
        with self._tracer.start_as_current_span(f"store.{operation}", attributes={"store.name": name}) as span:
            yield span


def _sized(span: trace.Span, blob: Blob) -> Blob:
    span.set_attribute("store.size", blob.size)
    return blob
