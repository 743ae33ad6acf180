"""Blobs in memory: the twin for tests of what is built on a store, with the same contract."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from itertools import count

from wire.blobs.port import (
    ABSENT,
    Blob,
    Blobs,
    Reader,
    Source,
    check_conditional,
    check_name,
    check_prefix,
    conflict,
    corrupt,
    list_pieces,
    missing,
    opened,
)


class Memory(Blobs):
    """A store that lives and dies with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[Blob, bytes]] = {}
        self._writes = count(1)

    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        check_name(name)
        with opened(source) as stream:
            data = b"".join(list_pieces(stream))
        check_conditional(name, len(data), expect)
        found = hashlib.sha256(data).hexdigest()
        if sha256 not in (None, found):
            raise corrupt(name, "the content is not what was announced", sha256=sha256)
        with self._lock:
            held = self._objects.get(name)
            if expect is not None and expect != (held[0].etag if held else ABSENT):
                raise conflict(name, expect)
            blob = Blob(name, len(data), found, str(next(self._writes)))
            self._objects[name] = (blob, data)
        return blob

    def get(self, name: str, *, sha256: str | None = None) -> Reader:
        blob, data = self._find(name)
        return Reader(io.BytesIO(data), blob, sha256)

    def stat(self, name: str) -> Blob:
        return self._find(name)[0]

    def list(self, prefix: str = "") -> Iterator[Blob]:
        check_prefix(prefix)
        with self._lock:
            blobs = [blob for name, (blob, _) in self._objects.items() if name.startswith(prefix)]
        return iter(sorted(blobs, key=lambda blob: blob.name.encode()))

    def delete(self, name: str) -> None:
        with self._lock:
            self._objects.pop(check_name(name), None)

    def link(self, name: str, expires_s: int = 3600) -> str:
        return f"memory:{self._find(name)[0].name}"

    def _find(self, name: str) -> tuple[Blob, bytes]:
        with self._lock:
            held = self._objects.get(check_name(name))
        if held is None:
            raise missing(name)
        return held
