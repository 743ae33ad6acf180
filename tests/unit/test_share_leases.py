"""The table of leases against a partition's locks: nothing is lost, doubled or blamed on the wrong record."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wire.share.errors import LeaseLostError, RequestError
from wire.share.leases import RETRIES, Leases
from wire.share.locks import GroupConfig, SharePartition
from wire.share.model import GAP, AckType, Record

TIP = (uuid.UUID(int=1), 0)
NODE = 1


def record(offset: int, count: int = 1) -> Record:
    return Record("jobs", 0, offset, None, b"x", (), 0, count)


class Books(RuleBasedStateMachine):
    """Two members on one partition; the first one's leases are checked against what the broker holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.end = 0
        self.broker = SharePartition(GroupConfig(lock_duration=10.0, delivery_limit=1000, max_locks=1000))
        self.leases = Leases()
        self.accepted: set[int] = set()
        self.confirmed: set[int] = set()
        self.blamed: set[int] = set()
        self.mine: list[Record] = []

    @rule(count=st.integers(1, 6))
    def produce(self, count: int) -> None:
        self.end += count

    @rule(limit=st.integers(1, 6))
    def acquire(self, limit: int) -> None:
        taken = self.broker.acquire("me", limit, self.end, self.now)
        records = [record(offset, count) for offset, count in taken]
        held = {r.offset for r in self.mine if self.leases.holds(r)}
        again = self.leases.add(TIP, NODE, "jobs", records)
        assert {o for span in again for o in range(span.first, span.last + 1)} == held & {r.offset for r in records}
        self.mine += records
        self.blamed -= {r.offset for r in records}

    @rule(limit=st.integers(1, 6))
    def other_acquires(self, limit: int) -> None:
        self.broker.acquire("other", limit, self.end, self.now)

    @precondition(lambda self: self.mine)
    @rule(data=st.data(), kind=st.sampled_from(list(AckType)))
    def settle(self, data: st.DataObject, kind: AckType) -> None:
        chosen = data.draw(st.sampled_from(self.mine))
        if self.leases.holds(chosen):
            self.leases.settle(chosen, kind)
            if kind is AckType.ACCEPT:
                self.accepted.add(chosen.offset)
        else:
            with pytest.raises(LeaseLostError):
                self.leases.settle(chosen, kind)

    @rule()
    def send(self) -> None:
        for tip, acks in self.leases.take(NODE).items():
            error: LeaseLostError | None = None
            try:
                self.broker.acknowledge("me", acks, self.now)
            except LeaseLostError as exc:
                error = exc
            else:
                self.confirmed |= {offset for offset, kind in acks.items() if kind == AckType.ACCEPT}
            result = self.leases.answered(tip, error)
            self.blamed |= {o for span in result.lost for o in range(span.first, span.last + 1)}

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.broker.expire(self.now)

    @rule()
    def session_lost(self) -> None:
        self.broker.release("me")
        lost = self.leases.lose(node=NODE)
        self.blamed |= {o for span in lost.ranges for o in range(span.first, span.last + 1)}
        assert self.leases.held == 0
        assert not self.leases.pending()

    @rule()
    def settle_everything(self) -> None:
        for _ in range(200):
            self.send()
            if not self.leases.pending():
                return
        raise AssertionError("acknowledgements never end")

    @invariant()
    def accepted_is_confirmed_or_blamed_or_pending(self) -> None:
        part = self.leases._table.get(TIP)
        pending = part.open() if part else set()
        again = {o for o in self.accepted if self.broker.start <= o}
        assert again <= self.confirmed | self.blamed | pending

    @invariant()
    def counts_agree(self) -> None:
        assert self.leases.held == sum(len(part.held) for part in self.leases._table.values())


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_same_lease_is_the_same_object() -> None:
    leases = Leases()
    one = record(1)
    leases.add(TIP, NODE, "jobs", [one])
    assert leases.holds(one)
    assert not leases.holds(record(1))
    with pytest.raises(LeaseLostError) as caught:
        leases.settle(record(1), AckType.ACCEPT)
    assert caught.value.ranges == (("jobs", 0, 1, 1),)


def test_first_waiting_acknowledgement_is_told() -> None:
    leases = Leases()
    one, two = record(1), record(2)
    leases.add(TIP, NODE, "jobs", [one, two])
    assert leases.settle(one, AckType.ACCEPT)
    assert not leases.settle(two, AckType.ACCEPT)


def test_write_failures_are_tried_a_few_times() -> None:
    leases = Leases()
    one = record(1)
    leases.add(TIP, NODE, "jobs", [one])
    leases.settle(one, AckType.ACCEPT)
    for _ in range(RETRIES):
        assert leases.take(NODE) == {TIP: {1: 1}}
        assert leases.answered(TIP, RequestError("no"), retry=True).lost == []
    leases.take(NODE)
    result = leases.answered(TIP, RequestError("no"), retry=True)
    assert result.lost == [("jobs", 0, 1, 1)]
    assert not leases.pending()


def test_one_partition_flies_once_and_only_to_its_leader() -> None:
    leases = Leases()
    one, two = record(1), record(2)
    leases.add(TIP, NODE, "jobs", [one, two])
    leases.settle(one, AckType.ACCEPT)
    assert leases.take(99) == {}
    assert not leases.queued(99)
    leases.take(NODE)
    leases.settle(two, AckType.ACCEPT)
    assert leases.take(NODE) == {}
    leases.answered(TIP, None)
    assert leases.take(NODE) == {TIP: {2: 1}}


def test_gaps_and_releases_are_never_lost() -> None:
    leases = Leases()
    one = record(1)
    leases.add(TIP, NODE, "jobs", [one])
    leases.put(TIP, NODE, "jobs", {0: GAP})
    leases.settle(one, AckType.RELEASE)
    lost = []
    while leases.pending():
        leases.take(NODE)
        lost += leases.answered(TIP, LeaseLostError("gone")).lost
    assert lost == []


def test_settle_all_empties_what_is_held() -> None:
    leases = Leases()
    leases.add(TIP, NODE, "jobs", [record(1), record(2)])
    assert leases.holding(NODE)
    leases.settle_all(AckType.RELEASE)
    assert leases.held == 0
    assert not leases.holding(NODE)
    assert leases.take(NODE) == {TIP: {1: 2, 2: 2}}


def test_unconfirmed_are_only_what_was_settled() -> None:
    leases = Leases()
    held, said, let_go = record(1), record(2), record(3)
    leases.add(TIP, NODE, "jobs", [held, said, let_go])
    leases.settle(said, AckType.ACCEPT)
    leases.settle(let_go, AckType.RELEASE)
    lost = leases.lose(tip=TIP)
    assert lost.ranges == [("jobs", 0, 1, 3)]
    assert lost.unconfirmed == [("jobs", 0, 2, 2)]
    assert leases.node(TIP) is None


def test_window_spans_oldest_to_newest() -> None:
    leases = Leases()
    records = [record(offset) for offset in range(10, 20)]
    leases.add(TIP, NODE, "jobs", records)
    assert leases.window() == {("jobs", 0): 10}
    leases.settle(records[0], AckType.ACCEPT)
    leases.take(NODE)
    assert leases.window() == {("jobs", 0): 10}
    leases.answered(TIP, None)
    assert leases.window() == {("jobs", 0): 9}


def test_topic_made_anew_does_not_hide_the_new_one() -> None:
    leases = Leases()
    other = (uuid.UUID(int=2), 0)
    old, new = record(1), record(1)
    leases.add(TIP, NODE, "jobs", [old])
    leases.add(other, NODE, "jobs", [new])
    leases.lose(tip=TIP)
    assert leases.holds(new)
    assert not leases.holds(old)
