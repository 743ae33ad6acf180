"""The road of waiting records: never early, late by a bucket at most, however the clock and the writers behave."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.delays import PARTITIONS, WHEELS, Delayed, Plan, Wheel, delayed, plan, ready, route, strip
from schemas.errors import FailureClass, InvalidError
from schemas.past import ATTEMPT, DUE, TARGET, Past, Try, read
from schemas.topics import MESSAGE_LIMIT, Names, topics

NOW = 1_780_000_000_000
HOUR = 3_600_000
FINEST = WHEELS["5s"]
moments = st.integers(NOW, NOW + 30 * HOUR)


@pytest.mark.parametrize("wheel", WHEELS.values(), ids=list(WHEELS))
def test_every_wheel_reaches_less_than_a_turn_and_leads_by_more_than_a_bucket(wheel: Wheel) -> None:
    finer = [other for other in WHEELS.values() if other.bucket_ms < wheel.bucket_ms]
    assert wheel.reach_ms + 1_000 <= wheel.turn_ms - wheel.bucket_ms
    assert wheel.lead_ms <= max((other.reach_ms for other in finer), default=0)
    assert not finer or wheel.lead_ms >= wheel.bucket_ms + 1_000
    name, unit = int(wheel.delay[:-1]), {"s": 1_000, "m": 60_000, "h": HOUR}[wheel.delay[-1]]
    assert wheel.reach_ms >= name * unit, "it takes what its name says"


def test_the_topics_have_the_partitions_that_the_wheels_count_on() -> None:
    names = Names("x.")
    found = {topic.name: topic for topic in topics(names, ("echo",), partitions=3)}
    for delay in WHEELS:
        topic = found[names.retry(delay)]
        assert (topic.partitions, topic.configs["retention.ms"]) == (PARTITIONS, "-1")
        assert int(topic.configs["max.message.bytes"]) > MESSAGE_LIMIT
    assert found["x.recurring"].configs["cleanup.policy"] == "compact"
    assert "x.dead.unknown" in found


@given(due=moments, now=moments)
def test_a_record_waits_where_it_can_be_reached(due: int, now: int) -> None:
    way = route(due, now)
    if due <= now:
        assert way is None
        return
    assert way is not None
    delay, partition = way
    assert 0 <= partition < PARTITIONS
    assert ready(delay, due, now, now) * 1000 <= WHEELS[delay].reach_ms
    finer = [wheel for wheel in WHEELS.values() if wheel.bucket_ms < WHEELS[delay].bucket_ms]
    assert all(due - now > wheel.reach_ms for wheel in finer), "no coarser wheel than need be"


@given(due=moments, written=moments, now=moments, delay=st.sampled_from(list(WHEELS)))
def test_what_moves_on_too_soon_is_sent_back_and_never_to_its_target(
    due: int, written: int, now: int, delay: str
) -> None:
    wait = ready(delay, due, written, now)
    assert 0 <= wait * 1000 <= WHEELS[delay].turn_ms
    if now < due:
        assert route(due, now) is not None


@dataclass
class Road:
    """All the delay topics and a mover that reads each partition in order, on a clock of its own."""

    now: int = NOW
    skew: int = 0
    """What the mover's wall clock shows beyond true time."""
    lots: dict[tuple[str, int], deque[tuple[int, int, int]]] = field(default_factory=dict)
    arrived: dict[int, int] = field(default_factory=dict)
    hops: dict[int, int] = field(default_factory=dict)

    def put(self, name: int, due: int, asked: int) -> None:
        """Write a record now whose writer had asked the way at a moment before."""
        way = route(due, asked)
        if way is None:
            self.arrived[name] = self.now
        else:
            self.hops[name] = self.hops.get(name, 0) + 1
            self.lots.setdefault(way, deque()).append((name, due, asked))

    def wait(self) -> int | None:
        """Milliseconds until some head moves on."""
        clock = self.now + self.skew
        waits = [ready(delay, *lot[0][1:], clock) for (delay, _), lot in self.lots.items() if lot]
        return round(min(waits) * 1000) if waits else None

    def move(self) -> None:
        """Move every head that is ready, as long as there are any."""
        while self.wait() == 0:
            clock = self.now + self.skew
            for (delay, _), lot in list(self.lots.items()):
                while lot and ready(delay, *lot[0][1:], clock) == 0:
                    name, due, _ = lot.popleft()
                    self.put(name, due, clock)

    def run(self, until: int | None = None) -> None:
        while (wait := self.wait()) is not None and (until is None or self.now + wait <= until):
            self.now += wait
            self.move()
        self.now = max(self.now, until or 0)


writes = st.lists(
    st.tuples(
        st.integers(0, 20_000),
        st.integers(0, 900),
        st.one_of(st.integers(-1_000, 9_000), st.integers(9_000, 75_000), st.integers(0, 20 * HOUR)),
    ),
    min_size=25,
    max_size=50,
)


@given(writes)
def test_none_is_early_and_none_is_later_than_a_bucket(made: list[tuple[int, int, int]]) -> None:
    road, dues, written = Road(), {}, {}
    queue = [(NOW + gap + took, name, NOW + gap, NOW + gap + left) for name, (gap, took, left) in enumerate(made)]
    heapq.heapify(queue)
    while queue:
        at, name, asked, due = heapq.heappop(queue)
        road.run(until=at)
        dues[name], written[name] = due, at
        road.put(name, due, asked)
        road.move()
    road.run()
    assert road.arrived.keys() == dues.keys(), "none is lost"
    for name, due in dues.items():
        fair = max(due, written[name])
        assert fair <= road.arrived[name] <= fair + FINEST.bucket_ms
        assert road.hops.get(name, 0) <= max(0, due - written[name]) // 8_000_000 + 5


@given(writes, st.integers(-10 * HOUR, 0), st.integers(0, 60_000))
def test_a_clock_that_jumps_back_makes_none_early_and_loses_none(
    made: list[tuple[int, int, int]], jump: int, when: int
) -> None:
    road = Road()
    dues = {name: NOW + left for name, (_, _, left) in enumerate(made)}
    for name, due in dues.items():
        road.put(name, due, NOW)
    road.run(until=NOW + when)
    before = set(road.arrived)
    road.skew = jump
    road.run()
    assert road.arrived.keys() == dues.keys()
    late = {name: road.arrived[name] + jump - due for name, due in dues.items() if name not in before}
    assert all(0 <= found <= FINEST.bucket_ms or dues[name] <= NOW for name, found in late.items())


@given(writes, st.integers(0, 5 * HOUR))
def test_after_an_outage_all_come_at_once_or_in_time(made: list[tuple[int, int, int]], outage: int) -> None:
    road = Road()
    dues = {name: NOW + left for name, (_, _, left) in enumerate(made)}
    for name, due in dues.items():
        road.put(name, due, NOW)
    road.now += outage
    road.move()
    road.run()
    for name, due in dues.items():
        assert max(due, NOW) <= road.arrived[name] <= max(due, NOW + outage) + FINEST.bucket_ms


HEADERS = [("ce_id", b"1"), ("empty", None), ("ce_id", b"again")]


def made(due: int, past: Past | None = None) -> Delayed:
    return delayed(
        "x.jobs.echo.bulk", prefix="x.", key=b"job", value=b"{}", headers=HEADERS, due_ms=due, now_ms=NOW, past=past
    )


def test_a_delayed_record_says_where_it_goes_and_comes_back_as_it_was() -> None:
    found = made(NOW + 3_000)
    assert (found.topic, found.key, found.value, found.timestamp_ms) == ("x.retry.5s", b"job", b"{}", NOW)
    assert found.partition == FINEST.partition(NOW + 3_000)
    assert plan(found.headers) == Plan(NOW + 3_000, "x.jobs.echo.bulk")
    assert strip(found.headers) == HEADERS


def test_a_past_goes_with_it_and_stays() -> None:
    last = Try(attempt=1, ended_at=datetime.now(UTC), worker="w", failure=FailureClass.TRANSIENT, code="TAPE-6001")
    found = made(NOW + 100_000, Past().after(last))
    assert found.topic == "x.retry.10m"
    assert read(strip(found.headers)).tries == (last,)
    assert [name for name, _ in strip(found.headers)][:3] == ["ce_id", "empty", "ce_id"]
    assert (ATTEMPT, b"1") in found.headers


def test_what_is_due_goes_to_its_target_at_once() -> None:
    assert made(NOW) == Delayed("x.jobs.echo.bulk", None, b"job", b"{}", HEADERS, None)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ([], DUE),
        ([(DUE, b"soon"), (TARGET, b"t")], DUE),
        ([(DUE, None), (TARGET, b"t")], DUE),
        ([(DUE, b"-1"), (TARGET, b"t")], DUE),
        ([(DUE, b"9" * 16), (TARGET, b"t")], DUE),
        ([(DUE, "²".encode()), (TARGET, b"t")], DUE),
        ([(DUE, b"1")], TARGET),
        ([(DUE, b"1"), (TARGET, b"")], TARGET),
        ([(DUE, b"1"), (TARGET, b"\xff")], TARGET),
    ],
)
def test_a_plan_that_cannot_be_read_names_its_header(headers: list[tuple[str, bytes | None]], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        plan(headers)
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1004", field)
