"""Control messages are told apart by their action, and what is not understood stops nobody."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from schemas.control import Breaker, BreakerState, Cancel, Drain, key, read
from schemas.errors import InvalidError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_control_messages_are_told_apart_by_their_action() -> None:
    cancel = Cancel(job="j", time=NOW)
    drain = Drain(worker="w", time=NOW)
    breaker = Breaker(dependency="store", state=BreakerState.OPEN, epoch=1, worker="w", since=NOW)
    for message in (cancel, drain, breaker):
        assert read(message.model_dump_json().encode()) == message
    assert [key(message) for message in (cancel, drain, breaker)] == ["j", "drain:w", "breaker:store"]
    assert read(b'{"job": "j", "time": "2026-03-01T12:00:00Z"}') == cancel
    assert read(None) is None
    assert read(b'{"action": "promote", "model": "m"}') is None
    assert read(b'{"action": 7}') is None


@pytest.mark.parametrize("value", [b"", b"[]", b"\xff", b'{"action": "drain"}', b'{"action": "breaker", "epoch": 0}'])
def test_a_control_message_that_cannot_be_read_says_so(value: bytes) -> None:
    with pytest.raises(InvalidError):
        read(value)
