"""A redrive's plan: which letters would go back, which would not and why, and what that may cost. Nothing is moved."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from producers.dead.filters import Filter
from producers.dead.letter import TWIN, Letter
from producers.redrive.patch import Patch
from schemas import codec
from schemas.dead import Became
from schemas.errors import InvalidError
from schemas.redrive import Estimate, Line, Plan, Skip

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
MAX_REPLAYS = 3


@dataclass(frozen=True)
class Wish:
    """What somebody wants redriven. `targets` are the topics that exist."""

    chosen: Filter
    targets: Collection[str]
    now: datetime
    by: str
    patch: Patch | None = None
    max_replays: int = MAX_REPLAYS
    reason: str = ""


Costs = Callable[[Collection[str]], Mapping[str, float]]
"""Gives the mean seconds of a job by kind, for these kinds and as far as they are known."""


Ended = Callable[[Mapping[str, datetime]], Mapping[str, str]]
"""Gives how those of these jobs ended that did after the moment given for each."""


def plan(wish: Wish, letters: Iterable[Letter], costs: Costs, ended: Ended = lambda _: {}) -> tuple[Plan, bytes]:
    """Return the plan for those letters that the wish's filter takes, and the text of its `plan.jsonl`."""
    died: dict[str, datetime] = {}
    lines = []
    for letter in letters:
        if wish.chosen.takes(letter):
            lines.append(line(letter, wish))
            died[letter.job] = max(letter.died_at, died.get(letter.job, letter.died_at))
    over = ended({one.job: died[one.job] for one in lines if one.skip is None})
    lines = [_over(one, over) for one in lines]
    kept = [one for one in lines if one.skip not in {Skip.REDRIVEN, Skip.DISCARDED}]  # their fates tell all of them
    text = "".join(one.model_dump_json(exclude_none=True) + "\n" for one in kept).encode()
    going = [one for one in lines if one.skip is None]
    made = Plan(
        id=identity(wish.now),
        created_at=wish.now,
        by=wish.by,
        reason=wish.reason,
        filters=wish.chosen.told(),
        patch=wish.patch.operations if wish.patch else None,
        max_replays=wish.max_replays,
        letters=len(going),
        skipped=_counted(one.skip for one in lines if one.skip is not None),
        codes=_counted(one.code for one in going),
        classes=_counted(one.failure for one in going),
        kinds=_counted(one.kind for one in going),
        topics=sorted({one.letter.partition("/")[0] for one in going}),
        targets=_counted(one.target for one in going if one.target is not None),
        estimate=estimate(going, costs({one.kind for one in going if one.gpu_seconds is None})),
        sha256=hashlib.sha256(text).hexdigest(),
    )
    return made, text


def _over(one: Line, over: Mapping[str, str]) -> Line:
    if one.skip is not None or one.job not in over:
        return one
    return one.model_copy(update={"skip": Skip.ENDED, "detail": over[one.job]})


def line(letter: Letter, wish: Wish) -> Line:
    """Return what the plan says of one letter."""
    skip, detail = judge(letter, wish)
    return Line(
        letter=str(letter.place),
        job=letter.job,
        kind=letter.kind,
        target=letter.origin.target,
        failure=str(letter.origin.failure),
        code=letter.origin.code,
        replays=letter.replays,
        gpu_seconds=letter.gpu_seconds,
        skip=skip,
        detail=detail,
    )


def judge(letter: Letter, wish: Wish) -> tuple[Skip | None, str | None]:
    """Return why a letter must stay, with more about it; None for one that may go."""
    if letter.fate is not None and letter.fate.became is not Became.RESTORED:
        skip = Skip.REDRIVEN if letter.fate.became is Became.REDRIVEN else Skip.DISCARDED
        return skip, f"{letter.fate.by}, {letter.fate.time.isoformat(timespec='seconds')}"
    target, value = letter.origin.target, letter.record.value
    reasons: tuple[tuple[bool, Skip, str | None], ...] = (
        (letter.status == TWIN, Skip.TWIN, letter.origin.place),
        (letter.replays >= wish.max_replays, Skip.REPLAYS, f"{letter.replays} times"),
        (bool(letter.origin.wrong), Skip.HEADERS, letter.origin.wrong),
        (target is None, Skip.UNTOLD, None),
        (target is not None and letter.names.closed(target), Skip.CLOSED, target),
        (target not in wish.targets, Skip.TOPIC, target),
        (value is None and (letter.record.key is None or letter.origin.cut > 0), Skip.EMPTY, letter.origin.place),
    )
    found = next(((skip, detail) for holds, skip, detail in reasons if holds), None)
    return found or _mended(letter, wish)


def estimate(lines: Sequence[Line], costs: Mapping[str, float]) -> Estimate:
    """Return what these jobs may cost: what their own attempts did, else their kind's mean, else it is unknown."""
    own = [one.gpu_seconds for one in lines if one.gpu_seconds is not None]
    means = [costs[one.kind] for one in lines if one.gpu_seconds is None and one.kind in costs]
    unknown = len(lines) - len(own) - len(means)
    seconds = round(sum(own) + sum(means), 1) if own or means else None
    return Estimate(gpu_seconds=seconds, letters=len(own), kinds=len(means), unknown=unknown)


def read(text: bytes) -> list[Line]:
    """Return the lines of a `plan.jsonl`."""
    return [Line.model_validate_json(one) for one in text.splitlines()]


def identity(now: datetime) -> str:
    """Return a new redrive's id: short enough to be typed, and sorted by time."""
    return f"{now.astimezone(UTC):%Y%m%d-%H%M}-" + "".join(secrets.choice(_LETTERS) for _ in range(4))


def _mended(letter: Letter, wish: Wish) -> tuple[Skip | None, str | None]:
    body = letter.body
    if wish.patch is not None:
        try:
            body = codec.parse_object(wish.patch.apply(letter))
        except InvalidError as error:
            skip = Skip.PATCH if error.code == "TAPE-1012" else Skip.MENDED
            return skip, error.message
    deadline = deadline_of(letter, body)
    if deadline is not None and deadline <= wish.now:
        return Skip.EXPIRED, deadline.isoformat(timespec="seconds")
    return None, None


def deadline_of(letter: Letter, body: Mapping[str, object]) -> datetime | None:
    """Return the moment after which a worker would not start the job: `expires_at`, else `ce_expirytime`."""
    if letter.lane is None:
        return None
    inner = body.get("data")
    told = (inner if isinstance(inner, dict) and "specversion" in body else body).get("expires_at")
    header = next((raw for name, raw in letter.record.headers if name.lower() == "ce_expirytime" and raw), b"")
    text = told if isinstance(told, str) else header.decode("utf-8", "replace") or body.get("expirytime")
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def _counted(found: Iterable[str]) -> dict[str, int]:
    return {str(name): count for name, count in Counter(found).most_common()}
