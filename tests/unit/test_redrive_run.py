"""Running a redrive: canary, ramp, halts, other people's words in between, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from dead_rig import Rig, headers

from producers.dead import Filter
from producers.redrive.pace import Pace
from producers.redrive.run import Runner
from producers.redrive.state import halt, load
from producers.redrive.survey import survey
from producers.redrive.watch import Tally, trips
from schemas.errors import AuthError, ConflictError, InvalidError, TimeoutExceeded, UnavailableError
from schemas.event import EventType
from schemas.redrive import Phase, Redrive
from wire.share.memory import MemoryLog
from wire.transact import MemoryTransactor, Outgoing

GOOD: Callable[[str], EventType] = lambda job: EventType.SUCCEEDED  # noqa: E731
BAD: Callable[[str], EventType] = lambda job: EventType.DEAD  # noqa: E731


def filled(count: int = 40, **more: Any) -> tuple[Rig, str]:
    rig = Rig()
    for number in range(count):
        rig.bury(f"job-{number}", **more)
    return rig, rig.plan().redrive.plan.id


class TestCanary:
    def test_a_good_canary_is_followed_by_the_rest(self) -> None:
        rig, name = filled()
        seen: list[tuple[Phase, int]] = []
        done = rig.runner(
            name,
            Pace(canary=5),
            sleep=rig.play(GOOD),
            report=lambda redrive: seen.append((redrive.phase, redrive.moved)),
        ).run()
        assert (done.phase, done.moved, done.canary_passed) == (Phase.DONE, 40, True)
        assert max(moved for phase, moved in seen if phase is Phase.CANARY) <= 5
        assert set(rig.moved().values()) == {1}

    def test_a_bad_canary_halts_and_the_rest_stays(self) -> None:
        rig, name = filled()
        done = rig.runner(name, Pace(canary=5, halt_above=20), sleep=rig.play(BAD)).run()
        assert (done.phase, done.moved, done.failed) == (Phase.HALTED, 5, 5)
        assert "5 of 5 redriven jobs that ended have failed again" in done.notes[-1].what
        assert sum(rig.moved().values()) == 5
        found = survey(rig.desk, done)
        assert (found.moved, found.tally, len(found.failures)) == (5, Tally(5, 5, 5), 5)

    def test_after_a_halt_a_fresh_canary_goes_first_and_old_failures_do_not_count(self) -> None:
        rig, name = filled()
        rig.runner(name, Pace(canary=5), sleep=rig.play(BAD)).run()
        rig.sleep(60)
        done = rig.runner(name, Pace(canary=3), sleep=rig.play(GOOD)).run()
        assert (done.phase, done.moved, done.failed) == (Phase.DONE, 40, 0)
        assert any(note.what == "canary passed: 3 of 3 did not fail again" for note in done.notes)

    def test_after_a_halt_in_the_ramp_a_canary_goes_first_again(self) -> None:
        rig, name = filled(60)
        bad = [False]
        ends = rig.play(lambda job: EventType.DEAD if bad[0] else EventType.SUCCEEDED)

        def sleep(seconds: float) -> None:
            ends(seconds)
            bad[0] = bool(load(rig.blobs, name).redrive.canary_passed)

        pace = Pace(canary=2, rate=8, halt_above=10)
        assert rig.runner(name, pace, sleep=sleep).run().phase is Phase.HALTED
        before = sum(rig.moved().values())
        done = rig.runner(name, sleep=rig.play(BAD)).run()
        assert (done.phase, sum(rig.moved().values())) == (Phase.HALTED, before + 2)

    def test_it_halts_as_soon_as_it_is_certain(self) -> None:
        rig, name = filled()
        first = {"job-0", "job-1"}

        def ends(job: str) -> EventType:
            return EventType.DEAD if job in first else EventType.PROGRESS

        done = rig.runner(name, Pace(canary=5, halt_above=20), sleep=rig.play(ends)).run()
        assert (done.phase, done.settled, done.failed) == (Phase.HALTED, 2, 2)

    def test_what_happened_before_the_return_does_not_count(self) -> None:
        rig, name = filled(3)
        rig.tell("job-0", EventType.DEAD)
        rig.tell("job-1", EventType.QUEUED)
        done = rig.runner(name, Pace(canary=3), sleep=rig.play(GOOD)).run()
        assert (done.settled, done.failed) == (3, 0)

    def test_an_earlier_redrive_of_a_job_of_the_same_name_does_not_count(self) -> None:
        rig, name = filled(3)
        rig.runner(name, Pace(canary=3, halt_above=100), sleep=rig.play(BAD)).run()
        for number in range(3):  # the desk sends them anew under the same ids, wrong again
            rig.bury(f"job-{number}")
        fresh = rig.plan().redrive.plan.id
        with pytest.raises(TimeoutExceeded, match="the canary has not ended within 5 s, 3 to go"):
            rig.runner(fresh, Pace(canary=3, canary_timeout_s=5)).run()
        done = load(rig.blobs, fresh).redrive
        assert (done.phase, done.moved, done.failed) == (Phase.CANARY, 3, 0)

    def test_where_none_was_sent_nothing_has_passed(self) -> None:
        rig = Rig()
        rig.log.create("orders", 1)
        for _ in range(3):
            rig.append("tape.dead.inference", b"k", b"{}", [("__dlq.errors.topic", b"orders")])
        done = rig.runner(rig.plan().redrive.plan.id, Pace(canary=2)).run()
        told = [note.what for note in done.notes]
        assert "went on without a canary: the outcomes of the 2 moved are not followed" in told
        assert not [what for what in told if "passed" in what]


class Denying(MemoryTransactor):
    """A broker whose access list keeps us out of some topics."""

    def __init__(self, log: MemoryLog, name: str, denied: set[str]) -> None:
        super().__init__(log, name)
        self._denied = denied

    def commit(self, records: Sequence[Outgoing], *more: Any, **others: Any) -> None:
        if self._denied & {one.topic for one in records}:
            raise AuthError("TopicAuthorizationFailed: AddPartitionsToTxnRequest", code="TAPE-4003")
        super().commit(records, *more, **others)


class TestDenied:
    """A topic that we may not write to."""

    def mixed(self, denied: set[str]) -> tuple[Rig, Runner]:
        rig = Rig()
        rig.log.create("secret", 1)
        for number in range(4):
            rig.bury(f"job-{number}")
            rig.append("tape.dead.inference", b"k", b"{}", [("__dlq.errors.topic", b"secret")])
        name = rig.plan().redrive.plan.id
        desk = replace(rig.fresh(), transactor=lambda name: Denying(rig.log, name, denied))
        return rig, rig.runner(name, desk=desk)

    def test_its_letters_are_left_and_the_others_move_on(self) -> None:
        rig, runner = self.mixed({"secret"})
        done = runner.run()
        assert (done.phase, done.moved, done.left) == (Phase.DONE, 4, 4)
        assert set(runner.left.values()) == {
            "TAPE-4003 TopicAuthorizationFailed: AddPartitionsToTxnRequest, for secret"
        }
        assert set(rig.moved().values()) == {1}
        assert rig.plan().redrive.plan.letters == 4, "they wait for somebody who may"

    def test_where_nothing_can_be_decided_it_stops_and_goes_on_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        denied: set[str] = set()
        rig, runner = self.mixed(denied)

        learn = runner._carrier.learn

        def learned(lines: Any) -> None:
            learn(lines)
            denied.update({rig.names.letters, "secret", "tape.jobs.inference.bulk"})

        monkeypatch.setattr(runner._carrier, "learn", learned)
        with pytest.raises(AuthError):
            runner.run()
        assert rig.moved() == {}
        denied.clear()
        name = runner._kept.redrive.plan.id
        assert rig.runner(name).run().moved == 8


class TestTwoLettersOfOneJob:
    """One bad submission that was sent twice under one key: two dead records, and one job."""

    @pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "expired", "dead"])
    @pytest.mark.parametrize("pace", [Pace(canary=1), Pace(canary=2), Pace(rate=1), Pace()], ids=str)
    def test_it_ends_however_the_job_does(self, pace: Pace, end: str) -> None:
        rig, _ = filled(1)
        rig.bury("job-0")
        name = rig.plan().redrive.plan.id
        told: set[tuple[int, int]] = set()

        def sleep(seconds: float) -> None:  # a worker tells of every record, also of one whose job it knows
            rig.sleep(seconds)
            for entry in rig.jobs():
                if (place := (entry.partition, entry.offset)) not in told:
                    told.add(place)
                    rig.tell("job-0", EventType(end))

        done = rig.runner(name, replace(pace, halt_above=100, wait=True), sleep=sleep).run()
        failed = 2 if end in {"failed", "expired", "dead"} else 0
        assert (done.phase, done.moved, done.settled, done.failed) == (Phase.DONE, 2, 2, failed)
        found = survey(rig.desk, done)
        assert (found.tally, found.failures) == (Tally(2, 2, failed), ["job-0"] if failed else [])

    def test_a_bad_canary_halts_and_the_other_letter_stays(self) -> None:
        rig, _ = filled(1)
        rig.bury("job-0")
        done = rig.runner(rig.plan().redrive.plan.id, Pace(canary=1), sleep=rig.play(BAD)).run()
        assert (done.phase, done.moved, done.failed) == (Phase.HALTED, 1, 1)

    def test_the_second_needs_no_word_of_its_own_once_the_job_has_ended(self) -> None:
        rig, _ = filled(1)
        rig.bury("job-0")
        done = rig.runner(rig.plan().redrive.plan.id, Pace(canary=1, wait=True), sleep=rig.play(GOOD)).run()
        assert (done.phase, done.settled, done.failed) == (Phase.DONE, 2, 0)

    def test_a_death_is_no_end_for_a_letter_that_returns_after_it(self) -> None:
        rig, _ = filled(1)
        rig.bury("job-0")
        pace = Pace(canary=1, canary_timeout_s=5, halt_above=100, wait=True)
        first = rig.play(BAD)

        def sleep(seconds: float) -> None:
            first(seconds)
            if len(rig.jobs()) == 2:
                rig.tell("job-0", EventType.SUCCEEDED)

        done = rig.runner(rig.plan().redrive.plan.id, pace, sleep=sleep).run()
        assert (done.phase, done.settled, done.failed) == (Phase.DONE, 2, 1)


class TestRamp:
    def test_it_halts_by_itself_when_too_many_fail(self) -> None:
        rig, name = filled(200)
        done = rig.runner(name, Pace(rate=40, halt_above=25), sleep=rig.play(BAD)).run()
        assert done.phase is Phase.HALTED
        assert 10 <= done.moved < 60
        assert sum(rig.moved().values()) == done.moved

    def test_some_failures_are_endured(self) -> None:
        rig, name = filled(100)
        ends = rig.play(lambda job: EventType.DEAD if job.endswith("7") else EventType.SUCCEEDED)
        done = rig.runner(name, Pace(rate=50, halt_above=25, wait=True), sleep=ends).run()
        assert (done.phase, done.moved, done.failed, done.settled) == (Phase.DONE, 100, 10, 100)

    def test_it_keeps_its_rate(self) -> None:
        rig, name = filled(100)
        rig.runner(name, Pace(rate=10)).run()
        assert 9 <= rig.waited <= 11

    @pytest.mark.parametrize(
        ("tally", "percent", "least", "expected"),
        [(Tally(9, 9, 9), 0, 10, False), (Tally(10, 10, 2), 20, 10, False), (Tally(10, 10, 3), 20, 10, True),
         (Tally(5, 0, 0), 0, 0, False), (Tally(1, 1, 1), 100, 1, False), (Tally(50, 10, 1), 0, 10, True)],
    )  # fmt: skip
    def test_when_it_trips(self, tally: Tally, percent: float, least: int, expected: bool) -> None:
        assert trips(tally, percent, least) is expected


class TestOthers:
    def test_somebody_halts_it_and_it_goes_on_later(self) -> None:
        rig, name = filled(60)
        calls = [0]

        def sleep(seconds: float) -> None:
            rig.sleep(seconds)
            calls[0] += 1
            if calls[0] == 20:
                halt(rig.blobs, name, by="eve@desk", now=rig.time, reason="lunch")

        done = rig.runner(name, Pace(rate=8), sleep=sleep).run()
        assert done.phase is Phase.HALTED
        assert 0 < done.moved < 60
        assert (done.notes[-1].by, done.notes[-1].what) == ("eve@desk", "halted on request: lunch")
        assert rig.runner(name).run().phase is Phase.DONE
        assert set(rig.moved().values()) == {1}
        assert len(rig.moved()) == 60
        with pytest.raises(ConflictError) as raised:
            halt(rig.blobs, name, by="eve", now=rig.time, reason="")
        assert raised.value.code == "TAPE-3007"

    def test_a_second_runner_stops_the_first(self) -> None:
        rig, name = filled(60)
        second: list[Redrive] = []

        def sleep(seconds: float) -> None:
            rig.sleep(seconds)
            if not second:
                second.append(rig.runner(name, Pace(rate=1000)).run())

        with pytest.raises(ConflictError) as raised:
            rig.runner(name, Pace(rate=8), sleep=sleep).run()
        assert raised.value.code == "TAPE-3006"
        assert second[0].phase is Phase.DONE
        assert set(rig.moved().values()) == {1}

    def test_two_plans_that_overlap_move_each_letter_once(self) -> None:
        rig, first = filled(20)
        second = rig.plan(Filter(jobs=tuple(f"job-{number}" for number in range(10, 30)))).redrive.plan.id
        rig.bury("job-25")
        assert rig.runner(first).run().moved == 20
        done = rig.runner(second).run()
        assert (done.moved, done.left) == (0, 10)
        assert set(rig.moved().values()) == {1}

    def test_running_a_done_plan_moves_nothing(self) -> None:
        rig, name = filled(5)
        rig.runner(name).run()
        assert rig.runner(name).run().phase is Phase.DONE
        assert sum(rig.moved().values()) == 5

    def test_a_job_that_dies_again_is_a_new_letter_until_it_was_replayed_too_often(self) -> None:
        rig, name = filled(1)
        for replay in (1, 2, 3):
            rig.runner(name).run()
            entry = rig.jobs()[-1]
            assert headers(entry)["tape-replay"] == str(replay).encode()
            rig.bury("job-0", replays=replay)
            name = rig.plan().redrive.plan.id
        assert load(rig.blobs, name).redrive.plan.skipped == {"already redriven": 3, "replayed too often": 1}


class TestTrouble:
    def test_a_letter_that_is_refused_stays_and_the_others_go(self) -> None:
        rig, name = filled(20)
        limits = {rig.names.jobs("inference", "bulk"): 60}
        rig.bury("large", body={"params": {"prompt": "x" * 100}})
        name = rig.plan().redrive.plan.id
        desk = rig.fresh()
        desk.transactor = lambda name: MemoryTransactor(rig.log, name, limits=limits)
        runner = rig.runner(name, desk=desk)
        done = runner.run()
        assert (done.moved, done.left) == (20, 1)
        (why,) = runner.left.values()
        assert why.startswith("TAPE-1006")
        assert rig.desk.find("large").status == "waiting"

    def test_a_letter_that_is_gone_is_told(self) -> None:
        rig, _ = filled(2)
        kept = rig.plan()
        fake = kept.redrive.plan.model_copy(update={"id": "20300102-0900-gone"})
        text = rig.blobs.read(f"redrives/{kept.redrive.plan.id}/plan.jsonl").replace(b'/1"', b'/77"')
        import hashlib

        from producers.redrive.state import create

        create(rig.blobs, fake.model_copy(update={"sha256": hashlib.sha256(text).hexdigest()}), text)
        runner = rig.runner(fake.id)
        assert runner.run().moved < 2
        assert "the letter is gone" in runner.left.values()

    def test_a_broker_that_stays_away_ends_the_run_and_resuming_is_safe(self) -> None:
        rig, name = filled(5)

        class Away(MemoryTransactor):
            def commit(self, *given: Any, **more: Any) -> None:
                raise UnavailableError("gone")

        desk = rig.fresh()
        desk.transactor = lambda name: Away(rig.log, name)
        with pytest.raises(UnavailableError):
            rig.runner(name, desk=desk).run()
        assert load(rig.blobs, name).redrive.phase is Phase.RAMPING
        assert rig.runner(name).run().moved == 5

    def test_ctrl_c_halts_it_with_a_note(self) -> None:
        rig, name = filled(5)

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rig.runner(name, Pace(canary=2), sleep=interrupt).run()
        kept = load(rig.blobs, name).redrive
        assert (kept.phase, kept.moved) == (Phase.HALTED, 2)
        assert kept.notes[-1].what == "halted: interrupted after 2 letters"

    def test_a_topic_of_fates_that_is_missing_is_named(self) -> None:
        rig, name = filled(1)
        del rig.log._topics[rig.names.letters]
        with pytest.raises(Exception, match="does not exist") as raised:
            rig.runner(name).run()
        assert getattr(raised.value, "code", "") == "TAPE-2004"
        assert not isinstance(raised.value, InvalidError)
