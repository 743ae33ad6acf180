"""Who runs a job: claims in the store, taken by compare-and-swap, kept by a beat, lost to whoever saw no beat.

The broker's lock tells who should run a job, but it is lost in a failover while the job goes on. So before an attempt
runs its start is written to the store, and every other worker that is handed the same job looks there first: a claim
whose beat goes on is left alone, one that is silent is taken over, and its start stays in the ledger as a death. The
old holder, should it thaw, finds that its claim is gone and its outcome is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from schemas.claim import Claim, End, Start
from schemas.codec import dump, parse
from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError
from wire.blobs import Blobs

_LOG = structlog.get_logger("tickertape.claim")
BEAT_S, FAST_S = 5.0, 0.25
"""Between two beats of a claim; the second while this worker doubts its leases."""
DOUBT_S = 30.0
SILENT_S, GONE_S = 12.0, 1.0
"""Silence after which a claim is taken over; the second when the broker says that the former lease has ended."""
SURE_S = 0.8
"""Nobody can have taken a claim over within this time of its last beat; less than `GONE_S`."""
LOOK_S = 0.1
LOST_KEPT, LIVES_KEPT = 10, 50


def claim_name(job: str) -> str:
    """Return the name of a job's claim in the store."""
    return f"runs/{job}/claim.json"


@dataclass(frozen=True, slots=True)
class Busy:
    """Another worker runs the job, and lives."""

    worker: str


@dataclass(frozen=True, slots=True)
class Over:
    """There is no attempt to be made of a record: the one that was came to this end.

    `line` is that of the record by which it ended. `left_over`: another record stands for the job, or its dead letter
    does; without an `end` what stands for it goes on. `life`: the one that came to this end.
    """

    end: End | None
    line: str
    left_over: bool
    life: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """The record by which a job is asked for.

    `life` is the line by which its life of the job began, a client's record or a redriven one; "" where nobody knows:
    then it is the claim's. `redelivered`: the broker ended a former lease of it. `former` is the
    place of the redelivered record that this one was written anew from: that lease is over, too.
    """

    place: str
    line: str
    spent: int = 0
    replays: int = 0
    life: str = ""
    redelivered: bool = False
    former: str = ""

    def follows(self, start: Start) -> int:
        """Return 1 if it was written after that attempt ended, -1 if before it began, 0 if that attempt was at it.

        That is so within one life.
        """
        ours, theirs = (self.replays, self.spent), (start.replays, start.spent)
        return (ours > theirs) - (ours < theirs)

    def lives(self, claim: Claim) -> bool:
        """Whether its life is the one that the claim is for."""
        return not (self.life and claim.origin) or self.life == claim.origin


@dataclass(slots=True)
class _Hold:
    """A claim of ours."""

    claim: Claim
    etag: str
    at: float
    reached: float = 0.0
    fenced: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Claims:
    """The claims of one worker; thread-safe. `wait` sleeps for seconds, and returns True to give up."""

    def __init__(
        self,
        *,
        worker: str,
        store: Callable[[], Blobs],
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._worker, self._store, self._now, self._clock = worker, store, now, clock
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._holds: dict[str, _Hold] = {}
        self._ghosts: dict[str, Start] = {}
        self._taking: set[str] = set()
        self._lock = threading.Lock()
        self._doubt_until = 0.0
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="claims", daemon=True)

    def start(self) -> None:
        """Start the thread that keeps the claims alive."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; claims still held fall silent."""
        self._stopped.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, job: str, copy: Copy, *, above: int = 0) -> Claim | Busy | Over:
        """Claim a job for its next attempt, which is `spent` + deaths + 1; wait for silence where somebody holds it.

        Its epoch is higher than any before, and than `above`: claims may be lost, and what came of them stand.

        Where the record was redelivered a short silence of who took it is enough; whoever has another record of the
        job may hold its lease still. Raises `UnavailableError` when the store does not answer.
        """
        with self._lock:
            if job in self._taking or job in self._holds:
                return Busy(self._worker)
            self._taking.add(job)
        try:
            return self._take(job, copy, above)
        finally:
            self._taking.discard(job)

    def _take(self, job: str, copy: Copy, above: int) -> Claim | Busy | Over:
        watched: tuple[int, int] | None = None
        since = 0.0
        while True:
            claim, etag = _read(self._store(), job)
            if claim is not None and (over := _over(claim, copy)) is not None:
                return over
            ended = claim is None or not claim.held or claim.start.worker == self._worker
            if claim is None or ended or (copy.lives(claim) and copy.follows(claim.start) > 0):
                # Ours, but not held by any attempt: trouble with the store ended one before it ran. And what its
                # holder wrote at its end is here, so it did end.
                if (taken := self._write(job, copy, claim, etag, above)) is not None:
                    return taken
                continue
            beat = claim.start.epoch, claim.beat
            if watched is None:
                watched, since = beat, self._clock()
            elif watched != beat:
                return Busy(claim.start.worker)
            gone = claim.start.place == (copy.place if copy.redelivered else copy.former)
            if self._clock() - since >= (GONE_S if gone else SILENT_S):
                _LOG.warning("claim taken over", job=job, silent=claim.start.worker, epoch=claim.start.epoch)
                last = claim.start.model_copy(update={"reached": claim.reached})
                dead = claim.model_copy(update={"lost": (*claim.lost, last)[-LOST_KEPT:]})
                if (taken := self._write(job, copy, dead, etag, above)) is not None:
                    return taken
            elif self._wait(LOOK_S):
                return Busy(claim.start.worker)

    def _write(self, job: str, copy: Copy, before: Claim | None, etag: str | None, above: int) -> Claim | None:
        """Write a claim of ours; None when somebody was faster."""
        # Deaths at earlier records are in the past of this one, those of another life are none of its own.
        lost = before.lost if before is not None and copy.lives(before) and not copy.follows(before.start) else ()
        start = Start(
            attempt=copy.spent + len(lost) + 1, worker=self._worker,
            epoch=max(before.start.epoch if before else 0, above) + 1,
            started_at=self._now(), place=copy.place, line=copy.line, spent=copy.spent, replays=copy.replays,
        )  # fmt: skip
        origin, lives = copy.life, before.lives if before is not None else ()
        if before is not None and copy.lives(before):
            origin = before.origin or copy.life
        elif before is not None:
            lives = (*lives, before.origin)[-LIVES_KEPT:]
        claim = Claim(job=job, held=True, start=start, origin=origin, lives=lives, lost=lost)
        at = self._clock()
        try:
            if etag is None:
                blob = self._store().create(claim_name(job), dump(claim))
            else:
                blob = self._store().replace(claim_name(job), dump(claim), etag)
        except ConflictError:
            return None
        except BaseException:  # it may be written all the same, and would be taken for a death
            self._ghosts[job] = start
            raise
        self._ghosts.pop(job, None)
        self._holds[job] = _Hold(claim, blob.etag, at)
        return claim

    def reach(self, job: str, checkpoint: float) -> None:
        """A checkpoint of a job is kept; should we die, the claim says so: it is written at once."""
        hold = self._holds.get(job)
        if hold is not None and checkpoint > hold.reached:
            hold.reached = checkpoint
            self._hurry.set()

    def reached(self, job: str) -> float:
        """Return how far the newest checkpoint of a job of ours is; 0: none was kept in this attempt."""
        hold = self._holds.get(job)
        return 0.0 if hold is None else hold.reached

    def sure(self, job: str) -> bool:
        """Whether the job is still ours: by the last beat if that was just now, else by a beat that must succeed.

        Raises `UnavailableError` when the store does not answer.
        """
        hold = self._holds.get(job)
        if hold is None or hold.fenced:
            return False
        if self._clock() - hold.at < SURE_S:
            return True
        self._swap(hold)
        return not hold.fenced

    def free(self, job: str, end: End | None = None) -> bool:
        """The attempt ended, or is handed back: forget its start. False when the claim was not ours any more.

        With its end, the deaths before it are forgotten too: they are in the past of what follows. Raises
        `UnavailableError` when the store does not answer; the claim is still held then.
        """
        hold = self._holds.get(job)
        if hold is None:
            return False
        if not hold.fenced:
            self._swap(hold, {"held": False, "lost": (), "end": end} if end is not None else {"held": False})
        self.drop(job)
        return not hold.fenced

    def abandon(self, job: str) -> None:
        """Nothing ran, or nothing of it counts: stop beating, and free the claim as soon as the store answers."""
        hold = self._holds.pop(job, None)
        if hold is not None and not hold.fenced:
            self._ghosts[job] = hold.claim.start
            self._hurry.set()

    def drop(self, job: str) -> None:
        """Let a claim fall silent: an outcome stands above it, or another worker has it."""
        self._holds.pop(job, None)

    def fenced(self, job: str) -> bool:
        """Whether another worker is known to have taken the job over."""
        hold = self._holds.get(job)
        return hold is not None and hold.fenced

    def doubt(self) -> None:
        """Leases were lost, or the broker is away: others may look at our claims now, so beat often for a while."""
        self._doubt_until = self._clock() + DOUBT_S
        self._hurry.set()

    def beat(self) -> float:
        """Keep the claims alive whose beat is due; return seconds until the next is."""
        pause = FAST_S if self._clock() < self._doubt_until else BEAT_S
        for job, hold in list(self._holds.items()):
            if not hold.fenced and (self._clock() - hold.at >= pause or hold.reached > hold.claim.reached):
                try:
                    self._swap(hold)
                except Exception as error:  # the other claims must not fall silent for it
                    if getattr(error, "code", "") != "TAPE-5010":  # what opened the breaker was told already
                        _LOG.warning("claim not renewed", job=job, error=str(error))
        self._exorcise()
        held = [hold.at for hold in list(self._holds.values()) if not hold.fenced]
        return max(FAST_S, min(held, default=self._clock()) + pause - self._clock())

    def _exorcise(self) -> None:
        """Free the claims of ours that no attempt holds, before anybody takes their silence for a death."""
        for job, start in list(self._ghosts.items()):
            try:
                claim, etag = _read(self._store(), job)
                if claim is not None and etag is not None and claim.start == start and claim.held:
                    self._store().replace(claim_name(job), dump(claim.model_copy(update={"held": False})), etag)
            except ConflictError:
                pass
            except Exception as error:
                _LOG.warning("claim not freed yet", job=job, error=str(error))
                continue
            if self._ghosts.get(job) == start:
                del self._ghosts[job]

    def _swap(self, hold: _Hold, freed: dict[str, Any] | None = None) -> None:
        """Write our claim anew; a conflict with anybody but ourselves means that it is ours no more."""
        with hold.lock:
            while not hold.fenced:
                changes = freed or {"beat": hold.claim.beat + 1, "reached": hold.reached}
                claim, at = hold.claim.model_copy(update=changes), self._clock()
                try:
                    blob = self._store().replace(claim_name(claim.job), dump(claim), hold.etag)
                except ConflictError:
                    self._compare(hold)
                else:
                    hold.claim, hold.etag, hold.at = claim, blob.etag, at
                    return

    def _compare(self, hold: _Hold) -> None:
        """After a conflict: a write of ours may have succeeded although its answer was lost."""
        found, etag = _read(self._store(), hold.claim.job)
        if found is not None and etag is not None and found.start == hold.claim.start:
            hold.claim, hold.etag = found, etag
            return
        hold.fenced = True
        _LOG.warning("claim lost", job=hold.claim.job, epoch=hold.claim.start.epoch)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            self._hurry.wait(self.beat())
            self._hurry.clear()


def epoch_of(store: Blobs, job: str) -> int:
    """Return the epoch of a job's newest claim, whoever holds it; 0: none. Raises `UnavailableError`."""
    claim, _ = _read(store, job)
    return 0 if claim is None else claim.start.epoch


def _read(store: Blobs, job: str) -> tuple[Claim | None, str | None]:
    try:
        with store.get(claim_name(job)) as reader:
            return parse(Claim, reader.read()), reader.blob.etag
    except NotFoundError:
        return None, None
    except (InvalidError, JobError) as error:  # what nobody can read holds nothing; it is written over
        _LOG.warning("unreadable claim", job=job, error=str(error))
        return None, store.stat(claim_name(job)).etag


def _over(claim: Claim, copy: Copy) -> Over | None:
    """Return what a record's attempt came to, if it is over; None if there is one to be made of it.

    A worker may die, or lose its lease, between writing what follows and letting its record go: then both are
    delivered, and only one may run. What follows a left-over is written once more, for it may be missing, and is a
    left-over itself if it is not. Only where a later record was taken is nothing missing, and where the job was buried
    by another line: the record that ended it comes back until its letter is there.

    A job that was buried may live again, redriven or sent again, and mended; its earlier lives are over for ever.
    """
    at, end, start = copy.follows(claim.start), claim.end, claim.start
    buried = end is not None and end.buried
    if copy.life in claim.lives:
        return Over(None, start.line, left_over=True)
    if buried and not copy.lives(claim):
        return None
    if at < 0:
        return Over(end if buried else None, start.line, left_over=True, life=claim.origin)
    if at > 0 or claim.held or end is None:
        return None
    if (end.past.replays, end.past.spent) <= (copy.replays, copy.spent):
        return None  # postponed: nothing tells the old from the new, and nothing was spent
    return Over(end, start.line, left_over=buried and copy.line != start.line, life=claim.origin)
