"""A model version: an artifact, and all that it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic import Field

from schemas.artifact import Artifact, ArtifactFile
from schemas.dataset import Rule
from schemas.model import Sha256
from schemas.version import Version, VersionId

TOP: Final = "models"
"""Where the registry of models lies in the store."""
SCHEME: Final = "model:"
SCRATCH: Final = "scratch:"
"""What stands for a base that there was not, before the family of the architecture."""
PIN: Final = "@sha256:"
"""What pins a reference to one content: `blob:NAME@sha256:HASH`."""
USES: Final = ("base", "data", "validation", "teacher", "tokenizer", "model", "adapter")
"""The fields of a request that may name a registered version."""


class ModelVersion(Version):
    """`models/NAME/versions/VERSION.json`: what was trained, of what, how, and what it came to.

    The version is the content's: two trainings that end in the same bytes are one version, the first one's.
    """

    artifact: Artifact
    method: Literal["lora", "full"] = Field(
        description="an adapter, which needs its base, or a whole model, however it was trained (`request.method`)"
    )
    base: str = Field(
        description="reference to the base, with an alias replaced by the version that it was then; `scratch:FAMILY`"
        " where there was none, and its weights are those that the seed gives"
    )
    base_sha256: Sha256 = Field(description="of the base's weights, by name and content")
    data: str = Field(description="reference to the rows, with an alias replaced by the version that it was then")
    data_sha256: Sha256
    validation: str | None = None
    validation_sha256: Sha256 | None = None
    warnings: dict[Rule, int] = Field(
        default_factory=dict, description="what was told of the rows and let pass, with its count"
    )
    teacher: str | None = Field(default=None, description="like `base`: what it was distilled from")
    teacher_sha256: Sha256 | None = Field(default=None, description="of the teacher's weights, by name and content")
    tokenizer: str | None = Field(default=None, description="like `base`: whose tokenizer it was built with")
    tokenizer_sha256: Sha256 | None = Field(default=None, description="of that tokenizer's `tokenizer.json`")
    request: dict[str, Any] = Field(description="the parameters of the training as sent, defaults included")
    settings: dict[str, Any] = Field(description="as used: where nothing was asked, what was taken, e.g. threads")
    seed: int
    job: str
    attempt: int = Field(ge=1)
    metrics: dict[str, Any]
    versions: dict[str, str] = Field(description="of Python, Tickertape and the libraries that decide about bytes")
    commit: str | None = Field(default=None, description="of Tickertape's code, where it runs from a checkout")
    processor: str = Field(default="", description="what it was computed on: the accelerator, and the processor")
    exact: bool = Field(description="whether its bytes are those of a run that nobody disturbed")


def version_of(files: Iterable[ArtifactFile]) -> VersionId:
    """Return the version that these files are: 16 digits of a SHA-256 over their paths and hashes, and nothing else."""
    listed = sorted((file.path, file.sha256) for file in files)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def label(ref: str) -> str:
    """Return what people call a reference: without the folder of a machine, and without the hash that pins it."""
    scheme, colon, rest = ref.partition(PIN)[0].partition(":")
    return rest.rsplit("/", 1)[-1] if scheme == "file" else f"{scheme}{colon}{rest}"
