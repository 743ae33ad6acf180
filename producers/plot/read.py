"""Where the metrics of a job are: in its artifact, else in its newest checkpoint and the events since."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from schemas.artifact import ArtifactFile, Manifest
from schemas.errors import JobError, NotFoundError
from schemas.event import Event, EventType
from schemas.outcome import Outcome
from wire.blobs import Blobs
from wire.blobs.manifest import blob_name, read_manifest

METRICS, MANIFEST = "metrics.jsonl", "manifest.json"
Records = list[dict[str, Any]]


def of_artifact(store: Blobs, outcome: Outcome) -> Records | None:
    """Return the metrics that a job's artifact holds; None where none of them has any."""
    for artifact in outcome.artifacts:
        for file in read_manifest(store, artifact).files:
            if file.path == METRICS:
                return _parsed(store, blob_name(file.sha256), file)
    return None


def of_checkpoint(store: Blobs, job: str) -> Records | None:
    """Return the metrics of a job's newest whole checkpoint; None where it has none.

    Folders are named STEP-ATTEMPT-OWNER, the step in twelve digits, so their order is that of the names.
    """
    prefix = f"runs/{job}/checkpoints/"
    found = sorted((blob.name for blob in store.list(prefix) if blob.name.endswith(f"/{MANIFEST}")), reverse=True)
    for name in found:
        try:
            files = Manifest.model_validate_json(store.read(name)).files
            for file in files:
                if file.path == METRICS:
                    return _parsed(store, f"{name.removesuffix(MANIFEST)}{METRICS}", file)
        except (NotFoundError, JobError, ValidationError):  # deleted meanwhile, or broken: the one before will do
            continue
    return None


def of_events(events: Iterable[Event]) -> Records:
    """Return what events tell of steps, each with the `time` since the job started, in seconds.

    A step that comes again, after a death, takes the place of what was told of it and of all after it.
    """
    told: Records = []
    began = None
    for event in events:
        if began is None and event.type in (EventType.RUNNING, EventType.PROGRESS):
            began = event.started_at or event.time
        step = (event.progress or {}).get("step")
        if event.progress is None or type(step) is not int or began is None:
            continue
        if "loss" in event.progress:
            told = [record for record in told if record["step"] < step]
        told.append({**event.progress, "time": round((event.time - began).total_seconds(), 3)})
    return list(_merged(told))


def joined(before: Records, after: Records) -> Records:
    """Return the records of a checkpoint, then those of events behind its last step."""
    last = max((record["step"] for record in before), default=-1)
    return [*before, *(record for record in after if record["step"] > last)]


def _parsed(store: Blobs, name: str, file: ArtifactFile) -> Records:
    try:
        found = [json.loads(line) for line in store.read(name, sha256=file.sha256).splitlines()]
        return list(_merged([one for one in found if type(one["step"]) is int]))
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(f"the metrics cannot be read: {error!r}", code="TAPE-6007", file=name) from error


def _merged(records: Records) -> Iterator[dict[str, Any]]:
    """What was validated after a step belongs to that step: where it is, in epochs or tokens, is said there."""
    steps: dict[int, dict[str, Any]] = {}
    for record in records:
        steps[record["step"]] = {**steps.get(record["step"], {}), **record}
    yield from (steps[step] for step in sorted(steps))
