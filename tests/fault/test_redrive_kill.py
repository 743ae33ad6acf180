"""A redriver is killed with SIGKILL again and again: what it leaves is resumed, and nothing goes twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from producers.dead import Desk, Filter
from producers.redrive import state
from producers.redrive.plan import Wish, plan
from schemas.dead import Became, DeadLetter, Fate, dead_headers
from schemas.event import Event, EventType
from schemas.outcome import Failure
from schemas.redrive import Phase
from schemas.topics import Names, topics
from wire.follow import KafkaFollower, Received
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.topics import ensure

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
ROOT = Path(__file__).parents[2]
LETTERS, KILLS = 8000, 8
TAPE = "import sys; from producers.cli import main; sys.exit(main())"


def bury(settings: Settings, count: int) -> None:
    names, now = Names(settings.prefix), datetime.now(UTC)
    publisher = KafkaPublisher(settings)
    for number in range(count):
        job = f"job-{number}"
        letter = DeadLetter(
            job=job, kind="inference", topic=names.jobs("inference", "bulk"), partition=0, offset=number, attempts=3,
            worker="w", time=now, failure=Failure(failure="resource", code="TAPE-6003", message="out of memory"),
        )  # fmt: skip
        body = json.dumps({"params": {"model": "builtin:m", "prompt": job}}).encode()
        publisher.publish(names.dead("inference"), key=job.encode(), value=body, headers=dead_headers(letter))
    publisher.close(60)


def read(settings: Settings, topic: str) -> list[Received]:
    with KafkaFollower(settings).read(topic) as feed:
        return [record for batch in feed for record in batch]


@pytest.mark.timeout(240)
def test_nothing_is_lost_and_nothing_goes_twice(settings: Settings, tmp_path: Path) -> None:
    names = Names(settings.prefix)
    ensure(settings, topics(names, ("inference",), 4), [])
    bury(settings, LETTERS)
    desk = Desk.open(settings)
    made, text = plan(Wish(Filter(), desk.topics(), desk.now(), desk.who), desk.letters(desk.dead()), lambda kinds: {})
    name = state.create(desk.blobs, made, text).redrive.plan.id
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TAPE_")}
    environment = clean | settings.environ() | {"PYTHONPATH": str(ROOT)}
    jobs = names.jobs("inference", "bulk")
    dice, steps = random.Random(7), []

    def start(verb: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "redrive.log").open("ab") as log:
            command = [sys.executable, "-c", TAPE, "dead", "redrive", verb, name, "--rate", "4000"]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)

    for _ in range(KILLS):
        before = len(read(settings, jobs))
        process = start("run")
        until = time.monotonic() + 30
        while len(read(settings, jobs)) == before and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.wait()
        steps.append(len(read(settings, jobs)))
    assert steps == sorted(steps)
    assert len(set(steps)) > KILLS // 2, f"the kills hit nothing: {steps}"
    assert start("run").wait(120) == 0, (tmp_path / "redrive.log").read_text()

    done = state.load(desk.blobs, name).redrive
    assert (done.phase, done.moved) == (Phase.DONE, LETTERS)
    wanted = {f"job-{number}": 1 for number in range(LETTERS)}
    assert Counter((record.key or b"").decode() for record in read(settings, jobs)) == wanted
    fates = [Fate.model_validate_json(record.value or b"") for record in read(settings, names.letters)
             if not (record.key or b"").startswith(b"pen ")]  # fmt: skip
    assert Counter(fate.job for fate in fates if fate.became is Became.REDRIVEN) == wanted
    events = [Event.model_validate_json(record.value or b"") for record in read(settings, names.events)]
    assert Counter(event.job for event in events if event.type is EventType.QUEUED) == wanted
    assert start("run").wait(60) == 0
    assert len(read(settings, jobs)) == LETTERS, "a plan that is done moves nothing"
    print(json.dumps({"kills": KILLS, "moved at each kill": steps}))
