"""A job that checkpoints comes to its end, however often its process and its workers die: it is tried once only."""

from __future__ import annotations

import pytest
from fleet import Fleet, kill

from schemas.claim import Claim
from schemas.codec import parse
from schemas.event import EventType
from wire.blobs import open_store
from wire.process import wait_until
from workers.claim import claim_name

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(300)]
STEPS = 5


def test_a_job_that_may_be_tried_once_outlives_every_death(fleet: Fleet) -> None:
    fleet.start("--slots", "1", kinds="trouble")
    fleet.start("--slots", "1", kinds="trouble")
    kept = fleet.folder / "steps"
    params = {"do": "climb", "size": STEPS, "seconds": 0.3, "url": str(kept), "mark": str(fleet.folder / "marks")}
    fleet.submit("climber", params=params, max_attempts=1)
    [first] = fleet.started("climber")
    store = open_store(fleet.settings)
    told = wait_until(lambda: parse(Claim, store.read(claim_name("climber"))).reached >= 1, deadline_s=30, every_s=0.01)
    assert told, "the claim tells at once"
    kill(first.pid)  # the whole worker
    fleet.started("climber", times=3, deadline_s=90)
    fleet.all_ended(100)
    assert fleet.check()["succeeded"] == 1
    steps = [int(event.progress["checkpoint"]) for event in fleet.events() if "checkpoint" in (event.progress or {})]
    assert sorted(set(steps)) == list(range(1, STEPS + 1)), "no step was done without the one before it"
    assert {event.attempt for event in fleet.events() if event.type is EventType.RUNNING} == {1}
    assert len(fleet.marks("climber")) >= STEPS // 2
