"""Three real brokers that die and come back: the ledger loses nothing and the queue goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from shareledger import Ledger

from wire.broker import NativeBroker, Runtime

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.timeout(240),
    # the producer and the admin of kafka-python leave the sockets of refused connections to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

QUICK = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}


@pytest.fixture(scope="module")
def cluster(jars: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeBroker]:
    assert jars.java
    native = NativeBroker(tmp_path_factory.mktemp("cluster"), _cache(), nodes=3, extra=QUICK)
    native.start(tie=True)
    yield native
    native.stop(grace_s=3)


def _cache() -> Path:
    from wire.settings import Settings

    return Settings().cache


@pytest.fixture(autouse=True)
def refused_sockets_go(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Captured log records hold exceptions, those hold frames, those hold sockets: keep none, collect the rest."""
    caplog.set_level(logging.CRITICAL + 1, "kafka")
    yield
    gc.collect()


@pytest.fixture
def ledger(cluster: NativeBroker) -> Iterator[Ledger]:
    with Ledger(cluster.status().url) as made:
        made.run_on(300)
        yield made
    assert made.failures == []


def test_leader_is_killed_and_restarted(cluster: NativeBroker, ledger: Ledger) -> None:
    victim = ledger.leaders()[0]
    cluster.kill_node(victim)
    ledger.run_on(500)  # the others go on, the dead one's partitions get other leaders
    cluster.start_node(victim, tie=True)
    ledger.run_on(300)
    assert ledger.settle() == set()


def test_coordinator_is_killed(cluster: NativeBroker, ledger: Ledger) -> None:
    victim = ledger.admin.coordinator(ledger.group)
    cluster.kill_node(victim)
    ledger.run_on(500)
    assert ledger.admin.coordinator(ledger.group) != victim
    cluster.start_node(victim, tie=True)
    assert len(ledger.admin.describe_group(ledger.group).members) >= 2
    assert ledger.settle() == set()


def test_rolling_restart(cluster: NativeBroker, ledger: Ledger) -> None:
    for node in (1, 2, 3):
        cluster.stop_node(node)
        ledger.run_on(100)
        cluster.start_node(node, tie=True)
        ledger.run_on(100)
    assert ledger.settle() == set()
    assert sum(ledger.accepted.values()) - len(ledger.accepted) < 200  # politely stopped brokers cause few repeats
