"""Tokens of rows, kept in the store: who trains on the same rows with the same tokenizer does not make them again.

    tokens/KEY/SHA256.safetensors    KEY over all that decides about them (`workers.llm.tokens`), SHA256 over the bytes
    tokens/KEY/used-20261121         the day they were last wanted

The hash is in the name, so an object is whole and right, or it is none: what does not fit it is deleted, and made anew.
Nothing here is needed by anybody: a store that has trouble costs the time to make them, and never the training. What
nobody has wanted for a month is deleted by whoever next puts something there, in the store and on the worker's disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from schemas.errors import TapeError
from schemas.ids import uuid7
from wire.blobs import Blobs
from wire.blobs.manifest import digest_of

_LOG = structlog.get_logger("tickertape.tokens")
TOP = "tokens/"
ENDING = ".safetensors"
USED = "used-"
DAYS = 30
"""How long what nobody wants is kept."""


class Tokens:
    """The tokens in the store, and copies of them in a folder of this worker's."""

    def __init__(self, store: Callable[[], Blobs], cache: Path, *, today: Callable[[], datetime] | None = None) -> None:
        self._store, self._folder = store, cache / "tokens"
        self._today = today or (lambda: datetime.now(UTC))

    def find(self, key: str) -> Path | None:
        """Return the local file of a key's tokens, every byte verified; None where there are none."""
        try:
            return self._find(key)
        except (TapeError, OSError) as error:
            _LOG.warning("tokens not looked up", key=key, error=str(error))
            return None

    def keep(self, key: str, path: Path) -> None:
        """Put a file there as the tokens of a key, and delete what is old."""
        try:
            self._keep(key, path)
        except (TapeError, OSError) as error:
            _LOG.warning("tokens not kept", key=key, error=str(error))

    def _find(self, key: str) -> Path | None:
        names = sorted(blob.name for blob in self._store().list(f"{TOP}{key}/"))
        for name in names:
            if name.endswith(ENDING) and (path := self._fetched(name)) is not None:
                self._touch(path)
                self._mark(key, names)
                return path
        return None

    def _fetched(self, name: str) -> Path | None:
        sha256 = name.rpartition("/")[2].removesuffix(ENDING)
        path = self._folder / f"{sha256}{ENDING}"
        if path.is_file() and digest_of(path)[0] == sha256:
            return path
        try:
            self._store().fetch(name, path, sha256=sha256)
        except TapeError as error:
            if error.code == "TAPE-6007":
                _LOG.warning("tokens are not what they were", name=name)
                self._store().delete(name)
            elif error.code != "TAPE-2001":  # somebody swept it
                raise
            return None
        return path

    def _keep(self, key: str, path: Path) -> None:
        sha256, _ = digest_of(path)
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{uuid7()}.part"
        shutil.copyfile(path, partial)
        self._touch(partial)
        partial.replace(self._folder / f"{sha256}{ENDING}")
        self._mark(key, [])  # first: what has no day counts as old
        self._store().put(f"{TOP}{key}/{sha256}{ENDING}", path, sha256=sha256)
        self._sweep()

    def _touch(self, path: Path) -> None:
        now = self._today().timestamp()
        os.utime(path, (now, now))

    def _mark(self, key: str, names: list[str]) -> None:
        """Say that they were wanted today; once a day is enough."""
        name = f"{TOP}{key}/{USED}{self._today():%Y%m%d}"
        if name not in names:
            self._store().put(name, b"")
        for old in names:
            if f"/{USED}" in old and old < name:
                self._store().delete(old)

    def _sweep(self) -> None:
        before = self._today() - timedelta(days=DAYS)
        found: dict[str, list[str]] = {}
        for blob in self._store().list(TOP):
            found.setdefault(blob.name.rpartition("/")[0], []).append(blob.name)
        for names in found.values():
            if max(_day(name) for name in names) < f"{before:%Y%m%d}":
                for name in sorted(names, key=_day):  # the day last: whoever dies in between leaves what is old, still
                    self._store().delete(name)
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()


def _day(name: str) -> str:
    """Return the day that a name tells, as 20261121; nothing where it tells none."""
    last = name.rpartition("/")[2]
    return last.removeprefix(USED) if last.startswith(USED) else ""
