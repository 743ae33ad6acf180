"""Tenants' quotas: how many of a tenant's jobs run at once, and how many start a second, in the whole fleet.

A tenant with a quota has one object in the store, `tenants/NAME.json`, which is changed by compare-and-swap only, so no
two workers ever give the same room away; what it means is in `workers.tally`. Every worker writes there which jobs it
runs, and signs anew every `BEAT_S` while it runs any. Who has not signed for `SILENT_S`, on the watcher's own clock, is
dead, and what it held comes free: after a crash that late, and never while its worker reaches the store. A worker cut
off from the store for so long loses its holds although its jobs may run on; it takes them back when it returns.

Tenants without a quota cost a look into a dictionary. Jobs of one tenant that start at the same time in one worker
share one write.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from schemas.codec import dump, parse
from schemas.control import Tenant
from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError, UnavailableError
from schemas.outcome import Failure
from schemas.past import Past
from schemas.quota import Tally, tally_name
from wire.blobs import Blobs
from workers.attempt import Attempt, place_of
from workers.desk import LOOK_S, Asked, Desk
from workers.tally import Ask, Full, ask, passed, without

_LOG = structlog.get_logger("tickertape.quota")
BEAT_S = 5.0
"""Between two signs of life of a worker that holds something, or that others wait beside."""
WATCH_S = 120.0
"""For so long after somebody was put off it is looked whether holders died."""
FIRST_S, LONGEST_S = 1.0, 20.0
"""The first and the longest wait for a job in flight to end, where few wait."""
SPACE_S = 0.05
"""Between two jobs that one worker lets come back: however many wait, they look for room at this pace."""
LATE_S = 1.0
"""The first wait of a job whose turn for the rate has come, and passed."""
LATE_TRIES = 4
"""Whose turn passed by so often draws a new ticket: those that come in time take all that there is."""
FAR_S = 600.0
"""Whose turn is further away looks again in between: the rate may be raised."""
LINGER_S = 0.02
"""So long a job's end waits for company: the next one's start carries it along."""
PAUSE_S, PAUSE_MOST_S = 0.002, 0.1


@dataclass(frozen=True, slots=True)
class Wait:
    """A job is over its tenant's quota: why, for how long, and the past that its next record tells."""

    failure: Failure
    delay_s: float
    past: Past


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be written: who is told what by it, the state of this worker that it holds, and who is gone."""

    tally: Tally
    answers: list[Full | None]
    spare: tuple[int, ...]
    version: int
    gone: frozenset[str]
    needed: bool


class Quotas:
    """The quotas as one worker keeps them; thread-safe. `tenant` tells what may be; `pause` sleeps for seconds."""

    def __init__(
        self,
        *,
        worker: str,
        store: Callable[[], Blobs],
        tenant: Callable[[str], Tenant | None],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._worker, self._store, self._tenant = worker, store, tenant
        self._clock, self._chance, self._pause = clock, chance, pause
        self._desks: dict[str, Desk] = {}
        self._lock = threading.Lock()
        self._stopped, self._hurry = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="quotas", daemon=True)

    def start(self) -> None:
        """Start the thread that signs, and that writes down which jobs have ended."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and write once more; what is held still falls silent."""
        self._stopped.set()
        self._hurry.set()
        if self._thread.is_alive():
            self._thread.join()
            self.beat()

    def enter(self, attempt: Attempt) -> Wait | None:
        """Let a job in, which `leave` ends; or say why it must wait.

        Raises `UnavailableError` when the store does not answer; nothing is entered then.
        """
        quota = self._tenant(attempt.job.tenant)
        if quota is None or not quota.limited:
            return None
        desk = self._desk(quota.tenant)
        again = attempt.record.delivery_count > 1
        asked = Asked(Ask(attempt.id, attempt.line, attempt.past.ticket, again), place_of(attempt.record))
        desk.line_up(asked)
        with desk.talk:  # whoever comes first asks for all that wait here
            if not asked.answered:
                self._answer(desk, quota)
        if asked.error is not None:
            raise asked.error
        return None if asked.full is None else self._wait(desk, quota, asked.full, attempt.past)

    def leave(self, attempt: Attempt) -> None:
        """The attempt is over, whatever came of it; one that was not let in leaves nothing."""
        desk = self._desks.get(attempt.job.tenant) if self._desks else None
        if desk is not None and desk.leave(place_of(attempt.record)):
            self._hurry.set()

    def beat(self) -> float:
        """Write what has changed, sign where it is due, and look after those that others wait for.

        Returns the seconds until the next is due.
        """
        now, pauses = self._clock(), [BEAT_S]
        for name, desk in list(self._desks.items()):
            due = desk.due(BEAT_S, WATCH_S)
            if due > now:
                pauses.append(due - now)
                continue
            try:
                with desk.talk:
                    if not desk.mine and not desk.dirty:
                        self._read(desk)
                    self._talk(desk, self._tenant(name), [], sign=bool(desk.mine))
            except Exception as error:  # the other tenants must not fall silent for it
                _LOG.warning("quota not renewed", tenant=name, error=str(error))
                pauses.append(BEAT_S / 5)
        return max(LINGER_S, min(pauses))

    def _desk(self, name: str) -> Desk:
        with self._lock:
            return self._desks.setdefault(name, Desk(name, self._worker))

    def _answer(self, desk: Desk, quota: Tenant) -> None:
        asks = desk.next()
        try:
            answers = self._talk(desk, quota, asks)
        except BaseException as error:
            desk.touch()  # it may be written all the same
            for one in asks:
                one.error, one.answered = error, True
            if not isinstance(error, Exception):
                raise
        else:
            for one, full in zip(asks, answers, strict=True):
                one.full, one.answered = full, True

    def _talk(self, desk: Desk, quota: Tenant | None, asks: list[Asked], *, sign: bool = False) -> list[Full | None]:
        """Ask for jobs, sign, and bury the dead, in one write; in none where nothing changes by it."""
        conflicts = 0
        while True:
            plan = self._plan(desk, quota, asks)
            if sign or plan.needed:
                if self._write(desk, plan):
                    counted = quota is not None and quota.in_flight is not None
                    let_in = [one for one, full in zip(asks, plan.answers, strict=True) if full is None]
                    desk.wrote(let_in if counted else [], plan.version, self._clock())
                    desk.spare = plan.spare
                    return plan.answers
                conflicts += 1
                self._pause(min(PAUSE_MOST_S, PAUSE_S * 2.0 ** min(conflicts, 9)) * self._chance())
            elif self._clock() - desk.looked_at <= LOOK_S:
                desk.spare = plan.spare
                return plan.answers
            desk.tally = None

    def _plan(self, desk: Desk, quota: Tenant | None, asks: list[Asked]) -> _Plan:
        """Return what is to be written now, by what is known of the store."""
        known = desk.tally if desk.tally is not None else self._read(desk)
        gone, (mine, version) = desk.gone(), desk.holds()
        tally = without(known, gone)
        if quota is not None:
            tally = passed(tally, quota, self._clock() + desk.lead)
        wanted = [one.ask for one in asks]
        tally, answers, spare = ask(
            tally, quota or _free(desk.name), wanted, worker=self._worker, mine=mine, spare=desk.spare
        )
        needed = bool(gone) or None in answers or tally.tail != known.tail or version != desk.written
        return _Plan(tally, answers, spare, version, gone, needed)

    def _read(self, desk: Desk) -> Tally:
        """Look at what the store says."""
        name = tally_name(desk.name)
        try:
            with self._store().get(name) as reader:
                tally, etag = parse(Tally, reader.read()), reader.blob.etag
        except NotFoundError:
            tally, etag = Tally(tenant=desk.name), ""
        except (InvalidError, JobError) as error:  # what nobody can read holds nothing; it is written over
            _LOG.error("unreadable quota", tenant=desk.name, error=str(error))
            tally, etag = Tally(tenant=desk.name), self._store().stat(name).etag
        # The later moment: nobody may believe that more time has passed than did.
        desk.adopt(tally, etag, self._clock())
        return tally

    def _write(self, desk: Desk, plan: _Plan) -> bool:
        """Write it; False when somebody was faster. Whatever fails, the store must be looked at again."""
        name, data, etag = tally_name(desk.name), dump(plan.tally), desk.etag
        desk.tally = None
        try:
            blob = self._store().replace(name, data, etag) if etag else self._store().create(name, data)
        except ConflictError:
            return False
        if plan.gone:
            _LOG.warning("holds of silent workers freed", tenant=desk.name, workers=sorted(plan.gone))
        desk.adopt(plan.tally, blob.etag, self._clock())
        return True

    def _wait(self, desk: Desk, quota: Tenant, full: Full, past: Past) -> Wait:
        """Say when to come back: when it is the job's turn, or at the pace at which all that wait may look again."""
        now, part = self._clock(), (1 + self._chance()) / 2
        grown, lost = 2.0 ** min(past.put_off, 10), False
        if full.limit == "in_flight":
            jobs = "job" if full.running == 1 else "jobs"
            told = f"it has {full.running} {jobs} in flight, and may have {quota.in_flight}"
            delay = max(min(LONGEST_S, FIRST_S * grown) * part, desk.stand_back(now, SPACE_S))
        else:
            told = f"{quota.rate:g} of its jobs may start a second, and others come before this one"
            delay = full.seconds if full.seconds <= FAR_S else FAR_S * part
            if full.due:
                delay = max(full.seconds, min(LONGEST_S, LATE_S * grown / 2) * part)
            lost = full.due and past.put_off % LATE_TRIES == LATE_TRIES - 1
        desk.refused_at = now
        error = UnavailableError(
            f"the tenant {quota.tenant!r} is over its quota: {told}", code="TAPE-5011", tenant=quota.tenant,
            limit=full.limit, running=full.running, may=quota.in_flight if full.limit == "in_flight" else quota.rate,
        )  # fmt: skip
        return Wait(Failure.of(error), delay, past.held_up(delay, 0 if lost else full.ticket))

    def _serve(self) -> None:
        while not self._stopped.is_set():
            if self._hurry.wait(self.beat()):
                self._stopped.wait(LINGER_S)
                self._hurry.clear()


def _free(name: str) -> Tenant:
    """A tenant whose quota was taken back."""
    return Tenant(tenant=name, time=datetime.fromtimestamp(0, UTC))
