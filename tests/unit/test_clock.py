"""The time of day, told by a broker where this machine's clock is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.clock import SLOW_S, TRUST_S, Clock

EPOCH = 1_700_000_000.0


class World:
    """True time, and a machine whose clock is off by so much."""

    def __init__(self, off: float = 0.0) -> None:
        self.true, self.off = EPOCH, off
        self.clock = Clock(wall=lambda: self.true + self.off, monotonic=self.monotonic)

    def monotonic(self) -> float:
        return self.true - EPOCH + 77.0

    def ask(self, there: float = 0.01, back: float = 0.01, broker_off: float = 0.0) -> None:
        asked = self.monotonic()
        self.true += there
        said = round((self.true + broker_off) * 1000)
        self.true += back
        self.clock.heard(said, asked)


def test_the_machine_is_believed_until_a_broker_speaks() -> None:
    world = World(off=7200)
    assert world.clock.time() == EPOCH + 7200
    assert not world.clock.wait(0)
    world.ask()
    assert world.clock.wait(0)
    assert world.clock.time() == pytest.approx(world.true, abs=0.02)
    assert world.clock.now() == datetime.fromtimestamp(world.clock.time(), UTC)


@pytest.mark.parametrize("off", [0.0, TRUST_S - 0.1, -TRUST_S + 0.1])
def test_a_clock_that_is_about_right_is_gone_by(off: float) -> None:
    world = World(off=off)
    world.ask()
    assert world.clock.time() == world.true + off


def test_a_slow_answer_tells_more_than_nothing_and_less_than_a_quick_one() -> None:
    world = World(off=7200)
    world.ask(there=3.0, back=0.0)
    assert world.clock.time() == pytest.approx(world.true, abs=1.6), "off by half of what it took, at most"
    world.ask()
    world.ask(there=SLOW_S, back=0.1)
    assert world.clock.time() == pytest.approx(world.true, abs=0.02)


def test_a_broker_that_dates_nothing_leaves_the_machine_its_word() -> None:
    world = World(off=7200)
    world.clock.heard(None, world.monotonic())
    assert world.clock.wait(0)
    assert world.clock.time() == EPOCH + 7200


def test_a_broker_whose_clock_is_set_is_followed() -> None:
    world = World()
    world.ask()
    world.ask(broker_off=3600)
    assert world.clock.time() == pytest.approx(world.true + 3600, abs=0.02)


def test_a_wrong_clock_is_told_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Mock()
    monkeypatch.setattr("wire.clock._LOG", log)
    world = World()
    world.ask()
    for world.off in (0, 100, 100, -50, 0, 0):
        world.clock.time()
    assert [name for name, *_ in log.mock_calls] == ["warning", "info"]
    assert log.warning.call_args.kwargs == {"ahead_s": pytest.approx(100, abs=0.02)}


@given(st.lists(st.tuples(st.sampled_from(["jump", "pass", "ask"]), st.floats(0, 90_000)), max_size=30))
def test_no_jump_moves_it_once_a_broker_spoke(steps: list[tuple[str, float]]) -> None:
    world = World()
    world.ask()
    for step, much in steps:
        match step:
            case "jump":
                world.off = much - 45_000
            case "pass":
                world.true += much
            case "ask":
                world.ask(there=much % SLOW_S / 2, back=0.0)
        assert world.clock.time() == pytest.approx(world.true, abs=TRUST_S + SLOW_S / 2)
