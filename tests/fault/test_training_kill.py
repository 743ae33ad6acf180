"""A training whose workers are killed again and again: it goes on each time, and ends in the very same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from fleet import Fleet, kill

from producers import Client
from schemas.event import Event, EventType
from schemas.outcome import Outcome, Status
from wire.blobs import open_store
from wire.blobs.manifest import blob_name, read_manifest
from wire.process import wait_until
from workers.checkpoint import found_of

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.model, pytest.mark.timeout(1_800)]
KILLS = int(os.environ.get("KILLS", "4"))
FEW = 2
"""So often dies what differs from a LoRA only in what is computed."""
TEXTS = [f"profit {word} {number}" for word in ("rises", "falls") for number in range(40)]


@pytest.fixture(autouse=True)
def torch() -> None:
    """Skips without torch, but not where CI is set."""
    if find_spec("torch") is None and not os.environ.get("CI"):
        pytest.skip("the llm extra is not installed")


def setting(folder: Path, method: str = "lora", steps: int = 0) -> dict[str, object]:
    """A tiny model, its rows, and a request with all that makes a resume hard: dropout, accumulation, two epochs.

    A `moe` begins with nothing, a `distill` learns from another tiny model.
    """
    from workers.llm.bases import tiny

    rows = [{"prompt": text, "completion": "good" if "rises" in text else "bad"} for text in TEXTS]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tiny(folder / "models", TEXTS, steps=0, threads=1)
    common: dict[str, object] = {
        "data": f"file:{data}", "steps": steps, "batch_size": 3, "accumulation": 2, "threads": 1, "checkpoint_steps": 2,
        "publish_as": "kept",
    }  # fmt: skip
    if method == "moe":
        shape = {"family": "moe", "layers": 1, "heads": 2, "width": 32, "context": 64, "vocabulary": 300}
        return common | {"method": "pretrain", "architecture": shape}
    if method == "distill":
        teacher = tiny(folder / "teachers", TEXTS, steps=20, threads=1)
        return common | {"method": "distill", "base": f"file:{base}", "teacher": f"file:{teacher}"}
    return common | {"base": f"file:{base}", "lora": {"dropout": 0.1}}


def outcome(fleet: Fleet, job: str) -> Outcome:
    [found] = [event.outcome for event in fleet.events() if event.job == job and event.outcome is not None]
    return found


def told(fleet: Fleet, job: str) -> list[Event]:
    return [event for event in fleet.events() if event.job == job]


def reached(fleet: Fleet, job: str) -> int:
    """The step of the newest checkpoint."""
    return next((found.step for found in found_of(open_store(fleet.settings), job)), 0)


def contents(fleet: Fleet, job: str) -> dict[str, str]:
    [artifact] = outcome(fleet, job).artifacts
    return {file.path: file.sha256 for file in read_manifest(open_store(fleet.settings), artifact).files}


@pytest.mark.parametrize(("method", "kills"), [("lora", KILLS), ("moe", FEW), ("distill", FEW)])
def test_killed_at_random_steps_it_ends_in_the_bytes_of_a_run_that_nobody_disturbed(
    fleet: Fleet, method: str, kills: int
) -> None:
    fleet.prepare("training")
    steps = 40 + 10 * kills
    params, dice = setting(fleet.folder, method, steps), random.Random(5)
    for _ in range(2):
        fleet.start("--slots", "1", kinds="training")
    fleet.submit("calm", "training", params=params)
    assert wait_until(lambda: "calm" in {event.job for event in fleet.events() if event.outcome}, deadline_s=120)
    fleet.submit("stormy", "training", params=params, max_attempts=1)
    at = []
    for _ in range(kills):
        before, more = reached(fleet, "stormy"), dice.randint(1, 12)
        done = wait_until(
            lambda goal=before + more: reached(fleet, "stormy") >= goal, deadline_s=120, every_s=0.01
        )  # fmt: skip
        assert done, "it does not move on"
        at.append(reached(fleet, "stormy"))
        runner = [event.worker for event in told(fleet, "stormy") if event.type is EventType.RUNNING][-1]
        kill(int(str(runner).rsplit("-", 2)[1]))  # the worker, and its child with it
        fleet.start("--slots", "1", kinds="training")
    fleet.all_ended(180)
    assert fleet.check() == Counter(succeeded=2)

    done = outcome(fleet, "stormy")
    assert done.result["exact"] is True
    assert contents(fleet, "stormy") == contents(fleet, "calm"), "weights, metrics, settings and card"
    assert done.result["model"] == outcome(fleet, "calm").result["model"], "the same bytes are the same version"
    resumed = [event.progress["resumed"] for event in told(fleet, "stormy") if "resumed" in (event.progress or {})]
    assert len(resumed) == kills
    assert all(step >= least for step, least in zip(resumed, at, strict=True)), "no finished work was done again"
    assert {event.attempt for event in told(fleet, "stormy") if event.type is EventType.RUNNING} == {1}
    metrics = open_store(fleet.settings).read(blob_name(contents(fleet, "stormy")["metrics.jsonl"]))
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1)), "no step is in the record twice"
    assert not list(found_of(open_store(fleet.settings), "stormy")), "its checkpoints are gone"
    print(f"{method}: {kills} kills at steps {at}, resumed at {resumed}, the same bytes")


def test_a_drained_worker_hands_a_training_over_at_its_step(fleet: Fleet) -> None:
    fleet.prepare("training")
    # No checkpoint by the step: the one that the drain leaves is the only one.
    params = setting(fleet.folder) | {"steps": 400, "checkpoint_steps": 10_000}
    first = fleet.start("--slots", "1", "--grace", "1", kinds="training")
    fleet.submit("moving", "training", params=params, max_attempts=1)
    assert wait_until(lambda: last_step(fleet, "moving") >= 5, deadline_s=120, every_s=0.02)
    first.signal(signal.SIGTERM)
    assert first.end(30) == 0
    left = reached(fleet, "moving")
    assert left >= 5
    fleet.start("--slots", "1", kinds="training")
    fleet.all_ended(180)
    assert fleet.check() == Counter(succeeded=1)
    [resumed] = [event.progress["resumed"] for event in told(fleet, "moving") if "resumed" in (event.progress or {})]
    assert resumed == left
    assert {event.attempt for event in told(fleet, "moving") if event.type is EventType.RUNNING} == {1}


def test_a_cancelled_training_ends_at_once_and_leaves_its_checkpoint(fleet: Fleet) -> None:
    fleet.prepare("training")
    params = setting(fleet.folder) | {"steps": 100_000, "checkpoint_steps": 10_000}
    fleet.start("--slots", "1", kinds="training")
    fleet.submit("dropped", "training", params=params)
    assert wait_until(lambda: last_step(fleet, "dropped") >= 5, deadline_s=120, every_s=0.02)
    with Client(settings=fleet.settings) as client:
        began = time.monotonic()
        client.cancel("dropped", reason="enough")
        fleet.all_ended(30)
        print(f"cancelled within {time.monotonic() - began:.2f} s")
    assert outcome(fleet, "dropped").status is Status.CANCELLED
    assert reached(fleet, "dropped") >= 5


def test_a_paused_training_goes_on_at_its_step_elsewhere_and_ends_in_the_same_bytes(fleet: Fleet) -> None:
    fleet.prepare("training")
    # No checkpoint by the step: the one that the pause leaves is the only one.
    params = setting(fleet.folder) | {"steps": 150, "checkpoint_steps": 10_000}
    first = fleet.start("--slots", "1", kinds="training")
    fleet.submit("calm", "training", params=params)
    fleet.all_ended(120)
    fleet.submit("halted", "training", params=params, max_attempts=1)
    assert wait_until(lambda: last_step(fleet, "halted") >= 5, deadline_s=120, every_s=0.02)
    with Client(settings=fleet.settings) as client:
        began = time.time()
        client.pause("halted", reason="the market opens")
        assert wait_until(lambda: looks(fleet, "halted"), deadline_s=60, every_s=0.02), fleet.logs()
        took, left = looks(fleet, "halted")[0].time.timestamp() - began, reached(fleet, "halted")
        assert 5 <= left < 150
        kill(first.pid)  # its mover with it
        fleet.start("--slots", "1", kinds="training")
        assert wait_until(lambda: len(looks(fleet, "halted")) >= 2, deadline_s=60), fleet.logs()
        client.resume("halted")
    fleet.all_ended(180)
    assert fleet.check() == Counter(succeeded=2)
    done = outcome(fleet, "halted")
    assert (done.result["resumed_from"], done.result["exact"], done.attempt) == (left, True, 1)
    assert contents(fleet, "halted") == contents(fleet, "calm"), "weights, metrics, settings and card"
    runners = [event.worker for event in told(fleet, "halted") if event.type is EventType.RUNNING]
    assert len(set(runners)) == 2
    print(f"paused within {took:.2f} s at step {left}, the same bytes")


def looks(fleet: Fleet, job: str) -> list[Event]:
    """What workers told of a job that they put off because it is paused."""
    return [event for event in told(fleet, job) if event.failure and event.failure.code == "TAPE-3011"]


def last_step(fleet: Fleet, job: str) -> int:
    steps = [(event.progress or {}).get("step") for event in told(fleet, job)]
    return max((step for step in steps if isinstance(step, int)), default=0)
