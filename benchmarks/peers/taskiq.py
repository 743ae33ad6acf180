"""Taskiq on Redis streams: acknowledged after the work; results in Redis or none."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers import body

broker = RedisStreamBroker(body.REDIS, queue_name=body.RUN)
if body.RESULTS:
    broker = broker.with_result_backend(RedisAsyncResultBackend(body.REDIS))


@broker.task
async def run(params: dict[str, Any]) -> None:
    """One job."""
    await body.awork(params)


def produce(count: int, seconds: float, rate: float, first: int) -> float:
    """Enqueue jobs; return how many a second."""

    async def go() -> float:
        await broker.startup()
        try:
            return await body.aenqueue(run.kiq, count, seconds, rate, first)
        finally:
            await broker.shutdown()

    return asyncio.run(go())
