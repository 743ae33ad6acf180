"""References to data and models: fetched once into the worker's cache, verified by hash, then read from there.

blob:NAME       an object in the store, e.g. a data set the client uploaded
artifact:NAME   a manifest in the store, e.g. the adapter that a training made
dataset:NAME    a part of a registered data set: NAME, NAME@VERSION, NAME@ALIAS, each with #PART
builtin:NAME    a base model that Tickertape can make on the spot
file:PATH       a path on the worker's own machine

The store has its own breaker. What comes from elsewhere (a mounted folder, a package that is unpacked) is the
dependency `models`: the kinds that load models need it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from schemas.artifact import Artifact
from schemas.errors import InvalidError, NotFoundError
from wire import datasets
from wire.blobs import Blobs
from wire.blobs.manifest import materialise
from workers.context import Context

MODELS = "models"
BUILTIN = ("smollm2",)


def resolve(ref: str, context: Context, *, field: str) -> Path:
    """Return the local path of what `ref` names, fetched and verified.

    Raises `InvalidError` (TAPE-1002) for another scheme, `NotFoundError` (TAPE-2001, TAPE-2003) for what is not there,
    `JobError` (TAPE-6007) for bytes that are not what they should be, and what `Context.call` raises.
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
    if scheme == "dataset":
        return rows(ref, context, part="test")[1]
    if scheme == "builtin" and rest in BUILTIN:
        from workers.llm.bases import smollm2

        return context.call(MODELS, lambda: smollm2(cache))
    raise InvalidError(
        f"{ref!r} is not a reference", field=field,
        hint=f"use blob:NAME, artifact:NAME, dataset:NAME, file:PATH or builtin:{' | builtin:'.join(BUILTIN)}",
    )  # fmt: skip


def rows(ref: str, context: Context, *, part: str) -> tuple[str, Path]:
    """Return what pins the rows that `ref` names, and their local path; of a data set that names no part, `part`.

    Raises what `resolve` raises, and `NotFoundError` (TAPE-2008) for a data set that is not registered.
    """
    if not ref.startswith(datasets.SCHEME):
        return ref, resolve(ref, context, field="validation" if part == "validation" else "data")
    version, named = datasets.find(context.store, ref, part=part)
    return datasets.pinned(version, named), datasets.fetch(context.store, version.parts[named], context.cache)


def recipe_for(ref: str, asked: str | None) -> str:
    """Return how the rows that `ref` names are read: those of a registered data set have one shape already."""
    return "auto" if asked is None or ref.startswith(datasets.SCHEME) else asked


def _artifact(address: str, store: Blobs, cache: Path) -> Path:
    name, _, pin = address.partition("@sha256:")
    sha256 = pin or hashlib.sha256(store.read(name)).hexdigest()
    folder = cache / "artifacts" / sha256
    artifact = Artifact(uri=f"artifact:{name}", name=name, sha256=sha256, size=0, files=0)
    materialise(store, artifact, folder, cache=cache / "blobs")
    return folder


def _blob(name: str, store: Blobs, cache: Path) -> Path:
    """Keep the suffix (readers look at it); cache by name and etag, so a changed object is fetched again."""
    blob = store.stat(name)
    key = hashlib.sha256(f"{name}\n{blob.etag}".encode()).hexdigest()
    path = cache / "blobs" / f"{key}{Path(name).suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(name, path)
    return path
