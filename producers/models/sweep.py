"""Old versions removed, and of their bytes those that nothing names any more.

A version stays while an alias points to it or would after a rollback, while a version that stays was made of it (as its
base, its teacher or for its tokenizer), and while it is among the newest of its name. Bytes stay while anything in the
store names them: any JSON object outside `blobs/` and `uploads/`, whatever it is, that holds their hash or their
manifest's name. The store does not tell how old an object is, so nothing is looked at but what the removed versions
name: bytes that were orphaned in another way stay.

Who publishes the very same bytes at the very same moment may have found a blob there that goes now; `verify` tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from producers.models.shelf import Shelf
from schemas.artifact import ArtifactFile
from schemas.errors import ConflictError, JobError, NotFoundError
from schemas.lineage import SCHEME, TOP, ModelVersion
from schemas.outcome import outcome_name
from wire.blobs import Blobs
from wire.blobs.manifest import SCHEME as ARTIFACT
from wire.blobs.manifest import blob_name, read_manifest

_HASH = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_MANIFEST = re.compile(rb"artifacts/[^\"\\]+?(?=@sha256:|[\"\\])")
_DATA = ("blobs/", "uploads/")


@dataclass(frozen=True, slots=True)
class Thing:
    """One object that goes: a version, a manifest or a blob, and its bytes."""

    what: str
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep takes: the versions, what goes with them, and how many of their bytes others still need."""

    versions: tuple[ModelVersion, ...]
    things: tuple[Thing, ...]
    held: int

    @property
    def size(self) -> int:
        """Bytes that become free."""
        return sum(thing.size for thing in self.things)


def plan(
    shelf: Shelf, *, name: str | None = None, keep: int = 5, before: datetime | None = None, outcomes: bool = False
) -> Plan:
    """Return what a sweep would take now: versions beyond the newest `keep` of each name, older than `before`.

    With `outcomes`, what the outcome of a version's own job names is not held by that. Raises `NotFoundError`
    (TAPE-2008) for a name that there is not, `InvalidError` for a version that cannot be read: what it names
    is not known then.
    """
    names = shelf.registry.names()
    found = {each: shelf.registry.versions(each) for each in names}
    if name is not None and name not in found:
        shelf.registry.versions(name)
    going = {
        version.version + each: version
        for each, versions in found.items()
        if name in (None, each)
        for version in _old(shelf, each, versions, keep, before)
    }
    everything = [version for versions in found.values() for version in versions]
    while needed := {one for one in _bases(everything, going) if one in going}:
        for one in needed:
            del going[one]
    chosen = tuple(going.values())
    return _with_bytes(shelf.blobs, chosen, outcomes)


def sweep(shelf: Shelf, planned: Plan, *, outcomes: bool = False) -> Plan:
    """Remove the versions of a plan, then what nothing names now; return what was removed.

    A version that was promoted since stays. What is there is looked at anew once they are gone.
    """
    removed = tuple(version for version in planned.versions if _removed(shelf, version))
    done = _with_bytes(shelf.blobs, removed, outcomes)
    for thing in done.things:
        if thing.what != "version":
            shelf.blobs.delete(thing.name)
    return done


def _removed(shelf: Shelf, version: ModelVersion) -> bool:
    try:
        shelf.registry.remove(version)
    except ConflictError:
        return False
    if version.version in shelf.registry.aliases(version.name).aliases.values():
        shelf.registry.add(version)  # promoted between the look and the removal
        return False
    return True


def _old(
    shelf: Shelf, name: str, versions: list[ModelVersion], keep: int, before: datetime | None
) -> Iterator[ModelVersion]:
    held = shelf.registry.aliases(name)
    pointed = {*held.aliases.values(), *(held.former(alias) for alias in held.aliases)}
    for version in versions[: len(versions) - keep] if keep else versions:
        if version.version not in pointed and (before is None or version.created_at < before):
            yield version


def _bases(versions: Iterable[ModelVersion], going: dict[str, ModelVersion]) -> Iterator[str]:
    """Yield what the versions that stay were made on."""
    for version in versions:
        if version.version + version.name in going:
            continue
        for ref in (version.base, version.teacher, version.tokenizer):
            if ref is not None and ref.startswith(SCHEME):
                name, _, at = ref.removeprefix(SCHEME).partition("@")
                yield at + name


def _with_bytes(blobs: Blobs, versions: tuple[ModelVersion, ...], outcomes: bool) -> Plan:
    """Return the plan that takes these versions: with the manifests and blobs that only they name."""
    things = [Thing("version", f"{version.name}@{version.version}", 0) for version in versions]
    if not versions:
        return Plan((), (), 0)
    manifests = {version.artifact.uri.removeprefix(ARTIFACT): version for version in versions}
    apart = {f"{TOP}/{version.name}/versions/{version.version}.json" for version in versions} | set(manifests)
    if outcomes:
        apart |= {outcome_name(version.job) for version in versions}
    hashes, names = _named(blobs, apart)
    candidates: dict[str, ArtifactFile] = {}
    for name, version in manifests.items():
        listed = _listed(blobs, version)
        if name in names or version.artifact.sha256 in hashes:
            hashes |= {file.sha256 for file in listed}
        elif listed:
            things.append(Thing("manifest", name, blobs.stat(name).size))
        candidates |= {file.sha256: file for file in listed}
    free = [file for sha256, file in sorted(candidates.items()) if sha256 not in hashes]
    things += [Thing("blob", blob_name(file.sha256), file.size) for file in free]
    held = sum(file.size for file in candidates.values()) - sum(file.size for file in free)
    return Plan(versions, tuple(things), held)


def _named(blobs: Blobs, apart: set[str]) -> tuple[set[str], set[str]]:
    """Return the hashes and the manifests that the store's JSON objects name, but for those set `apart`."""
    hashes: set[str] = set()
    names: set[str] = set()
    for blob in blobs.list():
        if blob.name in apart or not blob.name.endswith(".json") or blob.name.startswith(_DATA):
            continue
        try:
            data = blobs.read(blob.name)
        except NotFoundError:  # a job just ended, and its checkpoints went
            continue
        hashes |= {found.decode() for found in _HASH.findall(data)}
        names |= {found.decode(errors="replace") for found in _MANIFEST.findall(data)}
    return hashes, names


def _listed(blobs: Blobs, version: ModelVersion) -> list[ArtifactFile]:
    try:
        return read_manifest(blobs, version.artifact).files
    except (NotFoundError, JobError):  # broken already: what it named is not known, so it stays
        return []
