"""The parts around the pipeline: trying again, cancellations, health, kinds, references, exit codes."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_twin import START, Clock, Entry, Say, record, waiting

from producers.cli.exits import Exit, exit_of
from schemas import errors
from schemas.control import Cancel, Presence, key
from schemas.errors import CODES, ConflictError, InvalidError, JobError, NotFoundError, TapeError, UnavailableError
from schemas.outcome import Succeeded
from wire.blobs.manifest import publish
from wire.blobs.memory import Memory
from workers import __main__ as command
from workers import control as module
from workers import kinds, refs
from workers.again import FIRST_S, LONGEST_S, Again, pause
from workers.context import Context
from workers.control import Controls, follow_control
from workers.health import Health
from workers.kinds import BUILTIN, Kind, available, kind, load
from workers.runner import Movement

# --- trying again


@given(tries=st.integers(1, 50), chance=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_with_full_jitter_up_to_a_ceiling(tries: int, chance: float) -> None:
    seconds = pause(tries, chance)
    assert 0.05 <= seconds <= LONGEST_S
    assert seconds <= FIRST_S * 2**tries
    assert pause(tries, chance) <= pause(tries + 1, chance)


def test_calls_come_when_they_are_due_and_later_with_each_try() -> None:
    clock = Clock()
    again = Again(clock=clock, chance=lambda: 0.999)
    one = record()
    due = []
    for _ in range(8):
        again.later(one, lambda: None)
        due.append(max(entry[0] for entry in again._heap) - clock())
    assert due == sorted(due)
    assert due[0] < 1.1
    assert 29 < due[-1] <= LONGEST_S
    again.forget(one)
    again.later(one, lambda: None)
    newest = max(again._heap, key=lambda entry: entry[1])
    assert newest[0] - clock() <= FIRST_S * 2
    assert again.pending == 9


def test_a_call_that_raises_is_tried_again_and_holds_up_nobody() -> None:
    again = Again(chance=lambda: 0.0)
    tries: list[int] = []
    mended, other = threading.Event(), threading.Event()

    def broken() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise AssertionError("a defect")
        mended.set()

    again.start()
    again.later(record(), broken)
    again.later(record()._replace(offset=8), other.set)
    waiting(other, "the other record's call")
    waiting(mended, "the third try")
    again.stop()
    assert len(tries) == 3


def test_after_stop_nothing_is_called() -> None:
    again = Again(chance=lambda: 0.999)
    called: list[int] = []
    again.start()
    again.later(record(), lambda: called.append(1))
    again.stop()
    again.stop()
    assert called == []


# --- cancellations


def cancel(job: str, reason: str = "enough") -> Entry:
    return Entry(job.encode(), Cancel(job=job, reason=reason, time="2026-01-01T00:00:00Z").model_dump_json().encode())  # type: ignore[arg-type]


def test_cancellations_are_followed_until_closed() -> None:
    read, ended = threading.Event(), threading.Event()

    def reader(stop: threading.Event) -> Iterable[Entry]:
        yield cancel("a", "first")
        yield Entry(b"b", b"not json")
        yield Entry(b"c", b'{"action": "explode", "job": "c", "time": "2026-01-01T00:00:00Z"}')
        yield cancel("a", "second")
        yield cancel("d")
        yield Entry(b"d", None)
        read.set()
        waiting(stop, "the end")
        ended.set()

    control = Controls(reader)
    waiting(read, "the last record")
    assert [control.reason(job) for job in "abcd"] == ["second", None, None, None]
    control.close()
    assert ended.is_set()


def test_who_is_there_and_who_has_gone_is_passed_on() -> None:
    heard: list[tuple[str, bool]] = []
    control = Controls(worker=lambda name, there: heard.append((name, there)))
    said = Presence(
        worker="w1", host="h", pid=1, kinds=("echo",), lanes=("bulk",), slots=1, started_at=START, time=START
    )
    control.apply(Entry(key(said).encode(), said.model_dump_json().encode()))
    control.apply(Entry(key(said).encode(), None))
    control.apply(Entry(b"w1", None))
    assert heard == [("w1", True), ("w1", False)]


def test_only_the_newest_cancellations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    control = Controls()
    for number in range(5):
        control.apply(cancel(f"j{number}"))
    assert [control.reason(f"j{number}") is not None for number in range(5)] == [False, False, True, True, True]
    control.close()


def test_following_survives_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    second = threading.Event()

    class Feed:
        def __init__(self, batches: list[Any]) -> None:
            self.batches = batches

        def __enter__(self) -> Iterator[Any]:
            return self._all()

        def _all(self) -> Iterator[Any]:
            yield from self.batches
            if self.batches and len(opened) == 2:
                raise UnavailableError("gone again")
            if self.batches:
                second.set()

        def __exit__(self, *_: object) -> None: ...

    class Follower:
        def __init__(self, *_: object, **__: object) -> None: ...

        def follow(self, topic: str, *, since: object, stop: threading.Event) -> Feed:
            assert since == {}, "what was read already is not read again"
            opened.append(topic)
            if len(opened) == 1:
                raise UnavailableError("not yet")
            if len(opened) > 2:
                stop.set()
            return Feed([[cancel(f"j{len(opened)}")]])

        def read(self, topic: str) -> Feed:
            return Feed([])

    monkeypatch.setattr(module, "KafkaFollower", Follower)
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    control = Controls(follow_control(None, "t.control"))  # type: ignore[arg-type]
    waiting(second, "the second outage's end")
    control.close()
    assert opened == ["t.control"] * 3
    assert control.reason("j2") is not None
    assert control.reason("j3") is not None


# --- health


def get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_health_endpoint_answers_by_its_probes(capfd: pytest.CaptureFixture[str]) -> None:
    good = True
    health = Health({"live": lambda: (good, {"age": 1}), "ready": lambda: (not good, {})})
    health.start()
    try:
        assert get(health.port, "/live") == (200, {"ok": True, "age": 1})
        assert get(health.port, "/ready") == (503, {"ok": False})
        good = False
        assert get(health.port, "/live")[0] == 503
        status, body = get(health.port, "/metrics")
        assert (status, body["probes"]) == (404, ["live", "ready"])
    finally:
        health.stop()
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_told_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConflictError) as raised:
        Health({}, port=taken.getsockname()[1])
    assert raised.value.code == "TAPE-3003"
    assert "--health-port" in raised.value.hint


def test_an_endpoint_that_never_started_stops_at_once() -> None:
    health = Health({})
    port = health.port
    health.stop()
    Health({}, port=port).stop()


# --- kinds


@kind("say", params=Say)
def say(*_: Any) -> Succeeded:
    return Succeeded()


WHISPER = kind("say", params=Say)(say.handler)


class Point:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


def points(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    monkeypatch.setattr(kinds, "_points", lambda: [Point(name, value) for name, value in found.items()])


def test_a_decorated_function_is_a_kind() -> None:
    assert isinstance(say, Kind)
    assert (say.name, say.isolation, say.recorded, say.max_attempts, say.timeout_s) == ("say", "process", True, 3, None)
    assert isinstance(say(None, Say()), Succeeded)  # type: ignore[arg-type]


def test_an_entry_point_adds_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, say=f"{__name__}:say")
    assert set(available()) == {*BUILTIN, "say"}
    assert load(["say"]) == {"say": say}


def test_the_example_package_is_found_by_its_entry_point() -> None:
    assert load(["echo"])["echo"].isolation == "thread"


def test_the_kinds_that_ship_load_without_torch() -> None:
    assert set(load(BUILTIN)) == set(BUILTIN)
    assert all(entry.recorded for entry in load(BUILTIN).values())


def test_an_unknown_kind_is_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidError) as raised:
        load(["trainning"])
    assert raised.value.code == "TAPE-1003"
    assert all(name in raised.value.hint for name in BUILTIN)


@pytest.mark.parametrize(
    "value", ["no.such.module:say", f"{__name__}:nothing", f"{__name__}:Point", f"{__name__}:WHISPER", "json"]
)
def test_an_entry_point_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    points(monkeypatch, shout=value)
    with pytest.raises(InvalidError) as raised:
        load(["shout"])
    assert raised.value.code == "TAPE-1003"
    assert raised.value.place["field"] == value


# --- references


@pytest.fixture
def store() -> Memory:
    return Memory()


def resolve(ref: str, store: Memory, cache: Path) -> Path:
    context = Context(
        job="j", kind="say", attempt=1, worker="w", tenant="t", cache=cache, scratch=cache, open_store=lambda: store,
        report=lambda _: None, stopped=lambda: False,
    )  # fmt: skip
    return refs.resolve(ref, context, field="data")


def test_a_file_is_where_it_is(store: Memory, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    assert resolve(f"file:{path}", store, tmp_path / "cache") == path
    with pytest.raises(NotFoundError) as raised:
        resolve(f"file:{path}x", store, tmp_path / "cache")
    assert (raised.value.code, raised.value.place["field"]) == ("TAPE-2003", "data")


def test_a_blob_is_fetched_once_and_again_when_it_changed(store: Memory, tmp_path: Path) -> None:
    store.put("data/rows.jsonl", b"one")
    first = resolve("blob:data/rows.jsonl", store, tmp_path)
    assert (first.read_bytes(), first.suffix) == (b"one", ".jsonl")
    fetched = first.stat().st_ino
    assert resolve("blob:data/rows.jsonl", store, tmp_path).stat().st_ino == fetched
    store.put("data/rows.jsonl", b"two")
    assert resolve("blob:data/rows.jsonl", store, tmp_path).read_bytes() == b"two"


def test_an_artifact_is_its_files(store: Memory, tmp_path: Path) -> None:
    made = publish(store, {"a.txt": b"alpha", "sub/b.txt": b"beta"}, job="j", kind="say", name="adapter")
    folder = resolve(made.uri, store, tmp_path)
    assert (folder / "sub" / "b.txt").read_bytes() == b"beta"
    pinned = f"{made.uri}@sha256:{made.sha256}"
    assert resolve(pinned, store, tmp_path) == folder
    with pytest.raises(JobError) as raised:
        resolve(f"{made.uri}@sha256:{'0' * 64}", store, tmp_path)
    assert raised.value.code == "TAPE-6007"


@pytest.mark.parametrize("ref", ["blob:nothing", "artifact:nothing"])
def test_what_is_not_in_the_store_is_told(ref: str, store: Memory, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as raised:
        resolve(ref, store, tmp_path)
    assert raised.value.code == "TAPE-2001"


@pytest.mark.parametrize(
    "ref", ["", "rows.jsonl", "blob:", "s3:bucket/x", "builtin:llama", "http://x/y", ":x", "blob:../x"]
)
def test_anything_else_is_no_reference(ref: str, store: Memory, tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        resolve(ref, store, tmp_path)


def test_a_builtin_is_made_on_the_spot(store: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = pytest.importorskip("workers.llm.bases")
    monkeypatch.setattr(bases, "smollm2", lambda cache: cache / "smollm2")
    assert resolve("builtin:smollm2", store, tmp_path) == tmp_path / "smollm2"


# --- the command


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets up logs and spans for its whole process: not for this one."""
    monkeypatch.setattr("wire.telemetry.configure", lambda *_: None)


def test_exit_codes_are_those_of_the_command_line() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TapeError)]
    assert set(classes) == set(command.EXITS)
    for code in CODES:
        for kind_of_error in classes:
            error = kind_of_error("x", code=code)
            expected = Exit.USAGE if code == "TAPE-1003" else exit_of(error)
            assert command.status(error) == expected, (code, kind_of_error)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--kinds", "nothing"], "TAPE-1003"),
        (["--kinds", ","], "TAPE-1010"),
        (["--kinds", "echo", "--lanes", "express"], "TAPE-1010"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_opened(
    arguments: list[str], code: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([*arguments, "--home", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(code)
    assert re.fullmatch(r"TAPE-\d+ .+; .+\n", err)


@pytest.mark.parametrize("arguments", [["--slots", "0"], ["--slots", "many"], ["--kind", "echo"], ["extra"]])
def test_what_argparse_refuses_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(arguments)
    assert raised.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_an_unknown_variable_is_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TAPE_KAKFA_URL", "x:1")
    assert command.main(["--home", str(tmp_path)]) == 2
    assert "TAPE_KAKFA_URL" in capsys.readouterr().err


def test_movement_is_a_step_that_goes_on() -> None:
    clock = Clock()
    movement = Movement(10.0, clock=clock)
    told: list[tuple[dict[str, Any], bool]] = [
        ({"rows": 5}, False),
        ({"rows": 6}, False),
        ({"rows": 6}, True),  # twice six seconds, and nothing moved
        ({"step": 1, "loss": 2.0}, False),
        ({"step": 1, "loss": 1.9}, True),
        ({"step": 2, "loss": 1.9}, False),
        ({"step": 2, "checkpoint": 2.0}, False),  # so much is durable
        ({"heartbeat": 1}, True),  # who has steps moves by them
        ({"step": 2}, True),
        ({"heartbeat": 2}, True),
        ({"phase": "validation", "part": 1}, False),
        ({"phase": "validation", "part": 2}, False),
    ]
    for progress, stalled in told:
        movement.seen(progress)
        clock.advance(6.0)
        assert movement.stalled() == stalled, progress
    assert movement.told == "{'phase': 'validation', 'part': 2}"


def test_where_nobody_asked_nothing_stalls_and_who_never_spoke_does() -> None:
    clock = Clock()
    patient, strict = Movement(None, clock=clock), Movement(10.0, clock=clock)
    clock.advance(11.0)
    assert not patient.stalled()
    assert strict.stalled()
    assert strict.told == "nothing"
