"""What `tape why` knows is gathered from events, control topic, queue and share group; all of them in memory here."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fleet_rig import Desk, ago, failure

from producers.fleet import Blocker, Lookout, why
from schemas import past
from schemas.dead import Became, Fate
from schemas.errors import InvalidError, NotFoundError
from schemas.event import EventType, State
from schemas.past import Hint, Past
from schemas.topics import Names
from wire.share.memory import MemoryLog


@pytest.fixture
def desk() -> Desk:
    return Desk()


def decided(desk: Desk, job: str, became: Became, letter: str = "tape.dead.heavy/0/0") -> None:
    fate = Fate(became=became, letter=letter, job=job, kind="heavy", by="eve@desk", time=desk.time)
    value = fate.model_dump_json().encode()
    desk.publisher.publish(desk.names.letters, key=letter.encode(), value=value).result()


class TestGathering:
    def test_a_letter_that_was_discarded_and_one_that_was_restored(self, desk: Desk) -> None:
        desk.publisher.publish(desk.names.letters, key=b"pen x", value=b'{"job": "j"}').result()
        for job in ("j", "k"):
            desk.submit(job)
            desk.tell(job, EventType.DEAD, failure=failure("TAPE-1002"))
        assert "discarded" not in desk.why("j").detail
        desk.time += timedelta(seconds=5)
        decided(desk, "j", Became.DISCARDED)
        assert "It was discarded 0 s ago by eve@desk." in desk.why("j").detail
        assert "discarded" not in desk.why("k").detail
        decided(desk, "j", Became.RESTORED)
        assert "discarded" not in desk.why("j").detail

    def test_nobody_works(self, desk: Desk) -> None:
        desk.submit("j")
        answer = desk.why("j")
        assert (answer.blocker, answer.state, answer.position) == (Blocker.WORKERS, State.QUEUED, 1)

    def test_the_line(self, desk: Desk) -> None:
        for number in range(40):
            desk.submit(f"j{number}")
        desk.present()
        answer = desk.why("j39")
        assert answer.blocker is Blocker.POSITION
        assert answer.ahead is not None
        assert 25 <= answer.ahead <= 39
        assert answer.facts["waiting"] == 40
        taken = {record.key.decode() for record in desk.take(30)}
        left = {f"j{number}" for number in range(40)} - taken
        assert all((desk.why(job).ahead or 0) < 10 for job in left)

    def test_a_line_of_several_tenants(self, desk: Desk) -> None:
        desk.tenant("night", weight=2.0)
        for number in range(40):
            desk.submit(f"flood-{number}", tenant="flood")
        for number in range(3):
            desk.time += timedelta(milliseconds=5)
            desk.submit(f"night-{number}", tenant="night")
        desk.submit("desk-0", tenant="desk")
        desk.time += timedelta(milliseconds=5)
        desk.submit("plain", told=False, tenant="desk")
        desk.present()
        before = desk.why("desk-0").ahead
        assert before is not None
        assert before > 3, "nobody shares: the line is the queue's"
        desk.present(shared=("heavy",))
        # One of the flood's, two of the night's: so many turns have they beside the desk's first.
        answer = desk.why("desk-0")
        assert answer.ahead == 1 + 2
        assert answer.facts["waiting of other tenants"] == {"flood": 40, "night": 3}
        assert desk.why("plain").ahead == 1 + 2 + 3
        # The flood waits behind its own, and behind all that others have.
        last = desk.why("flood-39").ahead
        assert last is not None
        assert 39 + 3 + 2 - 30 <= last <= 39 + 3 + 2
        assert desk.why("night-0").ahead == 1 + 1

    def test_how_fast_it_goes(self, desk: Desk) -> None:
        desk.present()
        for number in range(20):
            desk.submit(f"j{number}")
        for number in range(10):
            desk.end(f"j{number}")
        desk.time += timedelta(seconds=5)
        desk.submit("j")
        answer = desk.why("j")
        assert answer.facts["ended a minute"] == 60.0
        assert answer.expected_start == desk.time + timedelta(seconds=answer.ahead or 0)

    def test_a_plain_clients_job_has_no_events(self, desk: Desk) -> None:
        desk.submit("j", told=False, lane="interactive")
        answer = desk.why("j")
        assert (answer.state, answer.blocker, answer.facts["lane"]) == (State.QUEUED, Blocker.WORKERS, "interactive")

    def test_a_client_that_places_records_by_itself(self, desk: Desk) -> None:
        for partition, told in enumerate((True, False)):
            topic, job = desk.names.jobs("heavy", "bulk"), f"odd-{partition}"
            for part in range(4):
                headers = [("ce_subject", job.encode())] if part == partition else []
                desk.publisher.publish(topic, key=None, value=b"{}", headers=headers, partition=part).result()
            if told:
                desk.tell(job, EventType.QUEUED)
            assert desk.why(job).facts["record"].startswith(f"{topic}/{partition}/")

    def test_the_newest_record_counts(self, desk: Desk) -> None:
        desk.present()
        desk.submit("j")
        desk.take(1)
        desk.time += timedelta(seconds=10)
        until = desk.time + timedelta(seconds=20)
        desk.tell("j", EventType.RETRYING, attempt=1, failure=failure("TAPE-6001"), until=until)
        assert desk.why("j").blocker is Blocker.DELAYED
        desk.time = until + timedelta(seconds=10)
        desk.present()
        assert desk.why("j").blocker is Blocker.MOVER
        desk.submit("j", told=False, headers=past.write((), Past(spent=1, hint=Hint.ALONE)))
        assert desk.why("j").blocker is Blocker.SUSPECT

    def test_a_job_that_ended_is_not_looked_for(self, desk: Desk) -> None:
        desk.submit("j")
        desk.end("j")
        desk.lookout.standing = lambda *_: pytest.fail("nobody needs to know")
        assert desk.why("j").blocker is Blocker.ENDED

    def test_expiry_is_read_from_the_record(self, desk: Desk) -> None:
        desk.present()
        desk.submit("j", expires_at=ago(1).isoformat())
        assert desk.why("j").blocker is Blocker.EXPIRED

    def test_the_moment_before_which_it_is_not_taken_is_read_from_the_record(self, desk: Desk) -> None:
        desk.present()
        later = desk.time + timedelta(hours=1)
        desk.submit("j", not_before=later.isoformat())
        answer = desk.why("j")
        assert (answer.blocker, answer.state, answer.expected_start) == (Blocker.DELAYED, State.QUEUED, later)

    def test_the_submitters_event_may_land_behind_a_workers(self, desk: Desk) -> None:
        desk.present()
        desk.submit("j", told=False)
        desk.take(1)
        until = desk.time + timedelta(seconds=300)
        desk.tell("j", EventType.POSTPONED, until=until)
        desk.tell("j", EventType.QUEUED)
        desk.time += timedelta(seconds=30)
        desk.present()
        answer = desk.why("j")
        assert (answer.blocker, answer.state, answer.expected_start) == (Blocker.DELAYED, State.POSTPONED, until)

    def test_an_unknown_job(self, desk: Desk) -> None:
        desk.submit("other")
        with pytest.raises(NotFoundError) as raised:
            desk.why("j")
        assert raised.value.code == "TAPE-2002"
        with pytest.raises(InvalidError):
            desk.why("no/id")

    def test_searching_ends_in_time(self, desk: Desk) -> None:
        ticks = iter(range(10_000))
        desk.lookout.clock = lambda: float(next(ticks))
        topic = desk.names.jobs("heavy", "bulk")
        for partition, headers in ((0, []), (3, [("ce_subject", b"j")])):
            desk.publisher.publish(topic, key=None, value=b"{}", headers=headers, partition=partition).result()
        desk.tell("j", EventType.QUEUED)
        desk.present()
        answer = desk.why("j")
        assert (answer.blocker, answer.position) == (Blocker.NEXT, None)
        assert "record" not in answer.facts

    def test_a_cluster_without_topics(self) -> None:
        log = MemoryLog()
        with pytest.raises(NotFoundError):
            why(Lookout.memory(log, Names()), "j")
