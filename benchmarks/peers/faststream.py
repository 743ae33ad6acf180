"""FastStream on Kafka (aiokafka): acks=all, idempotent, the offset committed after the work (AckPolicy.ACK)."""

from __future__ import annotations

import asyncio
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker

from benchmarks.peers import body

broker = KafkaBroker(body.KAFKA, acks="all", enable_idempotence=True)
app = FastStream(broker)


@broker.subscriber(
    body.RUN, group_id=body.RUN, auto_offset_reset="earliest", max_workers=body.SLOTS, ack_policy=AckPolicy.ACK
)
async def run(params: dict[str, Any]) -> None:
    """One job."""
    await body.awork(params)


def produce(count: int, seconds: float, rate: float, first: int) -> float:
    """Enqueue jobs; return how many a second."""

    async def go() -> float:
        client = KafkaBroker(body.KAFKA, acks="all", enable_idempotence=True)
        await client.start()
        try:
            return await body.aenqueue(
                lambda params: client.publish(params, topic=body.RUN), count, seconds, rate, first
            )
        finally:
            await client.stop()

    return asyncio.run(go())
