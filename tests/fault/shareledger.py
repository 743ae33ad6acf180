"""The ledger: every id whose production was confirmed must be accepted at least once, whatever dies meanwhile."""

from __future__ import annotations

import collections
import threading
import uuid
from contextlib import suppress
from typing import Any

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from wire.share import Listener, ShareConfig, ShareConsumer, ShareError
from wire.share.admin import ShareAdmin


class Ledger(Listener):
    """Produces ids all the time and accepts them with several consumers, each in a thread of its own."""

    def __init__(self, url: str, *, partitions: int = 6, replicas: int = 3, consumers: int = 2) -> None:
        self.url = url
        self.topic = f"ledger-{uuid.uuid4().hex[:8]}"
        self.group = f"{self.topic}-group"
        self.client = KafkaAdminClient(bootstrap_servers=url)
        self.client.create_topics([NewTopic(self.topic, partitions, replicas)])
        self.admin = ShareAdmin(url)
        self.admin.configure_group(self.group, {"share.auto.offset.reset": "earliest"})
        self.produced: set[int] = set()
        self.accepted: collections.Counter[int] = collections.Counter()
        self.refused = 0
        self.failures: list[BaseException] = []
        self.changed = threading.Condition()
        self._stop, self._done = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(self._produce,))]
        self._threads += [threading.Thread(target=self._guard, args=(self._consume,)) for _ in range(consumers)]

    def __enter__(self) -> Ledger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._done.set()
        for thread in self._threads:
            thread.join()
        self.admin.close()
        self.client.close()

    def leaders(self) -> dict[int, int]:
        """The leader of each partition."""
        (topic,) = self.client.describe_topics([self.topic])
        return {part["partition_index"]: part["leader_id"] for part in topic["partitions"]}

    def run_on(self, count: int, seconds: float = 60.0) -> None:
        """Wait until so many more ids were accepted."""
        with self.changed:
            goal = len(self.accepted) + count
            assert self.changed.wait_for(lambda: len(self.accepted) >= goal, seconds), "the queue stands still"

    def settle(self, seconds: float = 60.0) -> set[int]:
        """Stop producing; returns the ids that are missing when all should have come."""
        self._stop.set()
        self._threads[0].join()
        with self.changed:
            self.changed.wait_for(lambda: self.produced <= set(self.accepted), seconds)
            return self.produced - set(self.accepted)

    def _guard(self, body: Any) -> None:
        try:
            body()
        except BaseException as exc:
            self.failures.append(exc)
            raise

    def _produce(self) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self.url, acks="all", retries=10_000, delivery_timeout_ms=120_000, linger_ms=5
        )
        number = 0
        while not self._stop.wait(0.004):
            future = producer.send(self.topic, b"%d" % number)
            future.add_callback(lambda _, number=number: self.produced.add(number))
            number += 1
        producer.flush(60)
        producer.close()

    def _consume(self) -> None:
        with (
            suppress(ShareError),
            ShareConsumer([self.topic], self.group, ShareConfig(bootstrap_servers=self.url), listener=self) as consumer,
        ):
            while not self._done.is_set():
                for record in consumer.poll(32, 0.3):
                    try:
                        consumer.acknowledge(record)
                    except ShareError:
                        self.refused += 1
                        continue
                    with self.changed:
                        self.accepted[int(record.value or b"-1")] += 1
                        self.changed.notify_all()
