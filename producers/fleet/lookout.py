"""Where the fleet is looked at from: the ways to the outside that `tape workers` and `tape why` need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from producers.fleet.facts import Standing
from producers.fleet.view import Fleet, fold
from producers.request import Message
from schemas import codec, control
from schemas.errors import NotFoundError
from schemas.ids import uuid7
from schemas.topics import Names
from wire.blobs import Blobs
from wire.blobs.memory import Memory
from wire.follow import Follower, Received, Since
from wire.settings import Settings

if TYPE_CHECKING:
    from producers.ports import Ports
    from wire.share.memory import MemoryLog

CONFIRM_S = 30.0


@dataclass
class Lookout:
    """Ways to the outside, opened at their first use; `clock` is monotonic, in seconds.

    `standing` tells where a share group stands in topics; those that do not exist are left out. `withdraw` takes back
    what a key of the control topic says.
    """

    names: Names
    follower: Follower
    topics: Callable[[], set[str]]
    standing: Callable[[str, Sequence[str]], list[Standing]]
    publish: Callable[[control.Control], None]
    withdraw: Callable[[str], None] = lambda _: None
    store: Callable[[], Blobs] = Memory
    close: Callable[[], None] = lambda: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the lookout that these settings lead to; nothing is connected yet."""
        from producers.fleet.offsets import standing
        from producers.ports import Ports
        from wire.follow import KafkaFollower

        ports, names = Ports(settings), Names(settings.prefix)
        return cls(
            names=names,
            follower=KafkaFollower(settings, name="tape-fleet"),
            topics=ports.topics,
            standing=lambda group, topics: standing(settings, group, topics),
            publish=lambda message: _send(ports, names, message),
            withdraw=lambda subject: ports.erase(names.control, subject).result(CONFIRM_S) and None,
            store=lambda: ports.blobs,
            close=ports.close,
        )

    @classmethod
    def memory(cls, log: MemoryLog, names: Names, **more: Any) -> Self:
        """Return the lookout over a log in this process; `more` replaces clocks."""
        from wire.follow import MemoryFollower
        from wire.publish import MemoryPublisher

        def standing(group: str, topics: Sequence[str]) -> list[Standing]:
            return [
                Standing(topic, part, start, log.end(topic, part), lag)
                for topic in topics
                for part in range(log.partitions(topic))
                for start, lag in [log.group(group).describe(topic, part)]
            ]

        def publish(message: control.Control) -> None:
            key, value = control.key(message).encode(), message.model_dump_json().encode()
            MemoryPublisher(log).publish(names.control, key=key, value=value).result()

        def withdraw(subject: str) -> None:
            MemoryPublisher(log).publish(names.control, key=subject.encode(), value=None).result()

        return cls(names, MemoryFollower(log), lambda: set(log.topics()), standing, publish, withdraw, **more)

    def fleet(self) -> Fleet:
        """Return the fleet as it is now; nobody where there is no control topic."""
        try:
            with self.follower.read(self.names.control) as feed:
                return fold((record for batch in feed for record in batch), self.now())
        except NotFoundError:
            return Fleet()

    def records(self, topic: str, since: Since, budget_s: float, key: bytes | None = None) -> Iterator[Received | None]:
        """Yield a topic's records up to now; a None as the last when the budget of seconds did not suffice."""
        until = self.clock() + budget_s
        with suppress(NotFoundError), self.follower.read(topic, since=since, key=key) as feed:
            while batch := feed.poll(max(0.0, until - self.clock())):
                yield from batch
                if self.clock() >= until:
                    break
            if self.clock() >= until:
                yield None


def _send(ports: Ports, names: Names, message: control.Control) -> None:
    subject = control.key(message)
    headers = codec.encode(
        codec.Envelope(
            id=uuid7(),
            type=f"tape.control.{message.action}.v1",
            source="/tickertape/fleet",
            data=b"",
            subject=subject,
            time=datetime.now(UTC).isoformat(),
        )
    )
    value = message.model_dump_json(exclude_none=True).encode()
    ports.publish(Message(names.control, subject, value, headers)).result(CONFIRM_S)
