"""Bad records from strangers, hundreds of them, between good jobs: the worker goes on, and each becomes a dead letter.

The corpus is made by hypothesis, the same in every run. Each maker below breaks a good request in one way that the
protocol forbids, so that every record of the corpus is bad; one that were not would fail the test as a letter missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fleet import Fleet
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as rules
from hypothesis import strategies as st
from kafka import KafkaProducer

from schemas.dead import HEADER
from schemas.event import EventType
from schemas.job import Lane
from wire.follow import KafkaFollower
from wire.process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

Header = tuple[str, bytes]
Draw = Callable[[st.SearchStrategy[Any]], Any]
CORPUS, EVERY = 600, 6
"""Bad records, and after how many of them a good job follows."""
LARGE = 900_000
"""Bytes of the largest values and names: near the limit of a topic."""


@dataclass(frozen=True)
class Bad:
    """One record of the corpus, and which maker made it."""

    maker: str
    kind: str
    lane: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]


def good(kind: str) -> dict[str, bytes]:
    """The headers of a request that could be read."""
    return {
        "ce_specversion": b"1.0", "ce_id": b"1", "ce_source": b"/stranger",
        "ce_type": f"tape.request.{kind}.v1".encode(), "content-type": b"application/json",
    }  # fmt: skip


def dumped(**fields: Any) -> bytes:
    return json.dumps({"params": {"do": "work"}} | fields).encode()


def truncated(draw: Draw, headers: dict[str, bytes]) -> bytes:
    whole = dumped(labels={"text": draw(st.text(max_size=40))})
    return whole[: draw(st.integers(0, len(whole) - 1))]


def not_json(draw: Draw, headers: dict[str, bytes]) -> bytes:
    return draw(st.sampled_from([b"{", b"<job/>", b"\x00", b"null null", b"{'params': 1}", b"\x1f\x8b"])) + draw(
        st.binary(max_size=60)
    )


def not_utf8(draw: Draw, headers: dict[str, bytes]) -> bytes:
    odd = draw(st.sampled_from([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"]))
    return b'{"params": {"do": "' + odd + draw(st.text(max_size=9)).encode().replace(b'"', b"") + b'"}}'


def another_encoding(draw: Draw, headers: dict[str, bytes]) -> bytes:
    return dumped().decode().encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-16-be"])))


def no_value(draw: Draw, headers: dict[str, bytes]) -> None:
    return None


def not_an_object(draw: Draw, headers: dict[str, bytes]) -> bytes:
    return json.dumps(draw(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))).encode()


def nested(draw: Draw, headers: dict[str, bytes]) -> bytes:
    depth = draw(st.sampled_from([300, 5_000, 100_000]))
    opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
    return b'{"params": ' + opening * depth + b"1" + closing * depth + b"}"


def not_a_number(draw: Draw, headers: dict[str, bytes]) -> bytes:
    number = draw(st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "nan", "0x10", "1_000", "01"]))
    return b'{"params": {"do": "work", "seconds": ' + number.encode() + b"}}"


def huge_number(draw: Draw, headers: dict[str, bytes]) -> bytes:
    digits = draw(st.sampled_from([40, 5_000, 50_000]))
    field = draw(st.sampled_from([b'"max_attempts": ', b'"timeout_s": -', b'"key": ', b'"expires_at": ']))
    return b'{"params": {}, ' + field + b"9" * digits + b"}"


def wrong_type(draw: Draw, headers: dict[str, bytes]) -> bytes:
    wrong: dict[str, Any] = draw(
        st.sampled_from([
            {"params": None}, {"params": []}, {"params": "work"}, {"params": {"do": 1}},
            {"params": {"seconds": "much"}},
            {"params": {"size": 1.5}}, {"params": {"mark": {}}}, {"tenant": 7}, {"tenant": ""}, {"labels": []},
            {"labels": {"a": {}}}, {"key": 4}, {"timeout_s": 0}, {"expires_at": "soon"}, {"not_before": [2020]},
            {"max_attempts": 9}, {"max_attempts": "many"}, {"labels": {str(n): "x" for n in range(33)}},
        ])
    )  # fmt: skip
    return dumped(**wrong)


def unknown_field(draw: Draw, headers: dict[str, bytes]) -> bytes:
    return dumped(params={draw(st.text(min_size=1).map(lambda text: f"no-{text}")): draw(st.integers())})


def half_a_surrogate(draw: Draw, headers: dict[str, bytes]) -> bytes:
    return b'{"params": {"do": "work", "mark": "\\ud8' + draw(st.sampled_from([b"00", b"7f", b"ff"])) + b'"}}'


def impossible_date(draw: Draw, headers: dict[str, bytes]) -> bytes:
    """A moment that has a date where it was written, and none in UTC."""
    date = draw(
        st.sampled_from(["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "9999-12-31T20:00:00-05:00"])
    )
    where = draw(st.sampled_from(["not_before", "expires_at", "ce_expirytime"]))
    if where == "ce_expirytime":
        headers[where] = date.encode()
        return dumped()
    return dumped(**{where: date})


def long_names(draw: Draw, headers: dict[str, bytes]) -> bytes:
    """What the error would repeat is nearly as long as a message may be."""
    count = draw(st.integers(1, 4))
    return dumped(params={f"{number}-" + "n" * (LARGE // count): 1 for number in range(count)})


def large(draw: Draw, headers: dict[str, bytes]) -> bytes:
    return draw(st.sampled_from([b"\x00", b"[", b"{", b"x"])) * LARGE


def missing_header(draw: Draw, headers: dict[str, bytes]) -> bytes:
    del headers[draw(st.sampled_from(["ce_specversion", "ce_id", "ce_source", "ce_type"]))]
    return dumped()


def wrong_header(draw: Draw, headers: dict[str, bytes]) -> bytes:
    name, value = draw(
        st.sampled_from([
            ("ce_specversion", b"0.3"), ("ce_specversion", b"2.0"), ("ce_type", b"tape.request.echo.v1"),
            ("ce_type", b"tape.request.light.v9"), ("ce_type", b"order.placed"), ("ce_id", b""), ("ce_source", b""),
            ("ce_subject", b"../../etc/passwd"), ("ce_subject", b"a b"), ("ce_subject", b"\xff\xfe"),
            ("ce_id", b"\xff"),
            ("ce_subject", b"x" * 129), ("ce_subject", b""), ("ce_subject", "日本".encode()),
            ("ce_source", b"\xc3\x28"),
            ("ce_expirytime", b"tomorrow"), ("ce_expirytime", b"\xff"), ("content-type", b"\xff"),
            ("content-type", b"application/cloudevents-batch+json"), ("traceparent", b"\xfe\xff"),
            ("ce_anything", b"\x80"),
        ])
    )  # fmt: skip
    headers[name] = value
    return dumped()


def structured(draw: Draw, headers: dict[str, bytes]) -> bytes:
    headers.clear()
    headers["content-type"] = b"application/cloudevents+json" + draw(st.sampled_from([b"", b"; charset=utf-8"]))
    event: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/s", "type": "order.placed", "data": {}}
    event |= draw(
        st.sampled_from([
            {}, {"specversion": 1}, {"id": None}, {"source": []}, {"data_base64": "!!"}, {"data_base64": 7},
            {"datacontenttype": 1}, {"data": "text"}, {"data": None}, {"type": {"a": 1}}, {"subject": 5},
        ])
    )  # fmt: skip
    return draw(st.sampled_from([json.dumps(event).encode(), b"{", b"[]", b"", json.dumps(event).encode()[:-1]]))


def header_bomb(draw: Draw, headers: dict[str, bytes]) -> bytes:
    count, size = draw(st.sampled_from([(2_000, 20), (300, 2_000), (3, 200_000), (20, 0)]))
    headers |= {f"x-{number}": b"\xfe" * size for number in range(count)}
    return b"{"


def forged_past(draw: Draw, headers: dict[str, bytes]) -> bytes:
    """Headers that are ours alone, with nonsense in them."""
    names = ["tape-attempt", "tape-past", "tape-due", "tape-target", "tape-replay", "tape-hint", "tape-dead-job"]
    headers |= {name: draw(st.binary(max_size=20)) for name in names}
    return b"not json"


MAKERS: tuple[Callable[[Draw, dict[str, bytes]], bytes | None], ...] = (
    truncated, not_json, not_utf8, another_encoding, no_value, not_an_object, nested, not_a_number, huge_number,
    wrong_type, unknown_field, impossible_date, half_a_surrogate, missing_header, wrong_header,
    structured, header_bomb, forged_past,
)  # fmt: skip
RARE = (long_names, large)
"""Nearly a megabyte each: a few are enough."""


@st.composite
def bad_records(draw: Draw, makers: tuple[Callable[[Draw, dict[str, bytes]], bytes | None], ...]) -> Bad:
    kind, lane = draw(st.sampled_from(["light", "trouble"])), draw(st.sampled_from(list(Lane)))
    maker, headers = draw(st.sampled_from(makers)), good(kind)
    value = maker(draw, headers)
    key = draw(st.none() | st.binary(max_size=30) | st.text(max_size=9).map(str.encode))
    key = b"" if key is value is None else key  # the plain client does not send a record without both
    told: list[Header] = list(headers.items())
    told += draw(st.lists(st.tuples(st.text("abcxyz-", min_size=1), st.binary(max_size=30)), max_size=3))
    if draw(st.booleans()):
        told.reverse()
    return Bad(maker.__name__, kind, lane.value, key, value, tuple(told))


def corpus() -> list[Bad]:
    """All of it, the same every time."""
    made: list[Bad] = []

    def collect(makers: Any, count: int) -> None:
        @rules(
            max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(bad_records(makers))
        def one(bad: Bad) -> None:
            made.append(bad)

        one()

    collect(MAKERS, CORPUS)
    collect(RARE, 16)
    return made


def letters(fleet: Fleet) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """Every dead letter, by the place of its original."""
    for kind in ("light", "trouble", "unknown"):
        with KafkaFollower(fleet.settings).read(fleet.names.dead(kind)) as feed:
            for batch in feed:
                for record in batch:
                    told = {name: raw for name, raw in record.headers if name.startswith(HEADER)}
                    yield (
                        tuple((told[HEADER + part] or b"").decode() for part in ("topic", "partition", "offset")),
                        record,
                    )  # type: ignore[misc]


@pytest.mark.timeout(300)
def test_bad_records_become_dead_letters_byte_for_byte_and_good_jobs_go_on(fleet: Fleet) -> None:
    crew = fleet.start("--slots", "2")
    sent: dict[tuple[str, str, str], Bad] = {}
    made = corpus()
    assert len(made) >= 500
    assert {bad.maker for bad in made} == {maker.__name__ for maker in (*MAKERS, *RARE)}
    producer = KafkaProducer(bootstrap_servers=fleet.settings.kafka_url, acks="all", max_request_size=2 << 20)
    for number, bad in enumerate(made):
        topic = fleet.names.jobs(bad.kind, bad.lane)
        at = producer.send(topic, key=bad.key, value=bad.value, headers=list(bad.headers)).get(30)
        sent[at.topic, str(at.partition), str(at.offset)] = bad
        if number % EVERY == 0:
            fleet.submit(f"good-{number}", "trouble" if number % 60 == 0 else "light", params={"do": "work"})
    producer.close()
    events = []

    def over() -> bool:
        events[:] = [event for event in fleet.events() if event.outcome is not None]
        return len({event.id for event in events}) >= len(sent) + len(fleet.sent)

    assert wait_until(over, deadline_s=120, every_s=1.0), (
        f"{len(sent) + len(fleet.sent) - len({event.id for event in events})} have not ended\n{fleet.logs()}"
    )
    assert crew.process.poll() is None
    assert not crew.said("defect in the worker"), fleet.logs()
    found = list(letters(fleet))
    assert Counter(place for place, _ in found) == dict.fromkeys(sent, 1)
    for place, record in found:
        bad = sent[place]
        assert (record.key, record.value) == (bad.key, bad.value), bad.maker
        assert tuple(record.headers[: len(bad.headers)]) == bad.headers, bad.maker
        told = dict(record.headers[len(bad.headers) :])
        assert (told[HEADER + "class"], (told[HEADER + "code"] or b"")[:7]) == (b"invalid", b"TAPE-10"), bad.maker
        assert told[HEADER + "message"]
    ended = Counter((event.job, event.type) for event in events if event.job in fleet.sent)
    assert ended == {(job, EventType.SUCCEEDED): 1 for job in fleet.sent}
    print(f"{len(sent)} bad records of {len(MAKERS) + len(RARE)} sorts, {len(fleet.sent)} good jobs between them")


@pytest.mark.timeout(120)
def test_what_was_compressed_and_is_larger_than_a_letter_wedges_nobody(fleet: Fleet) -> None:
    crew = fleet.start("--slots", "2")
    producer = KafkaProducer(
        bootstrap_servers=fleet.settings.kafka_url, acks="all", max_request_size=20 << 20, compression_type="gzip"
    )
    topic = fleet.names.jobs("light", "bulk")
    for size in (1_060_000, 9 << 20):
        value = dumped(labels={"text": "x" * size})
        producer.send(topic, key=b"bomb-%d" % size, value=value, headers=list(good("light").items())).get(30)
    producer.close()
    fleet.submit("good-1", "light", params={"do": "work"})

    def over() -> bool:
        return len({event.job for event in fleet.events() if event.outcome is not None}) >= 3

    assert wait_until(over, deadline_s=60, every_s=0.5), fleet.logs()
    assert not crew.said("not confirmed yet"), fleet.logs()
    with KafkaFollower(fleet.settings).read(fleet.names.dead("light")) as feed:
        found = {record.key: record for batch in feed for record in batch}
    assert set(found) == {b"bomb-1060000", b"bomb-9437184"}
    assert {dict(record.headers)[HEADER + "code"] for record in found.values()} == {b"TAPE-1006"}
    assert len(found[b"bomb-1060000"].value or b"") > 1_060_000
    assert found[b"bomb-9437184"].value is None
