"""The session's epochs and partitions against a broker that is as strict as Kafka's; the split of a demand."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wire.share.session import FINAL, OPENING, Session, Step, shares

TOPIC = uuid.UUID(int=1)
tips = st.frozensets(st.tuples(st.just(TOPIC), st.integers(0, 5)))


class StrictBroker:
    """What a broker remembers of one session."""

    def __init__(self) -> None:
        self.session: tuple[int, frozenset[tuple[uuid.UUID, int]]] | None = None

    def answer(self, step: Step) -> bool:
        if step.epoch == OPENING:
            assert not step.forgotten
            self.session = (1, step.added)
            return True
        if self.session is None:
            return False
        epoch, known = self.session
        if step.epoch == FINAL:
            self.session = None
            return True
        if step.epoch != epoch:
            return False
        assert not step.added & known
        assert step.forgotten <= known
        self.session = (epoch + 1, (known | step.added) - step.forgotten)
        return True


class Talk(RuleBasedStateMachine):
    """Requests, answers that get lost and restarts, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(1)
        self.broker = StrictBroker()

    def say(self, step: Step, *, lost: bool) -> None:
        assert self.session.busy
        known = self.broker.answer(step)
        if lost or not known:
            self.broker.session = None  # the connection is closed with it
            self.session.lost()
        else:
            self.session.answered()
        assert not self.session.busy

    @rule(wanted=tips, lost=st.booleans())
    def fetch(self, wanted: frozenset[tuple[uuid.UUID, int]], lost: bool) -> None:
        self.say(self.session.fetch(wanted), lost=lost)
        if self.session.open:
            assert self.session.known == wanted

    @precondition(lambda self: self.session.open)
    @rule(lost=st.booleans())
    def acknowledge(self, lost: bool) -> None:
        self.say(self.session.acknowledge(), lost=lost)

    @precondition(lambda self: self.session.open)
    @rule()
    def end(self) -> None:
        self.say(self.session.end(), lost=False)
        assert not self.session.open

    @rule()
    def restart(self) -> None:
        self.broker.session = None

    @invariant()
    def both_agree(self) -> None:
        if self.broker.session is not None and self.session.open:
            assert self.broker.session == (self.session.epoch, self.session.known)


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_epoch_wraps_to_one() -> None:
    session = Session(1)
    session.epoch = 2**31 - 1
    session.fetch(frozenset())
    session.answered()
    assert session.epoch == 1


def test_one_request_at_a_time() -> None:
    session = Session(1)
    session.fetch(frozenset())
    with pytest.raises(RuntimeError):
        session.fetch(frozenset())
    session.answered()
    with pytest.raises(RuntimeError):
        session.answered()


def test_closed_session_takes_only_a_fetch() -> None:
    for step in (Session(1).acknowledge, Session(1).end):
        with pytest.raises(RuntimeError):
            step()


def test_refused_partition_is_added_again() -> None:
    session = Session(1)
    session.fetch({(TOPIC, 0)})
    session.answered()
    session.drop((TOPIC, 0))
    assert session.fetch({(TOPIC, 0)}).added == {(TOPIC, 0)}


@given(
    demand=st.integers(-1, 50),
    free=st.lists(st.integers(0, 9), unique=True),
    hot=st.sets(st.integers(0, 9)),
    turn=st.integers(0, 100),
)
def test_shares_add_up(demand: int, free: list[int], hot: set[int], turn: int) -> None:
    given_shares = shares(demand, free, hot, turn)
    assert set(given_shares) <= set(free)
    assert all(share > 0 for share in given_shares.values())
    assert sum(given_shares.values()) == (max(demand, 0) if free else 0)


def test_backlog_gets_what_idle_leaders_do_not_need() -> None:
    assert shares(16, [1, 2, 3], {2}, 0) == {1: 1, 2: 14, 3: 1}


def test_every_leader_gets_its_turn() -> None:
    assert {node for turn in range(3) for node in shares(1, [1, 2, 3], set(), turn)} == {1, 2, 3}
