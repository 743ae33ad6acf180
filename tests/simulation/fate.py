"""What goes wrong: one source of chance decides at every step of every process."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable


class Died(BaseException):
    """The process ended here."""


class Violation(AssertionError):  # noqa: N818 - what the oracle says
    """The oracle was contradicted."""


class Fate:
    """Decides what happens at each step; once `calm` is set, nothing goes wrong any more.

    `trouble`, `deaths` and `freezes` are chances per step. `planned` names the one step, and which time it is come to,
    at which a process dies.
    """

    def __init__(
        self, choose: random.Random, *, trouble: float = 0.0, deaths: float = 0.0, freezes: float = 0.0
    ) -> None:
        self.choose = choose
        self.trouble, self.deaths, self.freezes = trouble, deaths, freezes
        self.calm = False
        self.planned: dict[str, int] = {}
        self.passed: Counter[str] = Counter()
        self.trace: list[str] = []

    def meet(self, who: str, step: str, pause: Callable[[], object]) -> bool:
        """Come to a step: die here, be frozen for a while (`pause`), or return whether the step fails."""
        self.passed[step] += 1
        if self.planned.get(step) == self.passed[step]:
            self.trace.append(f"{who} dies: {step}")
            raise Died(step)
        if self.calm:
            return False
        chance = self.choose.random()
        if chance < self.deaths:
            self.trace.append(f"{who} dies: {step}")
            raise Died(step)
        if (chance := chance - self.deaths) < self.freezes:
            self.trace.append(f"{who} is frozen: {step}")
            pause()
            self.trace.append(f"{who} is thawed: {step}")
            return False
        if chance - self.freezes < self.trouble:
            self.trace.append(f"{who} fails: {step}")
            return True
        return False
