"""Tenants: what the control topic says of them, and how they are shown and changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_rig import Tape
from fleet_rig import NOW, Desk, failure
from worker_twin import Entry, waiting

from producers.cli.exits import Exit
from producers.fleet import Blocker, Lookout, allow, disallow
from schemas.control import Cancel, Tenant, key, read
from schemas.errors import UnavailableError
from schemas.event import EventType, State
from schemas.quota import Holder, Tally, tally_name
from wire.blobs import Blobs
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


# --- shown and changed


@pytest.fixture
def desk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()
    monkeypatch.setattr(Lookout, "open", lambda settings: desk.lookout)
    return desk


def taken(desk: Desk, *jobs: str, **fields: Any) -> None:
    """What the store says is used of acme's quota."""
    found = Tally(tenant="acme", workers={"w-1": Holder(jobs=jobs)}, **fields)
    desk.blobs.put(tally_name("acme"), found.model_dump_json().encode())


def words(desk: Desk) -> list[Any]:
    """What was said of tenants, in the order in which it was; None: taken back."""
    found = [(entry.key or b"", read(entry.value)) for entry in desk.log.read(desk.names.control, 0)]
    return [said for name, said in found if name.startswith(b"tenant:")]


def limits(said: Tenant) -> tuple[object, ...]:
    return said.weight, said.in_flight, said.rate, said.burst


class TestCommands:
    def test_a_quota_is_set_changed_and_taken_back(self, desk: Desk, tape: Tape) -> None:
        found = tape("tenants", "set", "acme", "--in-flight", "2", "--rate", "0.5", "--burst", "3")
        assert found.code == Exit.OK
        assert (found.row["in_flight"], found.row["rate"], found.row["weight"]) == (2, 0.5, 1)
        assert tape("tenants", "set", "acme", "--weight", "4", "--in-flight", "none").code == Exit.OK
        assert tape("tenants", "set", "acme", "--rate", "none").code == Exit.OK
        assert [limits(said) for said in words(desk)] == [(1, 2, 0.5, 3), (4, None, 0.5, 3), (4, None, None, None)]
        assert all("@" in said.who for said in words(desk))
        assert set(desk.lookout.fleet().tenants) == {"acme"}
        assert tape("tenants", "unset", "acme").code == Exit.OK
        assert words(desk)[-1] is None
        assert desk.lookout.fleet().tenants == {}
        found = tape("tenants", "unset", "acme")
        assert (found.code, "nothing was said of this tenant" in found.err) == (Exit.NOT_FOUND, True)

    def test_they_are_listed_with_what_is_used(self, desk: Desk, tape: Tape) -> None:
        tape("tenants", "set", "acme", "--in-flight", "3", "--rate", "2")
        tape("tenants", "set", "zenith", "--weight", "0.5")
        taken(desk, "a", "b", tail=7, head=3.5)
        for argv in (("tenants",), ("tenants", "ls")):
            acme, zenith = tape(*argv).rows
            assert (acme["tenant"], acme["in_flight"], acme["running"], acme["jobs"]) == ("acme", 3, 2, ["a", "b"])
            assert (acme["rate"], acme["burst"], acme["waiting"]) == (2, 2, 4)
            assert (zenith["weight"], zenith["in_flight"], zenith["running"]) == (0.5, None, None)
        head, first, _ = tape("tenants", "--output", "table").out.splitlines()
        assert head.split()[:6] == ["TENANT", "WEIGHT", "IN_FLIGHT", "RUNNING", "RATE", "BURST"]
        assert first.split()[:7] == ["acme", "1.0", "3", "2", "2.0", "2", "4"]

    def test_nobody_has_one(self, desk: Desk, tape: Tape) -> None:
        found = tape("tenants")
        assert (found.code, found.out, "all share alike" in found.err) == (Exit.OK, "", True)

    def test_a_store_that_does_not_answer_is_told_of(self, desk: Desk, tape: Tape) -> None:
        def down() -> Blobs:
            raise UnavailableError("no answer", code="TAPE-5002")

        desk.lookout.store = down
        tape("tenants", "set", "acme", "--in-flight", "3")
        found = tape("tenants")
        assert (found.code, found.row["in_flight"], found.row["running"]) == (Exit.OK, 3, None)
        assert "the store does not say what is used of 1 quotas, first acme" in found.err

    @pytest.mark.parametrize(("argv", "told"), [
        (["acme"], "nothing to change"),
        (["acme", "--in-flight", "0"], "--in-flight"),
        (["acme", "--in-flight", "2.5"], "'2.5' is not a whole number above 0, or none"),
        (["acme", "--in-flight", "20000"], "in_flight"),
        (["acme", "--rate", "fast"], "'fast' is not a number above 0, or none"),
        (["acme", "--rate", "nan"], "--rate"),
        (["acme", "--rate", "-1"], "--rate"),
        (["acme", "--weight", "none"], "'none' is not a number above 0"),
        (["acme", "--weight", "1e9"], "weight"),
        (["acme", "--burst", "3"], "a burst is one of a rate"),
        (["x" * 200, "--rate", "1"], "tenant"),
        (["", "--rate", "1"], "tenant"),
    ])  # fmt: skip
    def test_what_is_wrong_is_said_and_nothing_is_changed(
        self, desk: Desk, tape: Tape, argv: list[str], told: str
    ) -> None:
        found = tape("tenants", "set", *argv)
        assert found.code in (Exit.USAGE, Exit.INVALID)
        assert told in found.err
        assert "TAPE-1" in found.err
        assert words(desk) == []


class TestWhy:
    def test_a_job_that_was_put_off(self, desk: Desk) -> None:
        desk.present()
        desk.submit("j", tenant="acme")
        desk.take(1)
        allow(desk.lookout, "acme", {"in_flight": 2})
        taken(desk, "a", "b")
        said = failure("TAPE-5011", "the tenant 'acme' is over its quota: it has 2 jobs in flight, and may have 2")
        until = NOW + timedelta(seconds=9)
        desk.tell("j", EventType.POSTPONED, failure=said, until=until, tenant="acme")
        answer = desk.why("j")
        assert (answer.blocker, answer.state, answer.next) == (
            Blocker.QUOTA, State.POSTPONED, ("tape watch j", "tape tenants"),
        )  # fmt: skip
        assert answer.detail == (
            "It waits for its tenant's quota, and is looked at again in 9 s: the tenant 'acme' is over its quota: it "
            "has 2 jobs in flight, and may have 2 (TAPE-5011)."
        )
        told = {name: answer.facts[name] for name in ("tenant", "may run", "in flight", "until", "code")}
        assert told == {"tenant": "acme", "may run": 2, "in flight": 2, "until": until, "code": "TAPE-5011"}
        disallow(desk.lookout, "acme")
        answer = desk.why("j")
        assert answer.detail == "It waited for a quota that its tenant no longer has, and is looked at again in 9 s."
        assert answer.facts["quota"] == "taken back since"

    def test_a_job_in_its_queue_that_would_be_put_off(self, desk: Desk) -> None:
        desk.present()
        desk.submit("j", told=False, tenant="acme")
        desk.tell("j", EventType.QUEUED, tenant="acme")
        assert desk.why("j").blocker is not Blocker.QUOTA
        allow(desk.lookout, "acme", {"in_flight": 1})
        assert desk.why("j").blocker is not Blocker.QUOTA
        taken(desk, "a")
        answer = desk.why("j")
        assert (answer.blocker, answer.facts["in flight"]) == (Blocker.QUOTA, 1)
        assert "'acme' has 1 job in flight, and may have 1" in answer.detail
        taken(desk, "j")
        assert desk.why("j").blocker is not Blocker.QUOTA

    @pytest.mark.parametrize(("quota", "blocked"), [(b"", True), (b"1/3", True), (b"1/2", False)])
    def test_a_job_that_waits_for_the_rate(self, desk: Desk, quota: bytes, blocked: bool) -> None:
        desk.present()
        desk.submit("j", tenant="acme", told=False, headers=[("tape-quota", quota)])
        allow(desk.lookout, "acme", {"rate": 0.5})
        taken(desk, tail=4, head=2.5)
        answer = desk.why("j")
        assert (answer.blocker is Blocker.QUOTA) is blocked
        if blocked:
            assert "0.5 jobs of its tenant 'acme' may start a second, and 2 wait for that" in answer.detail
            assert answer.facts["in line"] == 2
