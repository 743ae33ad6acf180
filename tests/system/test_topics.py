"""Topics and group settings on the real broker."""

from __future__ import annotations

import threading

import pytest

from schemas.errors import InvalidError, UnavailableError
from schemas.topics import Group, Names, Topic, groups, topics
from wire.settings import Settings
from wire.topics import Change, apply, check, ensure

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


def test_everything_is_made_once(settings: Settings) -> None:
    names = Names(settings.prefix)
    wanted = topics(names, partitions=3), groups(names, lock_ms=2_000)
    plan = check(settings, *wanted)
    assert {change.kind for change in plan.changes} == {"create", "config"}
    assert {change.name for change in plan.pending if change.kind == "create"} == {topic.name for topic in wanted[0]}
    assert check(settings, *wanted).pending == plan.pending, "a check changes nothing"
    assert apply(plan) == plan.pending
    after = check(settings, *wanted)
    assert (after.pending, after.drift) == ([], [])
    assert {change.kind for change in after.changes} == {"ok"}
    assert ensure(settings, *wanted) == []


def test_what_differs_is_mended_and_the_rest_left_alone(settings: Settings) -> None:
    name = f"{settings.prefix}t"
    ensure(settings, [Topic(name, 2, {"retention.ms": "1000", "segment.bytes": "2000000"})])
    plan = check(settings, [Topic(name, 3, {"retention.ms": "-1"})])
    assert plan.pending == [
        Change("partitions", "topic", name, "partitions", "2", "3"),
        Change("config", "topic", name, "retention.ms", "1000", "-1"),
    ]
    apply(plan)
    kept = {"retention.ms": "-1", "segment.bytes": "2000000"}
    assert check(settings, [Topic(name, 3, kept)]).pending == []


def test_partitions_and_replicas_are_never_taken_away(settings: Settings) -> None:
    name = f"{settings.prefix}t"
    ensure(settings, [Topic(name, 4)])
    plan = check(settings.model_copy(update={"replication": 3}), [Topic(name, 2, {"min.insync.replicas": "1"})])
    assert plan.pending == []
    assert [(change.field, change.have, change.want) for change in plan.drift] == [
        ("partitions", "4", "2"),
        ("replication", "1", "3"),
    ]
    assert all(change.note for change in plan.drift)
    assert apply(plan) == []


def test_a_group_is_configured_before_it_has_members(settings: Settings) -> None:
    group = Group(f"{settings.prefix}g", (), {"share.record.lock.duration.ms": "1500"})
    [change] = check(settings, [], [group]).changes
    assert (change.kind, change.resource, change.have, change.want) == ("config", "group", "30000", "1500")
    ensure(settings, [], [group])
    assert [change.kind for change in check(settings, [], [group]).changes] == ["ok"]


def test_a_setting_the_broker_refuses_is_said_to_be_one(settings: Settings) -> None:
    name = f"{settings.prefix}t"
    with pytest.raises(InvalidError, match=r"min\.insync") as caught:
        ensure(settings, [Topic(name, 1, {"min.insync.replicas": "none"})])
    assert (caught.value.code, caught.value.place["topic"]) == ("TAPE-1007", name)
    ensure(settings, [Topic(name, 1)])
    with pytest.raises(InvalidError) as caught:
        ensure(settings, [Topic(name, 1, {"no.such.setting": "1"})])
    assert caught.value.place["resource"] == name
    with pytest.raises(InvalidError) as caught:
        ensure(settings.model_copy(update={"replication": 3}), [Topic(f"{name}3", 1)])
    assert caught.value.code == "TAPE-1007"


def test_two_may_make_the_same_at_once(settings: Settings) -> None:
    wanted = [Topic(f"{settings.prefix}{number}", 2) for number in range(5)]
    plans = [check(settings, wanted), check(settings, wanted)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            apply(plans[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert check(settings, wanted).pending == []


def test_without_a_broker_it_says_so(settings: Settings) -> None:
    away = settings.model_copy(update={"kafka_url": "127.0.0.1:1", "kafka_timeout_s": 0.5})
    with pytest.raises(UnavailableError, match=r"no broker answered within 0\.5 s") as caught:
        check(away, [])
    assert caught.value.code == "TAPE-5001"
