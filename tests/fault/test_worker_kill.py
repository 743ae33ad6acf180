"""A worker is killed in the middle of a job, twenty times: every job ends once, on another worker within seconds."""

from __future__ import annotations

import json
import statistics

import pytest
from fleet import Fleet, kill

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
ROUNDS = 20


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["trouble", "light"])
def test_a_killed_workers_job_starts_elsewhere_at_once(fleet: Fleet, kind: str) -> None:
    crews = {crew.pid: crew for crew in (fleet.start("--slots", "2"), fleet.start("--slots", "2"))}
    took: list[float] = []
    for number in range(ROUNDS // 2):
        job = f"{kind}-{number}"
        fleet.work(job, 1.0, kind)
        first = fleet.started(job)[0]
        killed_at = kill(first.pid)
        second = fleet.started(job, 2)[1]
        assert second.pid != first.pid
        assert second.attempt == (2 if kind == "trouble" else 1), "a light job has no ledger before it is suspect"
        took.append(second.at - killed_at)
        crews.pop(first.pid).end()
        fresh = fleet.start("--slots", "2")
        crews[fresh.pid] = fresh
    fleet.all_ended()
    assert fleet.check() == {"succeeded": ROUNDS // 2}
    took.sort()
    p50, p95 = statistics.median(took), took[-1]
    print(json.dumps({"kind": kind, "kills": len(took), "p50_s": round(p50, 3), "worst_s": round(p95, 3)}))
    assert p95 <= 3.0
