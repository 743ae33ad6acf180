"""Celery on RabbitMQ: persistent messages, publisher confirms, late acknowledgement; results in Redis or none."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.peers import body

app = Celery("peers", broker=body.AMQP, backend=body.REDIS if body.RESULTS else None)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=not body.RESULTS,
    task_default_queue=body.RUN,
    task_default_delivery_mode="persistent",
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
)


@app.task
def run(params: dict[str, Any]) -> None:
    """One job."""
    body.work(params)


def produce(count: int, seconds: float, rate: float, first: int) -> float:
    """Enqueue jobs; return how many a second."""
    with app.connection_or_acquire() as connection:
        connection.ensure_connection()
    return body.enqueue(run.delay, count, seconds, rate, first)
