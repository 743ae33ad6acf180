"""Running a redrive: a canary first, then the rest at a rate, stopped when the jobs fail again.

What was moved is told by the topic of fates and by nothing else: it is written in the transaction that moves. The state
in the store only says what was asked for and how far it seems to be, so a runner may die anywhere: the next one reads
the fates and goes on. Of two runners of one redrive the later writes its name into the state, and the earlier stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from producers.dead.desk import SLACK, Desk, exactly
from producers.dead.letter import Letter
from producers.redrive.carry import Carrier
from producers.redrive.pace import LEAST, Metronome, Pace, batches, sample
from producers.redrive.state import Kept, noted, step
from producers.redrive.wait import PATIENCE_S, Wait, Why
from producers.redrive.watch import Tally, Watch, ours, trips
from schemas.dead import Fate, Place
from schemas.errors import ConflictError, TimeoutExceeded
from schemas.ids import uuid7
from schemas.redrive import Line, Phase, Redrive
from wire.follow import Feed

LOOK_S = 1.0
"""How often the state is saved, and looked at for what somebody else wrote there."""
STEP_S = 0.25


class Halt(Exception):  # noqa: N818 - no error: the redrive stops because it should
    """The redrive stops here; `why` goes into its diary, unless somebody else halted it and wrote there already."""

    def __init__(self, why: str | None) -> None:
        super().__init__(why)
        self.why = why


class Runner:
    """Carries out one redrive. `report` is told of every saved state; `sleep` and `clock` are the time's.

    `why` tells why a job is not running, and `say` is told that where the redrive waits for it.
    """

    def __init__(
        self,
        desk: Desk,
        kept: Kept,
        pace: Pace,
        *,
        report: Callable[[Redrive], None] = lambda redrive: None,
        say: Callable[[str], None] = lambda told: None,
        why: Why | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk, self._kept, self._pace = desk, kept, pace
        self._report, self._say, self._why, self._sleep, self._clock = report, say, why, sleep, clock
        self._me = f"{desk.who}/{uuid7()[-8:]}"
        self._carrier = Carrier(desk, kept.redrive.plan, heed=self._heed, sleep=sleep)
        self._watch = Watch()
        self._feed: Feed | None = None
        self._looked = clock()

    def run(self) -> Redrive:
        """Move what is to be moved and return the state: done, or halted.

        Raises `ConflictError` TAPE-3006 when another runner took over, TAPE-3007 when the redrive is in no state for
        this, `TimeoutExceeded` TAPE-7002 when the canary's jobs do not end in time, and whatever broker and store
        raise; running it again is safe after all of them.
        """
        if self._kept.redrive.phase is Phase.DONE:
            return self._kept.redrive
        self._begin()
        lines = [line for line in self._kept.lines() if line.skip is None]
        with ExitStack() as stack:
            stack.callback(self._carrier.close)
            self._follow(lines, stack)
            try:
                self._carrier.learn(lines)
                self._expect(line.letter for line in lines)
                if self._kept.redrive.phase is Phase.CANARY:
                    self._canary(lines)
                self._move(lines, Metronome(self._kept.redrive.rate, self._clock))
                return self._end()
            except Halt as halt:
                return self._halted(halt.why)
            except KeyboardInterrupt:
                self._halted(f"interrupted after {len(self._carrier.moved)} letters")
                raise

    @property
    def left(self) -> dict[str, str]:
        """The letters that were not moved, and why."""
        return dict(self._carrier.left)

    @property
    def open(self) -> int:
        """How many jobs it moved that have not ended, as far as it saw."""
        fates = self._carrier.moved.values()
        return self._watch.tally(fate.letter for fate in fates if ours(self._desk.names, fate.target)).open

    @property
    def foreign(self) -> int:
        """How many letters went to other systems' topics: nobody tells what becomes of them."""
        return sum(not ours(self._desk.names, fate.target) for fate in self._carrier.moved.values())

    def _begin(self) -> None:
        now, redrive = self._desk.now(), self._kept.redrive
        fields: dict[str, Any] = {"runner": self._me, "started_at": redrive.started_at or now}
        if redrive.phase in {Phase.PLANNED, Phase.HALTED}:
            fields |= {"counted_from": now, "canary_passed": False}  # after a halt, a fresh canary goes first
        for name in ("canary", "rate", "halt_above"):
            if getattr(self._pace, name) is not None:
                fields[name] = getattr(self._pace, name)
        canary = fields.get("canary", redrive.canary) and not fields.get("canary_passed", redrive.canary_passed)
        what = "began" if redrive.phase is Phase.PLANNED else f"resumed, was {redrive.phase}"
        fresh = step(redrive, Phase.CANARY if canary else Phase.RAMPING, now=now, **fields)
        self._save(noted(fresh, what, by=self._desk.who, now=now))

    def _follow(self, lines: Iterable[Line], stack: ExitStack) -> None:
        if any(ours(self._desk.names, line.target) for line in lines):
            since = (self._kept.redrive.started_at or self._desk.now()) - SLACK
            self._feed = stack.enter_context(self._desk.follower.follow(self._desk.names.events, since=since))

    def _expect(self, letters: Iterable[str]) -> None:
        """Look out for the ends of those letters that were moved, before any event of their return is read."""
        for letter in letters:
            fate = self._carrier.moved.get(letter)
            if fate is not None and ours(self._desk.names, fate.target):
                self._watch.expect(fate)

    def _canary(self, lines: list[Line]) -> None:
        redrive = self._kept.redrive
        gone = sum(self._counts(fate) for fate in self._carrier.moved.values())
        fresh = [line for line in lines if self._carrier.waits(line)]
        self._move(sample(fresh, max(0, redrive.canary - gone)), Metronome(None, self._clock))
        limit = self._pace.canary_timeout_s
        try:
            self._await(certain=True, limit_s=PATIENCE_S if limit is None else limit, soft=limit is None)
        except TimeoutExceeded as late:
            raise self._late(late) from None
        tally = self._tally()
        if trips(tally, redrive.halt_above, 1):
            raise Halt(_told(tally))
        now = self._desk.now()
        passed = step(self._kept.redrive, Phase.RAMPING, now=now, canary_passed=True)
        what = f"canary passed: {tally.settled - tally.failed} of {tally.moved} did not fail again"
        if not tally.moved:
            told = f"the outcomes of the {self.foreign} moved are not followed" if self.foreign else "none was moved"
            what = f"went on without a canary: {told}"
        self._save(noted(passed, what, by=self._desk.who, now=now))

    def _late(self, late: TimeoutExceeded) -> TimeoutExceeded:
        """Note that nobody waits any more, and return the error that says how to go on: the canary stays what it is."""
        redrive, name = self._kept.redrive, self._kept.redrive.plan.id
        what = f"waits no longer: {late.message}"
        self._save(self._counted(noted(redrive, what, by=self._desk.who, now=self._desk.now())))
        return TimeoutExceeded(
            late.message, code=late.code, redrive=name, moved=len(self._carrier.moved),
            hint=f"mend what it waits for; `tape dead redrive run {name}` goes on from here, and moves nothing twice",
        )  # fmt: skip

    def _await(self, *, certain: bool, limit_s: float | None = None, soft: bool = False) -> None:
        """Wait until what was moved has ended, or, if that is asked, until it is certain that too many have failed."""
        wait = Wait(self._why, self._say, self._clock, limit_s, soft)
        while True:
            self._drain()
            tally = self._tally()
            if certain and tally.failed * 100 > self._kept.redrive.halt_above * tally.moved:
                raise Halt(_told(tally))
            if not tally.open:
                return
            moved = self._carrier.moved.values()
            wait.look([fate.job for fate in moved if self._counts(fate) and not self._watch.ended(fate.letter)])
            self._look()
            self._sleep(STEP_S)

    def _move(self, lines: Iterable[Line], beat: Metronome) -> None:
        wanted: dict[str, dict[Place, Line]] = {}
        for line in lines:
            place = Place.parse(line.letter)
            if place is not None and self._carrier.waits(line):
                wanted.setdefault(place.topic, {})[place] = line
        for topic, places in wanted.items():
            for batch in batches(self._letters(topic, places), beat.size):
                self._go(topic, batch, beat)
            for place in places:  # what is left of them did not come
                self._carrier.leave(place, "the letter is gone")

    def _letters(self, topic: str, places: dict[Place, Line]) -> Iterator[Letter]:
        with self._desk.follower.read(topic, since=exactly(places)) as feed:
            for batch in feed:
                for record in batch:
                    if places.pop(Place(*record[:3]), None) is not None:
                        yield Letter.of(record, self._desk.names)
                if not places:
                    return

    def _go(self, topic: str, letters: list[Letter], beat: Metronome) -> None:
        """Move one batch when its time has come, unless too many have failed."""
        while True:
            redrive = self._kept.redrive
            if self._drain() and redrive.phase is Phase.RAMPING:
                tally = self._tally()
                if trips(tally, redrive.halt_above, LEAST):
                    raise Halt(_told(tally))
            self._look()
            left = beat.left()
            if left <= 0:
                break
            self._sleep(min(left, STEP_S))
        beat.went(len(letters))
        self._carrier.carry(topic, letters)
        self._expect(str(letter.place) for letter in letters)

    def _end(self) -> Redrive:
        if self._pace.wait:
            self._await(certain=False)
        now, moved, left = self._desk.now(), len(self._carrier.moved), len(self._carrier.left)
        what = f"done: moved {moved}" + (f", left {left}" if left else "")
        done = self._counted(step(self._kept.redrive, Phase.DONE, now=now))
        self._save(noted(done, what, by=self._desk.who, now=now))
        return self._kept.redrive

    def _halted(self, why: str | None) -> Redrive:
        redrive, now = self._kept.redrive, self._desk.now()
        if redrive.phase is not Phase.HALTED:
            redrive = noted(step(redrive, Phase.HALTED, now=now), f"halted: {why}", by=self._desk.who, now=now)
        try:
            self._save(self._counted(redrive))
        except Halt:  # somebody else halted it in this moment
            self._save(self._counted(self._kept.redrive))
        return self._kept.redrive

    def _look(self) -> None:
        """Now and then, heed what others wrote into the state, and save how far it is."""
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            self._heed()
            self._save(self._counted(self._kept.redrive))

    def _heed(self) -> None:
        if not self._kept.changed():
            return
        redrive = self._kept.again()
        if redrive.runner != self._me:
            raise ConflictError(
                "another runner took this redrive over; nothing was moved twice", code="TAPE-3006",
                redrive=redrive.plan.id, runner=redrive.runner, hint=f"tape dead redrive status {redrive.plan.id}",
            )  # fmt: skip
        if redrive.phase is Phase.HALTED:
            raise Halt(None)

    def _save(self, redrive: Redrive) -> None:
        try:
            self._kept.save(redrive)
        except ConflictError:
            self._heed()
            raise
        self._report(redrive)

    def _counted(self, redrive: Redrive) -> Redrive:
        tally = self._tally()
        told = {"settled": tally.settled, "failed": tally.failed, "updated_at": self._desk.now()}
        return redrive.model_copy(update={**told, "moved": len(self._carrier.moved), "left": len(self._carrier.left)})

    def _drain(self) -> bool:
        """Read the events that have come; return whether any came."""
        some = False
        while self._feed is not None and (batch := self._feed.poll(0)):
            self._watch.take(batch)
            some = True
        return some

    def _tally(self) -> Tally:
        return self._watch.tally(fate.letter for fate in self._carrier.moved.values() if self._counts(fate))

    def _counts(self, fate: Fate) -> bool:
        """Whether a job's end is waited for: it is one of ours, and was not moved before the redrive was halted."""
        start = self._kept.redrive.counted_from
        return ours(self._desk.names, fate.target) and (start is None or fate.time >= start)


def _told(tally: Tally) -> str:
    return f"{tally.failed} of {tally.settled} redriven jobs that ended have failed again"
