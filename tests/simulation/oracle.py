"""The one oracle (faults.md): of every job that was taken, exactly one end, durable before anything is let go of."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from typing import Any

from schemas.dead import DeadLetter
from schemas.event import Event, State, follow
from schemas.outcome import Outcome, Status
from schemas.past import ATTEMPT
from tests.simulation.fate import Violation
from wire.blobs.memory import Memory
from wire.share import AckType, Record

ENDS = frozenset({"succeeded", "failed", "cancelled", "expired", "dead"})
ALLOWED: dict[str, frozenset[str]] = {
    "good": frozenset({"succeeded", "dead"}),
    "slow": frozenset({"succeeded", "dead"}),
    "flaky": frozenset({"succeeded", "dead"}),
    "broken": frozenset({"failed", "dead"}),
    "bad": frozenset({"dead"}),
    "hopeless": frozenset({"dead"}),
    "crash": frozenset({"dead"}),
    "short": frozenset({"dead"}),
    "wrong": frozenset({"dead"}),
}
"""How a job may end by its nature; whatever may be tried again may also be tried too often."""
PATIENT = frozenset({"good", "slow", "flaky", "hopeless"})
"""Natures that are buried only once all their attempts are spent."""


class Job:
    """What the client knows of a job, and what was seen of it."""

    def __init__(self, way: str, light: bool, value: bytes | None) -> None:
        self.way, self.light, self.value = way, light, value
        self.copies = self.letters = self.redriven = 0
        self.cancelled = False
        self.expires = False
        self.runs = self.starts = 0
        self.places: list[tuple[tuple[str, int, int], int]] = []
        self.ends: set[str] = set()
        self.told = self.buried = False

    @property
    def once(self) -> bool:
        """Whether it was asked for once, and nobody sent it back."""
        return self.copies == 1 and not self.redriven

    @property
    def began(self) -> int:
        """Attempts that began, as far as anybody can have counted them."""
        return self.starts + self.runs if self.light else max(self.starts, self.runs)


class Oracle:
    """The producer's ledger, and everything that is ever written, taken in as it is written."""

    def __init__(self, store: Memory, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self.jobs: dict[str, Job] = {}
        self.events: list[Event] = []
        self.letters: list[tuple[Any, DeadLetter]] = []
        self.delayed = self.moved = 0
        self.requests: list[tuple[str, Any]] = []
        self.fired: set[str] = set()
        self.wrong: list[str] = []
        """What was seen to be wrong where nothing may be raised."""
        self.prompt = True
        """Whether what processes say is heard at once."""

    def seen(self, topic: str, partition: int, offset: int, entry: Any) -> None:
        """Take in a record that was written."""
        name = topic.removeprefix(self._prefix)
        if name == "events":
            event = Event.model_validate_json(entry.value)
            self.events.append(event)
            if (job := self.jobs.get(event.job)) is not None:
                job.told = job.told or event.until is not None
                if event.type.value in ENDS:
                    job.ends.add(event.type.value)
        elif name.startswith("dead."):
            letter = DeadLetter.model_validate_json(dict(entry.headers)["tape-dead-json"])
            self.letters.append((entry, letter))
            self.jobs[letter.job].buried = True
            self.jobs[letter.job].letters += 1
        elif name.startswith(("jobs.", "retry.")):
            self.delayed += name.startswith("retry.")
            self.requests.append((topic, entry))
            key, spent = entry.key.decode(), dict(entry.headers).get(ATTEMPT)
            if key not in self.jobs:  # a recurring one
                self.jobs[key] = Job("good", name.startswith("jobs.shout"), entry.value)
                self.fired.add(key)
            job = self.jobs[key]
            job.copies += spent is None and name.startswith("jobs.") and key in self.fired
            job.places.append(((topic, partition, offset), int(spent or b"0")))

    def outcome(self, job: str) -> Outcome | None:
        """Return the stored outcome of a job; that it was buried is none."""
        held = self._store._objects.get(f"runs/{job}/outcome.json")
        kept = None if held is None else Outcome.model_validate_json(held[1])
        return None if kept is None or not kept.final else kept

    def settled(self, record: Record, ack: AckType) -> None:
        """A record is about to be let go of: what stands for its job now must be durable, and told."""
        if ack is AckType.RELEASE:
            return
        name = (record.key or b"").decode()
        job = self.jobs[name]
        kept = job.light or job.buried or self.outcome(name) is not None
        good = bool(job.ends) and (job.buried if ack is AckType.REJECT else kept)
        if not good and ack is AckType.ACCEPT:
            good = self._goes_on(job, name, record)
        if not good:
            raise Violation(f"{name} was let go of ({ack.name}) before its end was durable")

    def _goes_on(self, job: Job, name: str, record: Record) -> bool:
        """Whether another record stands for the job, and somebody said so; of a left-over nobody need tell."""
        place, spent = record[:3], int(dict(record.headers).get(ATTEMPT) or b"0")
        if not any(other != place and other_spent >= spent for other, other_spent in job.places):
            return False
        held = self._store._objects.get(f"runs/{name}/claim.json")
        left_over = held is not None and not json.loads(held[1])["start"]["place"].endswith(f"/{record.offset}")
        return job.told or left_over

    def audit(self) -> None:
        """Judge the whole, once nothing is left to do."""
        for text in self.wrong:
            raise Violation(text)
        finals: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        states: dict[str, State] = {}
        for event in self.events:
            states[event.job] = follow(states.get(event.job), event)
            if event.outcome is not None:
                finals[event.job][event.outcome.status.value].add(event.id)
        for name, job in self.jobs.items():
            self._judge(name, job, finals.get(name, {}), states.get(name))
        self._verbatim()
        self._counts()
        if self.moved != self.delayed:
            raise Violation(f"{self.delayed} records were put off, and {self.moved} moved on")

    def _judge(self, name: str, job: Job, finals: dict[str, set[str]], state: State | None) -> None:
        if not finals:
            raise Violation(f"{name} is silently absent")
        early = {"cancelled"} if job.cancelled else set()
        early |= {"expired"} if job.expires else set()
        if not finals.keys() <= ALLOWED[job.way] | early:
            raise Violation(f"{name} ended {sorted(finals)}")
        if not job.light:  # a light job's readers drop repeats by its id (ADR 1)
            self._once(name, job, finals)
            if outcome := self.outcome(name):
                self._whole(name, outcome)
        # What a process says late may come after a dead letter, which is no end that nothing may follow.
        if job.once and ("dead" not in finals or self.prompt) and state is not None and state not in finals:
            raise Violation(f"{name} ended {sorted(finals)}, and its events say {state}")

    def _once(self, name: str, job: Job, finals: dict[str, set[str]]) -> None:
        outcome = self.outcome(name)
        if (outcome is None) != (not finals.keys() - {"dead"}):
            raise Violation(f"{name}: told {sorted(finals)}, kept {outcome and outcome.status}")
        ends = {how: len(ids) for how, ids in finals.items()}
        if job.once and sum(ends.values()) != 1:
            raise Violation(f"{name} ended more than once: {ends}")
        if sum(count for how, count in ends.items() if how != "dead") > 1:  # a buried job may be sent again
            raise Violation(f"{name} ended more than once: {ends}")
        if job.once and job.buried == (outcome is not None):
            raise Violation(f"{name}: outcome {outcome is not None}, dead letter {job.buried}")
        if outcome is None and job.letters <= job.redriven:
            raise Violation(f"{name}: {job.letters} dead letters, {job.redriven} of them sent back, and no outcome")

    def _whole(self, name: str, outcome: Outcome) -> None:
        if outcome.status is not Status.SUCCEEDED:
            return
        result = outcome.result
        held = self._store._objects.get(result["blob"])
        if held is None or hashlib.sha256(held[1]).hexdigest() != result["sha256"]:
            raise Violation(f"{name}: what its outcome names is not there")

    def _verbatim(self) -> None:
        for topic, entry in self.requests:
            if entry.value != self.jobs[entry.key.decode()].value:
                raise Violation(f"{entry.key!r} was changed on its way through {topic}")
        for entry, letter in self.letters:
            if entry.value != self.jobs[letter.job].value:
                raise Violation(f"{letter.job} was changed on its way to the dead letters")
            if not any(name == "ce_id" for name, _ in entry.headers):
                raise Violation(f"{letter.job} lost its headers on its way to the dead letters")

    def _counts(self) -> None:
        """No attempt is counted that did not begin, and no job given up that may try again."""
        for _, letter in self.letters:
            job = self.jobs[letter.job]
            if job.way == "wrong" or not job.once:
                continue
            if letter.attempts > job.began:
                raise Violation(f"{letter.job} was buried after {letter.attempts} attempts, and {job.began} began")
            if job.way in PATIENT and job.began < 3:
                raise Violation(f"{letter.job} was given up after {job.began} attempts")
        for name in self.fired:
            if self.jobs[name].copies > 1:
                raise Violation(f"one moment of a recurring job fired {self.jobs[name].copies} times")
