"""The asyncio twin of the client: the same calls, awaited. All logic is the client's, in threads.

async with AsyncClient() as client:
    job = await client.submit("inference", {"model": "builtin:tiny", "prompt": "Revenue rose"})
    outcome = await job.result(timeout=60)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from producers.client import WINDOW, Client
from producers.handle import JobHandle, checked
from producers.log import Log, late
from producers.ports import Ports
from producers.request import Options, Request
from schemas.control import Pause
from schemas.event import Event, State
from schemas.model import Strict
from schemas.outcome import Outcome
from wire.settings import Settings


class AsyncHandle:
    """A job of an `AsyncClient`."""

    __slots__ = ("_handle", "id")

    def __init__(self, handle: JobHandle) -> None:
        self._handle, self.id = handle, handle.id

    def __repr__(self) -> str:
        return f"AsyncHandle({self.id!r})"

    async def result(self, timeout: float | None = None, *, raise_on_failure: bool = False) -> Outcome:
        """Wait for the outcome, as `JobHandle.result`; thousands may wait at once, and none of them holds a thread."""
        handle = self._handle
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        found = await asyncio.to_thread(handle.known)
        if found is None:
            final = await _final(handle, end)
            found = await asyncio.to_thread(handle.conclude, final, timeout)
        return checked(found, raise_on_failure)

    async def watch(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """Yield the job's events as they come, as `JobHandle.watch`."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        await asyncio.to_thread(self._handle.follow)
        log, index, last = self._handle.log, 0, False
        with _signal(log) as changed:
            while not last:
                changed.clear()
                fresh, index, last = log.after(index)
                for event in fresh:
                    yield event
                if not last and not await _wait(changed, end):
                    raise late(self.id)

    async def state(self) -> State | None:
        """Return where the job is now; None when no event of it was found."""
        return await asyncio.to_thread(self._handle.state)

    async def cancel(self, reason: str = "cancelled on request") -> State | None:
        """Ask every worker to stop the job."""
        return await asyncio.to_thread(self._handle.cancel, reason)

    async def pause(self, reason: str = "") -> State | None:
        """Let the job wait until it is resumed."""
        return await asyncio.to_thread(self._handle.pause, reason)

    async def resume(self, reason: str = "") -> State | None:
        """Let the job go on if it is paused."""
        return await asyncio.to_thread(self._handle.resume, reason)


class AsyncClient:
    """The client for asyncio programs; see `Client` for what each call means and raises."""

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, ports: Ports | None = None) -> None:
        self.client = Client(url, settings=settings, ports=ports)

    async def submit(
        self, subject: Strict | str | Request, params: Mapping[str, Any] | None = None, **options: Unpack[Options]
    ) -> AsyncHandle:
        """Submit one job; returns when the broker has it on disk."""
        return AsyncHandle(await asyncio.to_thread(partial(self.client.submit, subject, params, **options)))

    async def submit_many(
        self, requests: Iterable[Strict | Request], *, window: int = WINDOW
    ) -> AsyncIterator[AsyncHandle]:
        """Submit jobs without waiting for each, and yield a handle as each is confirmed."""
        handles = self.client.submit_many(requests, window=window)
        try:
            while (handle := await asyncio.to_thread(next, handles, None)) is not None:
                yield AsyncHandle(handle)
        finally:
            await asyncio.to_thread(handles.close)

    def job(self, job: str, *, since: datetime | None = None) -> AsyncHandle:
        """Return a handle of a job that somebody submitted."""
        return AsyncHandle(self.client.job(job, since=since))

    async def cancel(self, job: str, reason: str = "cancelled on request") -> State | None:
        """Tell every worker to stop a job."""
        return await asyncio.to_thread(self.client.cancel, job, reason)

    async def pause(self, job: str, reason: str = "", *, who: str | None = None) -> State | None:
        """Let a job wait until it is resumed."""
        return await asyncio.to_thread(partial(self.client.pause, job, reason, who=who))

    async def resume(self, job: str, reason: str = "", *, who: str | None = None) -> State | None:
        """Let a paused job go on."""
        return await asyncio.to_thread(partial(self.client.resume, job, reason, who=who))

    async def paused(self, job: str) -> Pause | None:
        """Return who paused a job, when and why."""
        return await asyncio.to_thread(self.client.paused, job)

    async def upload(self, path: str | Path) -> str:
        """Put a local file into the store and return its `blob:` reference."""
        return await asyncio.to_thread(self.client.upload, path)

    async def close(self) -> None:
        """Wait until everything is sent and close the connections."""
        await asyncio.to_thread(self.client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _final(handle: JobHandle, end: float | None) -> Event | None:
    with _signal(handle.log) as changed:
        while (final := handle.log.ended()) is None:
            changed.clear()
            if handle.log.final is None and not await _wait(changed, end):
                return handle.log.ended()
        return final


@contextmanager
def _signal(log: Log) -> Iterator[asyncio.Event]:
    """An asyncio event that is set, in the loop's own thread, whenever the log changes."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop was closed while somebody still listened
            loop.call_soon_threadsafe(changed.set)

    with log.listening(tell):
        yield changed


async def _wait(changed: asyncio.Event, end: float | None) -> bool:
    try:
        async with asyncio.timeout_at(end):
            await changed.wait()
    except TimeoutError:
        return False
    return True
