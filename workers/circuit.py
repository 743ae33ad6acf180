"""A breaker as one worker knows it: a circuit, and each step it takes as a pure function.

It opens when a dependency fails several times in a row, for more than one job, or when several jobs fail alike within
a while and failures prevail. One job that fails again and again opens nothing: that is poison, not an outage.

Times are those of the monotonic clock: of a message only its duration is trusted, so a clock that is hours off neither
keeps a breaker open nor takes a claim from its holder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from zlib import crc32

from schemas.control import Breaker, BreakerState

KEPT = 64
"""Failures that are remembered for one dependency."""
LONGEST_S = 3_600.0
"""Seconds a foreign message may keep a breaker from moving on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When breakers open and for how long. Times are seconds."""

    streak: int = 5
    jobs: int = 3
    window_s: float = 120.0
    share: float = 0.5
    base_s: float = 5.0
    factor: float = 2.0
    cap_s: float = 300.0
    probe_s: float = 120.0
    spread_s: float = 2.0
    answer_s: float = 5.0
    next_s: float = 1.0

    def pause(self, opened: int, chance: float) -> float:
        """Return how long the breaker stays open the `opened`-th time in a row (from 1); half of it is jitter."""
        return min(self.cap_s, self.base_s * self.factor ** min(opened - 1, 32)) * (1 + chance) / 2


@dataclass(frozen=True, slots=True)
class Seen:
    """A failure of the dependency: when (monotonic), whose, and what it looks like."""

    at: float
    job: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Blame:
    """A failure, as far as breakers care: what it has in common with its like, and how people are told of it."""

    look: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """What one worker knows of one dependency."""

    state: BreakerState = BreakerState.CLOSED
    epoch: int = 0
    holder: str = ""
    opened: int = 0
    until: float = 0.0
    said: Breaker | None = None
    seen: tuple[Seen, ...] = ()
    successes: int = 0
    streak: int = 0
    crowd: frozenset[str] = frozenset()
    asked: float = float("-inf")
    probe: str | None = None
    repeated: bool = False

    @property
    def quiet(self) -> bool:
        """Closed, and without a failure in memory."""
        return self.state is BreakerState.CLOSED and not self.seen and self.asked == float("-inf")

    @property
    def cause(self) -> str:
        """The failure that opened it, or by which the last probe failed; "" where nobody told."""
        return self.said.cause if self.said else ""


@dataclass(frozen=True, slots=True)
class Order:
    """A message to publish: the next step that this worker wants."""

    state: BreakerState
    seconds: float | None = None
    opened: int = 0
    reason: str = ""
    fingerprint: str | None = None
    cause: str = ""


Step = tuple[Circuit, Order | None]


def report(
    circuit: Circuit, job: str, blame: Blame | None, *, me: str, now: float, rules: Rules, chance: float,
    row: bool = True,
) -> Step:  # fmt: skip
    """Take in a verdict on the dependency: `blame` is None for a success.

    Without `row` it counts for failures that are alike, and not for failures in a row.
    """
    if circuit.state is BreakerState.HALF_OPEN and circuit.holder == me and circuit.probe == job:
        settled = replace(circuit, asked=now)
        if blame is None:
            return settled, Order(BreakerState.CLOSED, reason="the probe succeeded")
        opened = circuit.opened + 1
        pause = rules.pause(opened, chance)
        return settled, Order(BreakerState.OPEN, pause, opened, "the probe failed", blame.look, blame.cause)
    if circuit.state is not BreakerState.CLOSED:
        return circuit, None
    if blame is None:
        return _well(circuit, now, rules), None
    circuit = _remember(circuit, Seen(now, job, blame.look), rules, row)
    reason = _outage(circuit, blame.look, rules)
    if reason is None or now - circuit.asked < rules.answer_s:
        return circuit, None
    opened = circuit.opened + 1
    order = Order(BreakerState.OPEN, rules.pause(opened, chance), opened, reason, blame.look, blame.cause)
    return replace(circuit, asked=now), order


def hand_on(circuit: Circuit, job: str | None, reason: str, *, me: str, now: float, rules: Rules) -> Step:
    """Let another worker try: the probe `job` could not tell how the dependency is, or there can be none (None)."""
    if circuit.state is not BreakerState.HALF_OPEN or circuit.holder != me or circuit.probe != job:
        return circuit, None
    return replace(circuit, asked=now), Order(
        BreakerState.OPEN, rules.next_s, circuit.opened, reason, cause=circuit.cause
    )


def _well(circuit: Circuit, now: float, rules: Rules) -> Circuit:
    if not circuit.seen:
        return circuit
    if now - circuit.seen[-1].at > rules.window_s:
        return replace(circuit, seen=(), successes=0, streak=0, crowd=frozenset())
    return replace(circuit, successes=circuit.successes + 1, streak=0, crowd=frozenset())


def _remember(circuit: Circuit, last: Seen, rules: Rules, row: bool) -> Circuit:
    kept = (*(one for one in circuit.seen if last.at - one.at <= rules.window_s), last)[-KEPT:]
    before = len(circuit.seen)
    fresh = circuit.successes * (len(kept) - 1) // before if before else 0  # successes age with the failures
    crowd = circuit.crowd if len(circuit.crowd) > rules.jobs else circuit.crowd | {last.job}
    if not row:
        return replace(circuit, seen=kept, successes=fresh)
    return replace(circuit, seen=kept, successes=fresh, streak=circuit.streak + 1, crowd=crowd)


def _outage(circuit: Circuit, look: str, rules: Rules) -> str | None:
    """Return why this is an outage, or None."""
    if circuit.streak >= rules.streak and len(circuit.crowd) > 1:
        return f"{circuit.streak} failures in a row, of {len(circuit.crowd)} jobs or more"
    alike = {one.job for one in circuit.seen if one.fingerprint == look}
    prevails = len(circuit.seen) >= rules.share * (len(circuit.seen) + circuit.successes)
    if len(alike) >= rules.jobs and prevails:
        return f"{len(alike)} jobs failed alike within {rules.window_s:.0f} s"
    return None


def apply(circuit: Circuit, message: Breaker, *, me: str, now: float, wall: datetime | None) -> tuple[Circuit, bool]:
    """Take in the next message of the log; `wall` only where it may be an old one. True: say the present step again.

    Compaction keeps the last message of a key, which may be one that came too late and counts for nothing; the worker
    whose step is in force then repeats it, once.
    """
    if message.epoch <= circuit.epoch:
        late = (message.epoch, message.worker) != (circuit.epoch, circuit.holder)
        again = late and circuit.holder == me and not circuit.repeated
        return (replace(circuit, repeated=True) if again else circuit), again
    left = 0.0
    if message.until is not None:
        left = min(max((message.until - message.since).total_seconds(), 0.0), LONGEST_S)
        if wall is not None:
            left = min(max((message.until - wall).total_seconds(), 0.0), left)
    taken = Circuit(
        state=message.state,
        epoch=message.epoch,
        holder=message.worker,
        opened=message.opened if message.state is not BreakerState.CLOSED else 0,
        until=now + left,
        said=message,
    )
    return taken, False


def ask(
    circuit: Circuit, *, me: str, now: float, rules: Rules, silent: float = float("inf")
) -> tuple[Circuit, float, Order | None]:
    """Return how many seconds jobs must wait (0: take them, one where it is half open), and a claim if one is due.

    `silent` is the moment from which the holder counts as dead: its claim then ends before its time.
    """
    if now - circuit.asked < rules.answer_s:  # a step of ours is on its way; it is as good as said
        return circuit, rules.answer_s - (now - circuit.asked), None
    if circuit.state is BreakerState.CLOSED:
        return circuit, 0.0, None
    mine = circuit.holder == me and circuit.state is BreakerState.HALF_OPEN
    if now < circuit.until and mine and circuit.probe is None:
        return circuit, 0.0, None
    # Not all at once: each worker comes a little later than the moment, by a time of its own.
    until = min(circuit.until, silent) if circuit.state is BreakerState.HALF_OPEN and not mine else circuit.until
    due = until + rules.spread_s * (crc32(f"{me} {circuit.epoch}".encode()) % 1_000) / 1_000
    if now < due:
        return circuit, due - now, None
    claim = Order(BreakerState.HALF_OPEN, rules.probe_s, circuit.opened, "one job tries it", cause=circuit.cause)
    return replace(circuit, asked=now, probe=None), rules.answer_s, claim


FRESH = Circuit()
"""A dependency of which nothing is known."""
