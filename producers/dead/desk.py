"""Where dead letters are handled: the ways to the outside that reading and deciding need, and how letters are read."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Self

from producers.dead.filters import Filter
from producers.dead.letter import WAITING, Letter
from schemas.dead import Fate, Place
from schemas.errors import NotFoundError
from schemas.topics import Names
from wire.follow import Follower, Received, Since
from wire.settings import Settings
from wire.transact import Transactor

if TYPE_CHECKING:
    from wire.blobs import Blobs

SLACK = timedelta(hours=1)
"""How far the clocks of the workers that wrote letters, and of the brokers that dated them, may be apart."""
PEN = b"pen "
"""How the keys of records begin that are no fates, but tell who may write them now (`producers.dead.pen`)."""


@dataclass
class Desk:
    """Ways to the outside, opened at their first use. `who` is what the audit trail says of us: user@host."""

    names: Names
    follower: Follower
    topics: Callable[[], set[str]]
    transactor: Callable[[str], Transactor]
    store: Callable[[], Blobs]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    who: str = "unknown"

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the desk that these settings lead to; nothing is connected yet."""
        from producers.ports import Ports
        from wire.blobs import open_store
        from wire.follow import KafkaFollower
        from wire.transact import KafkaTransactor

        return cls(
            names=Names(settings.prefix),
            follower=KafkaFollower(settings, name="tape-dead"),
            topics=Ports(settings).topics,
            # A redriver that is killed in the middle holds up who reads its topics for so long, and no longer.
            transactor=lambda name: KafkaTransactor(settings, name, transaction_s=15.0),
            store=lambda: open_store(settings),
            who=myself(),
        )

    @cached_property
    def blobs(self) -> Blobs:
        """The store, where redrives are kept."""
        return self.store()

    def dead(self, kinds: Sequence[str] = (), topic: str | None = None) -> list[str]:
        """Return the dead-letter topics that are meant: the one given, those of these kinds, or all of this prefix.

        Raises `NotFoundError` (TAPE-2004) for one that was named and is not there.
        """
        there = self.topics()
        wanted = [topic] if topic is not None else [self.names.dead(kind) for kind in kinds]
        for name in wanted:
            if name not in there:
                known = ", ".join(sorted(name for name in there if name.startswith(self.names.dead(""))))
                hint = f"dead-letter topics here: {known}" if known else "run `tape topics apply`"
                raise NotFoundError("the dead-letter topic does not exist", code="TAPE-2004", topic=name, hint=hint)
        return wanted or sorted(name for name in there if name.startswith(self.names.dead("")))

    def fates(self) -> dict[str, Fate]:
        """Return what became of letters, by their place and by `of ORIGIN`; nothing where nobody ever decided."""
        found: dict[str, Fate] = {}
        try:
            feed = self.follower.read(self.names.letters)
        except NotFoundError:
            return found
        with feed:
            for batch in feed:
                for record in batch:
                    note(found, record)
        return found

    def letters(self, topics: Iterable[str], since: Since = "start") -> Iterator[Letter]:
        """Yield the letters of these topics that are there now, oldest first in each, with what became of them."""
        fates = self.fates()
        start = since - SLACK if isinstance(since, datetime) else since
        for topic in topics:
            with self.follower.read(topic, since=start) as feed:
                seen: set[str] = set()
                for record in (record for batch in feed for record in batch):
                    letter = Letter.of(record, self.names)
                    origin = letter.origin.place
                    letter.fate = decided(fates, str(letter.place), origin)
                    letter.twin = origin in seen
                    seen |= {origin} if origin else set()
                    yield letter

    def select(self, chosen: Filter, topics: Iterable[str], statuses: Sequence[str] = (WAITING,)) -> Iterator[Letter]:
        """Yield the letters of these topics that a filter takes; without `statuses`, whatever became of them."""
        for letter in self.letters(topics, chosen.since or "start"):
            if (not statuses or letter.status in statuses) and chosen.takes(letter):
                yield letter

    def find(self, text: str, topics: Sequence[str] | None = None) -> Letter:
        """Return the letter at TOPIC/PARTITION/OFFSET, or a job's: the newest that waits, else the newest.

        Raises `NotFoundError` (TAPE-2005).
        """
        place = Place.parse(text)
        if place is None:
            found = [
                letter for letter in self.letters(topics if topics is not None else self.dead()) if letter.job == text
            ]
            waiting = [letter for letter in found if letter.status == WAITING]
            if found:
                return (waiting or found)[-1]
            raise NotFoundError("no dead letter of this job", code="TAPE-2005", job=text)
        for letter in self.letters([place.topic], exactly([place])):
            if letter.place == place:
                return letter
        raise NotFoundError("no dead letter lies there", code="TAPE-2005", letter=text)


def exactly(places: Iterable[Place]) -> dict[int, int]:
    """Return where to begin reading so that these places of one topic come, and no partition that has none."""
    start = dict.fromkeys(range(MANY), BEYOND)
    for place in places:
        start[place.partition] = min(start.get(place.partition, BEYOND), place.offset)
    return start


MANY, BEYOND = 4096, 1 << 62
"""More partitions than a dead-letter topic has, and an offset that no log reaches: nothing is read there."""


def note(found: dict[str, Fate], record: Received) -> None:
    """Put one record of the topic of fates into what is known; what nobody can read counts as nothing."""
    if record.key is None or record.value is None or record.key.startswith(PEN):
        return
    try:
        fate = Fate.model_validate_json(record.value)
    except ValueError:
        return
    found[fate.letter] = fate
    if fate.origin is not None:
        found[f"of {fate.origin}"] = fate


def decided(fates: dict[str, Fate], place: str, origin: str | None) -> Fate | None:
    """Return the last word on a letter: it counts for every letter that tells of the same dead record."""
    own = fates.get(place)
    origin = origin or (own.origin if own else None)
    return (fates.get(f"of {origin}") if origin else None) or own


def myself() -> str:
    """Return user@host, for the audit trail."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
