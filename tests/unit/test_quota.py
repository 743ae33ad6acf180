"""Quotas as workers keep them: who is let in, who must wait, and what becomes of the room of the dead."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quota_rig import Crew, attempt, quota
from worker_twin import START

from schemas.errors import CODES, FailureClass, UnavailableError
from schemas.past import QUOTA, Past, Try, write
from schemas.past import read as read_past
from schemas.quota import Holder, tally_name
from wire.blobs.memory import Memory
from workers.desk import GAP_S, SILENT_S
from workers.policy import waited_s
from workers.quota import BEAT_S, FAR_S, FIRST_S, LATE_S, LONGEST_S, SPACE_S, Quotas, Wait


class Counted(Memory):
    """A store that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.writes = 0, 0

    def get(self, *args: Any, **options: Any) -> Any:
        self.reads += 1
        return super().get(*args, **options)

    def put(self, *args: Any, **options: Any) -> Any:
        self.writes += 1
        return super().put(*args, **options)


def refused(wait: object) -> Wait:
    assert isinstance(wait, Wait), wait
    return wait


def test_a_tenant_without_a_quota_costs_the_store_nothing() -> None:
    store = Counted()
    crew = Crew(quota(weight=3), store=store)
    one = crew.hire("w1")
    for tenant in ("acme", "nobody"):
        assert one.enter("a", tenant=tenant) is None
        one.leave("a")
    crew.pass_(60)
    assert (store.reads, store.writes) == (0, 0)


def test_no_more_run_than_may_in_all_workers_together() -> None:
    crew = Crew(quota(in_flight=2))
    one, two = crew.hire("w1"), crew.hire("w2", clock_s=5_000)
    assert (one.enter("a"), two.enter("b")) == (None, None)
    wait = refused(one.enter("c"))
    assert (wait.failure.code, wait.failure.failure) == ("TAPE-5011", FailureClass.DEPENDENCY)
    assert wait.failure.message == "the tenant 'acme' is over its quota: it has 2 jobs in flight, and may have 2"
    assert wait.failure.place == {"tenant": "acme", "limit": "in_flight", "running": 2, "may": 2}
    assert CODES["TAPE-5011"].failure is FailureClass.DEPENDENCY
    refused(two.enter("d"))
    one.leave("a")
    crew.pass_(1)
    assert crew.tally().running == {"b"}
    assert two.enter("d") is None
    refused(one.enter("c"))


def test_one_workers_own_room_is_free_at_once_and_the_end_of_a_job_rides_on_the_next_start() -> None:
    store = Counted()
    crew = Crew(quota(in_flight=1), store=store)
    one = crew.hire("w1")
    assert one.enter("a") is None
    for job in "bcd":
        one.leave(next(iter(one.jobs)))
        assert one.enter(job) is None
    assert store.writes == 4
    assert crew.tally().running == {"d"}


def test_a_job_that_was_not_let_in_leaves_nothing() -> None:
    crew = Crew(quota(in_flight=1))
    one = crew.hire("w1")
    one.enter("a", offset=1)
    refused(one.enter("b", offset=2))
    one.quotas.leave(attempt("b", offset=2))
    refused(one.enter("a", offset=3))  # another record of the job that runs
    assert one.enter("a", offset=1, count=2) is None
    one.quotas.leave(attempt("a", offset=3))
    one.quotas.leave(attempt("a", offset=3))
    crew.pass_(1)
    assert crew.tally().running == {"a"}
    one.quotas.leave(attempt("a", offset=1))
    crew.pass_(BEAT_S)
    assert crew.tally().workers == {}


class TestTheDead:
    def test_their_room_comes_free_and_the_job_itself_need_not_wait_for_it(self) -> None:
        crew = Crew(quota(in_flight=2))
        one, two = crew.hire("w1"), crew.hire("w2")
        assert (one.enter("a"), one.enter("b")) == (None, None)
        one.alive = False
        refused(two.enter("c"))
        assert two.enter("a", count=2) is None, "it is redelivered, and counted already"
        crew.pass_(SILENT_S - 1)
        refused(two.enter("c"))
        crew.pass_(2 * BEAT_S + 1)
        assert crew.tally().running == {"a"}
        assert two.enter("c") is None

    def test_who_signs_is_alive_however_long_the_job_is(self) -> None:
        crew = Crew(quota(in_flight=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        one.enter("a")
        for _ in range(40):
            refused(two.enter("c"))
            crew.pass_(SILENT_S / 2)
        assert crew.tally().running == {"a"}

    def test_refusals_at_home_do_not_keep_a_holder_from_signing(self) -> None:
        crew = Crew(quota(in_flight=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        one.enter("a")
        for _ in range(int(3 * SILENT_S)):
            refused(one.enter("b"))
            refused(two.enter("c"))
            crew.pass_(1)
        assert crew.tally().running == {"a"}

    def test_short_jobs_one_after_the_other_are_signs_of_life(self) -> None:
        crew = Crew(quota(in_flight=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        for number in range(30):
            assert one.enter(f"j{number}") is None
            refused(two.enter("c"))
            crew.pass_(BEAT_S - 0.5)
            one.leave(f"j{number}")
            if number % 2:
                crew.pass_(0.5)

    def test_an_outage_of_the_store_takes_nobodys_room(self) -> None:
        crew = Crew(quota(in_flight=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        one.enter("a")
        refused(two.enter("c"))
        for hand in crew.hands:
            hand.view.down = True
        crew.pass_(1)
        for _ in range(30):
            assert isinstance(two.tried("c"), UnavailableError)
            crew.pass_(10)
        two.view.down = False
        refused(two.enter("c"))
        one.view.down = False
        crew.pass_(BEAT_S)
        refused(two.enter("c"))
        crew.pass_(300)
        refused(two.enter("c"))

    def test_a_look_now_and_then_does_not_make_a_silence(self) -> None:
        crew = Crew(quota(in_flight=1))
        one = crew.hire("w1")
        two = crew.hire("w2")
        one.enter("a")
        one.frozen = two.frozen = True
        refused(two.enter("c"))
        crew.pass_(10 * GAP_S)
        one.frozen = False
        refused(two.enter("c"))
        crew.pass_(100)
        refused(two.enter("c"))

    def test_who_was_taken_for_dead_takes_its_room_back(self) -> None:
        crew = Crew(quota(in_flight=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        one.enter("a")
        one.frozen = True
        refused(two.enter("b"))
        crew.pass_(SILENT_S + 2 * BEAT_S)
        assert two.enter("b") is None
        one.frozen = False
        crew.pass_(2 * BEAT_S)
        assert crew.tally().running == {"a", "b"}
        two.leave("b")
        crew.pass_(1)
        refused(two.enter("c"))
        one.leave("a")
        crew.pass_(1)
        assert two.enter("c") is None


class TestTheStore:
    def test_without_it_nobody_starts(self) -> None:
        crew = Crew(quota(in_flight=5, rate=5))
        one = crew.hire("w1")
        assert one.enter("a") is None
        one.view.down = True
        assert isinstance(one.tried("b"), UnavailableError)
        one.view.down = False
        assert one.enter("b") is None
        crew.pass_(1)
        assert crew.tally().running == {"a", "b"}

    @pytest.mark.parametrize("fail", ["before", "after"])
    def test_a_write_of_which_nobody_knows_whether_it_was_done_is_put_right(self, fail: str) -> None:
        crew = Crew(quota(in_flight=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        one.enter("z")
        one.leave("z")
        one.view.fail = fail
        assert isinstance(one.tried("a"), UnavailableError)
        crew.pass_(1)
        assert crew.tally().workers == {}
        assert two.enter("b") is None

    def test_a_sign_that_fails_is_made_again(self) -> None:
        crew = Crew(quota(in_flight=1))
        one = crew.hire("w1")
        one.enter("a")
        beat = crew.tally().workers["w1"].beat
        one.view.fail = "before"
        crew.pass_(BEAT_S + 2)
        assert crew.tally().workers["w1"].beat > beat

    @pytest.mark.parametrize("raw", [b"", b"{", b'{"tenant": 7}', b'{"tenant": "acme", "tail": -1}'])
    def test_an_object_that_nobody_can_read_is_written_over(self, raw: bytes) -> None:
        crew = Crew(quota(in_flight=1))
        crew.store.put(tally_name("acme"), raw)
        one = crew.hire("w1")
        assert one.enter("a") is None
        assert crew.tally().workers == {"w1": Holder(beat=1, jobs=("a",), lines=(attempt("a").line,))}

    def test_one_that_was_deleted_is_made_anew_by_who_runs_something(self) -> None:
        crew = Crew(quota(in_flight=1, rate=1))
        one, two = crew.hire("w1"), crew.hire("w2")
        one.enter("a")
        crew.store.delete(tally_name("acme"))
        crew.pass_(2 * BEAT_S)
        assert crew.tally().running == {"a"}
        refused(two.enter("b"))


class TestWhenToComeBack:
    def test_for_room_it_is_longer_each_time_and_never_all_at_once(self) -> None:
        crew = Crew(quota(in_flight=1))
        one = crew.hire("w1")
        one.enter("a")
        past, delays = Past(), []
        for number in range(1, 9):
            wait = refused(one.enter("b", past=past))
            delays.append(wait.delay_s)
            past = wait.past
            assert (past.put_off, past.spent, past.tries) == (number, 0, ())
            crew.pass_(wait.delay_s, step=5)
        assert delays == [0.75 * min(LONGEST_S, FIRST_S * 2**n) for n in range(8)]
        crew.chance = 0.0
        assert refused(one.enter("b", past=past)).delay_s == 0.5 * LONGEST_S

    def test_a_crowd_comes_back_at_a_pace(self) -> None:
        crew = Crew(quota(in_flight=1))
        one = crew.hire("w1")
        one.enter("a")
        count = 10_000
        delays = [refused(one.enter(f"b{number}")).delay_s for number in range(count)]
        assert max(delays) == pytest.approx((count - 1) * SPACE_S)
        crew.pass_(max(delays), step=5)
        assert refused(one.enter("b")).delay_s < LONGEST_S

    def test_for_the_rate_it_is_its_turn(self) -> None:
        crew = Crew(quota(rate=2, burst=1))
        one, two = crew.hire("w1"), crew.hire("w2", clock_s=-70_000)
        assert one.enter("a") is None
        waits = [refused(hand.enter(f"b{n}")) for n, hand in enumerate((one, two, one, two))]
        assert [wait.delay_s for wait in waits] == pytest.approx([0.5, 1.0, 1.5, 2.0])
        assert [(wait.past.ticket, wait.past.put_off) for wait in waits] == [(1, 1), (2, 1), (3, 1), (4, 1)]
        assert waits[0].failure.place == {"tenant": "acme", "limit": "rate", "running": 0, "may": 2.0}
        for hand, wait in zip((two, one, two, one), waits, strict=True):
            crew.pass_(0.5)
            assert hand.enter("b", past=wait.past) is None

    def test_who_is_told_long_in_advance_looks_again_in_between(self) -> None:
        crew = Crew(quota(rate=0.001))
        one = crew.hire("w1")
        one.enter("a")
        wait = refused(one.enter("b"))
        assert wait.delay_s == FAR_S * 0.75
        assert one.enter("b", past=wait.past)
        crew.tenants["acme"] = quota(rate=5)
        crew.pass_(1)
        assert one.enter("b", past=wait.past) is None

    def test_who_is_late_tries_again_and_again(self) -> None:
        crew = Crew(quota(rate=1, burst=1))
        one = crew.hire("w1")
        one.enter("a")
        pasts = [refused(one.enter(f"b{n}")).past for n in range(4)]
        crew.pass_(60, step=5)
        assert one.enter("b0", past=pasts[0]) is None
        delays, tickets = [], []
        past = pasts[1]
        for _ in range(8):
            wait = refused(one.enter("b1", past=past))
            delays.append(wait.delay_s)
            past = wait.past
            tickets.append(past.ticket)
        assert tickets == [2, 2, 0, 5, 5, 5, 5, 5], "it draws a new one when it was late too often"
        assert past.put_off == 9
        assert delays[:3] == [max(1.0, 0.75 * min(LONGEST_S, LATE_S * 2**n)) for n in range(3)]
        assert delays[3] == pytest.approx(1.0)

    def test_a_wait_for_a_quota_is_no_wait_for_a_dependency(self) -> None:
        crew = Crew(quota(in_flight=1))
        one = crew.hire("w1")
        one.enter("a")
        away = Try(
            attempt=1, started_at=START, ended_at=START, worker="w", failure=FailureClass.DEPENDENCY, code="TAPE-5007",
            spent=False,
        )  # fmt: skip
        past = Past().after(away)
        wait = refused(one.enter("b", past=past))
        assert waited_s(past, START + timedelta(seconds=100)) == 100
        assert waited_s(wait.past, START + timedelta(seconds=100)) == pytest.approx(100 - wait.delay_s)


def test_the_thread_writes_what_ended_and_the_stop_does_too() -> None:
    crew = Crew(quota(in_flight=2))
    quotas = Quotas(worker="w1", store=lambda: crew.store, tenant=crew.tenants.get)
    quotas.start()
    assert quotas.enter(attempt("a", offset=1)) is None
    assert quotas.enter(attempt("b", offset=2)) is None
    assert crew.tally().running == {"a", "b"}
    quotas.leave(attempt("a", offset=1))
    quotas.leave(attempt("b", offset=2))
    quotas.stop()
    assert crew.tally().workers == {}


class TestTheRecord:
    @given(times=st.integers(1, 999_999), ticket=st.integers(0, 10**15))
    def test_it_tells_the_next_worker_how_often_and_with_which_ticket(self, times: int, ticket: int) -> None:
        before = Past(spent=2, put_off=times - 1)
        told = write([("x-own", b"1"), (QUOTA, b"77/78")], before.held_up(3.0, ticket))
        assert [raw for name, raw in told if name == QUOTA] == [f"{times}/{ticket}".encode()]
        found = read_past(told)
        assert (found.put_off, found.ticket, found.spent) == (times, ticket, 2)
        assert QUOTA not in dict(write(told, found.welcomed()))

    @pytest.mark.parametrize(
        "raw", [b"", b"/", b"x/y", b"-1/-1", b"\xff/\xff", b"1" * 99, b"/" + b"9" * 99, b"0.5/1e9"]
    )
    def test_what_strangers_wrote_there_counts_as_nothing(self, raw: bytes) -> None:
        found = read_past([(QUOTA, raw)])
        assert (found.put_off, found.ticket) == (0, 0)
