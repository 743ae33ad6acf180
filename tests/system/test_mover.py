"""The mover on the real broker: in time, in order of nothing but time, every record once, and nothing wedges it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from producers.cli import main
from schemas.delays import WHEELS, delayed
from schemas.event import EventType
from schemas.past import DUE, TARGET
from schemas.recur import Recurring, fired_key
from schemas.topics import Names, movers, topics
from wire.follow import KafkaFollower, Received
from wire.housekeeper import Housekeeper
from wire.process import wait_until
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.topics import ensure
from workers.delay import Mover

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
KIND = "echo"
HEADERS = [("ce_id", b"1"), ("empty", None), ("ce_id", b"again"), ("tape-attempt", b"2")]


@pytest.fixture
def names(settings: Settings) -> Names:
    made = Names(settings.prefix)
    ensure(settings, topics(made, (KIND,), 4))
    return made


@contextmanager
def moving(settings: Settings, count: int = 1) -> Iterator[list[Mover]]:
    movers = [Mover(settings) for _ in range(count)]
    for mover in movers:
        mover.start()
        assert mover.ready.wait(30)
    try:
        yield movers
    finally:
        for mover in movers:
            mover.stop()


def read(settings: Settings, topic: str) -> list[Received]:
    return [record for batch in KafkaFollower(settings).read(topic) for record in batch]


def now_ms() -> int:
    return int(time.time() * 1000)


def delay(settings: Settings, target: str, dues: dict[str, int], *, value: bytes = b"{}") -> None:
    publisher = KafkaPublisher(settings)
    for key, due in dues.items():
        made = delayed(
            target, prefix=settings.prefix, key=key.encode(), value=value, headers=HEADERS, due_ms=due, now_ms=now_ms()
        )
        publisher.publish(
            made.topic, partition=made.partition, key=made.key, value=made.value, headers=made.headers,
            timestamp_ms=made.timestamp_ms,
        )  # fmt: skip
    publisher.close(30)


def test_records_come_when_they_are_due_and_as_they_were(settings: Settings, names: Names) -> None:
    target = names.jobs(KIND, "bulk")
    with moving(settings) as [mover], KafkaFollower(settings).follow(target, since="start") as feed:
        start = now_ms()
        dues = {f"job-{number}": start + number * 37 for number in range(1, 200)}
        delay(settings, target, dues)
        found: dict[str, int] = {}
        while len(found) < len(dues):
            batch = feed.poll(20)
            assert batch, f"{len(found)} of {len(dues)} came"
            for record in batch:
                key = (record.key or b"").decode()
                assert key not in found, "once each"
                assert record.headers == tuple(HEADERS), "nothing of the delay is left, all else is verbatim"
                found[key] = now_ms()
        late = [found[key] - due for key, due in dues.items()]
        assert min(late) >= 0, "never early"
        assert max(late) < 1_000
        wait_until(lambda: mover.moved >= 199, deadline_s=5)
        assert mover.late_s < 1.0
        print(f"late: mean {sum(late) / len(late):.0f} ms, worst {max(late)} ms")


def test_a_record_hops_from_wheel_to_wheel(settings: Settings, names: Names) -> None:
    target = names.jobs(KIND, "bulk")
    start = time.time()
    clock = [start]
    mover = Mover(settings, clock=lambda: clock[0])
    delay(settings, target, {"far": int(start * 1000) + 26_000_000})
    mover.start()
    try:
        assert mover.ready.wait(30)
        for hops, passed in enumerate((9_000, 18_000, 25_360, 25_935, 25_994, 26_000.1), 1):
            clock[0] = start + passed - 1
            assert not read(settings, target)
            clock[0] = start + passed
            assert wait_until(lambda wanted=hops: mover.moved >= wanted, deadline_s=10, every_s=0.05)  # type: ignore[misc]
        assert [record.key for record in read(settings, target)] == [b"far"]
        assert [len(read(settings, names.retry(name))) for name in ("1h", "10m", "1m", "5s")] == [3, 1, 1, 1]
        assert mover.moved == 6
    finally:
        mover.stop()


def test_several_movers_share_the_work_and_nothing_is_doubled(settings: Settings, names: Names) -> None:
    target = names.jobs(KIND, "bulk")
    start = now_ms()
    dues = {f"job-{number}": start + 500 + number * 3 for number in range(3_000)}
    with moving(settings):
        delay(settings, target, dues)
        with moving(settings, 2):
            assert wait_until(lambda: len(read(settings, target)) >= 1_500, deadline_s=40, every_s=0.2)
        assert wait_until(lambda: len(read(settings, target)) >= 3_000, deadline_s=40, every_s=0.2)
    found = Counter(record.key for record in read(settings, target))
    assert set(found.values()) == {1}
    assert len(found) == 3_000


@pytest.mark.parametrize(
    ("headers", "code", "kind"),
    [
        ([("a", b"1")], "TAPE-1004", "unknown"),
        ([(DUE, b"soon"), (TARGET, b"x")], "TAPE-1004", "unknown"),
        ([(DUE, b"1"), (TARGET, b"nowhere")], "TAPE-2004", "unknown"),
        ([(DUE, b"1"), (TARGET, b"{prefix}jobs.gone.bulk")], "TAPE-2004", "unknown"),
        ([(DUE, b"no"), (TARGET, b"{prefix}jobs.echo.bulk")], "TAPE-1004", "unknown"),
    ],
)
def test_what_cannot_go_on_is_buried_and_wedges_nobody(
    settings: Settings, names: Names, headers: list[tuple[str, bytes]], code: str, kind: str
) -> None:
    told = [(name, value.replace(b"{prefix}", settings.prefix.encode())) for name, value in headers]
    target, due = names.jobs(KIND, "bulk"), now_ms() + 300
    publisher = KafkaPublisher(settings)
    place = WHEELS["5s"].partition(due)
    for number in range(3):
        publisher.publish(names.retry("5s"), partition=place, key=b"bad-%d" % number, value=b"\xff", headers=told)
    publisher.close(10)
    delay(settings, target, {"good": due})
    with moving(settings) as [mover]:
        assert wait_until(lambda: len(read(settings, target)) == 1, deadline_s=20, every_s=0.1)
        assert wait_until(lambda: mover.buried == 3, deadline_s=20, every_s=0.1)
    letters = read(settings, names.dead(kind))
    assert {(letter.key, letter.value) for letter in letters} == {(b"bad-%d" % number, b"\xff") for number in range(3)}
    for letter in letters:
        assert list(letter.headers[: len(told)]) == told, "verbatim"
        assert dict(letter.headers)["tape-dead-code"] == code.encode()
    events = [json.loads(record.value or b"") for record in read(settings, names.events)]
    assert [event["type"] for event in events] == [EventType.DEAD] * 3


def test_an_idle_mover_costs_nearly_nothing(settings: Settings, names: Names) -> None:
    delay(settings, names.jobs(KIND, "bulk"), {f"far-{number}": now_ms() + 4_000_000 + number for number in range(500)})
    process = psutil.Process()
    with moving(settings) as [mover]:
        time.sleep(2)
        before, began = process.cpu_times(), time.monotonic()
        time.sleep(10)
        after, took = process.cpu_times(), time.monotonic() - began
        share = (after.user + after.system - before.user - before.system) / took
        print(f"idle: {share:.2%} of a core")
        assert mover.moved == 0
    assert share < 0.02


def publish_template(settings: Settings, template: Recurring) -> None:
    publisher = KafkaPublisher(settings)
    publisher.publish(
        Names(settings.prefix).recurring, key=template.name.encode(), value=template.model_dump_json().encode()
    ).result(10)
    publisher.close(10)


def test_a_recurring_job_fires_each_moment_once_with_several_movers(settings: Settings, names: Names) -> None:
    added = datetime.now(UTC)
    every = Recurring(name="every", cron="* * * * * *", kind=KIND, params={"n": 1}, added_at=added)
    missing = every.model_copy(update={"name": "missing", "kind": "gone"})
    publish_template(settings, missing)
    publish_template(settings, every)
    target = names.jobs(KIND, "bulk")
    with moving(settings) as [first]:
        assert wait_until(lambda: first.fired >= 2, deadline_s=20, every_s=0.1)
        with moving(settings, 2):
            assert wait_until(lambda: len(read(settings, target)) >= 5, deadline_s=30, every_s=0.2)
        count = len(read(settings, target))
        assert wait_until(lambda: len(read(settings, target)) >= count + 2, deadline_s=30, every_s=0.2)
    jobs = read(settings, target)
    assert len({record.key for record in jobs}) == len(jobs)
    moments = [json.loads(record.value or b"")["key"].rsplit("/", 1)[1] for record in jobs]
    assert len(set(moments)) == len(moments)
    assert all(datetime.fromisoformat(moment) > added for moment in moments)
    fired = [record for record in read(settings, names.recurring) if record.key == fired_key("every")]
    assert len(fired) == len(jobs)
    queued = [json.loads(record.value or b"") for record in read(settings, names.events)]
    assert {event["job"] for event in queued} == {(record.key or b"").decode() for record in jobs}


def test_what_was_missed_fires_once(settings: Settings, names: Names) -> None:
    added = datetime.now(UTC) - timedelta(hours=3)
    publish_template(settings, Recurring(name="old", cron="*/5 * * * *", kind=KIND, params={}, added_at=added))
    for _ in range(2):
        with moving(settings) as [mover]:
            wait_until(lambda: mover.fired > 0, deadline_s=5, every_s=0.1)
    assert len(read(settings, names.jobs(KIND, "bulk"))) in {1, 2}, "one, or two across a full five minutes"


def test_the_command_line_adds_lists_and_removes(
    settings: Settings, names: Names, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("KAFKA_URL", settings.kafka_url), ("PREFIX", settings.prefix), ("HOME", str(settings.home))):
        monkeypatch.setenv(f"TAPE_{name}", value)

    def tape(*arguments: str) -> tuple[int, list[dict[str, object]], str]:
        code = main(["--output", "jsonl", *arguments])
        told = capsys.readouterr()
        return code, [json.loads(line) for line in told.out.splitlines()], told.err

    added = ("recur", "add", "tick", "--kind", KIND, "--cron", "* * * * * *", "--set", "n=1", "--tenant", "desk")
    code, [row], _ = tape(*added)
    assert (code, row["name"], row["params"]) == (0, "tick", {"n": 1})
    code, _, told = tape(*added)
    assert code == 5
    assert "TAPE-3001" in told
    assert "--replace" in told
    assert tape(*added, "--replace")[0] == 0
    assert tape("recur", "add", "wrong", "--kind", KIND, "--cron", "nonsense")[0] == 5
    assert tape("recur", "add", "wrong", "--kind", "inference", "--cron", "* * * * *")[0] == 5
    with moving(settings) as [mover]:
        assert wait_until(lambda: mover.fired >= 2, deadline_s=20, every_s=0.1)
        code, [row], _ = tape("recur", "ls")
        assert (code, row["tenant"], row["job"] is not None) == (0, "desk", True)
        assert str(row["last"]) < str(row["next"])
        assert tape("recur", "rm", "tick")[0] == 0
        time.sleep(1.2)
        count = mover.fired
        time.sleep(2.5)
        assert mover.fired == count
    assert tape("recur", "ls")[1] == []
    assert tape("recur", "rm", "tick")[0] == 3


def test_what_was_moved_does_not_stay_on_the_delay_topics(settings: Settings, names: Names) -> None:
    target, keeper = names.jobs(KIND, "bulk"), Housekeeper(settings, [movers(names)])
    assert keeper.sweep() == [], "nobody has moved anything"
    delay(settings, target, {"soon": now_ms() + 800, "late": now_ms() + 3_600_000})
    with moving(settings):
        assert wait_until(lambda: len(read(settings, target)) == 1, deadline_s=20)
    assert [(one.topic, one.before - one.start) for one in keeper.sweep()] == [(names.retry("5s"), 1)]
    assert keeper.sweep() == []
    assert len(read(settings, names.retry("1h"))) == 1, "what still waits stays"
