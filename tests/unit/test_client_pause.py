"""`Client.pause` and `resume`, and the commands: what is said to the workers, and what to whoever asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cli_rig import PARAMS, Tape, ended, submitted, told
from client_rig import end, event

from producers import AsyncClient, Client
from producers.cli.exits import Exit
from producers.memory import MemoryPorts
from schemas.control import Control, Pause, Resume, read
from schemas.errors import InvalidError, NotFoundError, UnavailableError
from schemas.event import EventType, State
from schemas.ids import uuid7
from schemas.outcome import Failure, Status
from wire.settings import Settings

FIELDS = json.loads(PARAMS)


@pytest.fixture
def client(ports: MemoryPorts) -> Iterator[Client]:
    with Client(settings=Settings(), ports=ports) as found:
        yield found


def said(ports: MemoryPorts) -> list[Control | None]:
    return [read(record.value) for record in ports.of("tape.control")]


def rest(ports: MemoryPorts, job: str) -> None:
    """What a worker tells of a paused job."""
    failure = Failure(failure="dependency", code="TAPE-3011", message="paused by me@desk (lunch)")  # type: ignore[arg-type]
    told(ports, job, EventType.POSTPONED, until=datetime.now(UTC) + timedelta(seconds=5), failure=failure)


class TestClient:
    def test_a_pause_and_its_end_have_one_key(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", FIELDS)
        assert client.paused(handle.id) is None
        assert client.pause(handle.id, "lunch", who="me@desk") is State.QUEUED
        pause = client.paused(handle.id)
        assert pause is not None
        assert (pause.job, pause.reason, pause.who) == (handle.id, "lunch", "me@desk")
        assert client.resume(handle.id, "back", who="you@desk") is State.QUEUED
        assert client.paused(handle.id) is None
        first, second = said(ports)
        assert first == pause
        assert isinstance(second, Resume)
        assert (second.reason, second.who) == ("back", "you@desk")
        records = ports.of("tape.control")
        assert {record.key for record in records} == {f"pause/{handle.id}".encode()}
        assert [dict(record.headers)["ce_type"] for record in records] == [
            b"tape.control.pause.v1", b"tape.control.resume.v1",
        ]  # fmt: skip

    def test_who_asks_is_told_without_saying_so(self, client: Client, ports: MemoryPorts) -> None:
        client.submit("inference", FIELDS).pause()
        (pause,) = said(ports)
        assert isinstance(pause, Pause)
        assert "@" in pause.who

    def test_the_first_pause_stands_and_what_is_not_paused_needs_no_resume(
        self, client: Client, ports: MemoryPorts
    ) -> None:
        handle = client.submit("inference", FIELDS)
        handle.resume()
        assert said(ports) == []
        client.pause(handle.id, "lunch", who="me")
        client.pause(handle.id, "another", who="you")
        pause = client.paused(handle.id)
        assert pause is not None
        assert (len(said(ports)), pause.reason, pause.who) == (1, "lunch", "me")
        handle.resume()
        handle.pause()
        assert len(said(ports)) == 3, "one that was resumed may be paused again"
        assert client.paused(handle.id) is not None

    def test_other_jobs_and_what_nobody_can_read_change_nothing(self, client: Client, ports: MemoryPorts) -> None:
        one, other = uuid7(), uuid7()
        client.pause(one)
        client.cancel(one)
        client.resume(other)
        for value in (b"{", b'{"action": "sing"}'):
            record = ports.of("tape.control")[0]
            ports._keep(type(record)(record.topic, record.key, value, [], datetime.now(UTC)))
        assert client.paused(one) is not None
        assert client.paused(other) is None

    def test_a_paused_job_is_cancelled_at_once(self, client: Client, ports: MemoryPorts) -> None:
        handle = client.submit("inference", FIELDS)
        handle.pause()
        rest(ports, handle.id)
        assert handle.cancel("enough") is State.CANCELLED
        assert handle.result(timeout=5).status is Status.CANCELLED

    @pytest.mark.parametrize("ask", ["pause", "resume", "paused"])
    def test_what_can_be_no_job_is_refused(self, client: Client, ports: MemoryPorts, ask: str) -> None:
        with pytest.raises(InvalidError):
            getattr(client, ask)("no/id")
        assert said(ports) == []

    def test_a_pause_that_is_not_confirmed_is_none(self, client: Client, ports: MemoryPorts) -> None:
        ports.failure = UnavailableError("no broker there")
        with pytest.raises(UnavailableError):
            client.pause(uuid7())

    def test_the_asyncio_twin(self, ports: MemoryPorts) -> None:
        async def work() -> None:
            async with AsyncClient(settings=Settings(), ports=ports) as queue:
                job = await queue.submit("inference", FIELDS)
                assert await job.pause("lunch") is State.QUEUED
                assert (pause := await queue.paused(job.id)) is not None and pause.reason == "lunch"
                assert await job.resume() is State.QUEUED
                await queue.pause(job.id, "again", who="me")
                await queue.resume(job.id, who="me")
                assert await queue.paused(job.id) is None
            assert [type(one) for one in said(ports)] == [Pause, Resume, Pause, Resume]

        asyncio.run(asyncio.wait_for(work(), 20))


@pytest.mark.usefixtures("home")
class TestCommands:
    def test_a_job_is_paused_and_resumed(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        found = tape("pause", job, "--reason", "lunch")
        assert (found.code, found.row) == (Exit.OK, {"job": job, "state": "queued", "paused": True})
        assert f"next: tape resume {job}" in found.err
        again = tape("pause", job)
        assert (again.code, "it was paused already by " in again.err, "(lunch)" in again.err) == (Exit.OK, True, True)
        found = tape("resume", job)
        assert (found.code, found.row) == (Exit.OK, {"job": job, "state": "queued", "resumed": True})
        found = tape("resume", job)
        assert (found.code, found.row) == (Exit.OK, {"job": job, "state": "queued", "resumed": False})
        assert len(said(ports)) == 2

    def test_what_a_running_job_loses_is_said(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        ports.tell(event(job, EventType.RUNNING, attempt=1))
        found = tape("pause", job)
        assert "a training goes on from its checkpoint, what keeps none begins anew" in found.err
        assert found.row["state"] == "running"

    def test_an_ended_job_is_left_alone(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        ended(ports, job)
        found = tape("pause", job)
        assert (found.code, found.row) == (Exit.OK, {"job": job, "state": "succeeded", "paused": False})
        assert "tape resume" not in found.err
        assert said(ports) == [], "what is sent back from the dead letters must not wait for that"

    def test_a_job_nobody_told_of_is_paused_all_the_same(self, tape: Tape, ports: MemoryPorts) -> None:
        found = tape("pause", "job-1")
        assert (found.code, "should it come, it will wait" in found.err) == (Exit.NOT_FOUND, True)
        assert len(said(ports)) == 1
        assert tape("resume", "job-1").code == Exit.OK
        assert tape("resume", "job-1").code == Exit.NOT_FOUND

    @pytest.mark.parametrize("command", ["pause", "resume"])
    def test_some_of_them(self, tape: Tape, command: str) -> None:
        found = tape(command, "no/id", submitted(tape))
        assert (found.code, len(found.rows)) == (Exit.PARTLY, 1)

    def test_looks_at_a_paused_job_are_one_line_for_people_and_all_there_for_programs(
        self, tape: Tape, ports: MemoryPorts
    ) -> None:
        job = submitted(tape)
        ports.tell(event(job, EventType.RUNNING, attempt=1))
        for _ in range(4):
            rest(ports, job)
        ports.tell(event(job, EventType.RUNNING, attempt=1))
        rest(ports, job)
        ended(ports, job)
        shown = [line.split()[1] for line in tape("watch", job, "--output", "table").out.splitlines()]
        assert shown == ["queued", "running", "postponed", "running", "postponed", "succeeded"]
        assert len(tape("watch", job).rows) == 9

    def test_who_asks_for_its_result_is_told(
        self, tape: Tape, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object) -> None:
            raise NotFoundError("no such topic", code="TAPE-2004")

        job = submitted(tape)
        tape("pause", job, "--reason", "lunch")
        rest(ports, job)
        found = tape("result", job)
        assert (found.code, "(lunch)" in found.err, f"tape resume {job}" in found.err) == (Exit.TIMEOUT, True, True)
        for argv in (("result", job, "--wait", "--timeout", "0.05"), ("watch", job, "--timeout", "0.05")):
            found = tape(*argv)
            assert (found.code, f"`tape resume {job}` lets it go on" in found.err) == (Exit.TIMEOUT, True)
        assert tape("jobs").row["code"] == "TAPE-3011"
        with monkeypatch.context() as patch:
            patch.setattr(Client, "paused", away)
            assert "the job is postponed" in tape("result", job).err
        tape("resume", job)
        assert "the job is postponed" in tape("result", job).err
        ports.tell(end(job))
        assert tape("result", job).code == Exit.OK
