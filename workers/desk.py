"""A tenant's quota as one worker knows it: what the store said last, what runs here, who asks, and who lives."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog

from schemas.dead import Place
from schemas.quota import Tally
from workers.tally import Ask, Full, Held

_LOG = structlog.get_logger("tickertape.quota")
SILENT_S = 30.0
"""Silence after which a worker's holds are free."""
GAP_S = 10.0
"""The most that one look after another counts for as silence: the store may have been away in between, for all."""
LOOK_S = 0.25
"""A job is put off by what was read within this time."""


@dataclass(slots=True)
class Asked:
    """A job that wants to start, and what it was told."""

    ask: Ask
    place: Place
    answered: bool = False
    full: Full | None = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Sight:
    """A worker as it was seen last: its beat, when that was, and for how long it has not changed."""

    beat: int
    at: float
    silent_s: float = 0.0


class Desk:
    """One tenant's object beside one worker. Whoever talks with the store about it holds `talk`."""

    def __init__(self, name: str, worker: str) -> None:
        self.name, self._worker = name, worker
        self.talk = threading.Lock()
        self.tally: Tally | None = None
        self.etag = ""
        """Of what the store has; empty: nothing."""
        self.looked_at = self.wrote_at = self.refused_at = -math.inf
        self.lead = -math.inf
        """What the tenant's time is ahead of this worker's clock, at least."""
        self.spare: tuple[int, ...] = ()
        """Tickets that were drawn and not given out."""
        self.written = 0
        self.mine: dict[Place, Held] = {}
        self._version = 0
        self._asks: list[Asked] = []
        self._line = -math.inf
        self._sights: dict[str, _Sight] = {}
        self._lock = threading.Lock()

    @property
    def dirty(self) -> bool:
        """Whether the store does not know yet what runs here."""
        return self._version != self.written

    def line_up(self, asked: Asked) -> None:
        """Ask, when whoever talks with the store next does so."""
        with self._lock:
            self._asks.append(asked)

    def next(self) -> list[Asked]:
        """Return those that asked, in their order, once."""
        with self._lock:
            asks, self._asks = self._asks, []
        return asks

    def holds(self) -> tuple[Collection[Held], int]:
        """Return the jobs that run here, and the number of that state."""
        with self._lock:
            return tuple(self.mine.values()), self._version

    def leave(self, place: Place) -> bool:
        """Forget a job that was let in; False if it was not."""
        with self._lock:
            if self.mine.pop(place, None) is None:
                return False
            self._version += 1
            return True

    def touch(self) -> None:
        """Nobody knows what the store knows of this worker: it must be told again."""
        with self._lock:
            self._version += 1

    def wrote(self, let_in: Sequence[Asked], version: int, at: float) -> None:
        """The store knows the jobs of that state, and those that were let in."""
        with self._lock:
            self.mine |= {one.place: Held(one.ask.job, one.ask.line) for one in let_in}
            self.written, self.wrote_at = version, at

    def due(self, beat_s: float, watch_s: float) -> float:
        """Return when it must be talked about, if nobody asks: to tell what ended, to sign, or to watch the others."""
        if self.dirty:
            return -math.inf
        if self.mine:
            return self.wrote_at + beat_s
        look = self.looked_at + beat_s
        return look if look < self.refused_at + watch_s else math.inf

    def stand_back(self, now: float, space_s: float) -> float:
        """Return the seconds until the next free place in the line of those that look again."""
        with self._lock:
            self._line = max(now, self._line + space_s)
            return self._line - now

    def adopt(self, tally: Tally, etag: str, at: float) -> None:
        """Take in what the store said up to a moment of the monotonic clock."""
        if not etag:
            self.lead = -math.inf
        self.lead = max(self.lead, tally.time - at)
        self.tally, self.etag, self.looked_at = tally, etag, at
        if self.mine and self._worker not in tally.workers:
            _LOG.warning("this worker was taken for dead, its jobs count again", tenant=self.name, jobs=len(self.mine))
            self.touch()
        self._watch(tally, at)

    def gone(self) -> frozenset[str]:
        """Return the workers that have been silent for so long that they are dead."""
        return frozenset(name for name, sight in self._sights.items() if sight.silent_s >= SILENT_S)

    def _watch(self, tally: Tally, at: float) -> None:
        sights: dict[str, _Sight] = {}
        for name, holder in tally.workers.items():
            if name == self._worker:
                continue
            sight = self._sights.get(name)
            if sight is None or sight.beat != holder.beat:
                sights[name] = _Sight(holder.beat, at)
            else:
                waited = min(GAP_S, max(0.0, at - sight.at))
                sights[name] = _Sight(holder.beat, at, sight.silent_s + waited)
        self._sights = sights
