"""Control messages are told apart by their action, and what is not understood stops nobody."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from schemas.control import Breaker, BreakerState, Cancel, Drain, Pause, Resume, Tenant, key, read
from schemas.errors import InvalidError
from schemas.ids import checked

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_control_messages_are_told_apart_by_their_action() -> None:
    cancel = Cancel(job="j", time=NOW)
    drain = Drain(worker="w", time=NOW)
    breaker = Breaker(dependency="store", state=BreakerState.OPEN, epoch=1, worker="w", since=NOW)
    tenant = Tenant(tenant="acme", in_flight=2, time=NOW)
    pause, resume = Pause(job="j", who="me@desk", time=NOW), Resume(job="j", time=NOW)
    for message in (cancel, drain, breaker, tenant, pause, resume):
        assert read(message.model_dump_json().encode()) == message
    keys = [key(message) for message in (cancel, drain, breaker, tenant, pause, resume)]
    assert keys == ["j", "drain:w", "breaker:store", "tenant:acme", "pause/j", "pause/j"]
    assert read(b'{"job": "j", "time": "2026-03-01T12:00:00Z"}') == cancel
    assert read(None) is None
    assert read(b'{"action": "promote", "model": "m"}') is None
    assert read(b'{"action": 7}') is None


@pytest.mark.parametrize(("given", "by"), [
    ({}, "somebody"), ({"who": "me@desk"}, "me@desk"), ({"reason": "lunch"}, "somebody (lunch)"),
    ({"who": "me@desk", "reason": "the market closes"}, "me@desk (the market closes)"),
])  # fmt: skip
def test_a_pause_tells_who_and_why(given: dict[str, str], by: str) -> None:
    assert Pause(job="j", time=NOW, **given).by == by  # type: ignore[arg-type]


def test_a_pause_is_taken_for_no_jobs_cancellation() -> None:
    with pytest.raises(InvalidError):
        checked(key(Pause(job="j", time=NOW)))


@pytest.mark.parametrize(("given", "limited", "depth"), [
    ({}, False, 1), ({"in_flight": 3}, True, 1), ({"rate": 0.2}, True, 1), ({"rate": 2.5}, True, 3),
    ({"rate": 2.5, "burst": 1}, True, 1),
])  # fmt: skip
def test_a_tenants_quota_is_what_was_said_of_it(given: dict[str, float], limited: bool, depth: int) -> None:
    tenant = Tenant.model_validate({"tenant": "acme", "time": NOW} | given)
    assert (tenant.limited, tenant.depth, tenant.weight) == (limited, depth, 1.0)


NEVER = [{"weight": 0}, {"weight": "inf"}, {"in_flight": 0}, {"rate": 0}, {"rate": -1}, {"burst": 0}, {"tenant": ""}]


@pytest.mark.parametrize("wrong", NEVER)
def test_a_tenants_quota_is_never_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Tenant.model_validate({"tenant": "acme", "time": NOW} | wrong)


@pytest.mark.parametrize("value", [b"", b"[]", b"\xff", b'{"action": "drain"}', b'{"action": "breaker", "epoch": 0}'])
def test_a_control_message_that_cannot_be_read_says_so(value: bytes) -> None:
    with pytest.raises(InvalidError):
        read(value)
