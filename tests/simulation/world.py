"""The simulated world: brokers, a store, workers, movers and clients, step by step under one source of chance."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from schemas import past
from schemas.control import Cancel, Control, Pause, Resume, key
from schemas.delays import PARTITIONS, WHEELS, Delayed, delayed
from schemas.errors import TapeError
from tests.simulation.fate import Died, Fate, Violation
from tests.simulation.faults import FAULTS
from tests.simulation.hand import DELIVERIES, LIGHT, Hand
from tests.simulation.oracle import Job, Oracle
from tests.simulation.twins import Journal, Link, Pen, Seat, Time, Watch
from tests.unit.worker_twin import NAMES, request
from wire.blobs.memory import Memory
from wire.follow.port import Received
from wire.settings import Settings
from wire.share import ShareError
from wire.transact.memory import ledger
from workers.delay.mover import Mover, Ports

WAYS = ("good", "slow", "flaky", "broken", "bad", "hopeless", "crash", "short", "wrong")
SETTINGS = Settings(prefix=NAMES.prefix)
PAUSES = (0.0, 0.05, 0.3, 1.0, 3.0, 7.0, 13.0, 31.0)
TURNS = 2_000
"""Turns in which a world that is left in peace must have done everything."""


class Carrier:
    """A mover."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.watch, self.link = Watch(world.time), Link(self.meet)
        self.opened = False
        self.seat: Seat | None = None
        ports = Ports(self._pen, self._seat, self._read, self.watch)
        self.mover = Mover(SETTINGS, name=name, clock=lambda: self.watch.now().timestamp(), ports=ports)

    def meet(self, step: str) -> bool:
        """Come to a step; frozen, it does nothing while the world goes on."""
        return self.world.fate.meet(self.name, step, lambda: self.world.meanwhile(self))

    def _pen(self, name: str) -> Pen:
        self.link.meet("open before")
        pen = Pen(self.world.log, name)
        pen.link, pen.around = self.link, self.world.committing
        return pen

    def _seat(self, group: str, topics: Sequence[str], name: str) -> Seat:
        seat = Seat(self.world.log, group, topics, name=name, clock=self.watch)
        seat.link, self.seat = self.link, seat
        return seat

    def _read(self, topic: str) -> list[list[Received]]:
        self.link.meet("read before")
        return [[Received(topic, *entry) for entry in self.world.log.read(topic, 0)]]

    def turn(self) -> None:
        """One turn of its loop, as `Mover.run` takes it."""
        try:
            if not self.opened:
                self.mover.open()
                self.opened = True
            self.mover.turn()
        except TapeError:
            if self.opened:
                self.mover.close()
                self.opened = False


class World:
    """Everything there is. `turn` takes one step of chance; `finish` leaves it in peace until all is done."""

    def __init__(self, fate: Fate, *, workers: int = 1, movers: int = 1) -> None:
        self.fate, self.time = fate, Time()
        self.deliveries = 10_000 if fate.deaths or fate.freezes or fate.planned else DELIVERIES
        self.store = Memory()
        self.oracle = Oracle(self.store, NAMES.prefix)
        self.oracle.prompt = not (fate.freezes or fate.trouble)
        self.log = Journal(self.time, self.oracle.seen)
        for topic in (
            NAMES.control,
            NAMES.recurring,
            NAMES.events,
            *(NAMES.jobs(kind, "bulk") for kind in ("say", LIGHT)),
        ):
            self.log.create(topic)
        for delay in WHEELS:
            self.log.create(NAMES.retry(delay), PARTITIONS)
        self.hands: list[Hand] = []
        self.carriers: list[Carrier] = []
        self._away: list[Any] = []
        self._hired = self._carrying = 0
        self._starts: dict[str, int] = {}
        self.client = Watch(self.time)
        self.requests: dict[str, Delayed] = {}
        self.sent_back: set[int] = set()
        self.paused: set[str] = set()
        for _ in range(workers):
            self.hire()
        for _ in range(movers):
            self.carry()

    # Clients

    def send(self, way: str, *, light: bool = False, wait_s: float = 0.0, expires_s: float | None = None) -> str:
        """A client asks for a job; with `wait_s`, not before that time has passed on its clock."""
        name = f"{way}-{len(self.oracle.jobs)}"
        kind = LIGHT if light else "say"
        fields: dict[str, Any] = {"params": {"text": way}}
        if expires_s is not None:
            fields["expires_at"] = (self.client.now() + timedelta(seconds=expires_s)).isoformat()
        key, value, headers = request(name, kind, **fields)
        if way == "wrong":
            value = b"{"
        self.oracle.jobs[name] = job = Job(way, light, value)
        job.expires = expires_s is not None
        now = int(self.client.now().timestamp() * 1000)
        made = delayed(
            NAMES.jobs(kind, "bulk"), prefix=NAMES.prefix, key=key, value=value, headers=headers,
            due_ms=now + int(wait_s * 1000), now_ms=now,
        )  # fmt: skip
        self.requests[name] = made
        self.resend(name)
        return name

    def resend(self, name: str) -> None:
        """The same request once more, as a client that had no answer sends it."""
        made = self.requests[name]
        self.oracle.jobs[name].copies += 1
        self.log.append(made.topic, made.key, made.value, made.headers, made.partition)

    def replay(self, choose: random.Random) -> None:
        """Send some letters back in peace, one of each job: each must come to an outcome, or to another letter."""
        sent: dict[str, int] = {}
        for at in self.letters():
            letter = self.oracle.letters[at][1]
            if letter.job not in sent and choose.random() < 0.6:
                sent[letter.job] = self.oracle.jobs[letter.job].letters
                self.redrive(at)
        self.finish()
        for name, letters in sent.items():
            job = self.oracle.jobs[name]
            if job.letters == letters and self.oracle.outcome(name) is None and not job.ends - {"dead"}:
                raise Violation(f"{name} was sent back from the dead letters, and nothing came of it")

    def letters(self) -> list[int]:
        """The dead letters that nobody sent back."""
        return sorted(set(range(len(self.oracle.letters))) - self.sent_back)

    def redrive(self, at: int) -> None:
        """A dead letter is sent back, as it is."""
        entry, letter = self.oracle.letters[at]
        self.sent_back.add(at)
        self.oracle.jobs[letter.job].redriven += 1
        tries = [one.model_copy(update={"spent": False}) for one in letter.past.tries] if letter.past else []
        kept = [header for header in entry.headers if not header[0].startswith("tape-dead-")]
        headers = past.write(kept, past.Past(replays=letter.replays + 1, tries=tuple(tries)))
        self.log.append(letter.topic, entry.key, entry.value, headers)

    def cancel(self, name: str) -> None:
        """Somebody asks that a job must not run."""
        self.oracle.jobs[name].cancelled = True
        self.order(Cancel(job=name, reason="enough", time=self.client.now()))

    def pause(self, name: str, *, over: bool = False) -> None:
        """Somebody asks that a job shall wait, or wait no more."""
        (self.paused.discard if over else self.paused.add)(name)
        self.order((Resume if over else Pause)(job=name, time=self.client.now()))

    def order(self, message: Control) -> None:
        """Put a message on the control topic."""
        self.log.append(NAMES.control, key(message).encode(), message.model_dump_json().encode())

    # What processes tell

    def claimed(self, job: str, data: bytes) -> None:
        """A claim was written: a new epoch is an attempt that begins."""
        epoch = json.loads(data)["start"]["epoch"]
        if epoch > self._starts.get(job, 0):
            self._starts[job] = epoch
            self.oracle.jobs[job].starts += 1

    def committing(self, records: Sequence[Any], commit: Callable[[], None]) -> None:
        """A mover commits: what it moved is counted once it is written."""
        commit()
        topics = [record.topic for record in records]
        if NAMES.recurring not in topics:
            self.oracle.moved += sum(topic != NAMES.events for topic in topics)

    def goes(self, hand: Hand) -> None:
        """A drained worker ends."""
        self.hands.remove(hand)
        for member in hand.members:
            member.catch_up()
            with suppress(ShareError):
                member.close()
        self.hire()

    # Processes come and go

    def hire(self) -> None:
        """One more worker."""
        self._hired += 1
        self.hands.append(Hand(self, f"w{self._hired}"))

    def carry(self) -> None:
        """One more mover."""
        self._carrying += 1
        self.carriers.append(Carrier(self, f"m{self._carrying}"))

    def dies(self, actor: Hand | Carrier) -> None:
        """A process is gone without a word, and another one comes."""
        if isinstance(actor, Hand):
            if actor in self.hands:
                self.hands.remove(actor)
                actor.end(at_once=self.fate.choose.random() < 0.5)
                self.hire()
        elif actor in self.carriers:
            self.carriers.remove(actor)
            self.carry()

    def take(self, actor: Hand | Carrier, *steps: Callable[[], object]) -> None:
        """Let a process take steps; it may die in them."""
        try:
            for step in steps:
                step()
        except Died:
            self.dies(actor)

    # Steps

    def hand_turn(self, hand: Hand, *, whole: bool) -> None:
        """A worker takes all its steps, or one of them."""
        steps = [hand.listen, hand.beat, hand.retry, hand.work, hand.turn]
        self.take(hand, *(steps if whole else [self.fate.choose.choice(steps)]))

    def turn(self) -> None:
        """One step of chance."""
        choose = self.fate.choose
        dice = choose.random()
        hands = [hand for hand in self.hands if hand not in self._away]
        carriers = [carrier for carrier in self.carriers if carrier not in self._away]
        if dice < 0.5 and hands:
            self.hand_turn(choose.choice(hands), whole=choose.random() < 0.6)
        elif dice < 0.75 and carriers:
            carrier = choose.choice(carriers)
            self.take(carrier, carrier.turn)
        elif dice < 0.95:
            self.passes(choose.choice(PAUSES))
        else:
            self.fault()

    def fault(self) -> None:
        """Something happens that no single step of a process does."""
        choose = self.fate.choose
        name = choose.choice(list(FAULTS))
        self.fate.trace.append(f"{self.time.seconds:.2f} {name}")
        FAULTS[name](self, choose)

    def passes(self, seconds: float) -> None:
        """Time passes; a mover that is neither frozen nor cut off is heard of by its group."""
        self.time.seconds += seconds
        for carrier in self.carriers:
            if carrier not in self._away and carrier.link.brokers and carrier.seat is not None:
                carrier.seat.beat()

    def meanwhile(self, actor: Hand | Carrier) -> None:
        """A process is frozen: the world goes on without it."""
        if len(self._away) >= 2:
            return
        self._away.append(actor)
        try:
            for _ in range(self.fate.choose.randint(1, 12)):
                self.turn()
        finally:
            self._away.remove(actor)
        if actor not in self.hands and actor not in self.carriers:
            raise Died("killed while it was frozen")

    def rest(self, hand: Hand, seconds: float) -> None:
        """A thread of a worker waits; its other threads and the world go on."""
        if self.fate.calm:
            self.passes(max(seconds, 1.0))
        else:
            self.passes(seconds * self.fate.choose.choice((1.0, 4.0, 20.0)))
            if self.fate.choose.random() < 0.3:
                self.meanwhile(hand)
        # Threads of processes that nothing befell do not wait for each other.
        for other in [*self.hands] if self.fate.calm else [hand]:
            other.listen()
            other.loop.step()
            other.beat()

    def finish(self) -> None:
        """Leave it in peace: all must come to an end."""
        self.calm()
        pause = 1.0
        for _ in range(TURNS):
            before = self._mark()
            for hand in list(self.hands):
                self.hand_turn(hand, whole=True)
            for carrier in list(self.carriers):
                self.take(carrier, carrier.turn)
            held = any(hand.loop.held for hand in self.hands)
            open_ = any(not one.quiet for hand in self.hands for one in hand.desk.breakers.states().values())
            if self.done() and not held:
                return
            pause = 1.0 if self._mark() != before else min(pause * 2, 6.0 if held or open_ else 60.0)
            self.passes(pause)
        raise Violation(f"not done after {TURNS} turns in peace: {self.left()}")

    def calm(self) -> None:
        """Nothing goes wrong any more, nothing recurs, and nobody's job waits for leave to go on."""
        self.fate.calm = True
        for name in sorted(self.paused):
            self.pause(name, over=True)
        self.log.append(NAMES.recurring, b"often", None)
        for actor in (*self.hands, *self.carriers):
            actor.link.brokers = actor.link.store = True
            actor.watch.skew = 0.0
        self.client.skew = 0.0

    def _mark(self) -> int:
        return len(self.oracle.requests) + len(self.oracle.events) + len(self.oracle.letters)

    def left(self) -> str:
        """What is left to do, in words."""
        noted = ledger(self.log).offsets.get(NAMES.mover, {})
        lags = {
            kind: self.log.group(NAMES.group(kind)).describe(NAMES.jobs(kind, "bulk"), 0)[1] for kind in ("say", LIGHT)
        }
        moved = sum(offset for (topic, _), (offset, _) in noted.items() if topic != NAMES.recurring)
        return (
            f"lags {lags}, held {[hand.loop.held for hand in self.hands]}, put off {self.oracle.delayed}, read {moved}"
        )

    def done(self) -> bool:
        """Whether nothing is left to do."""
        for kind in ("say", LIGHT):
            if self.log.group(NAMES.group(kind)).describe(NAMES.jobs(kind, "bulk"), 0)[1]:
                return False
        noted = ledger(self.log).offsets.get(NAMES.mover, {})
        return self.oracle.delayed == sum(
            offset for (topic, _), (offset, _) in noted.items() if topic != NAMES.recurring
        )


def schedule(seed: int, fate: Fate | None = None) -> World:
    """Run the schedule of a seed to its end and judge it. Raises `Violation`."""
    choose = random.Random(seed)
    fate = fate or Fate(choose)
    fate.choose = choose
    fate.trouble = choose.choice((0.0, 0.02, 0.1, 0.3))
    fate.deaths = choose.choice((0.0, 0.01, 0.05))
    fate.freezes = choose.choice((0.0, 0.01, 0.05))
    world = World(fate, workers=choose.randint(1, 3), movers=choose.randint(1, 2))
    play(world, jobs=choose.randint(1, 5), turns=choose.choice((20, 40, 80)))
    return world


def play(world: World, *, jobs: int, turns: int) -> None:
    """Let clients ask for jobs, let chance reign for some turns, then finish and judge."""
    choose = world.fate.choose
    try:
        for _ in range(jobs):
            world.send(
                choose.choice(WAYS),
                light=choose.random() < 0.3,
                wait_s=choose.choice((0.0, 0.0, 0.0, 2.0, 20.0, 100.0)),
                expires_s=choose.choice((None, None, None, 60.0)),
            )
        for _ in range(turns):
            world.turn()
        world.finish()
        for _ in range(choose.choice((0, 0, 1, 3))):  # somebody sends back what has died
            world.replay(choose)
        world.oracle.audit()
    except Died as error:  # nobody was to catch it
        raise Violation(f"the simulation itself is wrong: {error}") from error


def replay(seed: int) -> tuple[str | None, list[str]]:
    """Run a schedule again; return what it came to, if that was bad, and what went wrong in it, step by step."""
    fate = Fate(random.Random(seed))
    try:
        schedule(seed, fate)
    except Exception as error:
        return f"{type(error).__name__}: {error}", fate.trace
    return None, fate.trace
