"""Dramatiq on RabbitMQ: persistent messages, publisher confirms, late acknowledgement; results in Redis or none."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import body

broker = RabbitmqBroker(url=body.AMQP, confirm_delivery=True)
if body.RESULTS:
    broker.add_middleware(Results(backend=RedisBackend(url=body.REDIS)))
dramatiq.set_broker(broker)
options: dict[str, Any] = {"store_results": True} if body.RESULTS else {}


@dramatiq.actor(queue_name=body.RUN, **options)
def run(params: dict[str, Any]) -> None:
    """One job."""
    body.work(params)


def produce(count: int, seconds: float, rate: float, first: int) -> float:
    """Enqueue jobs; return how many a second."""
    broker.declare_queue(body.RUN, ensure=True)
    return body.enqueue(run.send, count, seconds, rate, first)
