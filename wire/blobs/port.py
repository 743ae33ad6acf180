"""The blobs port: named bytes whose hash is checked on the way in and on the way out.

Six methods make a store (`put`, `get`, `stat`, `list`, `delete`, `link`); `create`, `replace`, `read` and `fetch` are
built on them. Every store keeps these promises, and one contract suite holds all of them to it:

- an object is visible whole or not at all, also when its writer is killed in the middle;
- `put` with another hash than the one given leaves nothing visible; a reader never takes wrong bytes for right;
- of any number of concurrent `create` calls for one name exactly one wins, and `replace` loses no update.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError

CHUNK: Final = 1 << 20
"""Bytes moved at a time; what a stream of any length costs in memory."""

ABSENT: Final = "absent"
"""What `put(expect=...)` is given to write only where nothing is yet."""

CONDITIONAL_BYTES: Final = 16 * CHUNK
"""The most a conditional write takes: one request, which decides at once."""

NAME_BYTES: Final = 900
PART_BYTES: Final = 255  # a file name's limit, which MinIO has too: it keeps objects in a file system

Source = bytes | BinaryIO | Path


@dataclass(frozen=True, slots=True)
class Blob:
    """What the store knows about an object.

    `sha256` is None where it would cost a request per object to know (listing an S3 bucket), and for objects that
    somebody else put there. `etag` is opaque, and changes at least whenever the bytes do.
    """

    name: str
    size: int
    sha256: str | None
    etag: str


class Readable(Protocol):
    """Anything bytes can be read from in pieces."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


class Verified(io.RawIOBase):
    """A stream that refuses to end well unless its length and hash are the expected ones.

    The check comes before the last piece is handed out, so a consumer that has all bytes has right bytes.
    Raises `JobError` (TAPE-6007) from `read`.
    """

    def __init__(self, source: Readable, *, name: str, size: int, sha256: str | None) -> None:
        super().__init__()
        self._source = source
        self._name = name
        self._left = size
        self._expected = sha256
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read(min(len(view), self._left)) if self._left else b""
        view[: len(data)] = data
        self._left -= len(data)
        if self._expected is not None:
            self._hash.update(data)
        if not data and self._left and len(view):
            raise corrupt(self._name, f"{self._left} bytes are missing")
        if not self._left and self._expected not in (None, self._hash.hexdigest()):
            raise corrupt(self._name, "the content is not what was stored", sha256=self._expected)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


class Reader(io.BufferedReader):
    """An object's bytes as a buffered binary stream, verified; `blob` tells what is being read."""

    def __init__(self, source: Readable, blob: Blob, sha256: str | None = None) -> None:
        raw = Verified(source, name=blob.name, size=blob.size, sha256=sha256 or blob.sha256)
        super().__init__(raw, CHUNK)
        self.blob = blob


class Blobs(ABC):
    """A store of named bytes. Names are relative, with forward slashes: see `check_name`.

    All methods raise `InvalidError` for a bad name, `UnavailableError` (TAPE-5002) when the store does not answer,
    and `AuthError` (TAPE-4002, TAPE-4003) when it refuses.
    """

    @property
    def atomic_create(self) -> bool:
        """Whether `create` and `replace` decide races for certain, which claims and outcomes rest on.

        Where this is false they refuse (`UnavailableError`, TAPE-5006): there is no emulation to trust.
        """
        return True

    @abstractmethod
    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        """Store bytes, an open binary file or the file at a path under a name, whole or not at all.

        With `sha256`, other content is refused with `JobError` (TAPE-6007). With `expect`, the write happens only
        where nothing is (`ABSENT`) or the object still has that etag: `ConflictError` (TAPE-3001, TAPE-3002);
        such a write takes at most `CONDITIONAL_BYTES`.
        """

    @abstractmethod
    def get(self, name: str, *, sha256: str | None = None) -> Reader:
        """Open an object for reading; close it, best by `with`. `sha256` is believed over what the store says.

        Raises `NotFoundError` (TAPE-2001); reading raises `JobError` (TAPE-6007) before the last piece if the bytes
        are wrong.
        """

    @abstractmethod
    def stat(self, name: str) -> Blob:
        """Tell size, hash and etag of an object, or raise `NotFoundError` (TAPE-2001)."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Iterate over the objects whose names start with a prefix, in an order of the store's own."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object. Nothing happens if there is none."""

    @abstractmethod
    def link(self, name: str, expires_s: int = 3600) -> str:
        """Return a URL that reads the object without credentials for `expires_s` seconds (at most seven days).

        Raises `NotFoundError` (TAPE-2001).
        """

    def create(self, name: str, data: bytes) -> Blob:
        """Write an object that must not exist yet: `ConflictError` (TAPE-3001) if somebody was first."""
        return self.put(name, data, expect=ABSENT)

    def replace(self, name: str, data: bytes, etag: str) -> Blob:
        """Write an object that must still have `etag`: `ConflictError` (TAPE-3002) if it changed or went away."""
        return self.put(name, data, expect=etag)

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        """Return all bytes of an object, verified. For what fits in memory; else `get` or `fetch`."""
        with self.get(name, sha256=sha256) as reader:
            pieces = list_pieces(reader)
        return b"".join(pieces)

    def fetch(self, name: str, path: Path, *, sha256: str | None = None) -> Blob:
        """Download an object to a file, which appears under its name only once it is whole and verified."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file, self.get(name, sha256=sha256) as reader:
                while piece := reader.read(CHUNK):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return reader.blob


def list_pieces(reader: Readable) -> list[bytes]:
    """Return what is left of a stream in pieces of at most `CHUNK` bytes."""
    return list(iter(lambda: reader.read(CHUNK), b""))


def check_name(name: str) -> str:
    """Return the name if every store can hold it, or raise `InvalidError` that says what is wrong with it.

    At most 900 bytes of UTF-8 in parts of at most 255, relative, without empty parts, `.`, `..`, a backslash or
    control characters.
    """
    parts = name.split("/")
    if not name:
        raise _bad_name(name, "it is empty")
    if parts[0] == "":
        raise _bad_name(name, "it is absolute")
    if any(part in ("", ".", "..") for part in parts):
        raise _bad_name(name, "a part of it is empty, `.` or `..`")
    _check_characters(name)
    if len(name.encode()) > NAME_BYTES:
        raise _bad_name(name, f"it has more than {NAME_BYTES} bytes")
    if any(len(part.encode()) > PART_BYTES for part in parts):
        raise _bad_name(name, f"a part of it has more than {PART_BYTES} bytes")
    return name


def check_prefix(prefix: str) -> str:
    """Return the prefix if names can start with it, or raise `InvalidError`."""
    _check_characters(prefix)
    parts = prefix.split("/")
    if any(part in (".", "..") for part in parts[:-1]) or "" in parts[:-1] or parts[-1] == "..":
        raise _bad_name(prefix, "no name starts with it")
    return prefix


def check_conditional(name: str, size: int, expect: str | None) -> None:
    """Raise `InvalidError` for a conditional write of more than `CONDITIONAL_BYTES`."""
    if expect is not None and size > CONDITIONAL_BYTES:
        raise InvalidError(
            f"{name}: a conditional write takes at most {CONDITIONAL_BYTES} bytes, not {size}",
            field="data",
            hint="put the data under a name of its own, and create a small object that names it",
        )


def corrupt(name: str, why: str, **place: Any) -> JobError:
    """The error for bytes that are not what their hash says (TAPE-6007)."""
    return JobError(f"{name}: {why}", code="TAPE-6007", name=name, **place)


def missing(name: str) -> NotFoundError:
    """The error for a name nothing is stored under (TAPE-2001)."""
    return NotFoundError(f"{name} is not in the store", code="TAPE-2001", name=name)


def conflict(name: str, expect: str | None) -> ConflictError:
    """The error for a conditional write that lost: TAPE-3001 for a creation, TAPE-3002 for a replacement."""
    if expect == ABSENT:
        return ConflictError(f"{name} exists already", code="TAPE-3001", name=name)
    return ConflictError(f"{name} changed meanwhile", code="TAPE-3002", name=name, etag=expect)


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """Give any source as a binary stream; a file opened here is closed here.

    Raises `NotFoundError` (TAPE-2003) when the path leads to no readable file.
    """
    if isinstance(source, Path):
        try:
            file = source.open("rb")
        except OSError as error:
            raise NotFoundError(
                f"{source} cannot be read: {error.strerror}", code="TAPE-2003", file=str(source)
            ) from error
        with file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    else:
        yield source


def _check_characters(name: str) -> None:
    if any(ord(character) < 32 or ord(character) == 127 or character == "\\" for character in name):
        raise _bad_name(name, "it holds a control character or a backslash")
    if any(0xD800 <= ord(character) < 0xE000 for character in name):
        raise _bad_name(name, "it is not Unicode text")


def _bad_name(name: str, why: str) -> InvalidError:
    shown = ascii(name if len(name) <= 100 else name[:100] + "…")
    return InvalidError(f"{shown} cannot be the name of an object: {why}", field="name", hint="choose another name")
