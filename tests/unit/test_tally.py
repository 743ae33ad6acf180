"""What a tenant's jobs may take: pure rules, for every order of asking."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.control import Tenant
from schemas.quota import Holder, Tally, tally_name
from wire.blobs.port import check_name
from workers.tally import Ask, Full, Held, ask, passed, signed, without

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def quota(**fields: Any) -> Tenant:
    return Tenant(tenant="acme", time=NOW, **fields)


def one(job: str, ticket: int = 0, *, line: str = "", again: bool = False) -> Ask:
    return Ask(job, line or f"t/0/{job}", ticket, again)


def holder(beat: int, *jobs: str) -> Holder:
    return Holder(beat=beat, jobs=jobs, lines=tuple(f"t/0/{job}" for job in jobs))


def at(tally: Tally, said: Tenant, seconds: float, *asks: Ask, worker: str = "w1") -> tuple[Tally, list[Full | None]]:
    """Ask at a moment, beside what the worker runs already."""
    found = tally.workers.get(worker, Holder())
    mine = [Held(job, line) for job, line in zip(found.jobs, found.lines, strict=True)]
    return ask(passed(tally, said, seconds), said, asks, worker=worker, mine=mine)[:2]


class TestInFlight:
    def test_as_many_as_may_start_and_the_next_one_may_not(self) -> None:
        said = quota(in_flight=2)
        tally, answers = at(Tally(tenant="acme"), said, 0, one("a"), one("b"), one("c"))
        assert answers == [None, None, Full("in_flight", 2)]
        tally, answers = at(tally, said, 0, one("c"), worker="w2")
        assert answers == [Full("in_flight", 2)]
        assert tally.workers == {"w1": holder(1, "a", "b")}
        tally, answers = at(signed(tally, "w1", [Held("a", "t/0/a")]), said, 0, one("c"), worker="w2")
        assert answers == [None]
        assert tally.running == {"a", "c"}

    def test_every_record_of_a_job_counts(self) -> None:
        said = quota(in_flight=2, rate=3.0, burst=3)
        asks = [one("same", line=f"t/0/{number}") for number in range(200)]
        tally, answers = at(Tally(tenant="acme"), said, 0, *asks)
        assert answers == [None, None, *[Full("in_flight", 2)] * 198]
        assert (tally.in_flight, tally.running, tally.tokens) == (2, {"same"}, 1)
        assert at(tally, said, 0, one("same", line="t/1/0"), worker="w2")[1] == [Full("in_flight", 2)]
        assert at(tally, said, 0, one("same", line="t/0/0"), one("same", line="t/0/0"), worker="w2")[1] == [
            None,
            Full("in_flight", 2),
        ]
        tally, answers = at(Tally(tenant="acme"), quota(rate=1.0), 0, *asks[:3])
        assert [answer is None for answer in answers] == [True, False, False]

    def test_a_record_that_is_in_flight_takes_no_more_room_wherever_it_starts_again(self) -> None:
        said = quota(in_flight=1, rate=1.0)
        tally, answers = at(Tally(tenant="acme"), said, 0, one("a"), one("a", again=True), one("a"))
        assert answers == [None, None, Full("in_flight", 1)]
        assert tally.workers == {"w1": holder(1, "a")}
        tally, answers = at(tally, said, 0, one("a"), worker="w2")
        assert answers == [None]
        assert tally.running == {"a"}
        assert set(tally.workers) == {"w1", "w2"}
        assert without(tally, {"w1"}).running == {"a"}
        assert tally.tokens == 0, "one start, one token"

    def test_a_lower_limit_drives_nobody_out(self) -> None:
        tally, _ = at(Tally(tenant="acme"), quota(in_flight=3), 0, one("a"), one("b"), one("c"))
        tally, answers = at(tally, quota(in_flight=1), 0, one("d"), one("a", again=True))
        assert answers == [Full("in_flight", 3), None]
        assert tally.running == {"a", "b", "c"}

    def test_a_worker_that_runs_nothing_is_forgotten_and_its_signs_never_repeat(self) -> None:
        said, beats = quota(in_flight=1), []
        tally = Tally(tenant="acme")
        for number in range(3):
            tally, _ = at(tally, said, 0, one(f"j{number}"))
            beats.append(tally.workers["w1"].beat)
            tally = signed(tally, "w1", [])
            assert tally.workers == {}
        assert beats == sorted(set(beats))


class TestRate:
    def test_a_burst_then_one_for_each_token_in_the_order_of_the_tickets(self) -> None:
        said = quota(rate=2.0, burst=3)
        asks = [one(name) for name in "abcdef"]
        tally, answers = at(Tally(tenant="acme"), said, 0, *asks)
        assert answers[:3] == [None] * 3
        told = [one for one in answers[3:] if one is not None]
        assert [(one.ticket, one.seconds, one.due) for one in told] == [
            (1, 0.5, False),
            (2, 1.0, False),
            (3, 1.5, False),
        ]
        tally, answers = at(tally, said, 0.5, one("e", 2), one("g"), one("d", 1))
        assert [one and (one.ticket, one.seconds) for one in answers] == [(2, 0.5), (4, 1.5), None]
        assert tally.waiting == 3
        tally, answers = at(tally, said, 1.5, one("f", 3), one("e", 2))
        assert (answers, tally.waiting) == ([None, None], 1)
        assert tally.workers == {}, "who runs is of no interest to a rate"

    def test_who_comes_late_to_tokens_that_are_gone_keeps_the_ticket(self) -> None:
        said = quota(rate=1.0, burst=1)
        tally, _ = at(Tally(tenant="acme"), said, 0, one("a"), one("b"), one("c"))
        tally, answers = at(tally, said, 60, one("b", 1), one("c", 2))
        assert answers == [None, Full("rate", 0, 2, 1.0, due=True)]
        assert at(tally, said, 61, one("c", 2))[1] == [None]

    def test_tickets_are_drawn_in_blocks_that_serve_many_and_in_the_end_waste_nothing(self) -> None:
        said = quota(rate=20.0, burst=1)
        tally, answers, spare = ask(
            passed(Tally(tenant="acme"), said, 0), said, [one("a"), one("b"), one("c")], worker="w1", mine=()
        )
        assert [full and full.ticket for full in answers] == [None, 1, 2]
        assert (tally.tail, spare) == (10, tuple(range(3, 11)))
        before = tally
        tally, answers, spare = ask(tally, said, [one("d")], worker="w1", mine=(), spare=spare)
        assert (tally.tail, tally.head, [full and full.ticket for full in answers]) == (10, before.head, [3])
        _, (other,), _ = ask(tally, said, [one("e")], worker="w2", mine=())
        assert other is not None
        assert other.ticket == 11
        assert other.seconds == pytest.approx(0.55)
        tally, answers, spare = ask(passed(tally, said, 0.3), said, [one("f")], worker="w1", mine=(), spare=spare)
        assert (answers, spare) == ([None], tuple(range(5, 11))), "4 is called, and a token is there"
        assert ask(Tally(tenant="acme", tokens=1), said, [], worker="w1", mine=(), spare=spare)[2] == ()

    def test_a_changed_rate_counts_for_those_that_wait_already(self) -> None:
        slow, fast = quota(rate=0.01), quota(rate=10.0)
        tally, answers = at(Tally(tenant="acme"), slow, 0, one("a"), one("b"))
        assert answers[1] is not None
        assert answers[1].seconds == pytest.approx(100)
        tally, answers = at(tally, fast, 1, one("b", 1))
        assert answers == [None]

    def test_without_a_rate_nobody_waits_for_one(self) -> None:
        tally, _ = at(Tally(tenant="acme"), quota(rate=0.01), 0, one("a"), one("b"), one("c"))
        tally, answers = at(tally, quota(in_flight=9), 1, one("b", 1), one("d"))
        assert (answers, tally.waiting) == ([None, None], 0)
        assert at(tally, quota(rate=0.01), 1, one("c", 2))[1] == [None]

    @pytest.mark.parametrize("ticket", [2, 10**15])
    def test_a_ticket_that_was_never_drawn_is_none(self, ticket: int) -> None:
        said = quota(rate=1.0)
        tally, _ = at(Tally(tenant="acme"), said, 0, one("a"), one("b"))
        told = at(tally, said, 0, one("c", ticket))[1][0]
        assert told is not None
        assert told.ticket == 2

    def test_a_clock_that_goes_back_takes_nothing(self) -> None:
        said = quota(rate=1.0, burst=5)
        tally, _ = at(Tally(tenant="acme"), said, 100, one("a"))
        assert passed(tally, said, 3) == tally


@given(
    rate=st.floats(0.01, 1_000), burst=st.integers(1, 20),
    moves=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 8), st.booleans()), min_size=1, max_size=60),
)  # fmt: skip
def test_no_stretch_of_time_has_more_starts_than_its_tokens(
    rate: float, burst: int, moves: list[tuple[float, int, bool]]
) -> None:
    said, tally, now = quota(rate=rate, burst=burst), Tally(tenant="acme"), 0.0
    starts: list[float] = []
    tickets: list[int] = []
    for gap, count, back in moves:
        now += gap / rate
        asks = [one(f"j{number}", tickets.pop(0) if back and tickets else 0) for number in range(count)]
        tally, answers = at(tally, said, now, *asks)
        tickets += [full.ticket for full in answers if full is not None]
        starts += [now for full in answers if full is None]
    for first, begin in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + rate * (starts[last] - begin) + 1e-3


@given(rate=st.floats(0.01, 1_000), burst=st.integers(1, 20), count=st.integers(1, 200))
def test_everybody_starts_who_comes_back_when_told_after_one_wait_each(rate: float, burst: int, count: int) -> None:
    said = quota(rate=rate, burst=burst)
    tally, answers = at(Tally(tenant="acme"), said, 0, *[one(f"j{number}") for number in range(count)])
    waits = [(full.seconds, full.ticket) for full in answers if full is not None]
    assert len(waits) == max(0, count - burst)
    assert [ticket for _, ticket in waits] == list(range(1, len(waits) + 1))
    for seconds, ticket in waits:
        tally, (full,) = at(tally, said, seconds, one("again", ticket))
        assert full is None
    if waits:
        assert waits[-1][0] == pytest.approx((count - burst) / rate), "no token is left lying"


@given(names=st.lists(st.text(min_size=1, max_size=128), min_size=2, max_size=20, unique=True))
def test_every_tenant_has_a_name_in_the_store_and_no_two_the_same(names: list[str]) -> None:
    found = [tally_name(name) for name in [*names, "acme", "Acme", "../acme", "a/c", "a_c", "ä" * 128]]
    assert [check_name(name) for name in found] == found
    assert len(set(found)) == len(set(names) | {"acme", "Acme", "../acme", "a/c", "a_c", "ä" * 128})
    assert all(name.startswith("tenants/") and name.count("/") == 1 for name in found)
