"""A tenant's quota holds on every store: memory, the directory, MinIO and SeaweedFS."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.codec import Envelope, encode, parse, request_type
from schemas.control import Tenant
from schemas.model import Strict
from schemas.outcome import Succeeded
from schemas.quota import Tally, tally_name
from wire.blobs import Blobs, open_store
from wire.blobs.memory import Memory
from wire.settings import Settings
from wire.share import Record
from workers import desk as module
from workers.attempt import Attempt, read
from workers.kinds import Kind
from workers.quota import Quotas, Wait

NATIVE = [pytest.mark.slow, pytest.mark.store]
ENGINES = [
    "memory",
    "directory",
    pytest.param("minio", marks=NATIVE),
    pytest.param("seaweedfs", marks=NATIVE),
]
NOW = "2026-01-01T00:00:00Z"


@pytest.fixture(params=ENGINES)
def connect(request: pytest.FixtureRequest) -> Callable[[], Blobs]:
    """A way to one store; what is called twice has two clients, as two workers do."""
    if request.param == "memory":
        only = Memory()
        return lambda: only
    if request.param == "directory":
        address: dict[str, Any] = {"store_url": f"dir:{request.getfixturevalue('tmp_path') / 'store'}"}
    else:
        native = request.getfixturevalue(request.param).profile()
        address = {**native, "store_url": f"{native['store_url']}/{uuid.uuid4().hex}"}
    return lambda: open_store(Settings(**address))


def quotas(connect: Callable[[], Blobs], name: str, said: Tenant, **more: Any) -> Quotas:
    store = connect()
    return Quotas(worker=name, store=lambda: store, tenant=lambda _: said, **more)


class Nothing(Strict):
    """Parameters that are none."""


LIGHT = Kind("light", Nothing, lambda *_: Succeeded(), "thread", 3, None)


def attempt(job: str, offset: int, tenant: str) -> Attempt:
    value = f'{{"params": {{}}, "tenant": "{tenant}"}}'.encode()
    headers = encode(Envelope(id=job, type=request_type("light"), source="/test", data=value, subject=job))
    record = Record("t.jobs.light.bulk", 0, offset, job.encode(), value, tuple(headers), 0, 1)
    return read(record, LIGHT, "bulk", datetime.now(UTC))


@pytest.mark.parametrize("tenant", ["acme", "a tenant/of ours & ünlike %2e others?"])
def test_no_more_run_than_may_whoever_asks(connect: Callable[[], Blobs], tenant: str) -> None:
    said = Tenant.model_validate({"tenant": tenant, "in_flight": 3, "time": NOW})
    fleet = [quotas(connect, f"w{number}", said) for number in range(3)]
    for one in fleet:
        one.start()
    first = [attempt(f"first-{number}", 1_000 + number, tenant) for number in range(4)]
    assert [one.enter(asked) is None for one, asked in zip(fleet, first, strict=False)] == [True] * 3
    assert [one.enter(first[3]) is None for one in fleet] == [False] * 3
    for one, asked in zip(fleet, first, strict=False):
        one.leave(asked)
    lock, running, most, done = threading.Lock(), 0, 0, 0

    def work(mine: Quotas, thread: int) -> None:
        nonlocal running, most, done
        for turn in range(4):
            asked = attempt(f"j{thread}-{turn}", thread * 100 + turn, tenant)
            while mine.enter(asked) is not None:
                time.sleep(0.01)
            with lock:
                running, most = running + 1, max(most, running + 1)
            time.sleep(0.005)
            with lock:
                running, done = running - 1, done + 1
            mine.leave(asked)

    threads = [threading.Thread(target=work, args=(fleet[number % 3], number)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one in fleet:
        one.stop()
    assert done == 36
    assert most <= 3
    assert parse(Tally, connect().read(tally_name(tenant))).running == frozenset()


def test_starts_are_counted_for_all_workers_together(connect: Callable[[], Blobs]) -> None:
    said = Tenant.model_validate({"tenant": "acme", "rate": 50, "burst": 5, "time": NOW})
    fleet = [quotas(connect, f"w{number}", said) for number in range(3)]
    starts: list[float] = []
    tickets: list[int] = []

    def work(mine: Quotas, thread: int) -> None:
        for turn in range(10):
            asked = attempt(f"j{thread}-{turn}", thread * 100 + turn, "acme")
            while isinstance(wait := mine.enter(asked), Wait):
                if not asked.past.ticket:
                    tickets.append(wait.past.ticket)
                time.sleep(min(1.0, wait.delay_s))
                asked = replace(asked, past=wait.past)
            starts.append(time.monotonic())

    threads = [threading.Thread(target=work, args=(fleet[number % 3], number)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(starts) == 60
    starts.sort()
    assert starts[-1] - starts[0] >= (60 - 5) / 50 - 0.2
    assert len(tickets) == len(set(tickets)), "no ticket is drawn twice"


def test_the_room_of_the_dead_comes_free(connect: Callable[[], Blobs], monkeypatch: pytest.MonkeyPatch) -> None:
    said = Tenant.model_validate({"tenant": "acme", "in_flight": 1, "time": NOW})
    clock = [0.0]
    one = quotas(connect, "w1", said)
    two = quotas(connect, "w2", said, clock=lambda: clock[0])
    assert one.enter(attempt("a", 1, "acme")) is None
    asked = attempt("b", 2, "acme")
    waited = 0.0
    while two.enter(asked) is not None:
        clock[0] += 5.0
        waited += 5.0
        assert waited < module.SILENT_S + 15, "it waits for ever"
    assert waited >= module.SILENT_S
    assert parse(Tally, connect().read(tally_name("acme"))).running == {"b"}
