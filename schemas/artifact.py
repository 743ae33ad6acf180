"""Artifacts: a manifest and its content-addressed blobs. An artifact exists when its manifest does."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from schemas.model import Open, Sha256

_UNSAFE = r"^/|(^|/)\.{0,2}(/|$)|[\\\u0000-\u001f]|^[A-Za-z]:"


def _relative(path: str) -> str:
    if re.search(_UNSAFE, path):
        raise ValueError("not a plain relative path: no leading slash, `.`, `..`, backslash or control character")
    return path


RelativePath = Annotated[
    str, Field(min_length=1, json_schema_extra={"not": {"pattern": _UNSAFE}}), AfterValidator(_relative)
]
"""A path that stays below the folder it is joined to, on any system: manifests come from other machines."""


class ArtifactFile(Open):
    """One file of an artifact: its relative path and the blob that holds its bytes."""

    path: RelativePath = Field(description="relative path with forward slashes")
    sha256: Sha256
    size: int = Field(ge=0, description="bytes")


class Manifest(Open):
    """The list of an artifact's files, written last."""

    schema_version: int = 1
    name: str = Field(description="what it is, e.g. `adapter`, `report`, `predictions`")
    kind: str = Field(description="the kind of the job that made it")
    job: str = Field(description="the id of the job that made it")
    files: list[ArtifactFile]
    metadata: dict[str, Any] = Field(default_factory=dict)


class Artifact(Open):
    """A reference to an artifact: where its manifest is, and the hash that proves it."""

    uri: str = Field(description="`artifact:NAME-OF-MANIFEST` in the store")
    name: str
    sha256: Sha256 = Field(description="of the manifest's bytes")
    size: int = Field(ge=0, description="bytes of all files")
    files: int = Field(ge=0)
