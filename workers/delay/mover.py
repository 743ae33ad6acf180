"""The mover: reads the delay topics in order, and moves what is due in transactions. Any number of them may run.

Two hops to the main loop: `Mover.run` → `turn`. A transaction holds the records in their next topics and the group's
offsets in the delay topics, so a mover that dies has moved a batch or has not. Which mover read a partition last is
noted beside its offsets; whoever takes the partition over fences that one first (`wire.transact.owners`), which makes
it open its name again.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from schemas.delays import WHEELS, plan
from schemas.errors import ConflictError, InvalidError, NotFoundError, TapeError
from schemas.recur import fire
from schemas.topics import Names
from wire.follow import KafkaFollower
from wire.follow.port import Received
from wire.settings import Settings
from wire.transact import Intake, KafkaIntake, KafkaTransactor, Outgoing, Transactor
from workers.again import pause
from workers.delay.calendar import Calendar
from workers.delay.heads import Heads, Place
from workers.delay.move import bury, onward

_LOG = structlog.get_logger("tickertape.mover")
IDLE_S = 1.0
"""The longest wait for records, and so for `stop`."""
BEAT_S = 0.05
"""The shortest time between two transactions: what falls due meanwhile travels together."""
BATCH, BATCH_BYTES = 1_000, 4 << 20
COMMIT_S = 8.0
OPEN_S = 15.0
"""How long the broker lets a transaction of a mover that nobody took over stay open; readers wait as long."""


@dataclass(frozen=True, slots=True)
class Ports:
    """A mover's ways to the outside: a transactor of a name, a member of a group for topics and a name, and a topic
    read from its start; and the clock (seconds) by which it paces itself."""

    transactor: Callable[[str], Transactor]
    intake: Callable[[str, Sequence[str], str], Intake]
    read: Callable[[str], Iterable[list[Received]]]
    monotonic: Callable[[], float] = time.monotonic


def kafka(settings: Settings) -> Ports:
    """Return the ways to a cluster."""
    return Ports(
        lambda name: KafkaTransactor(settings, name, timeout_s=COMMIT_S, transaction_s=OPEN_S),
        lambda group, topics, name: KafkaIntake(settings, group, topics, name=name),
        lambda topic: KafkaFollower(settings, name="tape-recurring").read(topic),
    )


class Mover:
    """Moves delayed records and fires recurring jobs until it is stopped, in a thread of its own or in the caller's.

    `moved`, `buried`, `fired` count records and `late_s` is the longest that one came to its job topic after it was
    due, all since the start. `on_trouble` is told what stopped it for a moment; it goes on by itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str | None = None,
        clock: Callable[[], float] = time.time,
        on_trouble: Callable[[TapeError], None] | None = None,
        ports: Ports | None = None,
    ) -> None:
        self._ports, self._clock = ports or kafka(settings), clock
        self._on_trouble = on_trouble or (lambda error: None)
        self._names = Names(settings.prefix)
        self._delays = {self._names.retry(delay): delay for delay in WHEELS}
        self.name = f"{self._names.mover}-{name or uuid.uuid4().hex[:12]}"
        self.moved = self.buried = self.fired = 0
        self.late_s = 0.0
        self.ready = threading.Event()
        """Set while it holds partitions."""
        self._heads = Heads(self._delays)
        self._calendar = Calendar()
        self._unsigned: set[Place] = set()
        self._next_move = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self.run, name="mover", daemon=True)
        self._intake: Intake
        self._transactor: Transactor

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = 10.0) -> None:
        """Finish the transaction under way, leave the group, end; waits for that as long as told."""
        self._stopped.set()
        if timeout and self._thread.is_alive():
            self._thread.join(timeout)

    def join(self) -> None:
        """Wait until it was stopped."""
        self._thread.join()

    def run(self) -> None:
        """Work until stopped; trouble with the brokers is waited out with growing pauses."""
        tries = 0
        while not self._stopped.is_set():
            done = self.moved + self.fired
            try:
                self.open()
                try:
                    while not self._stopped.is_set():
                        self.turn()
                finally:
                    self.close()
            except TapeError as error:
                tries = 1 if self.moved + self.fired > done else tries + 1
                _LOG.error("mover in trouble", mover=self.name, error=str(error))
                self._on_trouble(error)
                self._stopped.wait(pause(tries, random.random()))  # noqa: S311 - spreads load, guards nothing

    def open(self) -> None:
        """Take its name and a place in the group. Raises `AuthError`, `UnavailableError`."""
        self._transactor = self._ports.transactor(self.name)
        try:
            self._intake = self._ports.intake(self._names.mover, [*self._delays, self._names.recurring], self.name)
        except BaseException:
            self._transactor.close()
            raise

    def close(self) -> None:
        """Leave the group, and forget all that was read in it."""
        # Also what is not ours any more: trouble may have come between a loss and our hearing of it.
        self._heads.clear()
        self._calendar.clear()
        self._unsigned.clear()
        self.ready.clear()
        self._intake.close()
        self._transactor.close()

    def turn(self) -> None:
        """Read, move what is due, fire what recurs. Raises `AuthError`, `UnavailableError`; then close and open."""
        records, lost, gained = self._intake.poll(self._wait())
        self._let_go(lost)
        self._heads.add(record for record in records if record.topic in self._delays)
        self._calendar.read(record for record in records if record.topic == self._names.recurring)
        self._unsigned |= gained
        try:
            self._sign()
            self._move()
            self._fire()
        except ConflictError as error:
            self._resync(error)
        self._intake.hold(self._heads.full())

    def _wait(self) -> float:
        now = self._clock()
        found = [IDLE_S]
        head = self._heads.wait(_ms(now))
        if head is not None:
            found.append(max(head, self._next_move - self._ports.monotonic()))
        firing = self._calendar.wait(_moment(now))
        if firing is not None:
            found.append(firing)
        return max(0.0, min(found))

    def _let_go(self, places: Iterable[Place]) -> None:
        lost = set(places)
        self._heads.drop(lost)
        self._unsigned -= lost
        if any(topic == self._names.recurring for topic, _ in lost):
            self._calendar.clear()
        if lost:
            self.ready.clear()

    def _sign(self) -> None:
        """Note beside the offsets that these partitions are ours, before anything is moved."""
        mine = self._unsigned & self._intake.owned()
        if not mine:
            return
        offsets = {place: self._position(place) for place in mine}
        self._transactor.commit([], offsets, group=self._intake.member(self.name))
        # Only now is our own last transaction written down everywhere, so that nothing we fired can be missed.
        for place in mine:
            if place[0] == self._names.recurring:
                self._read_calendar(place)
        self._unsigned -= mine
        self.ready.set()

    def _read_calendar(self, place: Place) -> None:
        """Read what recurs from the start: whoever fired before us was fenced, so this is all of it."""
        last = -1
        for batch in self._ports.read(place[0]):
            mine = [record for record in batch if record.partition == place[1]]
            self._calendar.read(mine)
            last = max([last, *(record.offset for record in mine)])
        self._intake.seek(place, last + 1)

    def _position(self, place: Place) -> int:
        first = self._heads.first(place)
        return self._intake.position(place) if first is None else first

    def _move(self) -> None:
        if self._ports.monotonic() < self._next_move:
            return
        due = self._heads.due(_ms(self._clock()), BATCH, BATCH_BYTES)
        if due:
            self._pass_on(due)
            self._next_move = self._ports.monotonic() + BEAT_S

    def _pass_on(self, due: Sequence[Received]) -> None:
        try:
            self._commit(due)
        except (InvalidError, NotFoundError) as error:
            if len(due) == 1:
                self._commit(due, error)
                return
            middle = len(due) // 2
            self._pass_on(due[:middle])
            self._pass_on(due[middle:])

    def _commit(self, due: Sequence[Received], refused: TapeError | None = None) -> None:
        now_ms = _ms(self._clock())
        out: list[Outgoing] = []
        buried = 0
        for record in due:
            try:
                if refused is not None:
                    raise refused
                out.append(onward(record, self._names, now_ms))
            except (InvalidError, NotFoundError) as error:
                _LOG.error("delayed record buried", topic=record.topic, offset=record.offset, error=str(error))
                out += bury(record, error, names=self._names, worker=self.name, now=_moment(now_ms / 1000))
                buried += 1
        offsets = {(record.topic, record.partition): record.offset + 1 for record in due}
        self._transactor.commit(out, offsets, group=self._intake.member(self.name))
        self._heads.moved(due)
        self.moved += len(due) - buried
        self.buried += buried
        if not buried:
            self._measure(due, out)

    def _measure(self, due: Sequence[Received], out: Sequence[Outgoing]) -> None:
        now = self._clock()
        arrived = [plan(old.headers).due_ms for old, new in zip(due, out, strict=True) if new.topic not in self._delays]
        self.late_s = max([self.late_s, *(now - moment / 1000 for moment in arrived)])

    def _fire(self) -> None:
        now = _moment(self._clock())
        for due in self._calendar.due(now):
            place = (self._names.recurring, due.partition)
            firing = fire(due.template, due.moment, names=self._names, partition=due.partition, now=now)
            records = [Outgoing(*record) for record in firing.records]
            offsets = {place: self._intake.position(place)}
            try:
                self._transactor.commit(records, offsets, group=self._intake.member(self.name))
            except (InvalidError, NotFoundError) as error:
                _LOG.error("recurring job not submitted", name=due.template.name, error=str(error))
                self._calendar.postpone(due, now)
                continue
            self._calendar.fired(due)
            self.fired += 1

    def _resync(self, error: ConflictError) -> None:
        """Go on after somebody else was first: from what is committed, under our name again if that was taken."""
        _LOG.info("mover gave way", mover=self.name, error=str(error))
        if error.code != "TAPE-3006":
            return  # nothing was written, and the group is about to tell what is ours
        self._transactor.close()
        self._transactor = self._ports.transactor(self.name)
        mine = self._intake.owned()
        self._let_go(mine)
        self._unsigned |= mine
        self._intake.rewind(mine)


def _ms(now: float) -> int:
    return int(now * 1000)


def _moment(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)
