"""Are the bytes of a version what they were? And: the bytes of a version in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from schemas.artifact import ArtifactFile
from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError, TapeError
from schemas.lineage import ModelVersion, version_of
from wire.blobs import Blobs
from wire.blobs.manifest import blob_name, digest_of, materialise, read_manifest
from wire.blobs.port import CHUNK, corrupt
from wire.registry import Registry


@dataclass(frozen=True, slots=True)
class Broken:
    """A file of a version that is not what it was: missing, or other bytes."""

    file: str
    name: str
    code: str
    problem: str


def files(blobs: Blobs, version: ModelVersion) -> list[ArtifactFile]:
    """Return the files of a version, as its manifest lists them, which must be the one the version was made of.

    Raises `NotFoundError` (TAPE-2001), `JobError` (TAPE-6007).
    """
    found = read_manifest(blobs, version.artifact).files
    if version_of(found) != version.version:
        raise corrupt(version.artifact.uri, f"its files are not {version.name}@{version.version}")
    return found


def present(blobs: Blobs, version: ModelVersion) -> None:
    """Raise `NotFoundError` (TAPE-2001) or `JobError` (TAPE-6007) unless every file is there, with its size."""
    for file in files(blobs, version):
        name = blob_name(file.sha256)
        found = blobs.stat(name).size
        if found != file.size:
            raise corrupt(name, f"{file.path} has {file.size} bytes, here are {found}")


def every(registry: Registry[ModelVersion]) -> tuple[list[ModelVersion], list[TapeError]]:
    """Return all versions, and an error for each name that has one which cannot be read."""
    versions: list[ModelVersion] = []
    errors: list[TapeError] = []
    for name in registry.names():
        try:
            versions += registry.versions(name)
        except (JobError, InvalidError) as error:
            errors.append(error)
    return versions, errors


def verify(blobs: Blobs, versions: Iterable[ModelVersion]) -> Iterator[tuple[ModelVersion, int, list[Broken]]]:
    """Yield each version with the number of its files and those that are broken; every byte is read, shared ones once.

    Raises `UnavailableError`, `AuthError`: what cannot be read now may be well.
    """
    known: dict[str, tuple[str, str] | None] = {}
    for version in versions:
        try:
            listed = files(blobs, version)
        except (NotFoundError, JobError, InvalidError) as error:
            name = version.artifact.uri.partition(":")[2]
            yield version, 0, [Broken("the list of its files", name, error.code, error.message)]
            continue
        broken = []
        for file in listed:
            if file.sha256 not in known:
                known[file.sha256] = _problem(blobs, file)
            if (problem := known[file.sha256]) is not None:
                broken.append(Broken(file.path, blob_name(file.sha256), *problem))
        yield version, len(listed), broken


def export(blobs: Blobs, version: ModelVersion, folder: Path) -> bool:
    """Bring a version into a folder, every byte verified; return whether anything had to be written.

    A folder that was not there appears whole or not at all; one that was there keeps what it had, and nothing of an
    export that fails. Raises `ConflictError` (TAPE-3001) for a folder that holds anything else, `InvalidError`
    (TAPE-1010) for what is no folder, `NotFoundError` (TAPE-2001), `JobError` (TAPE-6007).
    """
    wanted = {file.path: file.sha256 for file in files(blobs, version)}
    if folder.exists() and not folder.is_dir():
        raise InvalidError(f"{folder} is no folder", code="TAPE-1010", field="FOLDER", hint="choose another")
    there = {path.relative_to(folder).as_posix(): path for path in _below(folder)}
    for name, path in sorted(there.items()):
        if digest_of(path)[0] != wanted.get(name):
            raise ConflictError(
                f"{folder} holds {name}, which is not of {version.name}@{version.version}", code="TAPE-3001",
                file=str(path), hint="choose an empty folder, or one that does not exist yet",
            )  # fmt: skip
    if folder.exists():
        _filled(blobs, version, folder, set(wanted) - set(there))
    else:
        _appears(blobs, version, folder)
    return set(there) != set(wanted)


def _appears(blobs: Blobs, version: ModelVersion, folder: Path) -> None:
    """Bring a version into a folder beside the one that is wanted, which takes its name in the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name[:200]}-", dir=folder.parent) as beside:
        made = Path(beside) / "whole"  # with the rights that any new folder has, and a temporary one has not
        materialise(blobs, version.artifact, made)
        made.rename(folder)


def _filled(blobs: Blobs, version: ModelVersion, folder: Path, lacking: set[str]) -> None:
    """Bring what a folder lacks of a version into it, all of it or nothing."""
    folders = {path for path in folder.rglob("*") if path.is_dir()}
    try:
        materialise(blobs, version.artifact, folder)
    except BaseException:
        for name in lacking:
            (folder / name).unlink(missing_ok=True)
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            if path not in folders:
                with suppress(OSError):
                    path.rmdir()
        raise


def _below(folder: Path) -> Iterator[Path]:
    for top, _, names in os.walk(folder):
        yield from (Path(top) / name for name in names)


def _problem(blobs: Blobs, file: ArtifactFile) -> tuple[str, str] | None:
    try:
        with blobs.get(blob_name(file.sha256), sha256=file.sha256) as reader:
            while reader.read(CHUNK):
                pass
    except (NotFoundError, JobError) as error:
        return error.code, error.message
    return None
