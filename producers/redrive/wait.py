"""Waiting for jobs that were sent back: what holds them up is named, and a canary is not waited for without an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.errors import TapeError, TimeoutExceeded

if TYPE_CHECKING:
    from producers.fleet import Answer

PATIENCE_S = 600.0
"""How long a canary of which nothing runs is waited for, unless somebody said how long."""
FIRST_S, EVERY_S = 5.0, 30.0
"""When it is first asked what a job waits for, and how often then."""
ASKED = 5
"""Jobs that are asked for before it is said that none runs."""

Why = Callable[[str], "Answer"]


@dataclass
class Wait:
    """One wait. `why` tells why a job is not running (None: nobody can), `say` is told what holds the first one up.

    It ends after `limit_s` seconds; with `soft`, not while one of the jobs runs. None: never.
    """

    why: Why | None
    say: Callable[[str], None]
    clock: Callable[[], float]
    limit_s: float | None = None
    soft: bool = False
    _told: str = ""
    _due: float = field(init=False)
    _until: float | None = field(init=False)

    def __post_init__(self) -> None:
        self._due = self.clock() + FIRST_S
        self._renew()

    def look(self, jobs: Sequence[str]) -> None:
        """Say what the first of these jobs waits for, where it is time. Raises `TimeoutExceeded` (TAPE-7002)."""
        now = self.clock()
        late = self._until is not None and now >= self._until
        if now >= self._due or late:
            self._due = now + EVERY_S
            if answer := self._ask(jobs[0]):
                self._told = f"{answer.job}: {answer.detail}"
                self.say(f"waiting for {len(jobs):,}; {self._told}")
        if late:
            if self.soft and any(self._runs(job) for job in jobs[:ASKED]):
                self._renew()
                return
            raise TimeoutExceeded(
                f"the canary has not ended within {self.limit_s:g} s, {len(jobs):,} to go"
                + (f"; {self._told}" if self._told else ""),
                code="TAPE-7002",
            )

    def _renew(self) -> None:
        self._until = None if self.limit_s is None else self.clock() + self.limit_s

    def _ask(self, job: str) -> Answer | None:
        if self.why is not None:
            with suppress(TapeError):  # it is only told; the wait goes on
                return self.why(job)
        return None

    def _runs(self, job: str) -> bool:
        answer = self._ask(job)
        return answer is not None and answer.blocker == "running"
