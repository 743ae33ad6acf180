"""A consumer's process is killed: others have its records in moments, with the delivery counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from wire.broker import NativeBroker
from wire.share import ShareConfig, ShareConsumer
from wire.share.admin import ShareAdmin

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

HOLDER = """
import sys
from wire.share import ShareConfig, ShareConsumer
url, topic, group, count = sys.argv[1:]
consumer = ShareConsumer([topic], group, ShareConfig(bootstrap_servers=url))
held = []
while len(held) < int(count):
    held += consumer.poll(int(count) - len(held), 1.0)
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("word", [signal.SIGKILL, signal.SIGSTOP])
def test_records_of_a_dead_process_are_with_another(broker: NativeBroker, word: signal.Signals) -> None:
    """Killed: at once, by the connection that closed. Stopped: when the lock expires, as with a lost network."""
    url = broker.status().url
    topic = f"t{uuid.uuid4().hex[:8]}"
    client = KafkaAdminClient(bootstrap_servers=url)
    client.create_topics([NewTopic(topic, 2, 1)])
    client.close()
    with ShareAdmin(url) as admin:
        admin.configure_group(topic, {"share.auto.offset.reset": "earliest", "share.record.lock.duration.ms": "5000"})
    producer = KafkaProducer(bootstrap_servers=url, acks="all")
    for index in range(4):
        producer.send(topic, b"%d" % index, partition=index % 2)
    producer.close()
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER, url, topic, topic, "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with ShareConsumer([topic], topic, ShareConfig(bootstrap_servers=url)) as heir:
            assert heir.poll(4, 1.0) == []
            os.kill(holder.pid, word)
            died = time.monotonic()
            records = []
            while len(records) < 4 and time.monotonic() - died < 20:
                records += heir.poll(4, 1.0)
            took = time.monotonic() - died
            for record in records:
                heir.acknowledge(record)
            heir.flush(5)
    finally:
        holder.kill()
        holder.communicate()
    assert sorted(int(record.value or b"") for record in records) == [0, 1, 2, 3]
    assert {record.delivery_count for record in records} == {2}
    print(f"{word.name}: {took:.2f} s")
    assert took < (3.0 if word == signal.SIGKILL else 8.0)
