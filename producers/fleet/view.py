"""The fleet as the control topic tells of it: who is there, what is away, who was told to stop. Pure.

Age is measured by the records' own time against the newest of them and the reader's clock, whichever is later: a reader
whose clock is behind takes nobody for younger than they are. A record that is dated more than `FUTURE` ahead of the
reader says nothing about the time: one worker with a wrong clock must not silence the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from schemas import control
from schemas.control import SILENT_S, Breaker, BreakerState, Cancel, Control, Drain, Pause, Presence, Tenant, parted
from schemas.errors import TapeError

FUTURE = timedelta(minutes=5)
"""How far ahead of the reader's clock a record may be dated and still count as the present."""


class Record(Protocol):
    """What is needed of a record of the control topic."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def timestamp_ms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker, and how many seconds ago it last said that it is there."""

    presence: Presence
    age_s: float

    @property
    def id(self) -> str:
        """The worker's id."""
        return self.presence.worker

    @property
    def silent(self) -> bool:
        """Whether it missed so many words that it is probably dead."""
        return self.age_s > SILENT_S

    @property
    def takes(self) -> bool:
        """Whether it takes new jobs, as far as can be seen."""
        return not self.silent and not self.presence.draining

    def serves(self, kind: str, lane: str) -> bool:
        """Whether jobs of this kind and lane are its."""
        return kind in self.presence.kinds and lane in self.presence.lanes

    def row(self) -> dict[str, Any]:
        """Return it as plain data, for tables and JSON."""
        said = self.presence
        status = "silent" if self.silent else "draining" if said.draining else "busy" if said.held else "idle"
        return {
            "worker": said.worker,
            "host": said.host,
            "kinds": list(said.kinds),
            "busy": min(said.held, said.slots),
            "slots": said.slots,
            "held": said.held,
            "status": status,
            "draining": said.draining,
            "seen_s": round(self.age_s, 1),
            "running": list(said.running),
            "lanes": list(said.lanes),
            "full": list(said.full),
            "breakers": {name: state.value for name, state in said.breakers.items()},
            "pid": said.pid,
            "version": said.version,
            "started_at": said.started_at,
        }


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known of all workers: those there are, what is away, cancelled and paused jobs, orders, quotas."""

    workers: tuple[Seen, ...] = ()
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    cancelled: Mapping[str, Cancel] = field(default_factory=dict)
    drains: Mapping[str, Drain] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    paused: Mapping[str, Pause] = field(default_factory=dict)

    def worker(self, name: str) -> Seen | None:
        """Return a worker by its id."""
        return next((seen for seen in self.workers if seen.id == name), None)


def fold(records: Iterable[Record], now: datetime) -> Fleet:
    """Return the fleet after the control topic's records, in their order; what cannot be read says nothing."""
    said: dict[str, tuple[Control, int]] = {}
    newest = int(now.timestamp() * 1000)
    horizon = newest + int(FUTURE.total_seconds() * 1000)
    for record in records:
        if newest < record.timestamp_ms <= horizon:
            newest = record.timestamp_ms
        if record.value is None:
            said.pop((record.key or b"").decode("utf-8", "replace"), None)
            continue
        try:
            message = control.read(record.value)
        except TapeError:
            continue
        if message is None:
            continue
        before, _ = said.get(control.key(message), (None, 0))
        if isinstance(message, Breaker) and isinstance(before, Breaker) and message.epoch <= before.epoch:
            continue  # of one epoch the first in the log counts (ADR 4)
        said[control.key(message)] = message, record.timestamp_ms
    seen = [Seen(one, max(0.0, (newest - at) / 1000)) for one, at in said.values() if isinstance(one, Presence)]
    told = [one for one, _ in said.values()]
    present = {one.id for one in seen}
    breakers = {one.dependency: one for one in told if isinstance(one, Breaker) and _away(one, present)}
    return Fleet(
        workers=tuple(sorted(seen, key=lambda one: one.id)),
        breakers=dict(sorted(breakers.items())),
        cancelled={one.job: one for one in told if isinstance(one, Cancel)},
        drains={one.worker: one for one in told if isinstance(one, Drain)},
        tenants=dict(sorted((one.tenant, one) for one in told if isinstance(one, Tenant))),
        paused={one.job: one for one in told if isinstance(one, Pause)},
    )


def _away(said: Breaker, present: Iterable[str]) -> bool:
    """Whether something is away, for all or for a worker that is still there."""
    _, worker = parted(said.dependency)
    return said.state is not BreakerState.CLOSED and (worker is None or worker in present)


def dated(timestamp_ms: int) -> datetime:
    """Return the moment of a record."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
