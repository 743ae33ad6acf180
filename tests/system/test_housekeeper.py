"""The housekeeper on the real broker: the log stays small, and nobody loses a record."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import AuthError, NotFoundError, TapeError, UnavailableError
from schemas.topics import Group, Topic
from wire.broker import NativeBroker
from wire.follow import KafkaFollower
from wire.housekeeper import Deletion, Housekeeper
from wire.process import wait_until
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.share import AcquireMode, ShareConfig, ShareConsumer
from wire.share.admin import ShareAdmin
from wire.topics import ensure

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()
EARLIEST = {"share.auto.offset.reset": "earliest"}

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


def publish(settings: Settings, topic: str, count: int, size: int = 10) -> None:
    publisher = KafkaPublisher(settings)
    for number in range(count):
        publisher.publish(topic, key=b"%d" % number, value=b"x" * size)
    publisher.close(60)


def accept(settings: Settings, group: Group, count: int) -> None:
    config = ShareConfig(bootstrap_servers=settings.kafka_url, mode=AcquireMode.BATCH)
    seen = 0
    with ShareConsumer(group.topics, group.name, config) as consumer:
        while seen < count:
            for record in consumer.poll(500, 5.0):
                consumer.acknowledge(record)
                seen += 1
        consumer.flush(30)


def kept(settings: Settings, topic: str) -> int:
    return sum(len(batch) for batch in KafkaFollower(settings).read(topic))


def test_only_what_every_group_has_finished_goes(settings: Settings) -> None:
    topic = f"{settings.prefix}jobs"
    one, two = (Group(f"{settings.prefix}{name}", (topic,), EARLIEST) for name in ("one", "two"))
    ensure(settings, [Topic(topic, 2)], [one, two])
    publish(settings, topic, 100)
    assert Housekeeper(settings, [one]).sweep() == [], "a group that has not begun has finished nothing"
    accept(settings, one, 100)
    publish(settings, topic, 60)  # a group's start offset is stored with the acknowledgements that come after
    accept(settings, one, 60)
    assert Housekeeper(settings, [one, two]).sweep() == [], "the other group has not begun"
    with ShareAdmin(settings.kafka_url) as admin:
        finished = sum(line.start_offset for line in admin.describe_offsets(one.name, [topic]))
    assert finished >= 100
    wanted = Housekeeper(settings, [one], dry_run=True).sweep()
    assert sum(deletion.before for deletion in wanted) == finished
    assert kept(settings, topic) == 160
    assert sorted(Housekeeper(settings, [one]).sweep(), key=lambda deletion: deletion.partition) == wanted
    assert kept(settings, topic) == 160 - finished
    assert Housekeeper(settings, [one]).sweep() == []


def test_what_fails_is_said_and_tried_again(settings: Settings) -> None:
    missing = Group(f"{settings.prefix}g", (f"{settings.prefix}absent",))
    with pytest.raises(NotFoundError):
        Housekeeper(settings, [missing]).sweep()
    away = settings.model_copy(update={"kafka_url": "127.0.0.1:1", "kafka_timeout_s": 0.5})
    with pytest.raises(UnavailableError):
        Housekeeper(away, [missing]).sweep()
    stop = threading.Event()
    outcomes: list[list[Deletion] | TapeError] = []

    def report(outcome: list[Deletion] | TapeError) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            stop.set()

    Housekeeper(settings, [missing]).run(stop, every_s=0.01, report=report)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["TAPE-2004", "TAPE-2004"]
    assert not isinstance(outcomes[0], AuthError)


@pytest.fixture
def small(tmp_path: Path, jars: object) -> Iterator[NativeBroker]:
    native = NativeBroker(
        tmp_path, CACHE, extra={"log.retention.check.interval.ms": "500", "log.initial.task.delay.ms": "500"}
    )
    native.start(tie=True)
    yield native
    native.stop(grace_s=2)


@pytest.mark.timeout(240)
def test_a_busy_queue_stays_small_on_disk(small: NativeBroker) -> None:
    settings, topic, total = Settings(kafka_url=small.status().url), "jobs", 200_000
    group = Group("busy", (topic,), EARLIEST)
    configs = {"retention.ms": "-1", "segment.bytes": str(1 << 20), "file.delete.delay.ms": "100"}
    ensure(settings, [Topic(topic, 2, configs)], [group])

    def disk() -> int:
        return sum(path.stat().st_size for path in (small.folder / "node-1" / "data").glob(f"{topic}-*/*.log"))

    largest = 0
    keeper = Housekeeper(settings, [group])
    for _ in range(10):
        publish(settings, topic, total // 10, size=200)
        accept(settings, group, total // 10)
        keeper.sweep()
        largest = max(largest, disk())
    assert largest < total * 200 / 2, "most of it went while it ran"
    assert wait_until(lambda: keeper.sweep() or disk() < 8 << 20, deadline_s=30, every_s=0.5)
