"""The road of records that wait: delay topics that are wheels of time, and a pure rule for when each moves on (ADR 3).

Time is cut into buckets, and bucket number modulo partitions is the partition. A wheel only takes records whose moment
lies within its reach, which is less than a turn: so the head of a partition is the next of it to move on, and what
stands behind it is at most one bucket earlier. A record whose moment is further away than the largest wheel reaches
goes round it again. All moments are milliseconds of the epoch by the wall clock of whoever asks.

    wheel   bucket   reach     moves on before its moment   to
    5s      0.5 s    6.5 s     0                            its job topic
    1m      5 s      72 s      6.5 s                        5s
    10m     45 s     11 min    70 s                         1m
    1h      10 min   2 h 28    10 min 50 s                  10m, or 1h again
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.errors import InvalidError
from schemas.past import DUE, TARGET, Header, Past, write

PARTITIONS = 16
"""Partitions of every delay topic. More in the cluster stay empty; with fewer, nothing can be written to the last."""
_DIGITS = 15


class Wheel(NamedTuple):
    """One delay topic.

    `reach_ms` is less than a turn by more than a writer may take from asking the way to the record being in the log;
    `lead_ms` is more than a bucket, so that what stands behind another record of its bucket is in time all the same.
    """

    delay: str
    bucket_ms: int
    reach_ms: int
    lead_ms: int

    @property
    def turn_ms(self) -> int:
        """How long the wheel takes to go round."""
        return self.bucket_ms * PARTITIONS

    def partition(self, moment_ms: int) -> int:
        """Return the partition of the records that leave the wheel at a moment."""
        return moment_ms // self.bucket_ms % PARTITIONS


WHEELS: dict[str, Wheel] = {
    wheel.delay: wheel
    for wheel in (
        Wheel("5s", 500, 6_500, 0),
        Wheel("1m", 5_000, 72_000, 6_500),
        Wheel("10m", 45_000, 660_000, 70_000),
        Wheel("1h", 600_000, 8_900_000, 650_000),
    )
}
"""From the finest to the coarsest; a coarser one hands over to the next finer one."""
_LAST = WHEELS["1h"]


def route(due_ms: int, now_ms: int) -> tuple[str, int] | None:
    """Return the wheel and partition where a record waits next, or None when it is due."""
    left = due_ms - now_ms
    if left <= 0:
        return None
    for wheel in WHEELS.values():
        if left <= wheel.reach_ms:
            return wheel.delay, wheel.partition(due_ms)
    return _LAST.delay, _LAST.partition(now_ms + _LAST.reach_ms)


def ready(delay: str, due_ms: int, written_ms: int, now_ms: int) -> float:
    """Return the seconds until the head of a partition moves on (0: now); `written_ms` is the record's own time.

    Moving on is not being early: `route` says where it goes then. A record that lies further ahead than a turn (the
    clock was set back, or its writer's is wrong) does not belong here and moves on at once, to where it does.
    """
    wheel = WHEELS[delay]
    ahead = min(due_ms, written_ms + wheel.reach_ms) - now_ms
    if ahead > wheel.turn_ms:
        return 0.0
    return max(0, ahead - wheel.lead_ms) / 1000


class Plan(NamedTuple):
    """Where a record goes, and not before when."""

    due_ms: int
    target: str


class Delayed(NamedTuple):
    """A record to publish: the fields of `wire.transact.Outgoing`, in its order."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]
    timestamp_ms: int | None


def delayed(
    target: str,
    *,
    prefix: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[Header],
    due_ms: int,
    now_ms: int,
    past: Past | None = None,
) -> Delayed:
    """Return the record to publish now so that it comes to `target` when it is due, and not before.

    One that is due already goes to its target at once. With a `past`, the headers tell that one; else they stay as
    they are. The time must be published with the record: the wheels go by it.
    """
    told = strip(headers) if past is None else write(headers, past)
    way = route(due_ms, now_ms)
    if way is None:
        return Delayed(target, None, key, value, told, None)
    delay, partition = way
    told += [(DUE, str(due_ms).encode()), (TARGET, target.encode())]
    return Delayed(f"{prefix}retry.{delay}", partition, key, value, told, now_ms)


def plan(headers: Iterable[Header]) -> Plan:
    """Return what a record on a delay topic waits for. Raises `InvalidError` (TAPE-1004) naming the wrong header."""
    found = {name: raw for name, raw in headers if name in {DUE, TARGET}}
    due = (found.get(DUE) or b"").decode("ascii", "replace")
    if not (due.isdecimal() and due.isascii() and len(due) <= _DIGITS):
        raise InvalidError("the record does not say when it is due", code="TAPE-1004", field=DUE)
    try:
        target = (found.get(TARGET) or b"").decode()
    except UnicodeDecodeError:
        target = ""
    if not target:
        raise InvalidError("the record does not say where it goes", code="TAPE-1004", field=TARGET)
    return Plan(int(due), target)


def strip(headers: Iterable[Header]) -> list[Header]:
    """Return the headers of a record that waits no more: all but the plan, verbatim and in order."""
    return [header for header in headers if header[0] not in {DUE, TARGET}]
