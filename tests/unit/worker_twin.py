"""A worker's parts on twins in memory: a log, a store, a clock one sets, and jobs to put in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from schemas.claim import Claim, Start
from schemas.codec import Envelope, encode, request_type
from schemas.control import Cancel, Control, Pause, Resume, Tenant, key
from schemas.dead import DISPOSITION, DeadLetter
from schemas.delays import PARTITIONS, WHEELS, plan, strip
from schemas.errors import FailureClass
from schemas.event import Event
from schemas.model import Strict
from schemas.outcome import Outcome, Succeeded, Verdict, outcome_name
from schemas.past import Past, Try
from schemas.past import read as read_past
from schemas.past import write as write_past
from schemas.topics import Names
from wire.blobs import Blobs
from wire.blobs.memory import Memory
from wire.publish import MemoryPublisher, Publisher
from wire.share import AckType, MemoryLog, MemoryShareConsumer, Record
from wire.share.locks import GroupConfig
from workers.admit import Signals
from workers.again import Again
from workers.attempt import Record as AnyRecord
from workers.breaker import Breakers
from workers.claim import Claims, claim_name
from workers.context import Context
from workers.control import Controls
from workers.execute import Executor
from workers.gate import Gate
from workers.kinds import Kind
from workers.quota import Quotas
from workers.runner import InlineRunner, Runner
from workers.settle import Settler

NAMES = Names("t.")
START = datetime(2026, 1, 1, tzinfo=UTC)
SCRATCH = Path("scratch-of-tests")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Say(Strict):
    """Parameters of the kinds of these tests."""

    text: str = ""
    number: float = Field(default=0, ge=0)


def kind(
    handler: Callable[[Context, Say], Any] = lambda _, params: Succeeded(result={"text": params.text}),
    name: str = "say",
    *,
    isolation: Any = "process",
    max_attempts: int = 3,
    timeout_s: float | None = None,
) -> Kind:
    """A kind of a handler; `process` means that its outcome is recorded, it still runs right here."""
    return Kind(name, Say, handler, isolation, max_attempts, timeout_s)


class Steps(Again):
    """Tries again when told to, in this thread; pauses are those of the real one, with no luck in them."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock, chance=lambda: 0.999)

    def start(self) -> None:
        """Nothing runs by itself."""

    def due(self) -> list[float]:
        """The moments of what waits."""
        return sorted(entry[0] for entry in self._heap)

    def run(self) -> int:
        """Do all that is due now; returns how much that was."""
        done = 0
        while self._heap and self._heap[0][0] <= self._clock():
            found = self._next()
            assert found is not None
            found[1]()
            done += 1
        return done


class Bench:
    """One executor and settler on twins; what they acknowledge is in `acks`."""

    def __init__(
        self,
        *kinds: Kind,
        log: MemoryLog | None = None,
        store: Blobs | None = None,
        publisher: Publisher | None = None,
        worker: str = "w1",
        clock: Clock | None = None,
        told: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.clock = clock or Clock()
        self.log = log or MemoryLog(clock=lambda: self.clock.seconds)
        for topic in (NAMES.events, *(NAMES.dead(name) for name in ("say", "shout", "unknown"))):
            self.log.create(topic)
        for delay in WHEELS:
            self.log.create(f"{NAMES.prefix}retry.{delay}", PARTITIONS)
        self.store = store or Memory()
        self.publisher = publisher or MemoryPublisher(self.log)
        self.kinds = {entry.name: entry for entry in kinds or (kind(),)}
        for name in self.kinds:
            self.log.create(NAMES.jobs(name, "bulk"))
        self.control = Controls()
        self.again = Steps(self.clock)
        self.acks: list[tuple[AnyRecord, AckType]] = []
        self.given: list[AnyRecord] = []
        self.stopping = False
        self.said: list[Any] = []
        self.breakers = Breakers(worker, self.clock.now, self.said.append, clock=self.clock, chance=lambda: self.chance)
        self.gate = Gate(self.breakers, self.kinds)

        def settled(record: AnyRecord, ack: AckType, event: Event | None) -> None:
            if event is not None:
                told(event)
            self.acks.append((record, ack))

        self.settler = Settler(
            publisher=self.publisher,
            store=lambda: self.store,
            names=NAMES,
            worker=worker,
            now=self.clock.now,
            done=settled,
            again=self.again,
            gate=self.gate,
        )
        self.claims = Claims(
            worker=worker, store=lambda: self.store, now=self.clock.now, clock=self.clock, wait=self.sleep
        )
        self.quotas = Quotas(
            worker=worker, store=lambda: self.store, tenant=self.control.tenant, clock=self.clock,
            chance=lambda: self.chance, pause=self.sleep,
        )  # fmt: skip
        self.chance = 0.999
        self.slept, self.ended = 0, False
        self.meanwhile: Callable[[], object] = lambda: None
        self.executor = Executor(
            kinds=self.kinds,
            names=NAMES,
            settler=self.settler,
            claims=self.claims,
            gate=self.gate,
            signals=Signals(
                self.clock.now,
                self.control.reason,
                lambda: self.stopping,
                self.sleep,
                lambda: self.chance,
                self.quotas,
                self.control.paused,
            ),
            again=self.again,
            give=self.given.append,
        )
        self.runner: Runner = InlineRunner(worker, SCRATCH, lambda: self.store)

    def sleep(self, seconds: float) -> bool:
        """Time passes, the bench's own claims beat, and `meanwhile` happens; True once the worker has ended."""
        self.slept += 1
        assert self.slept < 5000, "it waits for ever"
        self.clock.advance(seconds)
        self.claims.beat()
        self.meanwhile()
        return self.ended

    def run(self, record: AnyRecord) -> AckType | None:
        """Execute one record and return how it was acknowledged, if it was."""
        before = len(self.acks)
        self.executor.execute(record, self.runner)
        after = self.acks[before:]
        assert len(after) <= 1, "acknowledged twice"
        return after[0][1] if after else None

    def waiting(self) -> list[Waiting]:
        """What waits on the delay topics, in the order in which it is due."""
        return waits(self.log)

    def next(self) -> Record:
        """The one record that waits, taken when it is due."""
        (found,) = self.waiting()
        self.clock.seconds += max(0.0, found.due.timestamp() - self.clock.now().timestamp())
        return found.record

    def claim(self, job: str = "job-1") -> Claim:
        """The stored claim of a job."""
        return Claim.model_validate_json(self.store.read(claim_name(job)))

    def events(self, job: str | None = None) -> list[Event]:
        """The events told so far."""
        return [event for event in events(self.log) if job is None or event.job == job]

    def outcome(self, job: str) -> Outcome:
        """The stored outcome of a job."""
        return Outcome.model_validate_json(self.store.read(outcome_name(job)))

    def allow(self, tenant: str = "default", **quota: Any) -> None:
        """Give a tenant a quota, as the control topic would."""
        self.told(Tenant(tenant=tenant, time=START, **quota))

    def cancel(self, job: str, reason: str = "enough") -> None:
        """Cancel a job, as the control topic would."""
        self.told(Cancel(job=job, reason=reason, time=START))

    def pause(self, job: str = "job-1", reason: str = "lunch") -> None:
        """Pause a job, as the control topic would."""
        self.told(Pause(job=job, reason=reason, who="me@desk", time=self.clock.now()))

    def resume(self, job: str = "job-1") -> None:
        """Let a paused job go on, as the control topic would."""
        self.told(Resume(job=job, who="me@desk", time=self.clock.now()))

    def told(self, message: Control) -> None:
        """Hear something on the control topic."""
        self.control.apply(Entry(key(message).encode(), message.model_dump_json().encode()))


class Waiting(NamedTuple):
    """A record on a delay topic, as its job topic will have it."""

    due: datetime
    record: Record
    past: Past
    place: tuple[str, int, int]


def waits(log: MemoryLog, gone: Collection[tuple[str, int, int]] = ()) -> list[Waiting]:
    """What waits on the delay topics and did not go on yet, in the order in which it is due."""
    found: list[Waiting] = []
    for topic in (f"{NAMES.prefix}retry.{delay}" for delay in WHEELS):
        for partition in range(log.partitions(topic)):
            for entry in log.read(topic, partition):
                place = (topic, partition, entry.offset)
                if place in gone:
                    continue
                due_ms, target = plan(entry.headers)
                key, value, headers = entry.key, entry.value, tuple(strip(entry.headers))
                record = Record(target, 0, len(found) + 100, key, value, headers, 0, 1)
                due = datetime.fromtimestamp(due_ms / 1000, UTC)
                found.append(Waiting(due, record, read_past(headers), place))
    return sorted(found, key=lambda one: (one.due, one.place))


class Entry:
    """A record of the control topic."""

    def __init__(self, key: bytes | None, value: bytes | None) -> None:
        self.key, self.value = key, value


def request(
    job: str = "job-1", kind_name: str = "say", *, extensions: Mapping[str, str] | None = None, **fields: Any
) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of a request."""
    value = json.dumps({"params": {"text": "hello"}, **fields}).encode()
    envelope = Envelope(
        id=f"e-{job}", type=request_type(kind_name), source="/test", data=value, subject=job,
        extensions=dict(extensions or {}),
    )  # fmt: skip
    return job.encode(), value, encode(envelope)


def record(
    job: str = "job-1",
    *,
    count: int = 1,
    topic: str | None = None,
    kind_name: str = "say",
    lane: str = "bulk",
    extensions: Mapping[str, str] | None = None,
    past: Past | None = None,
    offset: int = 7,
    **fields: Any,
) -> Record:
    """An acquired request; with a `past`, one that was written anew."""
    key, value, headers = request(job, kind_name, extensions=extensions, **fields)
    told = tuple(headers if past is None else write_past(headers, past))
    return Record(topic or NAMES.jobs(kind_name, lane), 0, offset, key, value, told, 0, count)


def tried(*tries: tuple[FailureClass, str], worker: str = "w0", spent: bool = True, **fields: Any) -> Past:
    """A past of attempts that failed with these classes and codes."""
    past = Past(**fields)
    for number, (failure, code) in enumerate(tries, start=1):
        past = past.after(
            Try(attempt=number, ended_at=START, worker=worker, failure=failure, code=code, message="no", spent=spent)
        )
    return past


def raw(value: bytes | None, headers: tuple[tuple[str, bytes | None], ...] = (), key: bytes | None = b"k") -> Record:
    """An acquired record of any bytes."""
    return Record(NAMES.jobs("say", "bulk"), 1, 9, key, value, headers, 0, 1)


def raising(error: BaseException) -> Any:
    def handler(*_: object) -> Succeeded:
        raise error

    return kind(handler)


def dead(
    bench: Bench, name: str = "say"
) -> list[tuple[bytes | None, bytes | None, dict[str, bytes | None], DeadLetter]]:
    """The dead letters: key, value, the original's headers, and the letter."""
    found = []
    for entry in bench.log.read(NAMES.dead(name), 0):
        original = dict(entry.headers)
        verdict = original.pop(DISPOSITION, None)
        original = {key: value for key, value in original.items() if not key.startswith("tape-dead-")}
        flat = {key.removeprefix("tape-dead-"): value for key, value in entry.headers if key.startswith("tape-dead-")}
        letter = DeadLetter.model_validate_json(flat["json"] or b"")
        assert verdict == (letter.disposition.encode() if letter.disposition else None)
        assert flat["code"] == letter.failure.code.encode()
        assert flat["attempts"] == str(letter.attempts).encode()
        assert flat["class"] == letter.failure.failure.value.encode()
        found.append((entry.key, entry.value, original, letter))
    return found


def events(log: MemoryLog) -> list[Event]:
    """Every event in the log, checked against the contract."""
    found: list[Event] = []
    for partition in range(log.partitions(NAMES.events)):
        for entry in log.read(NAMES.events, partition):
            event = Event.model_validate_json(entry.value or b"")
            assert entry.key == event.job.encode()
            headers = dict(entry.headers)
            assert headers["ce_subject"] == event.job.encode()
            assert headers["ce_id"] == event.id.encode()
            found.append(event)
    return found


def pair(*kinds: Kind, **options: Any) -> tuple[Bench, Bench]:
    """Two workers on one store, log and clock."""
    clock, store = Clock(), Memory()
    log = MemoryLog(clock=clock)
    return (
        Bench(*kinds, log=log, store=store, clock=clock, worker="w1", **options),
        Bench(*kinds, log=log, store=store, clock=clock, worker="w2", **options),
    )


def begun(bench: Bench, *, lost: int = 0, beat: int = 3, spent: int = 0) -> None:
    """A worker began the job, after others that died of it, and nothing was heard of it since."""
    place = "t.jobs.say.bulk/0/7"
    starts = [
        Start(
            attempt=spent + number, worker=f"w9-{number}", epoch=number, started_at=START, place=place, line=place,
            spent=spent,
        )
        for number in range(1, lost + 2)
    ]  # fmt: skip
    claim = Claim(job="job-1", held=True, start=starts[-1], lost=tuple(starts[:-1]), beat=beat)
    bench.store.put(claim_name("job-1"), claim.model_dump_json().encode())


def consumer(
    log: MemoryLog, topic: str, group: str = "g", clock: Clock | None = None, **config: Any
) -> MemoryShareConsumer:
    """A member of a share group in memory."""
    settings = GroupConfig(**{"delivery_limit": 10, **config})
    options: dict[str, Any] = {"clock": clock} if clock else {}
    return MemoryShareConsumer([topic], group, log, config=settings, **options)


def waiting(event: threading.Event, what: str) -> None:
    """Wait for a signal, or say what never came."""
    assert event.wait(20), f"{what} never came"


__all__ = ["NAMES", "START", "Bench", "Clock", "Entry", "Say", "Steps", "Verdict", "Waiting", "begun", "consumer",
           "dead", "events", "kind", "pair", "raising", "raw", "record", "request", "tried", "waiting",
           "waits"]  # fmt: skip
