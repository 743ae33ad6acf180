"""Artifacts: content-addressed blobs first, the manifest that names them last.

    blobs/sha256/ab/abcd…                   the bytes of every file, stored once however many artifacts hold them
    artifacts/<job>/<name>/manifest.json    the list of files; the artifact exists when this does

A manifest never changes: a second attempt of the same job with other bytes writes its own beside the first
(`manifest.<hash>.json`), so a zombie cannot alter what an outcome refers to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from schemas.artifact import Artifact, ArtifactFile, Manifest
from schemas.errors import ConflictError, InvalidError, NotFoundError
from wire.blobs.port import CHUNK, Blobs, check_name, corrupt

SCHEME = "artifact:"

Files = Path | Mapping[str, Path | bytes]


def publish(
    blobs: Blobs, files: Files, *, job: str, kind: str, name: str, metadata: Mapping[str, Any] | None = None
) -> Artifact:
    """Store a directory, or named files, as an artifact of a job and return the reference to it.

    Blobs that are there already are not sent again, so publishing twice costs little and gives the same reference.
    Raises `InvalidError` when there is nothing to publish or a path is not a plain relative one, `NotFoundError`
    (TAPE-2003) when a file cannot be read, `JobError` (TAPE-6007) when one changes meanwhile.
    """
    listed: list[ArtifactFile] = []
    for path, source in sorted(_sources(files)):
        digest, size = digest_of(source)
        try:
            listed.append(ArtifactFile(path=path, sha256=digest, size=size))
        except ValidationError as error:
            raise InvalidError(
                f"{path!r} cannot be in an artifact: {error.errors()[0]['msg']}", field="path"
            ) from error
        send(blobs, source, digest, size)
    if not listed:
        raise InvalidError("there is no file to publish", field="files", hint="write the files first")
    data = _encode(Manifest(name=name, kind=kind, job=job, files=listed, metadata=dict(metadata or {})))
    return Artifact(
        uri=SCHEME + _settle(blobs, f"artifacts/{job}/{name}", data),
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=sum(file.size for file in listed),
        files=len(listed),
    )


def read_manifest(blobs: Blobs, artifact: Artifact) -> Manifest:
    """Return an artifact's manifest, verified against the reference.

    Raises `NotFoundError` (TAPE-2001), `JobError` (TAPE-6007), and `InvalidError` for an address of another kind.
    """
    if not artifact.uri.startswith(SCHEME):
        raise InvalidError(f"{artifact.uri} is not the address of an artifact", field="uri", hint=f"{SCHEME}NAME")
    name = artifact.uri.removeprefix(SCHEME)
    try:
        return Manifest.model_validate_json(blobs.read(name, sha256=artifact.sha256))
    except ValidationError as error:
        raise corrupt(name, f"it is not a manifest: {error.errors()[0]['msg']}") from error


def materialise(blobs: Blobs, artifact: Artifact, directory: Path, *, cache: Path | None = None) -> Manifest:
    """Bring an artifact's files into a directory; every byte is verified, what is there already is kept.

    With `cache`, blobs are downloaded there once, and linked read-only into each directory that wants them. Other
    files in the directory are left alone. Raises `NotFoundError` (TAPE-2001) or `JobError` (TAPE-6007) at the first
    file that cannot be had right; calling again takes up from there.
    """
    manifest = read_manifest(blobs, artifact)
    root = directory.absolute()
    for file in manifest.files:
        target = root / file.path
        if not target.resolve().is_relative_to(root.resolve()):
            raise corrupt(artifact.uri, f"{file.path} leads out of the directory", path=file.path)
        if _holds(target, file):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if cache is None:
            _fetch(blobs, file, target)
        else:
            _link(_cached(blobs, file, cache), target)
    return manifest


def blob_name(sha256: str) -> str:
    """Return the name under which bytes of this hash are stored."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _sources(files: Files) -> Iterator[tuple[str, Path | bytes]]:
    if isinstance(files, Mapping):
        yield from files.items()
        return
    if not files.is_dir():
        raise NotFoundError(f"{files} is not a directory", code="TAPE-2003", file=str(files))
    for folder, _, names in os.walk(files):
        for name in names:
            path = Path(folder) / name
            yield path.relative_to(files).as_posix(), path


def digest_of(source: Path | bytes) -> tuple[str, int]:
    """Return hash and size of a file or of bytes. Raises `NotFoundError` (TAPE-2003) where it cannot be read."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest(), len(source)
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return digest, file.tell()
    except OSError as error:
        raise NotFoundError(f"{source} cannot be read: {error.strerror}", code="TAPE-2003", file=str(source)) from error


def send(blobs: Blobs, source: Path | bytes, digest: str, size: int) -> None:
    """Store bytes under their hash; those that are there already are not sent again."""
    with suppress(NotFoundError):
        if blobs.stat(blob_name(digest)).size == size:
            return
    blobs.put(blob_name(digest), source, sha256=digest)


def _encode(manifest: Manifest) -> bytes:
    try:
        return manifest.model_dump_json(indent=1).encode()
    except PydanticSerializationError as error:
        raise InvalidError(f"an artifact's metadata must be JSON: {error}", field="metadata") from error


def _settle(blobs: Blobs, folder: str, data: bytes) -> str:
    name = check_name(f"{folder}/manifest.json")
    try:
        blobs.create(name, data)
    except ConflictError:
        if blobs.read(name) == data:
            return name
        name = f"{folder}/manifest.{hashlib.sha256(data).hexdigest()[:16]}.json"
        blobs.put(name, data)
    return name


def _holds(path: Path, file: ArtifactFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and digest_of(path)[0] == file.sha256


def _fetch(blobs: Blobs, file: ArtifactFile, path: Path) -> None:
    try:
        blobs.fetch(blob_name(file.sha256), path, sha256=file.sha256)
    except NotFoundError as error:
        raise NotFoundError(
            f"{file.path} of the artifact is not in the store", code="TAPE-2001", name=blob_name(file.sha256)
        ) from error


def _cached(blobs: Blobs, file: ArtifactFile, cache: Path) -> Path:
    path = cache / "blobs" / file.sha256[:2] / file.sha256
    if not _holds(path, file):  # a cache may rot, or be written to by mistake
        _fetch(blobs, file, path)
        path.chmod(0o444)
    return path


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system
        with source.open("rb") as reader, temporary.open("xb") as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
    temporary.replace(target)
