"""Redrives as they are kept: the plan, written once, and the state, which every step replaces by compare-and-swap."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from producers.redrive.plan import read
from schemas import codec
from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError, TapeError
from schemas.redrive import PHASES, Line, Note, Phase, Plan, Redrive
from wire.blobs import Blobs

ROOT = "redrives"
TRIES = 20
"""How often in a row somebody else may be quicker in changing a state."""
DIARY = 50
"""Notes that are kept: the first and the newest."""


def step(redrive: Redrive, phase: Phase, *, now: datetime, **fields: Any) -> Redrive:
    """Return the redrive in its next phase. Raises `ConflictError` (TAPE-3007) where `PHASES` does not allow that."""
    if phase not in PHASES[redrive.phase]:
        raise ConflictError(f"the redrive is {redrive.phase}", code="TAPE-3007", redrive=redrive.plan.id)
    return redrive.model_copy(update={**fields, "phase": phase, "updated_at": now})


def noted(redrive: Redrive, what: str, *, by: str, now: datetime) -> Redrive:
    """Return the redrive with one more entry in its diary."""
    notes = (*redrive.notes, Note(time=now, by=by, what=what))
    if len(notes) > DIARY:
        notes = (notes[0], *notes[-(DIARY - 1) :])
    return redrive.model_copy(update={"notes": notes, "updated_at": now})


class Kept:
    """One redrive in the store, with the etag that its next change must name."""

    def __init__(self, blobs: Blobs, redrive: Redrive, etag: str) -> None:
        self._blobs = blobs
        self.redrive, self._etag = redrive, etag

    def save(self, redrive: Redrive) -> None:
        """Replace the state. Raises `ConflictError` (TAPE-3002) if somebody else changed it meanwhile."""
        blob = self._blobs.replace(state_name(redrive.plan.id), codec.dump(redrive), self._etag)
        self.redrive, self._etag = redrive, blob.etag

    def changed(self) -> bool:
        """Whether somebody else wrote the state since it was read or saved here."""
        return self._blobs.stat(state_name(self.redrive.plan.id)).etag != self._etag

    def again(self) -> Redrive:
        """Read the state again."""
        fresh = load(self._blobs, self.redrive.plan.id)
        self.redrive, self._etag = fresh.redrive, fresh._etag
        return self.redrive

    def lines(self) -> list[Line]:
        """Return the plan's lines. Raises `JobError` (TAPE-6007) if they are not what was planned."""
        plan = self.redrive.plan
        return read(self._blobs.read(plan_name(plan.id), sha256=plan.sha256))


def create(blobs: Blobs, plan: Plan, text: bytes) -> Kept:
    """Keep a new plan; the redrive exists once its state does. Raises `ConflictError` (TAPE-3001) for a taken id."""
    if hashlib.sha256(text).hexdigest() != plan.sha256:
        raise JobError("the plan's lines are not those that were counted", code="TAPE-6007", redrive=plan.id)
    what = f"planned {plan.letters} letters" + (f": {plan.reason}" if plan.reason else "")
    redrive = Redrive(plan=plan, updated_at=plan.created_at)
    redrive = noted(redrive, what, by=plan.by, now=plan.created_at)
    try:
        blobs.stat(state_name(plan.id))
    except NotFoundError:
        blobs.put(plan_name(plan.id), text, sha256=plan.sha256, content_type="application/jsonl")
    blob = blobs.create(state_name(plan.id), codec.dump(redrive))
    return Kept(blobs, redrive, blob.etag)


def load(blobs: Blobs, identity: str) -> Kept:
    """Read a redrive. Raises `NotFoundError` (TAPE-2006), `InvalidError` for a state that nobody can read."""
    try:
        blob = blobs.stat(state_name(identity))
        redrive = codec.parse(Redrive, blobs.read(state_name(identity)), redrive=identity)
    except (NotFoundError, InvalidError) as error:
        if error.code == "TAPE-2001" or (isinstance(error, InvalidError) and error.place.get("field") == "name"):
            raise NotFoundError("no redrive has this id", code="TAPE-2006", redrive=identity) from None
        raise
    # Read after its etag was: if it changed in between, the next save is refused and it is read again.
    return Kept(blobs, redrive, blob.etag)


def every(blobs: Blobs) -> Iterator[Redrive]:
    """Yield all redrives, oldest first; those that nobody can read are left out."""
    names = sorted(blob.name for blob in blobs.list(f"{ROOT}/") if blob.name.endswith("/state.json"))
    for name in names:
        try:
            yield load(blobs, name.split("/")[1]).redrive
        except TapeError as error:
            if error.code not in {"TAPE-2006", "TAPE-1001", "TAPE-1002", "TAPE-6007"}:
                raise


def state_name(identity: str) -> str:
    """Return the name of a redrive's state in the store."""
    return f"{ROOT}/{identity}/state.json"


def plan_name(identity: str) -> str:
    """Return the name of a plan's lines in the store."""
    return f"{ROOT}/{identity}/plan.jsonl"


def halt(blobs: Blobs, identity: str, *, by: str, now: datetime, reason: str) -> Redrive:
    """Write into a redrive's state that it must stop; its runner heeds that within about a second.

    Raises `NotFoundError` (TAPE-2006), `ConflictError` TAPE-3007 for one that is done.
    """
    what = "halted on request" + (f": {reason}" if reason else "")
    for _ in range(TRIES):
        kept = load(blobs, identity)
        if kept.redrive.phase is Phase.HALTED:
            return kept.redrive
        try:
            kept.save(noted(step(kept.redrive, Phase.HALTED, now=now), what, by=by, now=now))
            return kept.redrive
        except ConflictError as error:
            if error.code != "TAPE-3002":
                raise
    raise ConflictError("the redrive's state changes too often", code="TAPE-3002", redrive=identity)
