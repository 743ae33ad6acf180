"""Plans: what goes back, what stays and why, what it costs; patches; and the records that a letter becomes."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dead_rig import KINDS, START, Rig, headers, values

from producers.dead import Filter
from producers.redrive.cost import costs
from producers.redrive.pace import BATCH, BATCH_BYTES, Metronome, Pace, batches, sample
from producers.redrive.patch import Patch
from producers.redrive.plan import estimate
from producers.redrive.state import create, every, load
from schemas.dead import Became
from schemas.errors import ConflictError, InvalidError, JobError, NotFoundError
from schemas.event import EventType
from schemas.outcome import Outcome, Status, Usage
from schemas.past import Past, Try
from schemas.redrive import Line, Phase, Skip
from schemas.topics import Names, topics

SMALLER: list[dict[str, Any]] = [{"op": "add", "path": "/params/batch_size", "value": 1}]


def skips(rig: Rig, **wish: Any) -> dict[str, int]:
    return rig.plan(**wish).redrive.plan.skipped


class TestPlan:
    def test_counts_and_lines(self) -> None:
        rig = Rig()
        for number in range(3):
            rig.bury(f"a{number}", gpu_seconds=10.0)
        rig.bury("b", "training", "TAPE-5002")
        kept = rig.plan()
        plan = kept.redrive.plan
        assert (plan.letters, plan.codes) == (4, {"TAPE-6003": 3, "TAPE-5002": 1})
        assert (plan.classes, plan.kinds) == ({"resource": 3, "dependency": 1}, {"inference": 3, "training": 1})
        assert (plan.estimate.gpu_seconds, plan.estimate.letters, plan.estimate.unknown) == (30.0, 3, 1)
        assert [line.job for line in kept.lines()] == ["a0", "a1", "a2", "b"]
        assert rig.moved() == {}
        assert kept.redrive.phase is Phase.PLANNED

    def test_every_reason_to_stay(self) -> None:
        rig = Rig()
        rig.bury("often", replays=3)
        rig.bury("late", body={"params": {}, "expires_at": (START - timedelta(seconds=1)).isoformat()})
        rig.bury("gone", topic="tape.jobs.inference.gone")
        rig.bury("twin", offset=500)
        rig.bury("twin", offset=500)
        rig.append("tape.dead.inference", b"k", b"v", [("x", b"y")])
        rig.append("tape.dead.inference", None, None, [("__dlq.errors.topic", b"tape.jobs.inference.bulk"),
                                                        ("__dlq.errors.offset", b"9")])  # fmt: skip
        assert skips(rig) == dict.fromkeys(
            [Skip.REPLAYS, Skip.EXPIRED, Skip.TOPIC, Skip.TWIN, Skip.UNTOLD, Skip.EMPTY], 1
        )
        assert rig.plan().redrive.plan.letters == 1
        assert Skip.REPLAYS not in skips(rig, max_replays=4)
        rig.runner(rig.plan().redrive.plan.id).run()
        assert skips(rig)[Skip.REDRIVEN] == 2, "the twin's fate is its own"

    @pytest.mark.parametrize(
        "target",
        [one.name for one in topics(Names(), KINDS) if ".jobs." not in one.name] + ["__consumer_offsets", "__x"],
    )
    def test_no_header_of_a_stranger_leads_into_topics_that_take_no_requests(self, target: str) -> None:
        rig = Rig()
        if target not in rig.log.topics():
            rig.log.create(target, 1)
        rig.append("tape.dead.inference", b"k", b"{}", [("__dlq.errors.topic", target.encode())])
        made = rig.plan()
        assert made.redrive.plan.skipped == {Skip.CLOSED: 1}
        assert [line.detail for line in made.lines()] == [target]
        # A plan of before may name it: it is left when its turn comes.
        old = made.lines()[0].model_copy(update={"skip": None})
        text = old.model_dump_json(exclude_none=True).encode() + b"\n"
        before = len(rig.entries(target))
        fields = {"id": "old", "letters": 1, "sha256": hashlib.sha256(text).hexdigest()}
        runner = rig.runner(create(rig.blobs, made.redrive.plan.model_copy(update=fields), text).redrive.plan.id)
        done = runner.run()
        assert (done.moved, done.left) == (0, 1)
        assert list(runner.left.values()) == [f"TAPE-1004 its original topic takes no requests: {target}"]
        assert not [entry for entry in rig.entries(target)[before:] if entry.key == b"k"]

    def test_where_they_go_is_counted(self) -> None:
        rig = Rig()
        rig.log.create("orders", 1)
        rig.bury("a")
        rig.bury("b")
        rig.append("tape.dead.inference", b"k", b"{}", [("__dlq.errors.topic", b"orders")])
        assert rig.plan().redrive.plan.targets == {"tape.jobs.inference.bulk": 2, "orders": 1}

    def test_a_place_that_no_header_tells_in_its_own_way_is_left_with_the_reason(self) -> None:
        rig = Rig()
        rig.log.create("orders", 1)
        told = [("__dlq.errors.topic", b"orders"), ("__dlq.errors.partition", b"zero")]
        rig.append("tape.dead.inference", b"k", b"{}", told)
        made = rig.plan()
        assert made.redrive.plan.skipped == {Skip.HEADERS: 1}
        assert "__dlq.errors.partition is not a decimal number: b'zero'" in (made.lines()[0].detail or "")

    def test_an_expired_job_can_be_patched_back_to_life(self) -> None:
        rig = Rig()
        rig.bury("late", body={"params": {"model": "m", "prompt": "p"}, "expires_at": "2020-01-01T00:00:00Z"})
        assert skips(rig, patch=[{"op": "remove", "path": "/expires_at"}]) == {}
        assert skips(rig) == {Skip.EXPIRED: 1}

    def test_a_header_tells_the_deadline_too(self) -> None:
        rig = Rig()
        rig.bury("late", headers=[("ce_expirytime", b"2020-01-01T00:00:00Z")])
        rig.bury("nonsense", headers=[("ce_expirytime", b"soon")])
        assert skips(rig) == {Skip.EXPIRED: 1}

    def test_a_plan_is_never_changed(self) -> None:
        rig = Rig()
        rig.bury("a")
        kept = rig.plan()
        plan = kept.redrive.plan
        with pytest.raises(ConflictError):
            create(rig.blobs, plan, rig.blobs.read(f"redrives/{plan.id}/plan.jsonl"))
        with pytest.raises(JobError):
            create(rig.blobs, plan, b"other\n")
        rig.blobs.put(f"redrives/{plan.id}/plan.jsonl", b"")
        with pytest.raises(JobError) as raised:
            kept.lines()
        assert raised.value.code == "TAPE-6007"

    @pytest.mark.parametrize("name", ["nobody", "../x", "", "a/b"])
    def test_an_unknown_redrive(self, name: str) -> None:
        with pytest.raises(NotFoundError) as raised:
            load(Rig().blobs, name)
        assert raised.value.code == "TAPE-2006"

    def test_all_redrives_in_order(self) -> None:
        rig = Rig()
        rig.bury("a")
        names = []
        for _ in range(3):
            names.append(rig.plan().redrive.plan.id)
            rig.sleep(61)
        rig.blobs.put("redrives/broken/state.json", b"{")
        assert [redrive.plan.id for redrive in every(rig.blobs)] == names


class TestCost:
    def test_own_then_mean_then_unknown(self) -> None:
        def line(kind: str, seconds: float | None) -> Line:
            return Line(letter="t/0/0", job="j", kind=kind, failure="resource", code="c", gpu_seconds=seconds)

        found = estimate([line("a", 2.0), line("a", None), line("b", None)], {"a": 5.0})
        assert (found.gpu_seconds, found.letters, found.kinds, found.unknown) == (7.0, 1, 1, 1)
        assert estimate([line("b", None)], {}).gpu_seconds is None

    def test_means_of_the_last_day(self) -> None:
        rig = Rig()

        def ended(job: str, seconds: float, status: Status = Status.SUCCEEDED) -> None:
            outcome = Outcome(job=job, kind="inference", status=status, attempt=1, worker="w", finished_at=rig.time,
                              usage=Usage(seconds=seconds))  # fmt: skip
            rig.tell(job, EventType(status.value), outcome=outcome)

        ended("old", 1000.0)
        rig.sleep(0)
        rig.time += timedelta(days=2)
        ended("a", 2.0)
        ended("b", 4.0)
        ended("c", 500.0, Status.FAILED)
        follower = rig.desk.follower
        assert costs(follower, rig.names, {"inference"}, rig.time) == {"inference": 3.0}
        assert costs(follower, rig.names, {"training"}, rig.time) == {}


class TestPatch:
    def test_it_mends_and_the_original_is_kept_by_reference(self) -> None:
        rig = Rig()
        place = rig.bury("a", headers=[("x-own", b"\xff"), ("traceparent", b"00-1")])
        rig.runner(rig.plan(patch=SMALLER).redrive.plan.id).run()
        (entry,) = rig.jobs()
        assert values([entry])[0]["params"] == {"model": "builtin:m", "prompt": "hi", "batch_size": 1}
        assert headers(entry)["tape-original"] == place.encode()
        assert headers(entry)["x-own"] == b"\xff"
        assert rig.desk.fates()[place].patched
        assert rig.entries("tape.dead.inference")[0].value == b'{"params": {"model": "builtin:m", "prompt": "hi"}}'

    def test_mended_twice_the_first_is_the_original(self) -> None:
        rig = Rig()
        rig.bury("a", headers=[("tape-original", b"tape.dead.inference/0/7")])
        rig.runner(rig.plan(patch=SMALLER).redrive.plan.id).run()
        (entry,) = rig.jobs()
        assert [raw for name, raw in entry.headers if name == "tape-original"] == [b"tape.dead.inference/0/7"]

    def test_in_a_structured_event_the_data_is_mended(self) -> None:
        rig = Rig()
        whole = {"specversion": "1.0", "id": "1", "source": "/d", "type": "t",
                 "data": {"params": {"model": "m", "prompt": "p"}}}  # fmt: skip
        rig.bury("a", body=whole, headers=[("content-type", b"application/cloudevents+json")])
        rig.runner(rig.plan(patch=SMALLER).redrive.plan.id).run()
        assert values(rig.jobs())[0]["data"]["params"]["batch_size"] == 1

    def test_what_it_does_not_fit_stays_and_says_why(self) -> None:
        rig = Rig()
        rig.bury("fits")
        rig.bury("other", body={"other": 1})
        rig.bury("binary", body=b"\xff")
        rig.bury("strict", "training")  # its parameters know no prompt
        patch = [{"op": "test", "path": "/params/model", "value": "builtin:m"},
                 {"op": "replace", "path": "/params/prompt", "value": "ho"}]  # fmt: skip
        kept = rig.plan(patch=patch)
        assert kept.redrive.plan.letters == 1
        assert kept.redrive.plan.skipped == {Skip.PATCH: 2, Skip.MENDED: 1}
        assert all(line.detail for line in kept.lines() if line.skip)

    @pytest.mark.parametrize(
        "text",
        ["{", "{}", "[]", '[{"op": "fly", "path": "/a"}]', '[{"op": "add", "path": "/a"}]',
         '[{"op": "add", "path": "a", "value": 1}]', '[{"path": "/a"}]', "[3]"],
    )  # fmt: skip
    def test_a_wrong_patch_file_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "patch.json"
        path.write_text(text)
        with pytest.raises(InvalidError) as raised:
            Patch.load(path)
        assert raised.value.code == "TAPE-1012"
        assert raised.value.place["file"] == str(path)

    def test_a_patch_without_an_operation_is_called_that(self, tmp_path: Path) -> None:
        path = tmp_path / "patch.json"
        path.write_text("[]")
        with pytest.raises(InvalidError, match="the patch has no operation"):
            Patch.load(path)

    def test_a_patch_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            Patch.load(tmp_path / "none")


class TestBack:
    def test_the_record_goes_back_as_it_was_with_its_past(self) -> None:
        rig = Rig()
        one = Try(attempt=3, ended_at=START, worker="w", failure="crashed", code="TAPE-6002")
        rig.bury(
            "a", headers=[("x-own", b"\xff"), ("x-null", None)], replays=1,
            past=Past(spent=3, replays=1, tries=(one,)), disposition="poison",
            body={"params": {}, "labels": {"a": "b"}, "tenant": "acme"},
        )  # fmt: skip
        rig.runner(rig.plan().redrive.plan.id).run()
        (entry,) = rig.jobs()
        found = headers(entry)
        assert (entry.key, values([entry])[0]["tenant"]) == (b"a", "acme")
        assert (found["tape-attempt"], found["tape-replay"], found["x-own"], found["x-null"]) == (
            b"0",
            b"2",
            b"\xff",
            None,
        )
        assert json.loads(found["tape-past"] or b"")[0]["spent"] is False, "told, but not counted again"
        assert "tape-disposition" in headers(rig.entries(rig.names.dead("inference"))[0])
        assert not [name for name in found if name.startswith(("tape-dead-", "tape-disposition", "tape-original"))]
        (event,) = values(rig.entries(rig.names.events))
        assert (event["type"], event["redrive"], event["job"]) == ("queued", 2, "a")
        assert (event["tenant"], event["labels"]) == ("acme", {"a": "b"})

    def test_a_wait_that_was_too_long_begins_anew(self) -> None:
        rig = Rig()
        crash, wait = (
            Try(attempt=2, ended_at=START, worker="w", failure=failure, code="TAPE-6001", spent=spent)
            for failure, spent in (("crashed", True), ("dependency", False))
        )
        rig.bury("a", code="TAPE-5002", past=Past(spent=1, tries=(crash, wait)))
        rig.runner(rig.plan().redrive.plan.id).run()
        assert [one["failure"] for one in json.loads(headers(rig.jobs()[0])["tape-past"] or b"")] == ["crashed"]

    def test_a_foreign_record_goes_back_without_a_word_to_our_events(self) -> None:
        rig = Rig()
        rig.log.create("orders", 5)
        rig.log.create("orders-dlt", 1)
        rig.append("orders-dlt", b"k", b"\x00\x01", [
            ("x-own", b"1"), ("kafka_dlt-original-topic", b"orders"), ("kafka_dlt-original-partition", b"\0\0\0\x03"),
            ("kafka_dlt-original-offset", b"\0" * 7 + b"\x05"), ("kafka_dlt-exception-fqcn", b"a.B"),
        ])  # fmt: skip
        letters = list(rig.desk.letters(["orders-dlt"]))
        from producers.redrive.plan import Wish, plan

        made, text = plan(Wish(Filter(), rig.desk.topics(), rig.time, "o@d"), letters, lambda kinds: {})
        done = rig.runner(create(rig.blobs, made, text).redrive.plan.id, Pace(canary=1)).run()
        assert done.phase is Phase.DONE
        (entry,) = rig.entries("orders")
        assert (entry.partition, entry.key, entry.value) == (3, b"k", b"\x00\x01")
        assert headers(entry) == {"x-own": b"1", "tape-replay": b"1"}
        assert rig.entries(rig.names.events) == []
        assert rig.desk.find("orders-dlt/0/0").status == Became.REDRIVEN


class TestPace:
    def test_a_sample_stands_for_all(self) -> None:
        def line(number: int, code: str) -> Line:
            return Line(letter=f"t/0/{number}", job=str(number), kind="k", failure="resource", code=code)

        lines = [line(number, "common") for number in range(50)] + [line(50, "rare"), line(51, "rare")]
        assert [one.job for one in sample(lines, 4)] == ["0", "50", "1", "51"]
        assert len(sample(lines, 100)) == 52
        assert len({one.letter for one in sample(lines, 52)}) == 52
        assert sample(lines, 0) == []

    def test_batches_are_bounded_in_number_and_bytes(self) -> None:
        rig = Rig()
        for number in range(7):
            rig.bury(f"job-{number}", body=b"x" * (BATCH_BYTES // 3 if number < 4 else 9))
        rig.bury("huge", body=b"x" * BATCH_BYTES)
        letters = list(rig.desk.letters(rig.desk.dead()))
        made = list(batches(letters, 3))
        assert [letter for batch in made for letter in batch] == letters
        assert all(len(batch) <= 3 for batch in made)
        assert all(
            len(batch) == 1 or sum(len(one.record.value or b"") for one in batch) <= BATCH_BYTES for batch in made
        )
        assert list(batches([], 3)) == []

    def test_a_low_rate_is_even_and_idle_time_makes_no_burst(self) -> None:
        now = [0.0]
        beat = Metronome(2.0, lambda: now[0])
        assert (beat.size, beat.left()) == (1, 0.0)
        beat.went(1)
        assert beat.left() == 0.5
        now[0] = 100.0
        beat.went(1)
        assert beat.left() == 0.5
        assert Metronome(None, lambda: 0.0).size == BATCH
        assert Metronome(100.0, lambda: 0.0).size == 25
