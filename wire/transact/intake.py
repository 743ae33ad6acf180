"""A member of a classic consumer group for loops that read, move and write in transactions.

The offsets belong to the transactions, so this member commits none itself. Whatever it gains is fenced first: nobody
else can still commit what it is about to move. Where to go on is asked of the broker only after that, and not of
kafka-python, which may answer with offsets it asked for before a rebalance.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.net.compat import KafkaNetClient
from kafka.net.selector import NetworkSelector

from wire.follow.offsets import EARLIEST, list_offsets, partitions
from wire.follow.port import Received
from wire.kafka import Link, connection, mapped
from wire.settings import Settings
from wire.transact.owners import committed, fence
from wire.transact.port import Member, Place
from wire.transport import EagerManager

EVERYTHING = 1 << 30
"""What is left over from a poll when its partition is held never comes again (kafka-python 3.0.12 keeps it aside and
takes it up only if nothing else was fetched since), so nothing may be left over; `fetch_max_bytes` is the bound."""

METADATA_MS, KNOWN_S, PAUSE_S = 5_000, 5.0, 0.1
"""How old a member's knowledge of its topics may be, and how long a new member waits for the first of it, and looks."""
REJOIN_MS = 20_000
"""How long the group waits for a member that does not come back when partitions are shared out anew."""


class KafkaIntake:
    """An `Intake` on Kafka: reads the partitions that the group gives it; for one thread.

    `name` is the transactional id of its owner's transactions. `session_s` is how long a member may be silent until
    its partitions are given to others.
    """

    def __init__(
        self, settings: Settings, group: str, topics: Sequence[str], *, name: str, session_s: float = 6.0
    ) -> None:
        """Connect. Raises `AuthError`, `UnavailableError` (TAPE-5001), `InvalidError` (TAPE-1007)."""
        self._settings, self._group, self._name = settings, group, name
        self._url = settings.kafka_url
        self._listener = _Listener()
        self._positions: dict[Place, int] = {}
        self._link = Link(settings, name="tape-intake")
        opened: list[KafkaNetClient] = []

        def client(**configs: Any) -> KafkaNetClient:
            net = NetworkSelector(**configs)
            opened.append(KafkaNetClient(net=net, manager=EagerManager(net, **configs)))  # it loses no socket
            return opened[-1]

        try:
            self._consumer: Any = KafkaConsumer(
                **connection(settings),
                client_id="tape-intake",
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                bootstrap_timeout_ms=int(settings.kafka_timeout_s * 1000),
                session_timeout_ms=int(session_s * 1000),
                heartbeat_interval_ms=int(session_s * 250),
                max_poll_interval_ms=REJOIN_MS,
                max_partition_fetch_bytes=256 << 10,
                fetch_max_bytes=8 << 20,
                partition_assignment_strategy=(RoundRobinPartitionAssignor,),
                # Who leads the group shares out what it knows of: a topic it has not heard of waits this long.
                metadata_max_age_ms=METADATA_MS,
                metrics_enabled=False,
                kafka_client=client,
            )
            for topic in topics:  # a leader of the group that knows none yet shares out nothing, and not always anew
                until = time.monotonic() + KNOWN_S
                while not self._consumer.partitions_for_topic(topic) and time.monotonic() < until:
                    time.sleep(PAUSE_S)
        except Exception as error:
            self._link.close()
            for each in opened:
                each.close()
            raise mapped(error, url=self._url) from error
        self._listener.on_leaving = self._consumer._coordinator.request_rejoin
        self._consumer.subscribe(topics=list(topics), listener=self._listener)

    def poll(self, timeout_s: float) -> tuple[list[Received], set[Place], set[Place]]:
        """Return what was fetched, and the partitions that were lost and gained before that; see `Intake.poll`."""
        with self._mapped():
            found = self._consumer.poll(timeout_ms=max(0, round(timeout_s * 1000)), max_records=EVERYTHING)
        lost, gained = self._listener.take()
        gained &= self.owned()
        if gained:
            fence(self._settings, self._link, self._group, gained, keep=self._name)
            self.rewind(gained)
        for place in lost - gained:
            self._positions.pop(place, None)
        records = [
            Received(
                record.topic, record.partition, record.offset, record.key, record.value, tuple(record.headers),
                record.timestamp,
            )
            for place, records in found.items()
            for record in records
            if (place.topic, place.partition) not in gained
        ]  # fmt: skip
        self._positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
        return records, lost, gained

    def owned(self) -> set[Place]:
        """Return the partitions of this member."""
        return {(place.topic, place.partition) for place in self._consumer.assignment()}

    def position(self, place: Place) -> int:
        """Return the offset from which its records have not been returned yet."""
        return self._positions[place]

    def seek(self, place: Place, offset: int) -> None:
        """Go on from an offset."""
        with self._mapped():
            self._consumer.seek(TopicPartition(*place), offset)
        self._positions[place] = offset

    def rewind(self, places: Collection[Place]) -> None:
        """Go on from what the group has committed, or from the start; waits while a transaction is open on it."""
        found = committed(self._link, self._group, places)
        for place in places - found.keys():
            found |= {place: self._start(place)}
        for place, offset in found.items():
            self.seek(place, offset)

    def _start(self, place: Place) -> int:
        topic, partition = place
        self._link.run(partitions, self._link, topic)
        return self._link.run(list_offsets, self._link, topic, {partition: EARLIEST})[partition]

    def hold(self, places: Collection[Place]) -> None:
        """Fetch nothing from these partitions, and from all the others again."""
        wanted = {TopicPartition(*place) for place in places} & set(self._consumer.assignment())
        paused = set(self._consumer.paused())
        if wanted - paused:
            self._consumer.pause(*(wanted - paused))
        if paused - wanted:
            self._consumer.resume(*(paused - wanted))

    def member(self, note: str) -> Member:
        """Return who this is to the group at this moment."""
        found = self._consumer.group_metadata()
        return Member(found.group_id, found.generation_id, found.member_id, found.group_instance_id, note)

    def close(self) -> None:
        """Leave the group; may be called twice, and never fails."""
        with contextlib.suppress(Exception):
            self._consumer.close(autocommit=False, timeout_ms=2_000)
        self._link.close()

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except kafka_errors.KafkaError as error:
            raise mapped(error, url=self._url) from error


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """What was lost and gained since it was last asked.

    A leader that sees another metadata than it shared out by gives up its partitions and joins again. kafka-python
    3.0.12 forgets that half way when the metadata is as before by the next poll: it stays out of the group, silent for
    ever (Java's client had this, KAFKA-9815). So whoever gives up its partitions asks for the join that follows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """kafka-python calls from its own thread."""
        self._lost: set[Place] = set()
        self._gained: set[Place] = set()
        self.on_leaving: Callable[[], None] = lambda: None

    def take(self) -> tuple[set[Place], set[Place]]:
        with self._lock:
            lost, gained = self._lost, self._gained
            self._lost, self._gained = set(), set()
        return lost, gained

    def on_partitions_revoked(self, revoked: Any) -> None:
        places = {(place.topic, place.partition) for place in revoked}
        with self._lock:
            self._lost |= places
            self._gained -= places
        self.on_leaving()

    def on_partitions_lost(self, lost: Any) -> None:
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Any) -> None:
        with self._lock:
            self._gained |= {(place.topic, place.partition) for place in assigned}
