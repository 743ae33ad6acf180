"""The one oracle: acknowledged ids against outcomes and dead letters, and artifacts against their hashes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from schemas.codec import parse
from schemas.dead import HEADER
from schemas.errors import TapeError
from schemas.event import Event
from schemas.outcome import Outcome
from schemas.topics import Names
from wire.blobs import Blobs, open_store
from wire.blobs.manifest import blob_name, read_manifest
from wire.follow import KafkaFollower
from wire.settings import Settings

RECORDED = "heavy"


@dataclass
class Tally:
    """What became of the jobs of a row."""

    jobs: int
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every job ended exactly once, and what it left is right."""
        return not (self.lost or self.doubled or self.wrong)

    def told(self) -> str:
        """Return what is not clean."""
        parts = (("lost", self.lost), ("doubled", self.doubled), ("wrong", self.wrong))
        return "; ".join(f"{name}: {', '.join(ids[:4])}" for name, ids in parts if ids)


def finals(settings: Settings) -> list[Event]:
    """Return the events that end jobs, repeats of one id dropped."""
    found: dict[str, Event] = {}
    with KafkaFollower(settings).read(Names(settings.prefix).events) as feed:
        for batch in feed:
            for record in batch:
                event = Event.model_validate_json(record.value or b"")
                if event.outcome is not None:
                    found.setdefault(event.id, event)
    return list(found.values())


def letters(settings: Settings, kinds: tuple[str, ...]) -> Counter[str]:
    """Return how many dead records each job has; two letters of one record are known for twins, and count once."""
    found: set[tuple[str, str]] = set()
    for kind in kinds:
        with KafkaFollower(settings).read(Names(settings.prefix).dead(kind)) as feed:
            for batch in feed:
                for record in batch:
                    told = {name: (raw or b"").decode("utf-8", "replace") for name, raw in record.headers}
                    place = "/".join(told[HEADER + part] for part in ("topic", "partition", "offset"))
                    found.add((told[HEADER + "job"], place))
    return Counter(job for job, _ in found)


def judge(settings: Settings, sent: dict[str, str], *, lives: dict[str, int]) -> Tally:
    """Compare what was sent (job to kind) with what came of it.

    `lives` says how often a job may end: once, and once more for every time it was redriven.
    """
    tally = Tally(jobs=len(sent))
    ends: dict[str, list[Outcome]] = {}
    for event in finals(settings):
        if event.job in sent and event.outcome is not None:
            ends.setdefault(event.job, []).append(event.outcome)
    dead = letters(settings, tuple(sorted(set(sent.values()))))
    store = open_store(settings)
    for job, kind in sent.items():
        mine = ends.get(job, [])
        buried = sum(one.status == "dead" for one in mine)
        if not mine:
            tally.lost.append(job)
            continue
        tally.outcomes.update(one.status.value for one in mine)
        if len(mine) > lives.get(job, 1) or dead[job] != buried or len(mine) - buried > 1:
            tally.doubled.append(f"{job} ({len(mine)} ends, {dead[job]} letters)")
        if kind == RECORDED:
            tally.wrong += [f"{job}: {told}" for one in mine if one.status != "dead" for told in _kept(store, one)]
    return tally


def _kept(store: Blobs, told: Outcome) -> list[str]:
    """Return what is wrong with what the store has of a job."""
    try:
        kept = parse(Outcome, store.read(f"runs/{told.job}/outcome.json"))
        if kept != told:
            return ["the event tells another outcome than the store has"]
        for artifact in kept.artifacts:
            for file in read_manifest(store, artifact).files:
                data = store.read(blob_name(file.sha256))
                if hashlib.sha256(data).hexdigest() != file.sha256 or data != _expected(told.job, file.size):
                    return [f"{file.path} is not what the job made"]
    except TapeError as error:
        return [str(error)]
    return []


def _expected(job: str, size: int) -> bytes:
    from tests.campaign.site.tape_campaign import content

    return content(job, size)


def orphans(settings: Settings) -> list[str]:
    """Return the blobs and manifests of artifacts that no outcome names."""
    store = open_store(settings)
    named: set[str] = set()
    for blob in store.list("runs/"):
        if blob.name.endswith("/outcome.json"):
            for artifact in Outcome.model_validate_json(store.read(blob.name)).artifacts:
                named.add(artifact.uri.removeprefix("artifact:"))
                named |= {blob_name(file.sha256) for file in read_manifest(store, artifact).files}
    return [blob.name for top in ("blobs/", "artifacts/") for blob in store.list(top) if blob.name not in named]
