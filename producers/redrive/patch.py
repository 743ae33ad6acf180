"""Mending payloads on their way back: JSON Patch (RFC 6902) on a request, checked against the contract afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonpatch
from jsonpointer import JsonPointerException

from producers.dead.letter import Letter
from schemas import codec
from schemas.errors import InvalidError, NotFoundError
from schemas.job import PARAMS, Job

NEEDED = {"add": "value", "replace": "value", "test": "value", "move": "from", "copy": "from"}
"""What operations have beside `op` and `path` (RFC 6902 §4)."""


class Patch:
    """A checked JSON Patch. Its paths start at the request: `/params/batch_size`, `/expires_at`, `/tenant`."""

    def __init__(self, operations: Sequence[Mapping[str, Any]], *, file: str | None = None) -> None:
        """Check the operations. Raises `InvalidError` (TAPE-1012) that names the wrong one."""
        self.operations = [dict(operation) for operation in operations]
        for number, operation in enumerate(self.operations, 1):
            try:
                jsonpatch.JsonPatch([operation])
                needed = NEEDED.get(operation["op"])
                if needed is not None and needed not in operation:  # the library finds that out when it applies it
                    raise jsonpatch.InvalidJsonPatch(f"the operation has no member {needed!r}")
            except (jsonpatch.JsonPatchException, JsonPointerException, TypeError) as error:
                told = str(error).splitlines()[0]
                raise InvalidError(
                    f"operation {number}: {told}", code="TAPE-1012", file=file, operation=json.dumps(operation)
                ) from None
        self._patch = jsonpatch.JsonPatch(self.operations)

    @classmethod
    def load(cls, path: Path) -> Patch:
        """Read a patch file. Raises `NotFoundError` (TAPE-2003), `InvalidError` (TAPE-1012)."""
        try:
            found = json.loads(path.read_bytes())
        except OSError as error:
            raise NotFoundError(f"{path} cannot be read: {error.strerror}", code="TAPE-2003", file=str(path)) from error
        except ValueError as error:
            raise InvalidError(f"the patch is not JSON: {error}", code="TAPE-1012", file=str(path)) from None
        if not isinstance(found, list) or not all(isinstance(operation, dict) for operation in found) or not found:
            told = "the patch has no operation" if found == [] else "the patch is no array of operations"
            raise InvalidError(
                told, code="TAPE-1012", file=str(path),
                hint='e.g. [{"op": "replace", "path": "/params/batch_size", "value": 1}]',
            )  # fmt: skip
        return cls(found, file=str(path))

    def apply(self, letter: Letter) -> bytes:
        """Return the mended value of a letter; in a structured CloudEvent its data is mended.

        Raises `InvalidError`: TAPE-1012 when the patch does not apply, TAPE-1001 or 1002 when what comes out is no
        valid request of its kind.
        """
        value = letter.record.value
        try:
            whole = codec.parse_object(value)
        except InvalidError as error:
            raise InvalidError(f"there is nothing to mend: {error.message}", code="TAPE-1012") from None
        data = whole.get("data")
        structured = "specversion" in whole and isinstance(data, dict)
        try:
            mended = self._patch.apply(data if structured else whole)
        except (jsonpatch.JsonPatchException, JsonPointerException) as error:
            raise InvalidError(str(error).splitlines()[0], code="TAPE-1012") from None
        if letter.lane is not None:
            check(mended, letter.kind)
        found = whole | {"data": mended} if structured else mended
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def check(body: Any, kind: str) -> None:
    """Raise `InvalidError` (TAPE-1002) unless `body` is a valid request of this kind."""
    if not isinstance(body, dict):
        raise InvalidError("the request is no JSON object any more", code="TAPE-1002")
    job = codec.parse(Job, body)
    model = PARAMS.get(kind)
    if model is not None:
        codec.parse(model, job.params)
