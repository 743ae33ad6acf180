"""A store with registered models that no training made: versions of small files, each with all its lineage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.artifact import Artifact
from schemas.codec import dump
from schemas.lineage import TOP, ModelVersion, version_of
from schemas.outcome import Outcome, Status, outcome_name
from wire.blobs import Blobs
from wire.blobs.manifest import publish, read_manifest
from wire.registry import Registry

BORN = datetime(2020, 1, 1, tzinfo=UTC)
HASH = "5" * 64


class Stock:
    """Versions put into a store; each is a day younger than the one before."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.registry = Registry(blobs, TOP, ModelVersion)
        self.made = 0

    def put(self, weights: bytes, name: str = "mood", **given: Any) -> ModelVersion:
        """Register a version whose weights are these; its config is the same in all."""
        self.made += 1
        job = given.pop("job", f"job-{self.made}")
        artifact = self.artifact(weights, job)
        loss = given.pop("loss", 0.5)
        return self.registry.add(ModelVersion(**{
            "name": name, "version": version_of(read_manifest(self.blobs, artifact).files),
            "created_at": BORN + timedelta(days=self.made), "created_by": "acme", "artifact": artifact,
            "method": "lora", "base": "file:/models/tiny", "base_sha256": HASH,
            "data": f"blob:uploads/rows.jsonl@sha256:{HASH}", "data_sha256": HASH,
            "request": {
                "base": "file:/models/tiny", "data": "blob:uploads/rows.jsonl", "steps": 3, "lora": {"rank": 8},
                "publish_as": name, "seed": 0,
            },
            "settings": {"threads": 2, "rank": 8}, "seed": 0, "job": job, "attempt": 1,
            "metrics": {"loss": loss, "validation_loss": 0.75, "seconds": 1.5}, "versions": {"torch": "2.8"},
            "commit": "c" * 40, "processor": "a processor", "exact": True, **given,
        }))  # fmt: skip

    def artifact(self, weights: bytes, job: str) -> Artifact:
        files = {"adapter_model.safetensors": weights, "adapter_config.json": b'{"r": 8}'}
        return publish(self.blobs, files, job=job, kind="training", name="adapter")

    def end(self, version: ModelVersion) -> None:
        """Write the outcome of the job that made a version."""
        outcome = Outcome(
            job=version.job, kind="training", status=Status.SUCCEEDED, attempt=1, worker="w", finished_at=BORN,
            artifacts=[version.artifact],
        )  # fmt: skip
        self.blobs.put(outcome_name(version.job), dump(outcome))

    def names(self, prefix: str = "") -> set[str]:
        return {blob.name for blob in self.blobs.list(prefix)}


def at(version: ModelVersion) -> str:
    """`NAME@VERSION`."""
    return f"{version.name}@{version.version}"
