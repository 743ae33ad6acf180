"""The queues a worker takes from: a consumer, a pool and the tenants for each kind and lane, and its broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import structlog
from kafka.protocol.metadata import MetadataRequest

from schemas.errors import AuthError, NotFoundError, TapeError, UnavailableError
from schemas.topics import Names, topics
from wire.follow import Feed
from wire.kafka import Link, connection
from wire.settings import Settings
from wire.share import AcquireMode, Listener, OffsetRange, ShareConfig, ShareError
from wire.share.errors import UNKNOWN_TOPIC_OR_PARTITION, AuthenticationError, AuthorizationError, UnsupportedError
from workers.attempt import Written
from workers.fair import Shares
from workers.kinds import Kind
from workers.scout import Scout
from workers.slots import Pool
from workers.source import Consumer, Source
from workers.tenants import Tenants

_LOG = structlog.get_logger("tickertape.worker")
ROTATING_WAIT_S, LONG_WAIT_S = 0.02, 0.25
ACK_LINGER_S = 0.02
"""Under load acknowledgements wait this long for company."""

Ready = Callable[[], None]
Consume = Callable[[str, str, bool, Ready, Listener], Consumer]
"""Opens a consumer: topic, group, whether its jobs are light, whom to call when something came, who hears of losses."""
Running = Callable[[], Sequence[tuple[Written, float]]]
"""The records that have a slot or wait for one, each with the moment since which it is held."""
Open = Callable[[str, str, bool, Callable[[int], None]], Consumer]
"""The same within a worker, which is called anyway: topic, group, whether the jobs are light, who counts fetches."""


class Listening(Listener):
    """Passes lost leases on to the loop and the claims, the size of fetches to the tenants, and trouble to the log."""

    def __init__(
        self,
        lost: Callable[[Iterable[tuple[str, int, int]]], None],
        doubt: Callable[[], None],
        fetched: Callable[[int], None],
    ) -> None:
        self._lost, self._doubt, self._fetched = lost, doubt, fetched

    def on_lost(self, ranges: Iterable[OffsetRange], error: ShareError) -> None:
        self._doubt()
        self._lost([(r.topic, r.partition, offset) for r in ranges for offset in range(r.first, r.last + 1)])

    def on_fetch(self, records: int, size: int, seconds: float) -> None:
        self._fetched(records)

    def on_error(self, error: ShareError) -> None:
        self._doubt()
        _LOG.warning("share group", error=str(error))


class Queues:
    """Makes the sources of a worker's loop: `consume` and `look` open a topic for a group, to take from and to read on.

    Without `look` nobody looks ahead.
    """

    def __init__(
        self,
        *,
        names: Names,
        kinds: Mapping[str, Kind],
        consume: Open,
        pool: Callable[[str], Pool],
        weight: Callable[[str], float],
        running: Running,
        look: Callable[[str, str], Feed] | None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._names, self._kinds, self._consume, self._pool = names, kinds, consume, pool
        self._weight, self._running, self._look, self._wall = weight, running, look, wall
        self.scouts: list[Scout] = []

    def lane(self, lane: str) -> list[Source]:
        """Return the sources of a lane, whose tenants share one account."""
        shares = Shares(self._weight)
        topics = {self._names.jobs(kind, lane) for kind in self._kinds}

        def running() -> Sequence[tuple[Written, float]]:
            return [(record, since) for record, since in self._running() if record.topic in topics]

        sources = [self._source(kind, lane, shares, running) for kind in self._kinds.values()]
        for source in sources:
            source.tenants.peers = [other.tenants for other in sources]
        return sources

    def _source(self, kind: Kind, lane: str, shares: Shares, running: Running) -> Source:
        topic, group = self._names.jobs(kind.name, lane), self._names.group(kind.name)
        # Kafka's count is all that is known of a light job's deaths, and a new record forgets it.
        tenants = Tenants(
            shares, movable=lambda record: kind.recorded or record.delivery_count == 1, running=running, wall=self._wall
        )  # fmt: skip
        consumer = self._consume(topic, group, kind.isolation == "thread", tenants.fetched)
        if self._look is not None:
            self.scouts.append(Scout(topic, tenants, partial(self._look, topic, group)))
        return Source(kind.name, lane, consumer, self._pool(kind.name), tenants)


def share_config(settings: Settings, worker: str, *, batch: bool, crowded: bool) -> ShareConfig:
    """Return how a worker consumes: by whole batches or by the record; `crowded` when sources share few slots."""
    security = connection(settings)
    servers = security.pop("bootstrap_servers")
    keep = {key: value for key, value in security.items() if key.startswith(("security_", "sasl_", "ssl_"))}
    return ShareConfig(
        bootstrap_servers=servers,
        client_id=worker,
        security=keep,
        mode=AcquireMode.BATCH if batch else AcquireMode.RECORD_LIMIT,
        ack_linger=ACK_LINGER_S,
        max_wait=ROTATING_WAIT_S if crowded else LONG_WAIT_S,
    )


def check(settings: Settings, names: Names, kinds: tuple[str, ...]) -> None:
    """Look at the broker before joining: a share consumer waits in silence for topics that never come.

    Raises `UnavailableError` (TAPE-5001, TAPE-5005), `AuthError` (TAPE-4001), `NotFoundError` (TAPE-2004).
    """
    with Link(settings, name="tape-worker") as link:
        if not link.describe().share:
            raise UnavailableError("the broker has no share groups", code="TAPE-5005", url=settings.kafka_url)
        wanted = [topic.name for topic in topics(names, kinds)]
        asked = [MetadataRequest.MetadataRequestTopic(name=name, topic_id=None) for name in wanted]
        found = link.call(MetadataRequest(topics=asked, allow_auto_topic_creation=False))
    missing = sorted({topic.name for topic in found.topics if topic.error_code == UNKNOWN_TOPIC_OR_PARTITION})
    if missing:
        raise NotFoundError(
            f"{len(missing)} of this worker's topics do not exist, first {missing[0]}", code="TAPE-2004",
            topic=missing[0], url=settings.kafka_url,
            hint=f"run `tape topics apply {' '.join(f'--kind {kind}' for kind in kinds)}`",
        )  # fmt: skip


_MAP: tuple[tuple[type[ShareError], type[TapeError], str], ...] = (
    (AuthenticationError, AuthError, "TAPE-4001"),
    (AuthorizationError, AuthError, "TAPE-4003"),
    (UnsupportedError, UnavailableError, "TAPE-5005"),
)


def mapped(error: ShareError) -> TapeError:
    """Return our error for one of the share consumer's."""
    for share, ours, code in _MAP:
        if isinstance(error, share):
            return ours(str(error), code=code)
    return UnavailableError(str(error), code="TAPE-5001")
