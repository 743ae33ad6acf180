"""Blobs in a directory: the embedded default. Atomic, fsynced, shared safely by threads and processes.

    objects/<name>               a symbolic link to its data; the link's target carries hash and etag
    data/ab/<sha256>.<etag>      the bytes, written once, owned by one link
    tmp/                         what is being written
    locks/                       one file per stripe of names, held (flock) while a link is compared and changed

One link decides which bytes, which hash and which etag an object has, so all three change in one rename and no crash
can part them; the link appears after its data is on the disk. What a crash leaves over is unreachable, and `sweep`
removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from schemas.errors import AuthError, InvalidError, TapeError, UnavailableError
from wire.blobs.port import (
    ABSENT,
    CHUNK,
    Blob,
    Blobs,
    Reader,
    Source,
    check_conditional,
    check_name,
    check_prefix,
    conflict,
    corrupt,
    missing,
    opened,
)

STRIPES = 64
DAY_S = 86_400.0


class Directory(Blobs):
    """A store in a directory of a POSIX file system."""

    def __init__(self, root: Path, *, note: Path | None = None) -> None:
        """Open the store at `root`, made if need be; what writers that died left in `tmp` a day ago is removed.

        `note` is a file elsewhere that is left to say that there is a store at `root`. Where it says so and there is
        none, its volume is away: an empty one in its place would know nothing of what has ended, so this raises
        `UnavailableError` (TAPE-5002).
        """
        self.root = root.absolute()
        self._objects, self._data, self._tmp, self._locks = self._parts = tuple(
            self.root / part for part in ("objects", "data", "tmp", "locks")
        )
        if note is not None and note.exists() and not self._objects.is_dir():
            raise self._away(f"bring its volume back; if it is to begin empty, delete {note} first")
        with _edge(str(self.root)):
            for folder in self._parts:
                _make(folder)
            _remove_old(self._tmp.iterdir(), before=time.time() - DAY_S)
            if note is not None and not note.exists():
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{self.root}\n")

    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        link = self._objects / check_name(name)
        with opened(source) as stream, self._edge(name), self._written(stream) as (temporary, found, size):
            check_conditional(name, size, expect)
            if sha256 not in (None, found):
                raise corrupt(name, "the content is not what was announced", sha256=sha256)
            with self._locked(name):
                held = self._target(link)
                if expect is not None and expect != (_etag(held) if held else ABSENT):
                    raise conflict(name, expect)
                target = self._keep(temporary, found)
                self._point(link, target)
                if held:
                    held.unlink(missing_ok=True)
        return Blob(name, size, found, _etag(target))

    def get(self, name: str, *, sha256: str | None = None) -> Reader:
        link = self._objects / check_name(name)
        with self._edge(name):
            target, file = self._open(link, name)
            return Reader(file, Blob(name, os.fstat(file.fileno()).st_size, _sha256(target), _etag(target)), sha256)

    def stat(self, name: str) -> Blob:
        with self.get(name) as reader:
            return reader.blob

    def list(self, prefix: str = "") -> Iterator[Blob]:
        check_prefix(prefix)
        self._present()
        folder = self._objects / prefix.rpartition("/")[0]
        for name in self._walk(folder, prefix):
            with suppress(TapeError):  # deleted since it was listed
                yield self.stat(name)

    def delete(self, name: str) -> None:
        link = self._objects / check_name(name)
        with self._edge(name), self._locked(name):
            target = self._target_or_none(link)
            if target is None:
                return
            link.unlink()
            _sync(link.parent)
            target.unlink(missing_ok=True)
            for folder in link.relative_to(self._objects).parents[:-1]:
                with suppress(OSError):  # not empty
                    (self._objects / folder).rmdir()

    def link(self, name: str, expires_s: int = 3600) -> str:
        self.stat(name)
        return (self._objects / name).as_uri()

    def sweep(self, *, older_s: float = DAY_S) -> int:
        """Remove what killed writers left behind, if it is older than `older_s` seconds; return how many files."""
        before = time.time() - older_s
        with _edge(str(self.root)):
            targets = (self._target(self._objects / name) for name in self._walk(self._objects, ""))
            kept = {target.name for target in targets if target}
            orphans = (path for path in self._data.glob("*/*") if path.name not in kept)
            return _remove_old(self._tmp.iterdir(), before=before) + _remove_old(orphans, before=before)

    @contextmanager
    def _written(self, stream: BinaryIO) -> Iterator[tuple[Path, str, int]]:
        temporary = self._tmp / secrets.token_hex(16)
        digest, size = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:
                while piece := stream.read(CHUNK):
                    digest.update(piece)
                    size += file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, digest.hexdigest(), size
        finally:
            temporary.unlink(missing_ok=True)

    def _keep(self, temporary: Path, sha256: str) -> Path:
        target = self._data / sha256[:2] / f"{sha256}.{secrets.token_hex(8)}"
        _make(target.parent)
        temporary.rename(target)
        _sync(target.parent)
        return target

    def _point(self, link: Path, target: Path) -> None:
        fresh = self._tmp / secrets.token_hex(16)
        fresh.symlink_to(os.path.relpath(target, link.parent))
        for _ in range(100):
            _make(link.parent)
            with suppress(FileNotFoundError):  # a neighbour's deletion took the empty folder away
                fresh.rename(link)
                _sync(link.parent)
                return
        raise UnavailableError(f"{link.parent} keeps vanishing", code="TAPE-5002", file=str(link.parent))

    def _target(self, link: Path) -> Path | None:
        try:
            name = Path(link.readlink()).name
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise IsADirectoryError(errno.EISDIR, "other names start with it") from error
        return self._data / name[:2] / name

    def _open(self, link: Path, name: str) -> tuple[Path, BinaryIO]:
        target = self._target_or_none(link)
        while target is not None:
            with suppress(FileNotFoundError):
                return target, target.open("rb")
            again = self._target_or_none(link)
            if again == target:
                raise corrupt(name, "its data is gone", file=str(target))
            target = again  # replaced between the two looks
        self._present()
        raise missing(name)

    def _target_or_none(self, link: Path) -> Path | None:
        # A name that runs through an object, or that is only the start of others, is a name nothing is under.
        with suppress(IsADirectoryError, NotADirectoryError):
            return self._target(link)
        return None

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name) + b"/" * _is_folder(entry)):
            name = str(Path(entry.path).relative_to(self._objects))
            if _is_folder(entry) and (name.startswith(prefix) or prefix.startswith(name + "/")):
                yield from self._walk(Path(entry.path), prefix)
            elif entry.is_symlink() and name.startswith(prefix):
                yield name

    @contextmanager
    def _edge(self, name: str) -> Iterator[None]:
        try:
            with _edge(name):
                yield
        except InvalidError:
            self._present()  # it is a name's fault only in a store that is whole
            raise

    def _present(self) -> None:
        if not all(part.is_dir() for part in self._parts):
            raise self._away("bring its volume back")

    def _away(self, hint: str) -> UnavailableError:
        return UnavailableError(
            f"there is no store any more at {self.root}", code="TAPE-5002", file=str(self.root), hint=hint
        )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._locks / f"{zlib.crc32(name.encode()) % STRIPES:02d}").open("ab") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield


@contextmanager
def _edge(name: str) -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise InvalidError(
            f"{name} cannot be stored: a part of it is the name of another object, or other names start with it",
            field="name",
            hint="an object's name cannot also be a folder of names",
        ) from error
    except PermissionError as error:
        raise AuthError(f"{name}: {error.strerror}", file=error.filename, code="TAPE-4003") from error
    except OSError as error:
        raise UnavailableError(
            f"{name}: {error.strerror or error}",
            code="TAPE-5002",
            file=error.filename,
            hint="free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the store's disk",
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _sha256(target: Path) -> str:
    return target.name.partition(".")[0]


def _etag(target: Path) -> str:
    return target.name.partition(".")[2]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make(folder: Path) -> None:
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _remove_old(paths: Iterator[Path], *, before: float) -> int:
    removed = 0
    for path in paths:
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed
