"""A fleet of workers' breakers on one control topic and one clock, all in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from schemas.control import Breaker, BreakerState
from schemas.errors import FailureClass, UnavailableError
from schemas.outcome import Failure
from workers.breaker import Breakers, Paused, Probe
from workers.circuit import Rules

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RULES = Rules(spread_s=2.0)
CLOSED, OPEN, HALF = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def away(text: str = "the store does not answer", code: str = "TAPE-5002") -> Failure:
    return Failure(failure=FailureClass.DEPENDENCY, code=code, message=text)


@dataclass
class Log:
    """A control topic of one partition."""

    records: list[Breaker] = field(default_factory=list)
    lost: bool = False

    def publish(self, message: Breaker) -> None:
        if self.lost:
            raise UnavailableError("the buffer is full", code="TAPE-5004")
        self.records.append(message)

    def compact(self) -> list[Breaker]:
        return list({message.dependency: message for message in self.records}.values())


class Member:
    """One worker of the fleet: its breakers, its clocks and how far it has read."""

    def __init__(self, name: str, log: Log, clock: Callable[[], float], skew_s: float = 0.0) -> None:
        self.name, self.log, self.at = name, log, 0
        self.skew = timedelta(seconds=skew_s)
        self.breakers = Breakers(
            name,
            lambda: NOW + timedelta(seconds=clock()) + self.skew,
            log.publish,
            clock=clock,
            chance=lambda: 0.5,
            rules=RULES,
        )

    def catch_up(self, count: int | None = None) -> None:
        while self.at < len(self.log.records) and (count is None or count > 0):
            self.breakers.apply(self.log.records[self.at])
            self.at += 1
            count = None if count is None else count - 1

    def state(self, name: str = "store") -> BreakerState:
        found = self.breakers.states().get(name)
        return found.state if found else CLOSED


class Fleet:
    """Some workers on one log and one clock."""

    def __init__(self, size: int = 2, skews: tuple[float, ...] = ()) -> None:
        self.time, self.log = 0.0, Log()
        given_ = (*skews, *([0.0] * size))[:size]
        self.members = [Member(f"w{number}", self.log, self.clock, skew) for number, skew in enumerate(given_)]

    def clock(self) -> float:
        return self.time

    def settle(self) -> None:
        while any(member.at < len(self.log.records) for member in self.members):
            for member in self.members:
                member.catch_up()

    def states(self, name: str = "store") -> set[BreakerState]:
        return {member.state(name) for member in self.members}

    def outage(self, name: str = "store") -> None:
        for number in range(RULES.jobs):
            self.members[0].breakers.report(f"j{number}", name, away())
        self.settle()

    def half_open(self, name: str = "store") -> tuple[Member, Probe]:
        """Let the pause pass and return the worker that holds the probe."""
        self.time += RULES.cap_s + RULES.spread_s
        for member in self.members:
            assert isinstance(member.breakers.allowed([name]), Paused)
        self.settle()
        found = [(member, member.breakers.allowed([name])) for member in self.members]
        ((holder, probe),) = [(member, answer) for member, answer in found if isinstance(answer, Probe)]
        return holder, probe
