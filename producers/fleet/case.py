"""One case: what is known of a job that waits, and what follows from that at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from producers.fleet.facts import Answer, Blocker, Facts
from producers.fleet.view import Seen
from producers.fleet.words import exact
from producers.fold import View
from schemas.event import Event, State

STARTED = (Blocker.ENDED, Blocker.CANCELLED, Blocker.EXPIRED, Blocker.RUNNING, Blocker.LOST)
"""Whoever asks is told here that it runs or never will; the moment before which it is not taken matters no more."""


@dataclass(frozen=True, slots=True)
class Case:
    """The facts, and what follows from them at once."""

    facts: Facts
    view: View | None
    last: Event | None
    serving: tuple[Seen, ...]
    ahead: int | None

    @property
    def state(self) -> State | None:
        """Where the job is as its events tell; a record without events is queued."""
        return self.view.state if self.view else State.QUEUED if self.facts.place else None

    @property
    def holder(self) -> Seen | None:
        """The worker that says that it has the job."""
        found = (
            seen for seen in self.facts.fleet.workers if not seen.silent and self.facts.job in seen.presence.running
        )
        return next(found, None)

    @property
    def held(self) -> bool:
        """Whether it runs; of a light job, which may tell of nothing before its end, only its worker says so."""
        return self.state is State.RUNNING or (self.state is State.QUEUED and self.holder is not None)

    @property
    def takers(self) -> list[Seen]:
        """Workers that take such jobs."""
        return [seen for seen in self.serving if seen.takes]

    def answer(self, blocker: Blocker, detail: str, *steps: str, **more: Any) -> Answer:
        """Return the answer, with the facts that belong to every one of its kind."""
        early = self.facts.early
        if early is not None and blocker not in STARTED:
            detail += f" It is not taken before {exact(early)}."
        facts = {name: value for name, value in {**self.told(), **more.pop("facts", {})}.items() if value is not None}
        return Answer(
            job=self.facts.job, state=self.state, blocker=blocker, detail=detail, facts=facts, next=steps, **more
        )

    def told(self) -> dict[str, Any]:
        """Return what is worth knowing whatever the answer is."""
        facts, view, place = self.facts, self.view, self.facts.place
        found: dict[str, Any] = {"kind": facts.kind, "lane": facts.lane if facts.kind else None}
        if view is not None:
            found |= {"submitted": view.submitted, "attempt": view.attempt or None, "worker": view.worker}
        if place is not None:
            found["record"] = f"{place.topic}/{place.partition}/{place.offset}"
            found |= {"replays": place.past.replays or None, "not before": self.facts.early}
        return found
