"""Artifacts: a manifest and its content-addressed blobs. An artifact exists when its manifest does."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from schemas.model import Open, Sha256


class ArtifactFile(Open):
    """One file of an artifact: its relative path and the blob that holds its bytes."""

    path: str = Field(min_length=1, description="relative path with forward slashes")
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
