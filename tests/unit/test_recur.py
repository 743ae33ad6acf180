"""Recurring jobs: when they fire, for which moment, and what is written when they do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.errors import InvalidError
from schemas.event import Event, EventType
from schemas.job import Job
from schemas.recur import Fired, Recurring, fire, fired_key, name_of
from schemas.topics import Names
from wire.cron import Cron
from wire.follow.port import Received
from workers.delay.calendar import PAUSE, Calendar
from workers.delay.heads import BYTES, RECORDS, Heads

NOW = datetime(2026, 11, 21, 9, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TEMPLATE = Recurring(name="nightly", cron="* * * * *", kind="echo", params={"n": 1}, tenant="desk", added_at=NOW)


def record(offset: int, key: bytes, value: bytes | None) -> Received:
    return Received("recurring", 0, offset, key, value, (), 0)


def template(offset: int = 0, **changes: object) -> Received:
    made = TEMPLATE.model_copy(update=changes)
    return record(offset, made.name.encode(), codec.dump(made))


def fired(moment: datetime, offset: int = 1) -> Received:
    made = Fired(name="nightly", moment=moment, job="j", time=moment)
    return record(offset, fired_key("nightly"), codec.dump(made))


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


# The expression


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 9 * * MON-FRI", "UTC", at(2026, 1, 2, 9), at(2026, 1, 5, 9)),
        ("*/15 * * * *", "UTC", at(2026, 1, 1, 0, 0, 1), at(2026, 1, 1, 0, 15)),
        ("0 2 * * *", "Europe/Berlin", at(2026, 7, 1), at(2026, 7, 2)),
        ("0 2 * * *", "Europe/Berlin", at(2026, 12, 1), at(2026, 12, 1, 1)),
        ("30 2 * * *", "Europe/Berlin", at(2026, 3, 28, 12), at(2026, 3, 29, 1)),  # 02:30 is left out that day
        ("30 2 * * *", "Europe/Berlin", at(2026, 10, 24, 12), at(2026, 10, 25, 0, 30)),  # and comes twice on this
        ("30 2 * * *", "Europe/Berlin", at(2026, 10, 25, 0, 30), at(2026, 10, 26, 1, 30)),
        ("0 0 29 2 *", "UTC", at(2026, 1, 1), at(2028, 2, 29)),
        ("*/10 * * * * *", "UTC", at(2026, 1, 1, 0, 0, 5), at(2026, 1, 1, 0, 0, 10)),
    ],
)
def test_the_next_moment(cron: str, zone: str, after: datetime, expected: datetime) -> None:
    assert Cron(cron, zone).after(after) == expected


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "0 0 31 2 *", "@daily", "a b c d e", "* * * * * * *"])
def test_an_expression_that_names_no_moment_is_refused(cron: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Cron(cron)
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1002", "cron")


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../etc/passwd", "/etc/passwd"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Cron("* * * * *", zone)
    assert caught.value.place["field"] == "timezone"


@given(
    st.sampled_from(["*/7 * * * *", "0 9 * * 1-5", "30 2 * * *", "5,50 */3 * * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),  # noqa: DTZ001 - the zone is put to it below
    st.integers(0, 100_000),
)
def test_the_latest_is_the_last_of_those_that_come_after(cron: str, zone: str, naive: datetime, gap: int) -> None:
    after = naive.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC).replace(microsecond=0)
    until = after + timedelta(seconds=gap)
    made = Cron(cron, zone)
    expected, moment = None, made.after(after)
    while moment <= until:
        expected, moment = moment, made.after(moment)
    assert made.latest(after, until) == expected


# What is written


def test_a_firing_is_a_job_its_event_and_its_moment() -> None:
    names = Names("x.")
    made = fire(TEMPLATE, NOW, names=names, partition=3, now=NOW + MINUTE)
    request, queued, told = made.records
    assert (request.topic, request.key) == ("x.jobs.echo.bulk", made.job.encode())
    envelope = codec.decode(request.value, request.headers)
    assert (envelope.type, envelope.subject) == (codec.request_type("echo"), made.job)
    job = codec.parse(Job, envelope.data)
    assert (job.params, job.tenant, job.key) == ({"n": 1}, "desk", "recurring/nightly/2026-11-21T09:00:30+00:00")
    event = codec.parse(Event, codec.decode(queued.value, queued.headers).data)
    assert (event.type, event.job, event.lane) == (EventType.QUEUED, made.job, "bulk")
    assert (told.topic, told.partition, told.key) == ("x.recurring", 3, b"nightly/fired")
    assert codec.parse(Fired, told.value or b"") == made.fired
    assert name_of(told.key) == ("nightly", True)
    assert name_of(b"nightly") == ("nightly", False)


def test_a_moment_has_one_job_whoever_fires_it_and_in_whichever_zone() -> None:
    one = fire(TEMPLATE, NOW, names=Names(), partition=0, now=NOW)
    other = fire(TEMPLATE, NOW.astimezone(ZoneInfo("Asia/Tokyo")), names=Names(), partition=0, now=NOW + MINUTE)
    later = fire(TEMPLATE, NOW + MINUTE, names=Names(), partition=0, now=NOW)
    assert one.job == other.job != later.job
    assert dict(one.records[0].headers)["ce_id"] == dict(other.records[0].headers)["ce_id"]


# The calendar


def due(calendar: Calendar, now: datetime) -> list[datetime]:
    return [found.moment for found in calendar.due(now)]


def test_moments_before_it_was_added_do_not_count() -> None:
    calendar = Calendar()
    assert calendar.wait(NOW) is None
    calendar.read([template()])
    assert calendar.wait(NOW) == 30
    assert due(calendar, NOW + timedelta(seconds=29)) == []
    assert due(calendar, NOW + timedelta(seconds=30)) == [at(2026, 11, 21, 9, 1)]


def test_each_moment_fires_once_and_what_was_missed_for_the_latest_only() -> None:
    calendar = Calendar()
    calendar.read([template(), fired(at(2026, 11, 21, 9, 1))])
    assert due(calendar, at(2026, 11, 21, 9, 1, 59)) == []
    [found] = calendar.due(at(2026, 11, 21, 12, 0, 10))
    assert found.moment == at(2026, 11, 21, 12, 0)
    calendar.fired(found)
    assert due(calendar, at(2026, 11, 21, 12, 0, 50)) == []
    assert calendar.wait(at(2026, 11, 21, 12, 0, 50)) == 10


def test_its_own_older_firing_read_later_undoes_nothing() -> None:
    calendar = Calendar()
    calendar.read([template()])
    for minute in (1, 2):
        [found] = calendar.due(at(2026, 11, 21, 9, minute))
        calendar.fired(found)
    calendar.read([fired(at(2026, 11, 21, 9, 1), 5)])
    assert due(calendar, at(2026, 11, 21, 9, 2, 59)) == []


def test_a_clock_that_is_set_back_fires_nothing_again() -> None:
    calendar = Calendar()
    calendar.read([template()])
    [found] = calendar.due(at(2026, 11, 21, 15, 0))
    calendar.fired(found)
    assert due(calendar, at(2026, 11, 21, 10, 0)) == []
    assert calendar.wait(at(2026, 11, 21, 10, 0)) == timedelta(hours=5, minutes=1).total_seconds()


def test_a_template_may_be_changed_and_removed() -> None:
    calendar = Calendar()
    calendar.read([template(), template(1, cron="0 12 * * *", params={"n": 2})])
    [found] = calendar.due(at(2026, 11, 21, 12))
    assert found.template.params == {"n": 2}
    calendar.read([record(2, b"nightly", None), record(3, b"nightly/fired", None)])
    assert calendar.due(at(2027, 1, 1)) == []


def test_a_refused_one_waits_and_harms_no_other() -> None:
    calendar = Calendar()
    calendar.read([template(), template(1, name="other")])
    now = at(2026, 11, 21, 9, 1)
    first, second = calendar.due(now)
    calendar.postpone(first, now)
    calendar.fired(second)
    assert calendar.due(now + PAUSE - timedelta(seconds=1)) == []
    assert {found.template.name for found in calendar.due(now + PAUSE)} == {"nightly", "other"}


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", json.dumps({"name": "nightly"}).encode()])
def test_junk_counts_as_nothing(value: bytes) -> None:
    calendar = Calendar()
    calendar.read([template(name="good"), record(1, b"nightly", value), record(2, b"nightly/fired", value)])
    calendar.read([template(3, name="bad", cron="no")])
    calendar.read([Received("recurring", 0, 4, None, b"x", (), 0)])
    assert [found.template.name for found in calendar.due(NOW + MINUTE)] == ["good"]


# The lines of delayed records


def waiting(partition: int, offset: int, due_ms: int, size: int = 2) -> Received:
    headers = (("tape-due", b"%d" % due_ms), ("tape-target", b"x.jobs.echo.bulk"))
    return Received("x.retry.5s", partition, offset, b"k", b"x" * size, headers, due_ms - 5_000)


def test_lines_move_from_the_front_and_none_before_it_is_due() -> None:
    heads = Heads({"x.retry.5s": "5s"})
    assert heads.wait(0) is None
    heads.add([waiting(0, 0, 9_000), waiting(0, 1, 8_000), waiting(1, 0, 8_500)])
    assert heads.wait(8_000) == 0.5
    assert heads.due(8_000, 10, 1_000) == []
    assert [(found.partition, found.offset) for found in heads.due(8_600, 10, 1_000)] == [(1, 0)]
    assert [found.offset for found in heads.due(9_000, 2, 1_000)] == [0, 1]
    heads.moved(heads.due(9_000, 1, 1_000))
    assert heads.first(("x.retry.5s", 0)) == 1
    heads.drop([("x.retry.5s", 0)])
    assert heads.first(("x.retry.5s", 0)) is None
    assert len(heads.due(9_000, 10, 1_000)) == 1


def test_a_batch_has_its_bounds_and_a_line_too() -> None:
    heads = Heads({"x.retry.5s": "5s"})
    heads.add([waiting(0, offset, 1_000, 600) for offset in range(RECORDS - 1)])
    assert heads.full() == set()
    assert len(heads.due(2_000, 7, 1 << 20)) == 7
    assert len(heads.due(2_000, 500, 2_000)) == 3
    assert len(heads.due(2_000, 500, 1)) == 1, "one always moves"
    heads.add([waiting(0, RECORDS, 1_000)])
    heads.add([waiting(1, 0, 1_000, BYTES)])
    assert heads.full() == {("x.retry.5s", 0), ("x.retry.5s", 1)}
    heads.moved(heads.due(2_000, 1, 1 << 20))
    assert heads.full() == {("x.retry.5s", 1)}


def test_a_record_without_a_plan_waits_for_nothing() -> None:
    heads = Heads({"x.retry.5s": "5s"})
    heads.add([Received("x.retry.5s", 0, 0, None, None, (), 0), waiting(0, 1, 5_000)])
    assert heads.wait(0) == 0
    assert [found.offset for found in heads.due(0, 10, 1_000)] == [0]
