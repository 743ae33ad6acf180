"""Registered models as a worker sees them: found by reference, and registered with all that they were made of.

A version is registered once its artifact is kept and before the job's outcome is. So a worker that dies in between, or
one whose outcome is refused because the job was taken over, may leave a version that no outcome names. It is whole: its
artifact is, and says what it was made of. Whoever does the work again registers the same version where the bytes are
the same, else one more. `tape models verify` checks both alike, `tape models gc` removes what nobody promoted.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from schemas.artifact import Artifact
from schemas.codec import parse_object
from schemas.errors import ConflictError, InvalidError, NotFoundError
from schemas.job import Training
from schemas.lineage import PIN, SCHEME, TOP, USES, ModelVersion, version_of
from schemas.model import Strict
from wire import datasets
from wire.blobs import Blobs
from wire.blobs.manifest import read_manifest
from wire.registry import Registry
from workers.checkpoint import prefix
from workers.context import Context

P = TypeVar("P", bound=Strict)


def models(store: Blobs) -> Registry[ModelVersion]:
    """Return the registry of models."""
    return Registry(store, TOP, ModelVersion)


def found(ref: str, context: Context) -> ModelVersion | None:
    """Return the version that a `model:` reference names; None for another reference.

    Raises `NotFoundError` (TAPE-2008), `InvalidError` (TAPE-1010).
    """
    return models(context.store).find(ref.removeprefix(SCHEME)) if ref.startswith(SCHEME) else None


def pinned(params: P, context: Context) -> P:
    """Return a request whose references name for ever what they named when the job was first tried.

    The first attempt writes the versions down beside the job's checkpoints, and all others take them from there,
    wherever a name has moved meanwhile. A job that is sent again with other names (a patched redrive) is looked up
    anew. Only what is registered can be pinned.
    Raises what `found` does, and `NotFoundError` (TAPE-2008) for a version that is gone since the first attempt.
    """
    given = {use: getattr(params, use, None) for use in USES}
    asked = {use: ref for use, ref in given.items() if ref and ref.startswith((SCHEME, datasets.SCHEME))}
    if not asked:
        return params
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    place = f"{prefix(context.job)}versions-{digest}.json"
    taken = _taken(place, context)
    if taken is None:
        now = {use: _version(ref, context, use) for use, ref in asked.items()}
        if now == asked or _written(place, now, context):
            return params.model_copy(update=now)
        taken = _taken(place, context) or now
    for use, ref in asked.items():
        _still(ref, taken[use], context, use)
    return params.model_copy(update=taken)


def _taken(place: str, context: Context) -> dict[str, str] | None:
    try:
        return parse_object(context.store.read(place))
    except NotFoundError:
        return None


def _written(place: str, versions: dict[str, str], context: Context) -> bool:
    """Write down what was found; False where another attempt was first."""
    try:
        context.store.create(place, json.dumps(versions, sort_keys=True).encode())
    except ConflictError:
        return False
    return True


def _still(asked: str, taken: str, context: Context, use: str) -> None:
    try:
        _version(taken, context, use)
    except NotFoundError as error:
        raise NotFoundError(
            f"{asked} was {taken} when the job was first tried, and that is gone", code="TAPE-2008", name=taken,
            field=use, hint="submit the job anew: it takes what the name means then",
        ) from error  # fmt: skip


def _version(ref: str, context: Context, use: str) -> str:
    if ref.startswith(datasets.SCHEME):
        return datasets.pinned(*datasets.find(context.store, ref, part=datasets.part_for(context.kind, use)))
    version = found(ref, context)
    return ref if version is None else f"{SCHEME}{version.name}@{version.version}"


def parts(model: str, adapter: str | None, context: Context) -> tuple[str, str | None]:
    """Return what to load: a registered adapter that is given as a model is its base, and itself on top of it.

    Raises `InvalidError` (TAPE-1002) where an adapter is a whole model, or two adapters are given.
    """
    whole = found(model, context)
    if adapter is not None and (tuned := found(adapter, context)) is not None and tuned.method != "lora":
        raise InvalidError(f"{adapter} is a whole model, no adapter", field="adapter", hint="give it as the model")
    if whole is None or whole.method != "lora":
        return model, adapter
    if adapter is not None:
        raise InvalidError(
            f"{model} is an adapter itself", field="model", hint=f"give a whole model, such as its base {whole.base}"
        )
    return whole.base, f"{SCHEME}{whole.name}@{whole.version}"


def register(
    context: Context, params: Training, fixed: Training, *, out: Path, artifact: Artifact, result: dict[str, Any]
) -> str:
    """Register what a training made, with its request as sent and as `pinned`; return `NAME@VERSION`.

    A version that is there already stays as it was first written. Raises `UnavailableError` without the store.
    """
    from workers.llm import resume
    from workers.llm.methods import CONFIG
    from workers.llm.settings import ADAPTERS

    assert params.publish_as is not None
    config = json.loads((out / CONFIG).read_text())
    sha256 = result["data_sha256"]
    held = result.get("validation_sha256")
    version = models(context.store).add(
        ModelVersion(
            name=params.publish_as,
            version=version_of(read_manifest(context.store, artifact).files),
            created_at=datetime.now(UTC),
            created_by=context.tenant,
            artifact=artifact,
            method="lora" if params.method in ADAPTERS else "full",
            base=result["base"],
            base_sha256=result["base_sha256"],
            data=_exactly(fixed.data, sha256),
            data_sha256=sha256,
            validation=_exactly(fixed.validation, held) if fixed.validation and held else None,
            validation_sha256=held,
            teacher=fixed.teacher,
            teacher_sha256=result.get("teacher_sha256"),
            tokenizer=fixed.tokenizer,
            tokenizer_sha256=result.get("tokenizer_sha256"),
            warnings=result.get("warnings", {}),
            request=params.model_dump(mode="json"),
            settings=config["params"],
            seed=params.seed,
            job=context.job,
            attempt=context.attempt,
            metrics={key: value for key, value in result.items() if type(value) in (int, float)},
            versions=_software() | resume.versions(params.method),
            commit=commit(),
            processor=resume.hardware(),
            exact=result["exact"],
        )
    )
    return f"{version.name}@{version.version}"


def _exactly(ref: str, sha256: str) -> str:
    return f"{ref}{PIN}{sha256}" if ref.startswith("blob:") and PIN not in ref else ref


def _software() -> dict[str, str]:
    return {"python": platform.python_version(), "tickertape": metadata.version("tickertape")}


@cache
def commit() -> str | None:
    """Return the commit that this code is, with `-dirty` where it was changed since; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
