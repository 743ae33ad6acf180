"""The transactor and the intake in memory: the same promises on a log that lives in this process."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from weakref import WeakKeyDictionary

from wire.follow.port import Received
from wire.publish.memory import destination
from wire.share.memory import MemoryLog
from wire.transact.port import NOTHING, Member, Outgoing, Place, fenced, moved_on, shut


class Group:
    """A classic group: who is in it, in which generation, and whose every partition is."""

    def __init__(self) -> None:
        self.generation = 0
        self._names = count(1)
        self._topics: dict[str, Sequence[str]] = {}
        self._until: dict[str, float] = {}

    def knows(self, member: Member) -> bool:
        """Whether it counts this member now; while it has none, anybody outside of it."""
        if not self._topics:
            return member.generation == -1
        return member.name in self._topics and member.generation == self.generation

    def join(self, topics: Sequence[str]) -> str:
        """Take in a member and return its name; everything is shared out anew."""
        name = f"member-{next(self._names)}"
        self._topics[name] = topics
        self.generation += 1
        return name

    def leave(self, name: str) -> None:
        """Let a member go; what was its is shared out anew."""
        if self._topics.pop(name, None) is not None:
            self._until.pop(name, None)
            self.generation += 1

    def hear(self, name: str, until: float) -> bool:
        """Hear of a member, which may be silent until then; False when it was given up."""
        if name in self._topics:
            self._until[name] = until
        return name in self._topics

    def expire(self, now: float) -> None:
        """Give up the members of which nothing was heard for too long."""
        for silent in [name for name, until in self._until.items() if until < now]:
            self.leave(silent)

    def share(self, name: str, partitions: Callable[[str], int]) -> set[Place]:
        """Return the partitions of a member in this generation: one by one, round the members."""
        members = sorted(self._topics)
        places = sorted({(topic, part) for topics in self._topics.values() for topic in topics
                         for part in range(partitions(topic))})  # fmt: skip
        turn = members.index(name)
        return {place for number, place in enumerate(places) if number % len(members) == turn}


class Ledger:
    """What a cluster remembers beside its log: who holds a name, and what groups have read and who is in them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holders: dict[str, object] = {}
        """By name, what only its present holder has."""
        self.offsets: dict[str, dict[Place, tuple[int, str]]] = {}
        self.groups: defaultdict[str, Group] = defaultdict(Group)


_LEDGERS: WeakKeyDictionary[MemoryLog, Ledger] = WeakKeyDictionary()
_MAKING = threading.Lock()


def ledger(log: MemoryLog) -> Ledger:
    """Return the ledger of a log."""
    with _MAKING:
        return _LEDGERS.setdefault(log, Ledger())


class MemoryTransactor:
    """A `Transactor` on a log in memory; the log's clock dates the records."""

    def __init__(self, log: MemoryLog, name: str, *, limits: Mapping[str, int] | None = None) -> None:
        self._log, self._name = log, name
        self._limits = dict(limits or {})
        self._ledger = ledger(log)
        self._closed = False
        with self._ledger.lock:
            self._ledger.holders[name] = self._seal = object()

    def commit(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[Place, int] = NOTHING,
        *,
        group: Member | None = None,
    ) -> None:
        """Write all of it or nothing; see `Transactor.commit`."""
        if offsets and group is None:
            raise ValueError("offsets are committed for a group")
        with self._ledger.lock, self._log.changed:
            if self._closed:
                raise shut()
            if self._ledger.holders.get(self._name) is not self._seal:
                raise fenced(self._name)
            places = [
                destination(self._log, self._limits, one.topic, key=one.key, value=one.value, partition=one.partition)
                for one in records
            ]
            if offsets and group is not None:
                self._check(group)
            for record, partition in zip(records, places, strict=True):
                self._log.append(record.topic, record.key, record.value, list(record.headers), partition)
            if group is not None:
                noted = {place: (offset, group.note) for place, offset in offsets.items()}
                self._ledger.offsets.setdefault(group.group, {}).update(noted)

    def close(self) -> None:
        """Take no more transactions."""
        self._closed = True

    def _check(self, group: Member) -> None:
        if not self._ledger.groups[group.group].knows(group):
            raise moved_on(group.group)


class MemoryIntake:
    """An `Intake` on a log in memory; `clock` (seconds) tells who was silent for longer than `session_s`."""

    def __init__(
        self,
        log: MemoryLog,
        group: str,
        topics: Sequence[str],
        *,
        name: str,
        session_s: float = 6.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._name, self._topics, self._clock = log, name, list(topics), clock
        self._ledger, self._group_name, self._session_s = ledger(log), group, session_s
        self._id, self._generation = "", -1
        self._positions: dict[Place, int] = {}
        self._held: set[Place] = set()
        self._closed = False

    @property
    def _group(self) -> Group:
        return self._ledger.groups[self._group_name]

    def poll(self, timeout_s: float) -> tuple[list[Received], set[Place], set[Place]]:
        """Return what was fetched, lost and gained; see `Intake.poll`. The timeout is in real seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._closed:
                raise shut()
            lost, gained = self._meet()
            with self._log.changed:
                records = [] if gained else self._fetch()
                left = deadline - time.monotonic()
                if records or lost or gained or left <= 0:
                    return records, lost, gained
                # Members come and go without a word to the log.
                self._log.changed.wait(min(left, self._session_s / 4))

    def beat(self) -> bool:
        """Say that it lives; `poll` does too. False when the group has given it up, which the next `poll` mends."""
        with self._ledger.lock:
            return self._group.hear(self._id, self._clock() + self._session_s)

    def _meet(self) -> tuple[set[Place], set[Place]]:
        """Take part in the group; what this generation gives is fenced and begins at what is committed."""
        with self._ledger.lock:
            if not self.beat():
                self._id = self._group.join(self._topics)
                self.beat()
            self._group.expire(self._clock())
            if self._generation == self._group.generation:
                return set(), set()
            self._generation = self._group.generation
            lost, gained = self.owned(), self._group.share(self._id, self._log.partitions)
            noted = self._ledger.offsets.get(self._group_name, {})
            for name in {noted[place][1] for place in gained if place in noted} - {"", self._name}:
                MemoryTransactor(self._log, name).close()
            self._positions.clear()
            self.rewind(sorted(gained))
            return lost, gained

    def _fetch(self) -> list[Received]:
        found: list[Received] = []
        for place, offset in self._positions.items():
            if place not in self._held:
                found += [Received(place[0], *entry) for entry in self._log.read(*place, offset)]
        self._positions |= {(record.topic, record.partition): record.offset + 1 for record in found}
        return found

    def owned(self) -> set[Place]:
        """Return the partitions of this member, as of its last poll."""
        return set(self._positions)

    def position(self, place: Place) -> int:
        """Return the offset from which its records have not been returned yet."""
        return self._positions[place]

    def seek(self, place: Place, offset: int) -> None:
        """Go on from an offset."""
        self._positions[place] = offset

    def rewind(self, places: Collection[Place]) -> None:
        """Go on from what the group has committed, or from the start."""
        noted = self._ledger.offsets.get(self._group_name, {})
        self._positions |= {place: noted[place][0] if place in noted else 0 for place in places}

    def hold(self, places: Collection[Place]) -> None:
        """Fetch nothing from these partitions, and from all the others again."""
        self._held = set(places)

    def member(self, note: str) -> Member:
        """Return who this is to the group at this moment."""
        return Member(self._group_name, self._generation, self._id, None, note)

    def close(self) -> None:
        """Leave the group; may be called twice."""
        self._closed = True
        with self._ledger.lock:
            self._group.leave(self._id)
        self._log.notify()
