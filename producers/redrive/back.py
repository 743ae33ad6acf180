"""One letter's way back: the records that a redrive writes for it, together. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from producers.dead import origin
from producers.dead.letter import Letter
from producers.redrive.watch import queued_id
from producers.request import event_message
from schemas import past
from schemas.dead import ORIGINAL, Became, Fate
from schemas.errors import FailureClass, InvalidError
from schemas.event import queued
from schemas.redrive import Skip
from schemas.topics import Names
from wire.transact import Outgoing


@dataclass(frozen=True, slots=True)
class Errand:
    """Who brings letters back, for which redrive (none: by hand), when and why."""

    names: Names
    redrive: str | None
    by: str
    reason: str
    now: datetime


def back(letter: Letter, value: bytes | None, errand: Errand, *, mended: bool) -> tuple[Fate, list[Outgoing]]:
    """Return a letter's fate, and the records that bring its job back: the job with this value, and its event `queued`.

    The job has its original key and headers; attempts count from zero again, replays one more. A mended one names the
    letter that holds the original. Records of other systems' topics get no event. Raises `InvalidError` (TAPE-1004)
    when nothing tells where the record came from, or what tells it names a topic that takes no requests.
    """
    if letter.origin.cut and value is None:
        told = f"{Skip.EMPTY}, which was {letter.origin.cut:,} bytes"
        raise InvalidError(told, code="TAPE-1004", letter=str(letter.place))
    if letter.origin.wrong:
        raise InvalidError(letter.origin.wrong, code="TAPE-1004", letter=str(letter.place))
    if letter.origin.target is None:
        raise InvalidError("nothing tells the letter's original topic", code="TAPE-1004", letter=str(letter.place))
    if errand.names.closed(letter.origin.target):
        told = f"{Skip.CLOSED}: {letter.origin.target}"
        raise InvalidError(told, code="TAPE-1004", letter=str(letter.place), topic=letter.origin.target)
    fate = Fate(
        became=Became.REDRIVEN,
        letter=str(letter.place),
        origin=letter.origin.place,
        job=letter.job,
        kind=letter.kind,
        code=letter.origin.code,
        target=letter.origin.target,
        redrive=errand.redrive,
        replay=letter.replays + 1,
        patched=mended,
        by=errand.by,
        reason=errand.reason,
        time=errand.now,
    )
    headers = _headers(letter, fate.replay)
    if mended and not any(name == ORIGINAL for name, _ in headers):  # mended twice: the first is the original
        headers.append((ORIGINAL, str(letter.place).encode()))
    ours = letter.lane is not None
    same = letter.origin.target == letter.origin.topic
    partition = None if ours or not same else letter.origin.partition
    job = Outgoing(letter.origin.target, partition, letter.record.key, value, headers)
    return fate, [job, _queued(letter, fate, errand.names)] if ours else [job]


def _headers(letter: Letter, replay: int) -> list[tuple[str, bytes | None]]:
    kept = origin.original(letter.record.headers)
    if letter.lane is None:  # of ours, a stranger's topic gets only what guards against loops
        kept = [header for header in kept if header[0] != past.REPLAY]
        return [*kept, (past.REPLAY, str(replay).encode())]
    # What was tried is told, but counts no more; a wait for a dependency that is told would be one that goes on.
    tried = [one for one in letter.past.tries if one.failure is not FailureClass.DEPENDENCY]
    tries = tuple(one.model_copy(update={"spent": False}) for one in tried)
    return list(past.write(kept, past.Past(spent=0, replays=replay, tries=tries)))


def _queued(letter: Letter, fate: Fate, names: Names) -> Outgoing:
    kind, lane = letter.lane or (letter.kind, "bulk")
    event = queued(
        letter.job, kind=kind, lane=lane, tenant=letter.tenant, time=fate.time, redrive=fate.replay,
        labels=_labels(letter.body.get("labels")), identity=queued_id(letter.job, fate.letter, fate.replay),
    )  # fmt: skip
    message = event_message(event, names.events)
    return Outgoing(message.topic, None, message.key.encode(), message.value, message.headers)


def _labels(found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}
