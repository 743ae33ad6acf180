"""Local files and folders into the store, under the name of their content: the same bytes again are not sent."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from schemas.errors import ConflictError, NotFoundError, TapeError
from wire.blobs.manifest import publish
from wire.blobs.port import CHUNK, Blobs

FOLDER = "uploads"


def upload(blobs: Blobs, path: Path) -> str:
    """Store a file or a folder and return its reference; what is there already is not sent again.

    A file is `blob:uploads/SHA256.SUFFIX` (the suffix tells workers the format), a folder such as a model directory an
    `artifact:`. Raises `NotFoundError` (TAPE-2003) when there is no such path.
    """
    if path.is_dir():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-._") or "folder"
        return publish(blobs, path, job=FOLDER, kind="upload", name=name).uri
    digest = hashlib.sha256()
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
            # Unconditional: whoever uploads the same name meanwhile writes the same bytes, and size is no matter then.
            blobs.put(name, path, sha256=found)
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
