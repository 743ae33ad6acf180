"""Movers are killed in the middle of their work, again and again, and brokers too: every record moves once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.mover import KIND, fill
from schemas.topics import Names, topics
from wire.broker import NativeBroker
from wire.follow import KafkaFollower
from wire.process import wait_until
from wire.settings import Settings
from wire.topics import ensure
from workers.delay import Mover

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
ROOT = Path(__file__).parents[2]
KILLS = 6


class Fleet:
    """Mover processes, by number; a killed one is replaced."""

    def __init__(self, settings: Settings, folder: Path, count: int) -> None:
        self.settings, self.folder = settings, folder
        self.processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "TAPE_KAFKA_URL": self.settings.kafka_url,
            "TAPE_PREFIX": self.settings.prefix,
            "TAPE_HOME": str(self.settings.home),
        }
        with (self.folder / "movers.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "workers.delay"], cwd=ROOT, env=env, stdout=log, stderr=log)

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()
        self.processes[number] = self._start()

    def end(self) -> list[int]:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(30) for process in self.processes]


@contextmanager
def fleet(settings: Settings, folder: Path, count: int) -> Iterator[Fleet]:
    made = Fleet(settings, folder, count)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()


def arrivals(settings: Settings) -> Counter[bytes | None]:
    """Count what readers of committed records see in the job topic."""
    target = Names(settings.prefix).jobs(KIND, "bulk")
    return Counter(record.key for batch in KafkaFollower(settings).read(target) for record in batch)


@pytest.mark.timeout(300)
def test_killed_movers_lose_and_double_nothing(settings: Settings, tmp_path: Path) -> None:
    ensure(settings, topics(Names(settings.prefix), (KIND,), 4))
    choose = random.Random(4)
    with fleet(settings, tmp_path, 2) as movers:
        dues = fill(settings, 20_000, 20_000 / 45, first_s=5)
        for _ in range(KILLS):
            time.sleep(choose.uniform(4, 8))
            movers.kill(choose.randrange(2))
        assert wait_until(lambda: len(arrivals(settings)) == len(dues), deadline_s=120, every_s=1)
        assert movers.end() == [0, 0]
    found = arrivals(settings)
    assert set(found) == set(dues), "nothing is lost"
    assert set(found.values()) == {1}, "nothing is doubled"
    target = Names(settings.prefix).jobs(KIND, "bulk")
    log = [record for batch in KafkaFollower(settings).read(target) for record in batch]
    assert all(record.timestamp_ms >= dues[record.key or b""] for record in log), "nothing is early"


@pytest.mark.timeout(240)
def test_a_broker_that_dies_and_comes_back_loses_and_doubles_nothing(single: NativeBroker, tmp_path: Path) -> None:
    settings = Settings(kafka_url=single.status().url, home=tmp_path)
    ensure(settings, topics(Names(settings.prefix), (KIND,), 4))
    movers = [Mover(settings), Mover(settings)]
    for mover in movers:
        mover.start()
    assert all(mover.ready.wait(30) for mover in movers)
    dues = fill(settings, 5_000, 5_000 / 22)

    def fault() -> None:
        for _ in range(2):
            time.sleep(4)
            single.kill_node(1)
            time.sleep(1)
            single.start_node(1, tie=False)

    thread = threading.Thread(target=fault)
    thread.start()
    thread.join()
    try:
        assert wait_until(lambda: len(arrivals(settings)) == len(dues), deadline_s=120, every_s=1)
    finally:
        for mover in movers:
            mover.stop()
    assert set(arrivals(settings).values()) == {1}
