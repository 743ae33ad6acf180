"""The member's epochs against a coordinator that fences, forgets and assigns as it likes."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wire.share import errors as e
from wire.share.membership import JOIN, LEAVE, Answer, Membership, State, partitions, take_id

TOPIC = uuid.UUID(int=1)
tips = st.frozensets(st.tuples(st.just(TOPIC), st.integers(0, 5)))


class Group(RuleBasedStateMachine):
    """A coordinator that keeps one member's epoch; heartbeats, answers lost, restarts, time-outs."""

    def __init__(self) -> None:
        super().__init__()
        self.member = Membership(take_id())
        self.epoch: int | None = None
        self.given: frozenset[tuple[uuid.UUID, int]] = frozenset()

    def coordinate(self, assignment: frozenset[tuple[uuid.UUID, int]]) -> Answer:
        if self.member.epoch == JOIN:
            assert self.member.sends_topics
            self.epoch = 1
        elif self.epoch is None:
            return Answer(code=e.UNKNOWN_MEMBER_ID)
        elif self.member.epoch != self.epoch:
            return Answer(code=e.FENCED_MEMBER_EPOCH)
        self.epoch += assignment != self.given
        self.given = assignment
        return Answer(code=0, epoch=self.epoch, interval=1.0, assignment=assignment)

    @rule(assignment=tips)
    def beat(self, assignment: frozenset[tuple[uuid.UUID, int]]) -> None:
        answer = self.coordinate(assignment)
        assert self.member.answered(answer) is None
        if answer.code == 0:
            assert self.member.state is State.STABLE
            assert self.member.assignment == assignment

    @rule(assignment=tips)
    def answer_lost(self, assignment: frozenset[tuple[uuid.UUID, int]]) -> None:
        self.coordinate(assignment)

    @rule()
    def timed_out(self) -> None:
        self.epoch = None

    @rule(code=st.sampled_from(sorted(e.COORDINATOR_MOVED)))
    def moved(self, code: int) -> None:
        before = (self.member.state, self.member.epoch)
        assert isinstance(self.member.answered(Answer(code=code)), e.UnavailableError)
        assert (self.member.state, self.member.epoch) == before

    @rule()
    def two_more_heal_it(self) -> None:
        for _ in range(2):
            self.member.answered(self.coordinate(self.given))
        assert self.member.state is State.STABLE
        assert self.member.epoch == self.epoch

    @invariant()
    def joins_with_zero(self) -> None:
        assert (self.member.state is State.JOINING) == (self.member.epoch == JOIN)


TestGroup = Group.TestCase
TestGroup.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def stable() -> Membership:
    member = Membership(take_id())
    member.answered(Answer(code=0, epoch=3, interval=5.0))
    return member


def test_looks_often_until_something_is_assigned() -> None:
    member = stable()
    delays = [member.delay() for _ in range(8)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 5.0
    member.answered(Answer(code=0, epoch=4, interval=5.0, assignment=frozenset({(TOPIC, 0)})))
    assert member.delay() == 5.0


def test_joining_does_not_wait() -> None:
    assert Membership(take_id()).delay() == 0.0


@pytest.mark.parametrize("code", [e.GROUP_AUTHORIZATION_FAILED, e.UNSUPPORTED_VERSION, e.INVALID_REQUEST])
def test_fatal_answer_ends_it(code: int) -> None:
    member = stable()
    assert isinstance(member.answered(Answer(code=code, message="why")), e.FatalError)
    assert member.state is State.FAILED
    assert member.answered(Answer(code=0, epoch=9)) is None
    assert member.state is State.FAILED


def test_leaves_once_and_only_if_it_joined() -> None:
    member = stable()
    assert member.leave()
    assert member.epoch == LEAVE
    assert not member.leave()
    assert not Membership(take_id()).leave()


def test_ids_are_url_safe_and_differ() -> None:
    ids = {take_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(text) == 22 and not text.startswith("-") for text in ids)


def test_partitions_flatten() -> None:
    assert partitions([(TOPIC, [0, 2])]) == {(TOPIC, 0), (TOPIC, 2)}
