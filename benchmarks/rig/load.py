"""Submit jobs to Tickertape: `python -m benchmarks.rig.load WAY KIND COUNT SECONDS RATE FIRST`.

WAY is `submit` (each job waits for its confirmation), `many` (Client.submit_many) or `publisher` (the records that the
client would write, through KafkaPublisher). Settings come from the environment. Prints jobs a second, and the CPU
seconds this process spent on them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future

from benchmarks.peers.body import enqueue, pause, payload
from producers import Client, Request
from schemas.codec import Envelope, encode, request_type
from schemas.ids import uuid7
from schemas.topics import Names
from wire.publish import KafkaPublisher, Sent
from wire.settings import Settings

Way = Callable[[Settings, str, int, float, float, int], float]


def submit(settings: Settings, kind: str, count: int, seconds: float, rate: float, first: int) -> float:
    """One after the other, each confirmed before the next."""
    with Client(settings=settings) as client:
        client.submit(kind, payload(-1))  # connects, and asks once which kinds there are
        return enqueue(lambda params: client.submit(kind, params), count, seconds, rate, first)


def many(settings: Settings, kind: str, count: int, seconds: float, rate: float, first: int) -> float:
    """Without waiting for each: the last confirmation ends it."""
    with Client(settings=settings) as client:
        client.submit(kind, payload(-1))
        began = time.time()
        requests = (Request(kind, payload(first + index, seconds)) for index in range(count))
        sent = sum(1 for _ in client.submit_many(requests))
        return sent / (time.time() - began)


def publisher(settings: Settings, kind: str, count: int, seconds: float, rate: float, first: int) -> float:
    """The records themselves, as any upstream system would publish them; every one is confirmed at the end."""
    topic = Names(settings.prefix).jobs(kind, "bulk")
    line = KafkaPublisher(settings)

    def send(number: int) -> Future[Sent]:
        job, value = uuid7(), json.dumps({"params": payload(number, seconds)}).encode()
        envelope = Envelope(
            id=uuid7(), type=request_type(kind), source="/benchmark", data=value, subject=job,
            time="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        return line.publish(topic, key=job.encode(), value=value, headers=encode(envelope))

    try:
        send(-1).result(30)  # connects and learns about the topic
        began = time.time()
        sent = []
        for index in range(count):
            if wait := pause(index, began, rate):
                time.sleep(wait)
            sent.append(send(first + index))
        for future in sent:
            future.result(60)
        return count / (time.time() - began)
    finally:
        line.close()


WAYS: dict[str, Way] = {"submit": submit, "many": many, "publisher": publisher}


def main() -> None:
    """Print the rate and the CPU."""
    way, kind, count, seconds, rate, first = sys.argv[1:]
    settings, spent = Settings.load(), time.process_time()
    found = WAYS[way](settings, kind, int(count), float(seconds), float(rate), int(first))
    print("RATE", found)
    print("CPU", time.process_time() - spent)


if __name__ == "__main__":
    main()
