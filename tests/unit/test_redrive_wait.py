"""A canary that does not end: what it waits for is named, the wait has an end, and the same command goes on."""

from __future__ import annotations

import pytest
from dead_rig import Rig

from producers.fleet import Answer, Blocker
from producers.redrive.pace import Pace
from producers.redrive.state import load
from producers.redrive.wait import PATIENCE_S
from schemas.errors import TimeoutExceeded, UnavailableError
from schemas.event import EventType, State
from schemas.redrive import Phase


def filled() -> tuple[Rig, str]:
    rig = Rig()
    for number in range(40):
        rig.bury(f"job-{number}")
    return rig, rig.plan().redrive.plan.id


def test_a_canary_that_never_ends_is_waited_for_so_long_and_the_same_command_goes_on() -> None:
    rig, name = filled()
    with pytest.raises(TimeoutExceeded) as late:
        rig.runner(name, Pace(canary=2, canary_timeout_s=30)).run()
    assert (late.value.code, late.value.place) == ("TAPE-7002", {"redrive": name, "moved": 2})
    assert late.value.message == "the canary has not ended within 30 s, 2 to go"
    assert f"`tape dead redrive run {name}` goes on from here" in late.value.hint
    assert 30 <= rig.waited < 32
    kept = load(rig.blobs, name).redrive
    assert (kept.phase, kept.moved) == (Phase.CANARY, 2) and "waits no longer" in kept.notes[-1].what
    done = rig.runner(name, Pace(canary=2), sleep=rig.play(lambda job: EventType.SUCCEEDED)).run()
    assert (done.phase, done.moved, set(rig.moved().values())) == (Phase.DONE, 40, {1})
    assert any(note.what == "canary passed: 2 of 2 did not fail again" for note in done.notes)


def test_what_it_waits_for_is_named_and_nothing_running_is_not_waited_for_for_ever() -> None:
    rig, name = filled()
    told: list[str] = []
    blocker = Blocker.RUNNING

    def why(job: str) -> Answer:
        return Answer(job=job, state=State.QUEUED, blocker=blocker, detail="judge is away: it is full.")

    def sleep(seconds: float) -> None:
        nonlocal blocker
        rig.sleep(seconds)
        if rig.waited > 2.5 * PATIENCE_S:
            blocker = Blocker.BREAKER

    with pytest.raises(TimeoutExceeded) as late:
        rig.runner(name, Pace(canary=2), say=told.append, why=why, sleep=sleep).run()
    assert 3 * PATIENCE_S <= rig.waited < 3 * PATIENCE_S + 2, "while one runs it is waited for"
    assert set(told) == {"waiting for 2; job-0: judge is away: it is full."}
    assert len(told) == pytest.approx(3 * PATIENCE_S / 30, abs=2)
    assert late.value.message.endswith("within 600 s, 2 to go; job-0: judge is away: it is full.")


def test_a_wait_of_which_nobody_can_tell_anything_goes_on() -> None:
    rig, name = filled()

    def why(job: str) -> Answer:
        raise UnavailableError("no broker there", code="TAPE-5001")

    told: list[str] = []
    with pytest.raises(TimeoutExceeded):
        rig.runner(name, Pace(canary=2, canary_timeout_s=60), say=told.append, why=why).run()
    assert told == []
