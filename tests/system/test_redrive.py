"""Dead letters and redrives on the real broker: every byte, each once, whoever else wants the same letters."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from producers.cli import main
from producers.cli.exits import Exit
from producers.dead import Desk, Filter
from producers.dead.pen import Pen
from producers.redrive import state
from producers.redrive.decide import decide
from producers.redrive.pace import Pace
from producers.redrive.plan import Wish, plan
from producers.redrive.run import Runner
from producers.redrive.state import Kept
from schemas import past
from schemas.dead import Became, DeadLetter, Fate, dead_headers
from schemas.errors import ConflictError
from schemas.event import Event, EventType
from schemas.ids import uuid7
from schemas.outcome import Failure
from schemas.redrive import Phase, Redrive
from schemas.topics import Names, Topic, topics
from wire.follow import KafkaFollower, Received
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.topics import ensure

pytestmark = [pytest.mark.slow, pytest.mark.kafka]
KINDS = ("inference", "training")
FOREIGN = [("x-own", b"\xff\x00"), ("x-null", None)]


@pytest.fixture
def desk(settings: Settings) -> Desk:
    ensure(settings, topics(Names(settings.prefix), KINDS, 4), [])
    return Desk.open(settings)


def bury(settings: Settings, jobs: list[str], kind: str = "inference", code: str = "TAPE-6003") -> None:
    names, now = Names(settings.prefix), datetime.now(UTC)
    publisher = KafkaPublisher(settings)
    for number, job in enumerate(jobs):
        letter = DeadLetter(
            job=job, kind=kind, topic=names.jobs(kind, "bulk"), partition=0, offset=number, attempts=3, worker="w-1",
            time=now, failure=Failure(failure="resource", code=code, message="out of memory"),
        )  # fmt: skip
        headers = [
            ("ce_specversion", b"1.0"), ("ce_id", job.encode()), ("ce_source", b"/desk"), ("ce_subject", job.encode()),
            ("ce_type", b"tape.request"), *FOREIGN, *dead_headers(letter),
        ]  # fmt: skip
        body = json.dumps({"params": {"model": "builtin:m", "prompt": job}}).encode()
        publisher.publish(names.dead(kind), key=job.encode(), value=body, headers=headers)
    publisher.close(30)


def planned(desk: Desk, chosen: Filter | None = None) -> Kept:
    wish = Wish(chosen or Filter(), desk.topics(), desk.now(), desk.who)
    made, text = plan(wish, desk.letters(desk.dead()), lambda kinds: {})
    return state.create(desk.blobs, made, text)


def read(settings: Settings, topic: str) -> list[Received]:
    with KafkaFollower(settings).read(topic) as feed:
        return [record for batch in feed for record in batch]


def moved(settings: Settings, kind: str = "inference") -> Counter[str]:
    return Counter((record.key or b"").decode() for record in read(settings, Names(settings.prefix).jobs(kind, "bulk")))


@contextmanager
def worker(settings: Settings, ends: Callable[[str], EventType]) -> Iterator[None]:
    """A worker as far as events go: it ends every job that comes."""
    names, stop = Names(settings.prefix), threading.Event()
    publisher = KafkaPublisher(settings)
    feed = KafkaFollower(settings).follow(names.jobs("inference", "bulk"), since="start", stop=stop)

    def work() -> None:
        for batch in feed:
            for record in batch:
                job = (record.key or b"").decode()
                event = Event(id=uuid7(), type=ends(job), job=job, kind="inference", time=datetime.now(UTC))
                publisher.publish(names.events, key=record.key, value=event.model_dump_json().encode())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        feed.close()
        thread.join(30)
        publisher.close(30)


def test_a_canary_and_the_rest_go_back_byte_for_byte(settings: Settings, desk: Desk) -> None:
    jobs = [f"job-{number}" for number in range(700)]
    bury(settings, jobs)
    kept = planned(desk)
    with worker(settings, lambda job: EventType.SUCCEEDED):
        done = Runner(desk, kept, Pace(canary=5, canary_timeout_s=60, wait=True)).run()
    assert (done.phase, done.moved, done.settled, done.failed) == (Phase.DONE, 700, 700, 0)
    records = read(settings, desk.names.jobs("inference", "bulk"))
    assert Counter((record.key or b"").decode() for record in records) == dict.fromkeys(jobs, 1)
    for record in records:
        told = dict(record.headers)
        assert json.loads(record.value or b"")["params"]["prompt"].encode() == record.key
        assert (told["x-own"], told["x-null"], told["ce_subject"]) == (b"\xff\x00", None, record.key)
        assert (told[past.REPLAY], told[past.ATTEMPT]) == (b"1", b"0")
        assert not any(name.startswith("tape-dead-") for name in told)
    events = [Event.model_validate_json(record.value or b"") for record in read(settings, desk.names.events)]
    assert Counter((event.type, event.redrive) for event in events)[EventType.QUEUED, 1] == 700
    assert {letter.status for letter in desk.letters(desk.dead())} == {"redriven"}
    assert Runner(desk, state.load(desk.blobs, kept.redrive.plan.id), Pace()).run().moved == 700
    assert sum(moved(settings).values()) == 700


def test_a_bad_canary_halts(settings: Settings, desk: Desk) -> None:
    bury(settings, [f"job-{number}" for number in range(50)])
    with worker(settings, lambda job: EventType.DEAD):
        done = Runner(desk, planned(desk), Pace(canary=5, canary_timeout_s=60)).run()
    assert (done.phase, done.moved) == (Phase.HALTED, 5)
    assert sum(moved(settings).values()) == 5


def test_runners_of_plans_that_overlap_and_a_discard_race_for_the_same_letters(settings: Settings, desk: Desk) -> None:
    jobs = [f"job-{number}" for number in range(2000)]
    bury(settings, jobs)
    kept = [
        planned(desk),
        planned(desk, Filter(jobs=tuple(jobs[500:]))),
        planned(desk, Filter(jobs=tuple(jobs[:1500]))),
    ]
    done: list[Redrive] = []

    def run(one: Kept) -> None:
        done.append(Runner(Desk.open(settings), one, Pace(rate=2000)).run())

    threads = [threading.Thread(target=run, args=(one,)) for one in kept]
    for thread in threads:
        thread.start()
    discarded = decide(Desk.open(settings), list(desk.letters(desk.dead()))[-100:], Became.DISCARDED, "race")
    for thread in threads:
        thread.join(90)
    assert [redrive.phase for redrive in done] == [Phase.DONE] * 3
    found = moved(settings)
    assert set(found.values()) == {1}, "nothing twice"
    fates = {name: fate for name, fate in desk.fates().items() if name == fate.letter}
    assert Counter(fate.became for fate in fates.values()) == {
        Became.REDRIVEN: len(found), Became.DISCARDED: discarded.done,
    }  # fmt: skip
    assert len(found) + discarded.done == 2000, "nothing lost"
    assert sum(redrive.moved for redrive in done) == len(found)


def test_who_takes_the_pen_fences_who_had_it_and_knows_all_that_was_written(settings: Settings, desk: Desk) -> None:
    topic = desk.names.dead("inference")

    def fate(number: int) -> Fate:
        return Fate(became=Became.DISCARDED, letter=f"{topic}/0/{number}", job="j", kind="inference", by="me",
                    time=datetime.now(UTC))  # fmt: skip

    with closing(Pen(desk, topic)) as first:
        first.write([fate(number) for number in range(300)])
        with closing(Pen(desk, desk.names.dead("training"))):
            first.write([fate(300)])  # another topic's pen is another pen
        with closing(Pen(desk, topic)) as second:
            assert len(second.fates) == 301
            with pytest.raises(ConflictError) as raised:
                first.write([fate(301)])
            assert raised.value.code == "TAPE-3006"
            second.write([fate(302)])
    found = desk.fates()
    assert f"{topic}/0/302" in found
    assert f"{topic}/0/301" not in found


def test_another_systems_letters(settings: Settings, desk: Desk) -> None:
    orders, letters = f"{settings.prefix}orders", f"{settings.prefix}orders-dlt"
    ensure(settings, [Topic(orders, 3), Topic(letters, 1)], [])
    publisher = KafkaPublisher(settings)
    headers = [
        ("x-own", b"1"), ("kafka_dlt-original-topic", orders.encode()), ("kafka_dlt-original-partition", b"\0\0\0\x02"),
        ("kafka_dlt-original-offset", b"\0" * 7 + b"\x05"), ("kafka_dlt-exception-fqcn", b"com.acme.Slow"),
    ]  # fmt: skip
    publisher.publish(letters, key=b"k", value=b"\x00\xff", headers=headers)
    publisher.publish(letters, key=None, value=None, headers=headers[1:])
    publisher.close(30)
    wish = Wish(Filter(codes=("Slow",)), desk.topics(), desk.now(), desk.who)
    made, text = plan(wish, desk.letters([letters]), lambda kinds: {})
    assert (made.letters, len(made.skipped)) == (1, 1)
    done = Runner(desk, state.create(desk.blobs, made, text), Pace(canary=1)).run()
    assert (done.phase, done.moved) == (Phase.DONE, 1)
    (record,) = read(settings, orders)
    assert (record.partition, record.key, record.value) == (2, b"k", b"\x00\xff")
    assert dict(record.headers) == {"x-own": b"1", past.REPLAY: b"1"}


def test_by_hand_from_the_command_line(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in settings.environ().items():
        monkeypatch.setenv(name, value)
    bury(settings, ["a", "b", "c"])
    bury(settings, ["t"], "training", "TAPE-5002")

    def tape(*argv: str, code: Exit = Exit.OK) -> list[Any]:
        capfd.readouterr()
        assert main(["dead", *argv]) == code, capfd.readouterr().err
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    assert [row["letters"] for row in tape("ls", "--by", "code")] == [3, 1]
    assert tape("show", "t")[0]["code"] == "TAPE-5002"
    assert tape("discard", "t", "--reason", "obsolete", "--yes") == [{"discarded": 1, "left": {}}]
    (made,) = tape("redrive", "plan", "--code", "TAPE-6003", "--reason", "bigger machines")
    assert tape("redrive", "run", made["id"], "--rate", "100")[0]["moved"] == 3
    assert tape("redrive", "status", made["id"])[0]["moved"] == 3
    assert tape("ls") == []
    assert Counter(row["became"] for row in tape("audit")) == {"redriven": 3, "discarded": 1}
    assert moved(settings) == {"a": 1, "b": 1, "c": 1}
    assert moved(settings, "training") == {}
    tape("show", "nobody", code=Exit.NOT_FOUND)
