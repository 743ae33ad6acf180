"""A member of a share group: join, stay, rejoin, leave. Pure, no I/O.

    joining (epoch 0) --ok--> stable (epoch n) --fenced or unknown--> joining
                                               --leave (epoch -1)--> left
    any --fatal error--> failed

The member keeps its id when it rejoins: its locks at the brokers are bound to that id.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from . import errors
from .messages import TopicPartition

JOIN, LEAVE = 0, -1
_FIRST_LOOK = 0.1  # seconds between heartbeats while nothing is assigned, doubling up to the broker's interval
_FENCED = frozenset({errors.UNKNOWN_MEMBER_ID, errors.FENCED_MEMBER_EPOCH, errors.STALE_MEMBER_EPOCH})


class State(StrEnum):
    """Where a member stands."""

    JOINING = "joining"
    STABLE = "stable"
    LEFT = "left"
    FAILED = "failed"


def take_id() -> str:
    """A fresh member id: a UUID in 22 characters of URL-safe base64 that does not start with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


@dataclass(frozen=True, slots=True)
class Answer:
    """A heartbeat's response, without the wire; `assignment` is None when it did not change."""

    code: int
    message: str | None = None
    epoch: int = 0
    interval: float = 5.0
    assignment: frozenset[TopicPartition] | None = None


class Membership:
    """The member's state; the caller sends heartbeats with `epoch` every `delay()` seconds and reports the answers."""

    def __init__(self, member_id: str) -> None:
        self.member_id = member_id
        self.state = State.JOINING
        self.epoch = JOIN
        self.interval = 5.0
        self.assignment: frozenset[TopicPartition] = frozenset()
        self.rejoins = 0
        self._look = _FIRST_LOOK

    @property
    def sends_topics(self) -> bool:
        """The first heartbeat names the topics, later ones do not."""
        return self.epoch == JOIN

    def delay(self) -> float:
        """Seconds until the next heartbeat; short while nothing is assigned yet."""
        if self.state is State.JOINING:
            return 0.0
        if self.assignment:
            return self.interval
        look, self._look = self._look, min(self._look * 2, self.interval)
        return min(look, self.interval)

    def answered(self, answer: Answer) -> errors.ShareError | None:
        """Take an answer in. Returns the error it stands for: a FatalError ends it, an UnavailableError means that
        the coordinator moved, any other is worth another try."""
        if self.state in (State.LEFT, State.FAILED):
            return None
        if answer.code == 0:
            self._accept(answer)
            return None
        if answer.code in _FENCED:
            self.state, self.epoch = State.JOINING, JOIN
            self.rejoins += 1
            return None
        error = errors.from_code(answer.code, answer.message, place="share group")
        if answer.code in (errors.INVALID_REQUEST, errors.INVALID_GROUP_ID, errors.GROUP_ID_NOT_FOUND):
            error = errors.FatalError(str(error))
        if isinstance(error, errors.FatalError):
            self.state = State.FAILED
        return error

    def leave(self) -> bool:
        """Take leave. Returns whether the group must be told."""
        told = self.state is State.STABLE
        self.state, self.epoch = State.LEFT, LEAVE
        return told

    def _accept(self, answer: Answer) -> None:
        self.state, self.epoch, self.interval = State.STABLE, answer.epoch, answer.interval
        if answer.assignment is not None:
            self.assignment = answer.assignment
            self._look = _FIRST_LOOK


def partitions(assigned: Iterable[tuple[uuid.UUID, Iterable[int]]]) -> frozenset[TopicPartition]:
    """An assignment as a set of partitions."""
    return frozenset((topic_id, index) for topic_id, indexes in assigned for index in indexes)
