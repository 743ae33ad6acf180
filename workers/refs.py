"""References to data and models: fetched once into the worker's cache, verified by hash, then read from there.

blob:NAME       an object in the store, e.g. a data set the client uploaded
artifact:NAME   a manifest in the store, e.g. the adapter that a training made
dataset:NAME    a part of a registered data set: NAME, NAME@VERSION, NAME@ALIAS, each with #PART
model:NAME      a registered model, its newest version; model:NAME@ALIAS and model:NAME@VERSION too
builtin:NAME    a base model that Tickertape can make on the spot
file:PATH       a path on the worker's own machine

An object that must be what it was is blob:NAME@sha256:HASH, an artifact artifact:NAME@sha256:HASH.

The store has its own breaker. What comes from elsewhere (a mounted folder, a package that is unpacked) is the
dependency `models`: the kinds that load models need it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from schemas.artifact import Artifact
from schemas.errors import InvalidError, JobError, NotFoundError
from schemas.lineage import PIN
from wire import datasets
from wire.blobs import Blobs
from wire.blobs.manifest import materialise
from workers.context import Context
from workers.lineage import found

MODELS = "models"
BUILTIN = ("smollm2",)


def resolve(ref: str, context: Context, *, field: str) -> Path:
    """Return the local path of what `ref` names, fetched and verified.

    Raises `InvalidError` (TAPE-1002) for another scheme, `NotFoundError` for what is not there (TAPE-2001, 2003) or
    not registered (TAPE-2008), `JobError` (TAPE-6007) for bytes that are not what they should be, and what
    `Context.call` raises.
    """
    cache = context.cache
    scheme, colon, rest = ref.partition(":")
    if not colon or not rest:
        scheme = ""
    if scheme == "file":
        path = Path(rest).expanduser()
        if not context.call(MODELS, path.exists):
            raise NotFoundError(
                "no such file on this worker", code="TAPE-2003", file=str(path), field=field,
                hint="upload it (`tape submit --data FILE` does), or mount it on every worker",
            )  # fmt: skip
        return path
    if scheme == "blob":
        return _blob(rest, context.store, cache)
    if scheme == "artifact":
        return _artifact(rest, context.store, cache)
    if scheme == "model":
        return _model(ref, context, field)
    if scheme == "dataset":
        version, part = datasets.find(context.store, ref, part=datasets.part_for(context.kind, field))
        return datasets.fetch(context.store, version.parts[part], cache)
    if scheme == "builtin" and rest in BUILTIN:
        from workers.llm.bases import smollm2

        return context.call(MODELS, lambda: smollm2(cache))
    raise InvalidError(
        f"{ref!r} is not a reference", field=field,
        hint=f"use blob:, artifact:, dataset:, model: or file: and a name, or builtin:{' | builtin:'.join(BUILTIN)}",
    )  # fmt: skip


def recipe_for(ref: str, asked: str | None) -> str:
    """Return how the rows that `ref` names are read: those of a registered data set have one shape already."""
    return "auto" if asked is None or ref.startswith(datasets.SCHEME) else asked


def _model(ref: str, context: Context, field: str) -> Path:
    version = found(ref, context)
    assert version is not None
    if version.method == "lora" and field in ("base", "teacher"):
        raise InvalidError(
            f"{ref} is an adapter, and a training needs a whole model", field=field,
            hint=f"give its base, {version.base}",
        )  # fmt: skip
    address = version.artifact.uri.removeprefix("artifact:")
    return _artifact(f"{address}{PIN}{version.artifact.sha256}", context.store, context.cache)


def _artifact(address: str, store: Blobs, cache: Path) -> Path:
    name, _, pin = address.partition(PIN)
    sha256 = pin or hashlib.sha256(store.read(name)).hexdigest()
    folder = cache / "artifacts" / sha256
    artifact = Artifact(uri=f"artifact:{name}", name=name, sha256=sha256, size=0, files=0)
    materialise(store, artifact, folder, cache=cache / "blobs")
    return folder


def _blob(address: str, store: Blobs, cache: Path) -> Path:
    """Keep the suffix (readers look at it); cache by name and etag, so a changed object is fetched again."""
    name, _, pin = address.partition(PIN)
    key = pin or hashlib.sha256(f"{name}\n{store.stat(name).etag}".encode()).hexdigest()
    path = cache / "blobs" / f"{key}{Path(name).suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.fetch(name, path, sha256=pin or None)
        except JobError as error:
            if not pin:
                raise
            raise JobError(
                f"{name} is not what it was: its hash is another", code="TAPE-6007", name=name, sha256=pin,
                hint="put back what it was; `tape put` gives names that stay",
            ) from error  # fmt: skip
    return path
