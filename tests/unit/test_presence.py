"""Workers say that they are there: what, how often, and never at the cost of their work."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from producers.fleet import fold
from schemas.control import (
    NAMED,
    SILENT_S,
    Breaker,
    BreakerState,
    Cancel,
    Control,
    Drain,
    Pause,
    Presence,
    Resume,
    key,
    read,
)
from schemas.errors import UnavailableError
from wire.share import Record
from workers.kinds import Kind
from workers.presence import Announcer, Post

NOW = datetime(2030, 1, 2, 9, 0, tzinfo=UTC)
LIMIT_S = 20.0


class Nothing(BaseModel):
    """No parameters."""


def post(**kinds: str) -> Post:
    made = {
        name: Kind(name, Nothing, lambda *_: None, isolation, needs=("judge:x",))  # type: ignore[arg-type,return-value]
        for name, isolation in (kinds or {"heavy": "process", "light": "thread"}).items()
    }
    return Post(worker="w-1", kinds=made, lanes=("bulk",), slots=2, started_at=NOW)


def record(job: str) -> Any:
    return Record("tape.jobs.heavy.bulk", 0, 7, job.encode(), b"{}", (), 0, 1)


def presence(worker: str = "w-1", **fields: Any) -> Presence:
    given = {"host": "h", "pid": 1, "kinds": ("heavy",), "lanes": ("bulk",), "slots": 2, "started_at": NOW, "time": NOW}
    return Presence(worker=worker, **(given | fields))


class TestPost:
    def test_what_is_said(self) -> None:
        leases = [(record("a"), "heavy"), (record("b"), "heavy"), (record("c"), "light")]
        states = {"store": BreakerState.OPEN, "judge:x": BreakerState.CLOSED}
        said = post().look(leases, draining=True, breakers=states, now=NOW)
        assert (said.worker, said.kinds, said.lanes, said.draining) == ("w-1", ("heavy", "light"), ("bulk",), True)
        assert (said.slots, said.held, said.full, said.running) == (4, 3, ("heavy",), ("a", "b", "c"))
        assert said.needs == {"heavy": ("store", "judge:x", "kind:heavy"), "light": ("judge:x", "kind:light")}
        assert said.breakers == {"store": BreakerState.OPEN}
        assert said.pid > 0
        assert said.host

    def test_one_pool_where_all_kinds_are_alike(self) -> None:
        said = post(a="thread", b="thread").look([(record("x"), "a")] * 2, draining=False, breakers={}, now=NOW)
        assert (said.slots, said.full) == (2, ("a", "b"))

    def test_only_the_first_jobs_are_named(self) -> None:
        leases = [(record(f"j{number}"), "light") for number in range(500)]
        said = post().look(leases, draining=False, breakers={}, now=NOW)
        assert (said.held, len(said.running)) == (500, NAMED)
        assert len(said.model_dump_json()) < 2_000


class TestMessage:
    def test_it_is_read_back(self) -> None:
        said = presence(breakers={"store": BreakerState.HALF_OPEN}, running=("a",))
        assert read(said.model_dump_json().encode()) == said
        assert key(said) == "worker:w-1"

    def test_a_longer_list_of_a_later_version_is_cut(self) -> None:
        told = json.loads(presence().model_dump_json()) | {"running": [str(number) for number in range(99)], "mood": 1}
        found = read(json.dumps(told).encode())
        assert isinstance(found, Presence)
        assert len(found.running) == NAMED


class Kept(NamedTuple):
    """One record of the control topic."""

    key: bytes
    value: bytes | None
    timestamp_ms: int = int(NOW.timestamp() * 1000)


class Rig:
    """An announcer whose clock only moves when it is told to."""

    def __init__(self) -> None:
        self.said: list[Presence] = []
        self.buried: list[str] = []
        self.waits: list[float] = []
        self.trouble: Exception | None = None
        self.draining = False
        self.news = threading.Semaphore(0)
        self.next = threading.Semaphore(0)
        self.announcer = Announcer(self.publish, self.bury, self.look, wait=self.wait)

    def look(self) -> Presence:
        return presence(draining=self.draining)

    def publish(self, message: Control) -> None:
        assert isinstance(message, Presence)
        if self.trouble is not None:
            self.news.release()
            raise self.trouble
        self.said.append(message)
        self.news.release()

    def bury(self, name: str) -> None:
        self.buried.append(name)
        if self.trouble is not None:
            raise self.trouble

    def wait(self, wake: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        while not wake.is_set() and not self.next.acquire(timeout=0.01):
            pass

    def heard(self) -> None:
        assert self.news.acquire(timeout=LIMIT_S)


@pytest.fixture
def rig() -> Any:
    made = Rig()
    yield made
    made.trouble = None
    made.announcer.stop()


class TestAnnouncer:
    def test_it_is_said_at_once_and_then_every_ten_seconds(self, rig: Rig) -> None:
        rig.announcer.start()
        rig.heard()
        assert len(rig.said) == 1
        rig.next.release()
        rig.heard()
        assert len(rig.said) == 2
        assert set(rig.waits) == {10.0}

    def test_a_change_is_told_at_once(self, rig: Rig) -> None:
        rig.announcer.start()
        rig.heard()
        rig.draining = True
        rig.announcer.now()
        rig.heard()
        assert rig.said[-1].draining

    def test_the_end_takes_it_back(self, rig: Rig) -> None:
        rig.announcer.start()
        rig.heard()
        rig.announcer.stop()
        rig.announcer.stop()
        assert rig.buried == ["worker:w-1", "drain:w-1"]
        count = len(rig.said)
        rig.announcer.now()
        assert not rig.news.acquire(timeout=0.05)
        assert len(rig.said) == count

    def test_without_a_start_nothing_is_taken_back(self, rig: Rig) -> None:
        rig.announcer.stop()
        assert rig.buried == []

    @pytest.mark.parametrize("trouble", [UnavailableError("no broker"), RuntimeError("a defect")])
    def test_trouble_harms_nobody(self, rig: Rig, trouble: Exception) -> None:
        rig.trouble = trouble
        rig.announcer.start()
        rig.heard()
        rig.trouble = None
        rig.next.release()
        rig.heard()
        assert len(rig.said) == 1
        rig.trouble = trouble
        rig.announcer.stop()
        assert rig.buried == ["worker:w-1", "drain:w-1"]


def kept(message: Control, age_s: float = 0.0) -> Kept:
    moment = NOW - timedelta(seconds=age_s)
    return Kept(key(message).encode(), message.model_dump_json().encode(), int(moment.timestamp() * 1000))


class TestFold:
    def test_the_last_word_of_each_counts(self) -> None:
        fleet = fold([kept(presence("b"), 9), kept(presence("a"), 5), kept(presence("b", held=2), 1)], NOW)
        assert [(seen.id, seen.age_s, seen.presence.held) for seen in fleet.workers] == [("a", 5, 0), ("b", 1, 2)]

    def test_who_took_leave_is_gone_and_who_fell_silent_is_not(self) -> None:
        records = [kept(presence("gone")), kept(presence("dead"), SILENT_S + 1), kept(presence("well"), SILENT_S)]
        fleet = fold([*records, Kept(b"worker:gone", None)], NOW)
        assert {seen.id: seen.silent for seen in fleet.workers} == {"dead": True, "well": False}

    def test_a_reader_whose_clock_is_behind(self) -> None:
        fleet = fold([kept(presence("dead"), 60), kept(presence("well"))], NOW - timedelta(seconds=60))
        assert {seen.id: seen.silent for seen in fleet.workers} == {"dead": True, "well": False}

    def test_one_wrong_clock_silences_nobody(self) -> None:
        fleet = fold([kept(presence("ahead"), -86_400), kept(presence("well"), 3)], NOW)
        assert {seen.id: seen.silent for seen in fleet.workers} == {"ahead": False, "well": False}

    def test_of_one_epoch_the_first_step_counts(self) -> None:
        def step(state: BreakerState, epoch: int, worker: str) -> Kept:
            return kept(Breaker(dependency="store", state=state, epoch=epoch, worker=worker, since=NOW))

        opened = [step(BreakerState.OPEN, 1, "a"), step(BreakerState.HALF_OPEN, 2, "b")]
        late = step(BreakerState.HALF_OPEN, 2, "c")
        assert fold([*opened, late], NOW).breakers["store"].worker == "b"
        assert fold([*opened, late, step(BreakerState.CLOSED, 3, "b")], NOW).breakers == {}

    def test_what_is_away_for_one_worker_goes_with_it(self) -> None:
        said = kept(Breaker(dependency="store@w", state=BreakerState.OPEN, epoch=1, worker="w", since=NOW))
        assert set(fold([said, kept(presence("w"))], NOW).breakers) == {"store@w"}
        assert fold([said, kept(presence("v"))], NOW).breakers == {}

    def test_orders(self) -> None:
        orders = [kept(Cancel(job="j", time=NOW)), kept(Drain(worker="w", time=NOW))]
        fleet = fold([*orders, Kept(b"bad", b"{"), Kept(b"odd", b'{"action": "sing"}')], NOW)
        assert (set(fleet.cancelled), set(fleet.drains)) == ({"j"}, {"w"})
        fleet = fold([*orders, Kept(b"j", None), Kept(b"drain:w", None)], NOW)
        assert (fleet.cancelled, fleet.drains) == ({}, {})

    def test_the_newest_word_on_a_pause_counts(self) -> None:
        pause = kept(Pause(job="j", time=NOW))
        other = [kept(Cancel(job="j", time=NOW)), Kept(b"j", None)]
        assert set(fold([pause, *other], NOW).paused) == {"j"}, "a tombstone of its cancellation is none of its pause"
        for over in (kept(Resume(job="j", time=NOW)), pause._replace(value=None)):
            assert fold([pause, over], NOW).paused == {}
            assert set(fold([pause, over, pause], NOW).paused) == {"j"}
