"""`tape workers` and `tape why`, as a person at 3 am and as a script; the fleet is in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cli_rig import Tape
from fleet_rig import NOW, Desk, ago, breaker, failure, worker

from producers.cli.exits import Exit
from producers.fleet import Lookout
from schemas.control import Drain, read
from schemas.event import EventType


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()
    monkeypatch.setattr(Lookout, "open", lambda settings: desk.lookout)
    return desk


def crew(desk: Desk) -> None:
    """Three workers: one that fell silent, a busy one, and one that goes."""
    moment = desk.time
    desk.time = ago(90)
    desk.present(name="w-silent")
    desk.time = moment
    desk.present(name="w-busy", held=5, running=("a", "b", "c", "d"), full=("heavy",))
    desk.present(name="w-going", draining=True)


def orders(desk: Desk) -> list[Drain]:
    found = [read(entry.value) for entry in desk.log.read(desk.names.control, 0)]
    return [order for order in found if isinstance(order, Drain)]


class TestList:
    def test_a_table(self, desk: Desk, tape: Tape) -> None:
        crew(desk)
        desk.lookout.publish(breaker(until=NOW, cause="TAPE-5002 it is full" + " and so on" * 12)["store"])
        for argv in (("workers",), ("workers", "ls")):
            found = tape(*argv, "--output", "table")
            assert found.code == Exit.OK
            head, *lines = found.out.splitlines()
            assert head.split() == ["WORKER", "HOST", "KINDS", "SLOTS", "STATUS", "SEEN", "RUNNING"]
            assert [line.split()[0] for line in lines[:3]] == ["w-busy", "w-going", "w-silent"]
            assert "2/2   busy     0 s ago  a, b, c +2" in lines[0]
            assert "draining" in lines[1]
            assert "silent   90 s ago" in lines[2]
            assert lines[4].split() == ["DEPENDENCY", "BREAKER", "SINCE", "UNTIL", "HOLDER", "REASON", "CAUSE"]
            assert lines[5].split()[:2] == ["store", "open"]
            assert "5 failures in a row TAPE-5002 it is full" in lines[5]
            assert "w-silent has been silent for 90 s" in found.err

    def test_for_scripts(self, desk: Desk, tape: Tape) -> None:
        crew(desk)
        desk.lookout.publish(breaker()["store"])
        lines = tape("workers").rows
        assert [line.get("worker", line.get("dependency")) for line in lines] == [
            "w-busy",
            "w-going",
            "w-silent",
            "store",
        ]
        for form, load in (("json", json.loads), ("yaml", yaml.safe_load)):
            found = load(tape("workers", "--output", form).out)
            assert found["workers"] == lines[:3]
            assert found["breakers"] == lines[3:]
        assert (lines[0]["busy"], lines[0]["slots"], lines[0]["running"]) == (2, 2, ["a", "b", "c", "d"])

    def test_nobody(self, desk: Desk, tape: Tape) -> None:
        found = tape("workers", "--output", "table")
        assert (found.code, "no worker is there" in found.err) == (Exit.OK, True)

    def test_the_long_silent_are_left_out(self, desk: Desk, tape: Tape) -> None:
        desk.time = ago(4_000)
        desk.present(name="w-old")
        desk.time = NOW
        desk.present(name="w-new")
        found = tape("workers")
        assert [row["worker"] for row in found.rows] == ["w-new"]
        assert "1 more have been silent" in found.err
        assert [row["worker"] for row in tape("workers", "--all").rows] == ["w-new", "w-old"]


class TestDrain:
    def test_one_that_obeys(self, desk: Desk, tape: Tape) -> None:
        desk.present(name="w-1")
        desk.present(name="w-2")
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            desk.present(name="w-1", draining=len(slept) > 1)

        desk.lookout.sleep = sleep
        found = tape("workers", "drain", "w-1", "--reason", "a new image")
        assert (found.code, found.rows) == (Exit.OK, [{"worker": "w-1", "status": "draining"}])
        assert [(order.worker, order.reason) for order in orders(desk)] == [("w-1", "a new image")]
        assert len(slept) == 2

    def test_one_that_is_gone_at_once(self, desk: Desk, tape: Tape) -> None:
        desk.present(name="w-1")
        topic = desk.names.control
        desk.lookout.sleep = lambda _: desk.publisher.publish(topic, key=b"worker:w-1", value=None).result() and None
        assert tape("workers", "drain", "w-1").rows == [{"worker": "w-1", "status": "gone"}]

    def test_one_that_does_not_answer(self, desk: Desk, tape: Tape) -> None:
        desk.present(name="w-1")
        ticks = iter(range(100))
        desk.lookout = replace(desk.lookout, clock=lambda: float(next(ticks)), sleep=lambda _: None)
        found = tape("workers", "drain", "w-1", "--wait", "3")
        assert (found.code, found.rows) == (Exit.TIMEOUT, [{"worker": "w-1", "status": "asked"}])
        assert "TAPE-7002 1 of 1 workers did not answer within 3 s" in found.err
        assert tape("workers", "drain", "w-1", "--wait", "0").code == Exit.OK

    def test_an_unknown_one(self, desk: Desk, tape: Tape) -> None:
        crew(desk)
        found = tape("workers", "drain", "w-busy", "w-9")
        assert found.code == Exit.NOT_FOUND
        assert "TAPE-2007" in found.err
        assert "workers here: w-busy, w-going" in found.err
        assert orders(desk) == []

    def test_all_of_them(self, desk: Desk, tape: Tape) -> None:
        crew(desk)
        found = tape("workers", "drain", "--all")
        assert (found.code, "this would drain 2 workers" in found.err) == (Exit.USAGE, True)
        assert orders(desk) == []
        found = tape("workers", "drain", "--all", "--yes", "--wait", "0")
        assert {row["worker"]: row["status"] for row in found.rows} == {"w-busy": "asked", "w-going": "draining"}
        assert {order.worker for order in orders(desk)} == {"w-busy", "w-going"}

    def test_a_silent_one_is_told_and_not_waited_for(self, desk: Desk, tape: Tape) -> None:
        crew(desk)
        desk.lookout.sleep = lambda _: pytest.fail("nobody will answer")
        found = tape("workers", "drain", "w-silent")
        assert (found.code, found.rows) == (Exit.OK, [{"worker": "w-silent", "status": "silent"}])
        assert [order.worker for order in orders(desk)] == ["w-silent"]

    @pytest.mark.parametrize("argv", [(), ("w-1", "--all")])
    def test_who_is_meant_must_be_said(self, desk: Desk, tape: Tape, argv: tuple[str, ...]) -> None:
        found = tape("workers", "drain", *argv)
        assert (found.code, "TAPE-1010" in found.err) == (Exit.USAGE, True)


class TestWhy:
    def test_for_people(self, desk: Desk, tape: Tape) -> None:
        desk.submit("j")
        found = tape("why", "j", "--since", "2029-01-01", "--output", "table")
        assert found.code == Exit.OK
        first, *lines = found.out.splitlines()
        assert first == "No worker for the kind 'heavy' is running."
        told = {name: value.strip() for name, value in (line.split(maxsplit=1) for line in lines)}
        assert (told["state"], told["blocker"], told["position"]) == ("queued", "no-worker", "1")
        assert "next: tape worker --kinds heavy" in found.err

    def test_for_scripts(self, desk: Desk, tape: Tape) -> None:
        desk.lookout.publish(worker().presence)
        desk.submit("j")
        desk.tell("j", EventType.RETRYING, attempt=1, failure=failure("TAPE-6001"), until=ago(-40))
        found = json.loads(tape("why", "j", "--since", "2029-01-01", "--output", "json").out)
        assert set(found) == {
            "job", "state", "blocker", "detail", "position", "ahead", "expected_start", "facts", "next"
        }  # fmt: skip
        assert (found["state"], found["blocker"], found["ahead"]) == ("retrying", "delayed", None)
        assert found["expected_start"] == ago(-40).isoformat()
        assert found["facts"]["code"] == "TAPE-6001"

    def test_an_unknown_job(self, desk: Desk, tape: Tape) -> None:
        found = tape("why", "j")
        assert (found.code, "TAPE-2002" in found.err, found.out) == (Exit.NOT_FOUND, True, "")
