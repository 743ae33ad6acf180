"""Checkpoints of a job in the store: sent while the work goes on, complete when their manifest is.

    runs/<job>/checkpoints/000000000120-2-5f3a/adapter_model.safetensors    step 120, kept by attempt 2
    runs/<job>/checkpoints/000000000120-2-5f3a/manifest.json                last: without it there is no checkpoint
    runs/<job>/checkpoints/versions-1f0c.json       what names meant at the first attempt (`workers.lineage.pinned`)

Every file is verified both ways. An attempt takes up the newest checkpoint that is whole and that it can use, whoever
kept it; one that is broken counts as none. The last few stay, and the best. They are deleted when the job has
succeeded, and stay when it was cancelled.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog
from pydantic import ValidationError

from schemas.artifact import ArtifactFile, Manifest
from schemas.errors import JobError, NotFoundError, TapeError
from schemas.ids import uuid7
from wire.blobs import Blobs
from wire.blobs.manifest import digest_of
from wire.blobs.port import corrupt

_LOG = structlog.get_logger("tickertape.checkpoint")
LOSS = "valid_loss"
"""The fact by which a checkpoint is the best: the least."""
KEPT = 2
"""Checkpoints of a job that stay: should the newest be broken, there is another."""
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in the store: how far it is, who kept it, and what that one said of it."""

    step: int
    folder: str
    manifest: Manifest

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was kept beside the files."""
        return self.manifest.metadata


class Checkpoints:
    """The checkpoints of one attempt's job. `advanced` is told each step that is kept, by the thread that sends it.

    A context manager: at its end what is under way was kept, or given up with a line in the log.
    """

    def __init__(
        self,
        store: Callable[[], Blobs],
        *,
        job: str,
        kind: str,
        attempt: int,
        advanced: Callable[[int], None],
        kept: int = KEPT,
    ) -> None:
        self._store, self._job, self._kind, self._attempt = store, job, kind, attempt
        self._advanced, self._kept = advanced, kept
        self._sending: threading.Thread | None = None
        self._own = uuid7()[-4:]  # attempts that were not spent share a number, and a zombie may write beside us
        self._refused: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def newest(self, into: Path, fits: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> Checkpoint | None:
        """Bring the newest checkpoint whose facts fit into a folder of its own under `into`; None when there is none.

        Raises `UnavailableError` when the store does not answer: beginning anew would cost more than waiting.
        """
        for _ in range(2):  # what was deleted while we read is told anew
            for found in found_of(self._store(), self._job):
                if found.folder in self._refused:
                    continue
                if fits(found.facts) and self._usable(found, into):
                    return found
                _LOG.warning("checkpoint does not fit, or is broken", job=self._job, step=found.step)
                self._refused.add(found.folder)
        return None

    def at(self, step: int, into: Path) -> Checkpoint | None:
        """Bring the checkpoint of a step, if it is there; else as `newest`."""
        self.flush()
        own = (found for found in found_of(self._store(), self._job) if found.step == step)
        return next((found for found in own if self._usable(found, into)), None)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is under way: the next would have to wait for it."""
        return self._sending is not None and self._sending.is_alive()

    def keep(self, step: int, folder: Path, **facts: Any) -> None:
        """Send a folder while the caller goes on, and delete it then; waits while another one is under way.

        One that cannot be kept is no failure of the job: the next will do.
        """
        self.flush()
        self._sending = threading.Thread(target=self._keep, args=(step, folder, facts), name="checkpoint", daemon=True)
        self._sending.start()

    def flush(self) -> None:
        """Wait until nothing is under way."""
        if self._sending is not None:
            self._sending.join()
            self._sending = None

    def _keep(self, step: int, folder: Path, facts: dict[str, Any]) -> None:
        try:
            self._send(step, folder, facts)
            self._advanced(step)
            self._prune()
        except Exception as error:  # a thread's error would be lost
            _LOG.warning("checkpoint not kept", job=self._job, step=step, error=repr(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _send(self, step: int, folder: Path, facts: dict[str, Any]) -> None:
        store, place = self._store(), f"{prefix(self._job)}{step:012d}-{self._attempt}-{self._own}"
        files = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            digest, size = digest_of(path)
            store.put(f"{place}/{name}", path, sha256=digest)
            files.append(ArtifactFile(path=name, sha256=digest, size=size))
        made = Manifest(name="checkpoint", kind=self._kind, job=self._job, files=files, metadata=facts)
        store.put(f"{place}/{MANIFEST}", made.model_dump_json().encode())

    def _usable(self, found: Checkpoint, into: Path) -> bool:
        try:
            self._fetch(found, into / str(found.step))
        except TapeError as error:
            if error.code not in {"TAPE-2001", "TAPE-6007"}:  # neither missing nor broken: the store has trouble
                raise
            _LOG.warning("checkpoint not whole", job=self._job, step=found.step, error=str(error))
            return False
        return True

    def _fetch(self, found: Checkpoint, target: Path) -> None:
        root = target.resolve()
        for file in found.manifest.files:
            path = (root / file.path).resolve()
            if not path.is_relative_to(root):
                raise corrupt(found.folder, f"{file.path} leads out of the folder")
            self._store().fetch(f"{found.folder}/{file.path}", path, sha256=file.sha256)

    def _prune(self) -> None:
        """Delete all but the newest and the best, what was of no use, and what deaths left half-sent before those."""
        store = self._store()
        whole = list(found_of(store, self._job))
        found = [one for one in whole if one.folder not in self._refused]
        if found:
            best = min(found, key=lambda one: one.facts.get(LOSS, math.inf))
            keep, last = {one.folder for one in (*found[: self._kept], best)}, found[: self._kept][-1].folder
            gone = {one.folder for one in whole} - keep
            _delete(store, self._job, lambda folder: folder in gone or (folder < last and folder not in keep))


def prefix(job: str) -> str:
    """Return the place of a job's checkpoints."""
    return f"runs/{job}/checkpoints/"


def found_of(store: Blobs, job: str) -> Iterator[Checkpoint]:
    """Yield a job's complete checkpoints, the newest first. Raises `UnavailableError` and `AuthError` only."""
    folders = {_folder(blob.name, job) for blob in store.list(prefix(job))}
    for step, _, folder in sorted(filter(None, map(_placed, folders)), reverse=True):
        try:
            manifest = Manifest.model_validate_json(store.read(f"{folder}/{MANIFEST}"))
        except (NotFoundError, JobError, ValidationError):  # half-sent, or broken
            continue
        yield Checkpoint(step, folder, manifest)


def clear(store: Blobs, job: str) -> None:
    """Delete all checkpoints of a job."""
    _delete(store, job, lambda _: True)


def _delete(store: Blobs, job: str, which: Callable[[str], bool]) -> None:
    names = [blob.name for blob in store.list(prefix(job)) if which(_folder(blob.name, job))]
    # The manifest first: what is deleted in part must not look whole.
    for name in sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}")):
        store.delete(name)


def _folder(name: str, job: str) -> str:
    return prefix(job) + name.removeprefix(prefix(job)).partition("/")[0]


def _placed(folder: str) -> tuple[int, int, str] | None:
    """Return step, attempt and folder; None for what is no checkpoint's."""
    step, _, rest = folder.rpartition("/")[2].partition("-")
    attempt = rest.partition("-")[0]
    return (int(step), int(attempt), folder) if step.isdecimal() and attempt.isdecimal() else None
