"""A share session with one leader: epochs, partitions added and dropped. Pure, no I/O.

    closed --open--> opening (epoch 0) --answered--> open (epoch 1, 2 …) --lost--> opening
                                                          --end--> closed (epoch -1)

One request is in flight at a time. A request's epoch is one more than the last answered one; after 2**31-1 comes 1.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .messages import TopicPartition

OPENING, FINAL = 0, -1
_LAST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Step:
    """The session part of one request."""

    epoch: int
    added: frozenset[TopicPartition] = frozenset()
    forgotten: frozenset[TopicPartition] = frozenset()


class Session:
    """The state of one session; the caller sends what `fetch`, `acknowledge` or `end` says and reports what came."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.epoch = OPENING
        self.known: frozenset[TopicPartition] = frozenset()
        self._sent: Step | None = None

    @property
    def open(self) -> bool:
        """The broker knows this session."""
        return self.epoch > OPENING

    @property
    def busy(self) -> bool:
        """A request is in flight."""
        return self._sent is not None

    def fetch(self, wanted: AbstractSet[TopicPartition]) -> Step:
        """The next fetch, so that the session holds just the wanted partitions."""
        wanted = frozenset(wanted)
        return self._send(Step(self.epoch, wanted - self.known, self.known - wanted))

    def acknowledge(self) -> Step:
        """The next request without a change of partitions. Raises RuntimeError while the session is not open."""
        if not self.open:
            raise RuntimeError("acknowledgements need an open session")
        return self._send(Step(self.epoch))

    def end(self) -> Step:
        """The last request: the broker releases what is still held. Raises RuntimeError while not open."""
        if not self.open:
            raise RuntimeError("the session is not open")
        return self._send(Step(FINAL))

    def answered(self) -> None:
        """The request in flight was answered without a top-level error."""
        step = self._sent
        if step is None:
            raise RuntimeError("nothing was in flight")
        self._sent = None
        if step.epoch == FINAL:
            self.epoch, self.known = OPENING, frozenset()
            return
        self.epoch = 1 if step.epoch == _LAST else step.epoch + 1
        self.known = (self.known | step.added) - step.forgotten

    def drop(self, partition: TopicPartition) -> None:
        """The broker answered that it does not lead this partition: it is not in the session."""
        self.known -= {partition}

    def lost(self) -> None:
        """The session is gone: connection closed, session not found or its epoch wrong."""
        self.epoch, self.known, self._sent = OPENING, frozenset(), None

    def _send(self, step: Step) -> Step:
        if self._sent is not None:
            raise RuntimeError("one request at a time")
        self._sent = step
        return step


def shares(demand: int, free: list[int], hot: AbstractSet[int], turn: int) -> dict[int, int]:
    """How many records to ask of each free leader, at most `demand` in all.

    Leaders whose last fetch was full (hot) get all that is left after one for each of the others, so that a backlog
    on one leader is not slowed by idle ones. With fewer wanted than leaders, `turn` rotates who is asked.
    """
    if demand <= 0 or not free:
        return {}
    order = free[turn % len(free) :] + free[: turn % len(free)]
    order.sort(key=lambda node: node not in hot)
    given = dict.fromkeys(order[:demand], 1)
    rest = demand - len(given)
    takers = [node for node in given if node in hot] or list(given)
    for index, node in enumerate(takers):
        given[node] += rest // len(takers) + (index < rest % len(takers))
    return given
