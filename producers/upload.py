"""Local files into the store, under the name of their content: the same file again costs one question."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from schemas.errors import ConflictError, InvalidError, NotFoundError, TapeError
from wire.blobs.port import ABSENT, CHUNK, Blobs

FOLDER = "uploads"


def upload(blobs: Blobs, path: Path) -> str:
    """Store a file and return its reference, `blob:uploads/SHA256.SUFFIX`; nothing is sent when it is there already.

    The suffix stays, since it tells workers the format. Raises `NotFoundError` (TAPE-2003) when there is no such file.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        raise InvalidError(
            f"{path} is a folder, and one file is uploaded at a time",
            code="TAPE-1010",
            file=str(path),
            hint="give a file, e.g. JSONL; a model folder is named by file:PATH when the worker can read it",
        )
    try:
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}", code="TAPE-2003", file=str(path)) from error
    found = digest.hexdigest()
    name = f"{FOLDER}/{found}{_suffix(path)}"
    if not _there(blobs, name):
        try:
            blobs.put(name, path, sha256=found, expect=ABSENT)
        except ConflictError:
            pass  # somebody uploaded the same bytes meanwhile
        except TapeError as error:
            if error.code != "TAPE-6007":
                raise
            raise ConflictError(f"{path} changed while it was read", code="TAPE-3002", file=str(path)) from error
    return f"blob:{name}"


def _there(blobs: Blobs, name: str) -> bool:
    try:
        blobs.stat(name)
    except NotFoundError:
        return False
    return True


def _suffix(path: Path) -> str:
    whole = "".join(path.suffixes[-2:]).lower()
    return whole if re.fullmatch(r"(\.[a-z0-9]{1,10}){0,2}", whole) else ""
