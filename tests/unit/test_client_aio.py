"""The asyncio twin: the same answers, and waiting holds no thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from producers import AsyncClient
from producers.memory import MemoryPorts
from schemas.errors import AuthError, InvalidError, JobError, TimeoutExceeded
from schemas.event import Event, EventType, State
from schemas.ids import uuid7
from schemas.job import Inference
from schemas.outcome import Outcome, Status
from wire.settings import Settings

PARAMS = {"model": "builtin:m", "prompt": "hi"}


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def client(ports: MemoryPorts) -> AsyncClient:
    return AsyncClient(settings=Settings(), ports=ports)


def end(job: str, status: Status = Status.SUCCEEDED) -> Event:
    now = datetime.now(UTC)
    outcome = Outcome(job=job, kind="inference", status=status, attempt=1, worker="w", finished_at=now)
    return Event(id=uuid7(), type=EventType(status.value), job=job, kind="inference", time=now, outcome=outcome)


def test_a_job(ports: MemoryPorts, tmp_path: Path) -> None:
    async def work() -> None:
        async with client(ports) as queue:
            (tmp_path / "a.txt").write_text("x")
            assert (await queue.upload(tmp_path / "a.txt")).endswith(".txt")
            job = await queue.submit("inference", PARAMS, key="k")
            assert job.id in repr(job)
            assert await job.state() == State.QUEUED
            ports.tell(end(job.id))
            assert (await job.result(timeout=5)).status == Status.SUCCEEDED
            assert (await queue.job(job.id).result(timeout=5, raise_on_failure=True)).job == job.id
            unwanted = await queue.submit("inference", PARAMS)
            await unwanted.cancel("enough")
            await queue.cancel(unwanted.id)
            assert len(ports.of("tape.control")) == 2
            assert (await unwanted.result(timeout=5)).status == Status.CANCELLED
        assert ports.closed

    run(work())


def test_hundreds_wait_in_a_few_threads(ports: MemoryPorts) -> None:
    before = threading.active_count()  # other tests' too

    async def work() -> None:
        async with client(ports) as queue:
            requests = [Inference(model="m", prompt=str(index)) for index in range(200)]
            jobs = [job async for job in queue.submit_many(requests, window=50)]
            waiting = [asyncio.create_task(job.result(timeout=15)) for job in jobs]
            while not queue.client.feed.running:
                await asyncio.sleep(0)
            assert threading.active_count() - before < 20
            for job in jobs:
                ports.tell(end(job.id))
            outcomes = await asyncio.gather(*waiting)
            assert [outcome.job for outcome in outcomes] == [job.id for job in jobs]
            assert ports.followers == 1

    run(work())


def test_watching(ports: MemoryPorts) -> None:
    async def work() -> None:
        async with client(ports) as queue:
            job = await queue.submit("inference", PARAMS)
            seen = []
            async for event in job.watch(timeout=5):
                seen.append(event.type)
                if event.type == EventType.QUEUED:
                    ports.tell(end(job.id))
            assert seen == [EventType.QUEUED, EventType.SUCCEEDED]

    run(work())


def test_waiting_ends(ports: MemoryPorts) -> None:
    async def work() -> None:
        async with client(ports) as queue:
            job = await queue.submit("inference", PARAMS)
            with pytest.raises(TimeoutExceeded):
                await job.result(timeout=0.05)
            with pytest.raises(TimeoutExceeded):
                async for _ in job.watch(timeout=0.05):
                    pass
            ports.tell(end(job.id, Status.CANCELLED))
            with pytest.raises(JobError) as caught:
                await job.result(timeout=5, raise_on_failure=True)
            assert caught.value.code == "TAPE-6005"

    run(work())


def test_errors_come_through(ports: MemoryPorts) -> None:
    async def work() -> None:
        async with client(ports) as queue:
            with pytest.raises(InvalidError):
                await queue.submit("nope", {})
            job = await queue.submit("inference", PARAMS)
            ports.failure = AuthError("no", code="TAPE-4001")
            with pytest.raises(AuthError):
                await job.result(timeout=5)

    run(work())


def test_a_cancelled_wait_leaves_no_listener(ports: MemoryPorts) -> None:
    async def work() -> None:
        async with client(ports) as queue:
            job = await queue.submit("inference", PARAMS)
            task = asyncio.create_task(job.result())
            log = job._handle.log
            while not log._listeners:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert log._listeners == []

    run(work())
