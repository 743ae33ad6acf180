"""A fleet's breakers on a real control topic: one worker's outage is everybody's, and one job of all probes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from schemas.control import Breaker, BreakerState, key, read
from schemas.errors import FailureClass
from schemas.outcome import Failure
from schemas.topics import Names, topics
from wire.publish import KafkaPublisher, Publisher
from wire.settings import Settings
from wire.topics import ensure
from workers.breaker import Allowed, Breakers, Paused, Probe
from workers.circuit import Rules
from workers.control import follow_control

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
RULES = Rules(base_s=0.2, spread_s=0.2, probe_s=20.0, answer_s=10.0)
AWAY = Failure(failure=FailureClass.DEPENDENCY, code="TAPE-5002", message="the store does not answer")
LIMIT_S = 30.0


class Member:
    """One worker: its breakers, and the thread that reads the control topic into them."""

    def __init__(self, name: str, settings: Settings, publisher: Publisher) -> None:
        self.topic = Names(settings.prefix).control
        self.publisher = publisher
        self.breakers = Breakers(name, lambda: datetime.now(UTC), self.publish, rules=RULES)
        self.news, self.stop = threading.Condition(), threading.Event()
        self.probes = 0
        self.thread = threading.Thread(target=self.follow, args=(settings,), daemon=True)

    def publish(self, message: Breaker) -> None:
        self.publisher.publish(self.topic, key=key(message).encode(), value=message.model_dump_json().encode())

    def follow(self, settings: Settings) -> None:
        for record in follow_control(settings, self.topic)(self.stop):
            if record is None:  # all that was there is read
                continue
            message = read(record.value)
            assert isinstance(message, Breaker)
            with self.news:
                self.breakers.apply(message)
                self.news.notify_all()

    def state(self) -> BreakerState:
        found = self.breakers.states().get("store")
        return found.state if found else BreakerState.CLOSED

    def epoch(self) -> int:
        found = self.breakers.states().get("store")
        return found.epoch if found else 0

    def until(self, state: BreakerState) -> None:
        with self.news:
            assert self.news.wait_for(lambda: self.state() is state, LIMIT_S)

    def work(self) -> None:
        """Ask for work as a worker does, until it is allowed; run the probe if it is ours."""
        while not isinstance(answer := self.breakers.allowed(["store"]), Allowed):
            if isinstance(answer, Probe) and self.breakers.take(answer, "probe"):
                self.probes += 1
                self.breakers.report("probe", "store", None)
                self.breakers.ended("probe")
            elif isinstance(answer, Paused):
                with self.news:
                    self.news.wait(answer.seconds)


@contextmanager
def joined(settings: Settings, count: int) -> Iterator[list[Member]]:
    ensure(settings, [topic for topic in topics(Names(settings.prefix)) if topic.name.endswith("control")])
    with ExitStack() as stack:
        publisher = KafkaPublisher(settings)
        stack.callback(publisher.close)
        members = [Member(f"w{number}", settings, publisher) for number in range(count)]
        for member in members:
            member.thread.start()
            stack.callback(member.thread.join, LIMIT_S)
            stack.callback(member.stop.set)
        yield members


def test_an_outage_seen_by_one_pauses_all_and_one_probe_ends_it(settings: Settings) -> None:
    with joined(settings, 4) as members:
        for number in range(RULES.jobs):
            members[1].breakers.report(f"j{number}", "store", AWAY)
        for member in members:
            member.until(BreakerState.OPEN)
        threads = [threading.Thread(target=member.work, daemon=True) for member in members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert not any(thread.is_alive() for thread in threads)
        for member in members:
            member.until(BreakerState.CLOSED)
        assert sum(member.probes for member in members) == 1
        with joined(settings, 1) as (late,):
            with late.news:
                assert late.news.wait_for(lambda: late.epoch() == members[0].epoch() > 0, LIMIT_S)
            assert late.breakers.allowed(["store"]) == Allowed()
