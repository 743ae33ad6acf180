"""Dead letters read: whose headers they are, what became of them, which ones a filter takes, and verbatim exports."""

from __future__ import annotations

import json
import struct
from datetime import timedelta
from typing import Any

import pytest
from dead_rig import START, Rig
from hypothesis import given
from hypothesis import strategies as st

from producers.dead import Filter, Letter, origin
from producers.dead.export import line, parse
from producers.dead.origin import Dialect
from producers.dead.view import people
from producers.redrive.decide import decide, resend
from schemas.dead import HEADER, Became, Place
from schemas.errors import InvalidError, NotFoundError
from schemas.past import LINE, Past, Try
from schemas.topics import Names

ORIGINALS = [("ce_subject", b"desk-7"), ("x-own", b"\xff\x00"), ("x-null", None)]
SPRING = [
    ("kafka_dlt-original-topic", b"orders"), ("kafka_dlt-original-partition", struct.pack(">i", 3)),
    ("kafka_dlt-original-offset", struct.pack(">q", 4_000_000_000)),
    ("kafka_dlt-original-timestamp", struct.pack(">q", 1_893_574_800_000)),
    ("kafka_dlt-original-timestamp-type", b"CreateTime"), ("kafka_dlt-original-consumer-group", b"billing"),
    ("kafka_dlt-exception-fqcn", b"org.springframework.kafka.listener.ListenerExecutionFailedException"),
    ("kafka_dlt-exception-cause-fqcn", b"com.acme.Orders$RateLimited"),
    ("kafka_dlt-exception-message", b"429 from upstream"), ("kafka_dlt-exception-stacktrace", b"at com.acme..."),
]  # fmt: skip
CONNECT = [
    ("__connect.errors.topic", b"orders"), ("__connect.errors.partition", b"3"), ("__connect.errors.offset", b"17"),
    ("__connect.errors.connector.name", b"s3"), ("__connect.errors.task.id", b"0"),
    ("__connect.errors.stage", b"VALUE_CONVERTER"), ("__connect.errors.class.name", b"org.apache.JsonConverter"),
    ("__connect.errors.exception.class.name", b"org.apache.kafka.connect.errors.DataException"),
    ("__connect.errors.exception.message", b"no schema"), ("__connect.errors.exception.stacktrace", b"at org..."),
]  # fmt: skip
SHARE = [
    ("__dlq.errors.topic", b"orders"), ("__dlq.errors.partition", b"3"), ("__dlq.errors.offset", b"17"),
    ("__dlq.errors.group", b"billing"), ("__dlq.errors.delivery.count", b"5"),
    ("__dlq.errors.message", b"Offset rejected by client."),
]  # fmt: skip
STREAMS = [
    ("__streams.errors.topic", b"orders"), ("__streams.errors.partition", b"3"), ("__streams.errors.offset", b"17"),
    ("__streams.errors.exception", b"java.lang.NullPointerException"), ("__streams.errors.message", b"null"),
    ("__streams.errors.stacktrace", b"at java..."),
]  # fmt: skip


class TestForeign:
    @pytest.mark.parametrize(
        ("headers", "dialect", "place", "code", "who", "message"),
        [
            (SPRING, Dialect.SPRING, "orders/3/4000000000", "RateLimited", "billing", "429 from upstream"),
            (CONNECT, Dialect.CONNECT, "orders/3/17", "DataException", "s3/0", "no schema"),
            (SHARE, Dialect.SHARE, "orders/3/17", "rejected", "billing", "Offset rejected by client."),
            (STREAMS, Dialect.STREAMS, "orders/3/17", "NullPointerException", "", "null"),
        ],
    )
    def test_every_dialect(
        self, headers: list[Any], dialect: Dialect, place: str, code: str, who: str, message: str
    ) -> None:
        found = origin.read([*ORIGINALS, *headers])
        assert (found.dialect, found.place, found.code, found.who) == (dialect, place, code, who)
        assert (found.message, found.target, found.failure) == (message, "orders", "foreign")
        assert origin.original([*ORIGINALS, *headers]) == ORIGINALS

    def test_with_retry_topics_the_first_topic_is_the_true_one_and_the_last_place_this_records(self) -> None:
        again = [("kafka_dlt-original-topic", b"orders-retry-0"), ("kafka_dlt-original-offset", struct.pack(">q", 2))]
        found = origin.read([*SPRING, *again])
        assert (found.target, found.place) == ("orders", "orders-retry-0/3/2")

    @pytest.mark.parametrize(
        ("raw", "number"),
        [(b"12345678", 12345678), (b"1234", 1234), (b"7", 7), (struct.pack(">q", 7), None), (b"", None),
         (b"zero", None), (b"-1", None), (b"\xff" * 3, None), (b"9" * 30, None)],
    )  # fmt: skip
    @pytest.mark.parametrize("prefix", ["__dlq.errors.", "__connect.errors.", "__streams.errors."])
    @pytest.mark.parametrize("name", ["partition", "offset"])
    def test_numbers_in_text(self, raw: bytes, number: int | None, prefix: str, name: str) -> None:
        found = origin.read([(f"{prefix}topic", b"t"), (prefix + name, raw)])
        assert getattr(found, name) == number
        told = f"the header {prefix}{name} is not a decimal number: {raw!r}"
        assert found.wrong == ("" if number is not None or not raw else told)

    @pytest.mark.parametrize(
        ("name", "raw", "number"),
        [("partition", struct.pack(">i", 7), 7), ("offset", struct.pack(">q", 7), 7), ("partition", b"", None),
         ("partition", b"7", None), ("partition", struct.pack(">q", 7), None), ("offset", struct.pack(">i", 7), None),
         ("offset", b"\xff" * 8, None), ("offset", b"9" * 30, None), ("timestamp", b"now", None)],
    )  # fmt: skip
    def test_numbers_of_spring_are_an_int_or_a_long(self, name: str, raw: bytes, number: int | None) -> None:
        found = origin.read([("kafka_dlt-original-topic", b"t"), (f"kafka_dlt-original-{name}", raw)])
        assert name == "timestamp" or getattr(found, name) == number
        told = f"the header kafka_dlt-original-{name} is not a big-endian integer: {raw[:32]!r}"
        assert found.wrong == ("" if number is not None or not raw else told)

    @given(st.lists(st.tuples(st.sampled_from(["kafka_dlt-", "__connect.errors.", "__dlq.errors.", "__streams.errors.",
                                               HEADER]), st.sampled_from(["topic", "original-topic", "offset", "json",
                                               "partition", "original-timestamp", "time", "original-offset"]),
                              st.none() | st.binary(max_size=12))))  # fmt: skip
    def test_nonsense_is_read_too(self, made: list[tuple[str, str, bytes | None]]) -> None:
        headers = [(prefix + name, raw) for prefix, name, raw in made]
        found = origin.read(headers)
        assert found.dialect in set(Dialect)
        assert origin.original(headers) == []

    def test_a_letter_of_ours_whose_json_cannot_be_read_is_told_by_its_flat_headers(self) -> None:
        flat = {"topic": "tape.jobs.inference.bulk", "partition": "1", "offset": "5", "class": "resource",
                "code": "TAPE-6003", "message": "oom", "attempts": "3", "worker": "w", "time": "2030-01-02T09:00:00Z",
                "json": "{"}  # fmt: skip
        found = origin.read([(HEADER + name, text.encode()) for name, text in flat.items()])
        assert (found.place, found.code, found.attempts) == ("tape.jobs.inference.bulk/1/5", "TAPE-6003", 3)

    def test_a_share_groups_letter_of_our_own_topic_is_a_job_of_ours(self) -> None:
        rig = Rig()
        headers = [("ce_subject", b"desk-7"), ("__dlq.errors.topic", b"tape.jobs.training.bulk"),
                   ("__dlq.errors.partition", b"0"), ("__dlq.errors.offset", b"1")]  # fmt: skip
        rig.log.create("dlq.x", 1)
        rig.append("dlq.x", b"k", b"{}", headers)
        (letter,) = rig.desk.letters(["dlq.x"])
        assert (letter.job, letter.kind, letter.lane) == ("desk-7", "training", ("training", "bulk"))


class TestLetters:
    def test_everything_of_a_letter(self) -> None:
        rig = Rig()
        one = Try(attempt=1, started_at=START, ended_at=START, worker="w-9", failure="resource", code="TAPE-6003")
        rig.bury("a", body={"params": {"base": "builtin:b"}, "tenant": "acme"}, past=Past(spent=1, tries=(one,)),
                 gpu_seconds=12.5, trace="abc", disposition="poison", replays=2)  # fmt: skip
        (letter,) = rig.desk.letters(rig.desk.dead())
        assert (letter.tenant, letter.model, letter.gpu_seconds, letter.replays) == ("acme", "builtin:b", 12.5, 2)
        assert letter.status == "waiting"
        told = people(letter, 1000)
        assert told["failure"].startswith("TAPE-6003 (resource) out of memory")
        assert "w-9" in told["try 1"]
        assert '"base": "builtin:b"' in told["payload"]
        assert (told["verdict"], told["trace"]) == ("poison", "abc")
        assert letter.row()["verdict"] == "poison"

    def test_a_letter_that_an_old_worker_wrote(self) -> None:
        rig = Rig()
        rig.bury("a", body=b"\xff\xfe")
        (letter,) = rig.desk.letters(rig.desk.dead())
        assert (letter.tenant, letter.model, letter.gpu_seconds, letter.body) == ("default", "", None, {})
        assert people(letter, 1000)["payload"].startswith("base64 ")

    def test_found_by_job_and_by_place_and_not_at_all(self) -> None:
        rig = Rig()
        places = [rig.bury("a"), rig.bury("b"), rig.bury("a")]
        assert str(rig.desk.find("a").place) == places[2]
        assert rig.desk.find(places[1]).job == "b"
        for text in ("nobody", "tape.dead.inference/0/99", "tape.dead.inference/9/0"):
            with pytest.raises(NotFoundError) as raised:
                rig.desk.find(text)
            assert raised.value.code == "TAPE-2005"
        with pytest.raises(NotFoundError, match="does not exist"):
            rig.desk.dead(["nonsense"])

    def test_two_copies_of_one_record_leave_one_letter_to_decide_on(self) -> None:
        """A worker died between the copy and the acknowledgement, and both were buried."""
        rig = Rig()
        topic = rig.names.jobs("inference", "bulk")
        rig.bury("j", offset=7)
        rig.bury("j", offset=100, headers=[(LINE, f"{topic}/0/7".encode())])
        rig.bury("j", offset=101)
        first, second, other = rig.desk.letters(rig.desk.dead())
        assert (first.status, second.status, other.status) == ("waiting", "twin", "waiting")

    def test_what_became_of_one_counts_for_its_twin(self) -> None:
        rig = Rig()
        rig.bury("a", offset=7)
        rig.bury("a", offset=7)
        first, second = rig.desk.letters(rig.desk.dead())
        assert (first.status, second.status) == ("waiting", "twin")
        decide(rig.desk, [second], Became.DISCARDED, "no")
        assert [letter.status for letter in rig.desk.letters(rig.desk.dead())] == ["discarded", "discarded"]
        again = decide(rig.desk, [first], Became.DISCARDED, "no")
        assert (again.done, again.others) == (0, {"already discarded": 1})
        assert decide(rig.desk, [first], Became.RESTORED, "oh").done == 1
        assert [letter.status for letter in rig.desk.letters(rig.desk.dead())] == ["waiting", "twin"]

    def test_a_place_is_its_text(self) -> None:
        assert Place.parse("tape.dead.x/3/14") == ("tape.dead.x", 3, 14)
        assert str(Place("t", 1, 2)) == "t/1/2"
        for text in ("", "t", "t/1", "t/1/x", "/1/2", "t/1/2/3", "t/²/1"):
            assert Place.parse(text) is None


class TestFilters:
    @pytest.mark.parametrize(
        ("given", "jobs"),
        [
            ({}, "abc"), ({"kinds": ("training",)}, "c"), ({"codes": ("TAPE-5002",)}, "b"),
            ({"classes": ("resource",)}, "ac"), ({"tenants": ("acme",)}, "b"), ({"text": "CUDA"}, "a"),
            ({"text": "/cuda.*GiB/"}, "a"), ({"text": "cuda.*gib"}, ""), ({"model": "llama"}, "b"),
            ({"attempt": ">=3"}, "ac"), ({"attempt": "1"}, "b"), ({"attempt": "<2"}, "b"),
            ({"since": START + timedelta(minutes=5)}, "bc"), ({"until": START + timedelta(minutes=5)}, "a"),
            ({"jobs": ("a", "c")}, "ac"), ({"kinds": ("inference",), "codes": ("TAPE-5002", "TAPE-6003")}, "ab"),
        ],
    )  # fmt: skip
    def test_which_letters_are_meant(self, given: dict[str, Any], jobs: str) -> None:
        rig = Rig()
        rig.bury("a", message="CUDA out of memory: 2 GiB")
        rig.sleep(600)
        rig.bury("b", code="TAPE-5002", attempts=1, body={"params": {"model": "llama-3"}, "tenant": "acme"})
        rig.bury("c", "training")
        found = rig.desk.select(Filter(**given), rig.desk.dead())
        assert sorted(letter.job for letter in found) == sorted(jobs)
        assert set(Filter(**given).told()) == {{"kinds": "kind", "codes": "code", "classes": "class", "jobs": "job",
                                                "tenants": "tenant"}.get(name, name) for name in given}  # fmt: skip

    @pytest.mark.parametrize(
        ("given", "field"),
        [({"classes": ("weird",)}, "--class"), ({"attempt": "many"}, "--attempt"), ({"text": "/(/"}, "--text"),
         ({"since": START, "until": START}, "--until")],
    )  # fmt: skip
    def test_nonsense_is_refused(self, given: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidError) as raised:
            Filter(**given)
        assert (raised.value.code, raised.value.place["field"]) == ("TAPE-1010", field)


class TestExport:
    @given(
        st.none() | st.binary(max_size=30), st.none() | st.binary(max_size=30),
        st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
                           st.none() | st.binary(max_size=9)), max_size=4),
    )  # fmt: skip
    def test_every_byte_comes_back(self, key: bytes | None, value: bytes | None, headers: list[Any]) -> None:
        rig = Rig()
        rig.append("tape.dead.inference", key, value, headers)
        (letter,) = rig.desk.letters(["tape.dead.inference"])
        text = json.dumps(line(letter), ensure_ascii=False).encode()
        ((again, mended),) = parse([text, b""], Names(), "f")
        assert (again.record[:6], mended) == (letter.record[:6], False)

    def test_a_mended_export_goes_back_once_with_the_original_by_reference(self) -> None:
        rig = Rig()
        place, _ = rig.bury("a"), rig.bury("b")
        rows = [line(letter) for letter in rig.desk.letters(rig.desk.dead())]
        rows[0]["value"] = json.dumps({"params": {"model": "builtin:m", "prompt": "better"}})
        lines = [json.dumps(row).encode() for row in rows]
        assert resend(rig.desk, parse(lines, rig.names, "f"), "mended").done == 2
        again = resend(rig.desk, parse(lines, rig.names, "f"), "mended")
        assert (again.done, again.others) == (0, {"already redriven": 2})
        assert rig.moved() == {"a": 1, "b": 1}
        mended = next(entry for entry in rig.jobs() if entry.key == b"a")
        assert dict(mended.headers)["tape-original"] == place.encode()
        assert b"better" in (mended.value or b"")
        assert "tape-original" not in dict(next(entry for entry in rig.jobs() if entry.key == b"b").headers)
        assert rig.desk.fates()[place].patched

    def test_an_export_may_name_another_topic_to_go_to(self) -> None:
        rig = Rig()
        rig.append("tape.dead.inference", b"a", b"{}", [("x", b"y")])
        (letter,) = rig.desk.letters(rig.desk.dead())
        row = line(letter)
        assert resend(rig.desk, parse([json.dumps(row).encode()], rig.names, "f"), "").others == {
            "nothing tells the letter's original topic": 1
        }
        row["target"] = "tape.control"
        assert resend(rig.desk, parse([json.dumps(row).encode()], rig.names, "f"), "").others == {
            "its original topic takes no requests: tape.control": 1
        }
        row["target"] = "tape.jobs.inference.interactive"
        assert resend(rig.desk, parse([json.dumps(row).encode()], rig.names, "f"), "").done == 1
        assert len(rig.jobs(lane="interactive")) == 1

    @pytest.mark.parametrize(
        ("change", "field"),
        [({"letter": "x"}, "letter"), ({"headers": 3}, "headers"), ({"headers": [["a"]]}, "headers"),
         ({"value": 3}, "value"), ({"key": {"base64": "%"}}, "key")],
    )  # fmt: skip
    def test_a_wrong_line_is_named(self, change: dict[str, Any], field: str) -> None:
        rig = Rig()
        rig.bury("a")
        (letter,) = rig.desk.letters(rig.desk.dead())
        text = json.dumps(line(letter) | change).encode()
        with pytest.raises(InvalidError) as raised:
            list(parse([b"", text], Names(), "f.jsonl"))
        found = raised.value
        assert (found.code, found.place) == ("TAPE-1008", {"file": "f.jsonl", "line": 2, "field": field})

    def test_a_value_mended_into_nonsense_moves_nothing(self) -> None:
        rig = Rig()
        rig.bury("a")
        (letter,) = rig.desk.letters(rig.desk.dead())
        text = json.dumps(line(letter) | {"value": '{"params": {"nonsense": 1}}'}).encode()
        with pytest.raises(InvalidError):
            resend(rig.desk, parse([text], rig.names, "f"), "")
        assert rig.moved() == {}


def test_what_nobody_can_read_among_the_fates_counts_as_nothing() -> None:
    rig = Rig()
    place = rig.bury("a")
    rig.append(rig.names.letters, place.encode(), b"{", [])
    rig.append(rig.names.letters, b"pen x", b"{}", [])
    rig.append(rig.names.letters, None, None, [])
    assert rig.desk.fates() == {}
    assert isinstance(rig.desk.find("a"), Letter)
