"""Topics and groups: names, partitions, retention, compaction (DESIGN §2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from schemas.delays import PARTITIONS, WHEELS
from schemas.errors import InvalidError
from schemas.job import PARAMS, Lane

WEEK_MS = 7 * 24 * 3600 * 1000
MESSAGE_LIMIT = 1_048_576
"""Bytes of the largest request: value, key and headers, before compression. Larger inputs go through the store."""
LETTER_LIMIT = 2 << 20
"""Bytes that a topic of dead letters takes at once."""
PAST_ROOM = 64 << 10
"""Bytes that job and delay topics take beyond that, so that the largest request can be tried again with its past."""

UNKNOWN = "unknown"
"""In place of a kind: the dead letters of records that do not tell theirs."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it should be."""

    name: str
    partitions: int
    configs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """One group as it should be: its name, its topics, its configuration; a share group unless it is `classic`."""

    name: str
    topics: tuple[str, ...]
    configs: dict[str, str] = field(default_factory=dict)
    classic: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """The names of all topics and groups under one prefix."""

    prefix: str = "tape."

    def jobs(self, kind: str, lane: str) -> str:
        """Return the topic that holds the requests of a kind and lane."""
        return f"{self.prefix}jobs.{kind}.{lane}"

    def retry(self, delay: str) -> str:
        """Return the topic of a delay, one of `schemas.delays.WHEELS`."""
        return f"{self.prefix}retry.{delay}"

    def dead(self, kind: str) -> str:
        """Return the topic of a kind's dead letters."""
        return f"{self.prefix}dead.{kind}"

    def group(self, kind: str) -> str:
        """Return the share group that takes a kind's jobs."""
        return f"{self.prefix}{kind}"

    @property
    def events(self) -> str:
        """The topic of every lifecycle and progress event."""
        return f"{self.prefix}events"

    @property
    def control(self) -> str:
        """The compacted topic of what every worker must know: cancellations, pauses and the like."""
        return f"{self.prefix}control"

    @property
    def letters(self) -> str:
        """The compacted topic of what became of each dead letter (ADR 3)."""
        return f"{self.prefix}letters"

    @property
    def recurring(self) -> str:
        """The compacted topic of recurring jobs and of what each has fired last."""
        return f"{self.prefix}recurring"

    @property
    def mover(self) -> str:
        """The classic consumer group that moves delayed records on and fires recurring jobs."""
        return f"{self.prefix}mover"

    def closed(self, topic: str) -> bool:
        """Whether no request may be put there by whoever names it: a topic of ours that holds none, or Kafka's own."""
        own = {self.events, self.control, self.letters, self.recurring}
        return topic in own or topic.startswith(("__", self.retry(""), self.dead("")))

    def parse_jobs(self, topic: str) -> tuple[str, str]:
        """Return kind and lane of a job topic. Raises `InvalidError` (TAPE-2004) for any other topic."""
        head = f"{self.prefix}jobs."
        kind, dot, lane = topic.removeprefix(head).rpartition(".")
        if not (topic.startswith(head) and dot and kind and lane in set(Lane)):
            raise InvalidError("not a job topic", code="TAPE-2004", topic=topic)
        return kind, lane


_CONTROL = {
    "cleanup.policy": "compact",
    "segment.ms": "600000",
    "segment.bytes": str(4 << 20),
    "min.cleanable.dirty.ratio": "0.1",
    "message.timestamp.type": "LogAppendTime",
}
"""Every worker says every few seconds that it is there: small segments, for Kafka compacts no open one."""


def topics(names: Names, kinds: tuple[str, ...] = tuple(PARAMS), partitions: int = 8) -> list[Topic]:
    """Return every topic that the kinds need.

    Job topics are kept until the housekeeper deletes what every group finished, never by age: retention would delete
    what was not done yet.
    """
    forever = {
        "retention.ms": "-1",
        "max.message.bytes": str(MESSAGE_LIMIT + PAST_ROOM),
        "segment.bytes": str(64 << 20),
    }
    wanted = [Topic(names.jobs(kind, lane), partitions, forever) for kind in kinds for lane in Lane]
    wanted += [
        Topic(names.dead(kind), max(1, partitions // 4), {"retention.ms": "-1", "max.message.bytes": str(LETTER_LIMIT)})
        for kind in (*kinds, UNKNOWN)
    ]
    # Their order is by time (schemas.delays), so their number of partitions is no setting.
    wanted += [Topic(names.retry(delay), PARTITIONS, forever) for delay in WHEELS]
    wanted.append(Topic(names.recurring, 1, {"cleanup.policy": "compact", "max.message.bytes": str(MESSAGE_LIMIT)}))
    wanted.append(Topic(names.events, partitions, {"retention.ms": str(WEEK_MS)}))
    wanted.append(Topic(names.control, 1, _CONTROL))
    wanted.append(Topic(names.letters, 1, {"cleanup.policy": "compact"}))
    # A worker's clock may be hours ahead of the broker's, which by default refuses what is more than one hour ahead:
    # then nothing of that worker's would ever be confirmed.
    ahead = {"message.timestamp.after.max.ms": str((1 << 63) - 1)}
    return [replace(topic, configs=topic.configs | ahead) for topic in wanted]


def movers(names: Names) -> Group:
    """Return the consumer group that reads the delay topics."""
    return Group(names.mover, tuple(names.retry(delay) for delay in WHEELS), classic=True)


LOCKS = 4_000
"""Records of a partition, from its first unfinished one on, that may be taken: a stock broker's most."""


def groups(names: Names, kinds: tuple[str, ...] = tuple(PARAMS), lock_ms: int = 30_000) -> list[Group]:
    """Return every share group that the kinds need, with its configuration (KIP-932, KIP-1222)."""
    configs = {
        "share.auto.offset.reset": "earliest",
        "share.isolation.level": "read_committed",
        "share.record.lock.duration.ms": str(lock_ms),
        "share.delivery.count.limit": "10",
        "share.renew.acknowledge.enable": "true",
        "share.partition.max.record.locks": str(LOCKS),
    }
    return [Group(names.group(kind), tuple(names.jobs(kind, lane) for lane in Lane), configs) for kind in kinds]
