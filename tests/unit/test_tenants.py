"""Tenants: what the control topic says of them, and how they are shown and changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from worker_twin import Entry, waiting

from schemas.control import Cancel, Tenant, key
from schemas.errors import UnavailableError
from workers import control as module
from workers.control import Controls


def test_the_newest_word_on_a_tenant_counts_until_it_is_taken_back() -> None:
    def said(name: str, **fields: Any) -> Entry:
        found = Tenant(tenant=name, time=datetime(2026, 1, 1, tzinfo=UTC), **fields)
        return Entry(key(found).encode(), found.model_dump_json().encode())

    cancel = Cancel(job="acme", time=datetime(2026, 1, 1, tzinfo=UTC))
    cancelled = Entry(b"acme", cancel.model_dump_json().encode())
    control = Controls()
    for entry in (said("acme", in_flight=1), said("zenith", weight=2), said("acme", rate=3), cancelled):
        control.apply(entry)
    seen = control.tenants
    assert {name: (one.weight, one.in_flight, one.rate) for name, one in seen.items()} == {
        "acme": (1, None, 3), "zenith": (2, None, None),
    }  # fmt: skip
    control.apply(Entry(b"acme", None))
    assert (set(control.tenants), control.reason("acme")) == ({"acme", "zenith"}, None)
    control.apply(Entry(b"tenant:acme", None))
    control.apply(Entry(b"tenant:nobody", None))
    assert set(control.tenants) == {"zenith"}
    assert set(seen) == {"acme", "zenith"}, "what was handed out changes under nobody's hands"
    control.close()


def test_a_worker_that_comes_lets_nobody_in_before_it_knows_who_has_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INFORMED_S", 0.01)
    said = Tenant(tenant="acme", in_flight=1, time=datetime(2026, 1, 1, tzinfo=UTC))
    more, known = threading.Event(), threading.Event()

    def reader(stop: threading.Event) -> Iterator[Entry | None]:
        yield Entry(b"tenant:acme", said.model_dump_json().encode())
        waiting(more, "leave to go on")
        yield None
        known.set()
        waiting(stop, "the end")

    control = Controls(reader)
    with pytest.raises(UnavailableError, match="TAPE-5001"):
        control.tenant("acme")
    more.set()
    waiting(known, "the end of what was said before")
    assert control.tenant("acme") == said
    assert control.tenant("nobody") is None
    control.close()
