"""A device that failed: no heavy job until a fresh process found it well."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_twin import NAMES, Bench, Clock, kind, record, tried

from schemas.control import Breaker, BreakerState
from schemas.errors import AuthError, FailureClass, JobError, TapeError
from schemas.event import EventType
from schemas.outcome import Succeeded
from schemas.past import Hint
from wire.share import AckType
from workers.circuit import Rules
from workers.gate import HANDED_ON_S, LEFT_S, Gate
from workers.kinds import Kind
from workers.probe import apart, run
from workers.quarantine import CAP_S, FIRST_S, LONG_S, REST_S, Quarantine

BROKEN = JobError("CUDA error: uncorrectable ECC error encountered", code="TAPE-6016", device="suspect")
HUNG = JobError("the attempt was killed at its timeout", code="TAPE-7001", hung=True)
LATE = JobError("the attempt ran past its timeout", code="TAPE-7001")
ANSWERED_S, HOUR = Rules().answer_s, timedelta(hours=1)
CAMPAIGN = Path(__file__).parents[1] / "campaign" / "site"


class Ward:
    """A quarantine whose time passes when it is told to."""

    def __init__(self, *answers: str | None, probe: bool = True) -> None:
        self.answers = list(answers)
        self.pauses: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.begun: list[Callable[[], None]] = []
        self.quarantine = Quarantine(self.probe if probe else None, wait=self.pauses.append, start=self.begun.append)

    def probe(self) -> str | None:
        self.meanwhile()
        if not self.answers:
            raise RuntimeError("the probe itself is broken")
        return self.answers.pop(0)

    def pass_on(self) -> None:
        """Let the background go on until it ends."""
        self.begun.pop()()


def bench(ward: Ward, *moods: TapeError | None) -> Bench:
    """A worker with a heavy and a light kind; its jobs end in these moods, one after another."""
    left = iter(moods)

    def handler(*_: object) -> Succeeded:
        if (mood := next(left, None)) is not None:
            raise mood
        return Succeeded()

    made = Bench(kind(handler), kind(name="shout", isolation="thread"))
    made.gate = Gate(made.breakers, made.kinds, ward.quarantine)
    for part in (made.executor, made.executor._admission, made.settler):
        part._gate = made.gate
    return made


def test_a_device_error_stops_heavy_kinds_until_a_probe_passes() -> None:
    ward = Ward("still broken", None)
    worker = bench(ward, BROKEN)
    assert worker.run(record("job-1")) is AckType.ACCEPT
    assert worker.gate.device == "CUDA error: uncorrectable ECC error encountered"
    assert (worker.gate.room("say"), worker.gate.room("shout")) == (0, None)

    worker.run(record("job-2"))
    (event,) = worker.events("job-2")
    assert event.type is EventType.POSTPONED
    assert event.failure is not None
    assert "ECC" in event.failure.message
    assert worker.run(record("job-3", kind_name="shout", topic=NAMES.jobs("shout", "bulk"))) is AckType.ACCEPT
    assert worker.events("job-3")[-1].type is EventType.SUCCEEDED, "light work needs no device"
    assert worker.gate.device is not None, "only a probe ends it"

    ward.pass_on()
    assert ward.pauses == [FIRST_S, 2 * FIRST_S]
    assert (worker.gate.device, worker.gate.room("say")) == (None, None)
    worker.run(record("job-4"))
    assert worker.events("job-4")[-1].type is EventType.SUCCEEDED


REFUSED = AuthError("the store refused the credentials", code="TAPE-4002")


def delay(worker: Bench, job: str, *, advance_s: float = 0.0) -> float:
    """Run a job that is put off; return for how long."""
    worker.clock.advance(advance_s)
    worker.run(record(job))
    last = worker.events(job)[-1]
    assert last.type is EventType.POSTPONED and last.until is not None
    for message in worker.said[:]:
        worker.breakers.apply(message)
    worker.said.clear()
    return (last.until - worker.clock.now()).total_seconds()


def test_what_one_worker_is_refused_is_soon_free_for_the_others() -> None:
    worker = bench(Ward(), *[REFUSED] * 9)
    before = [delay(worker, f"job-{number}") for number in range(2)]
    assert min(before) > HANDED_ON_S, "it may be the job: nobody knows yet"
    assert delay(worker, "third") == HANDED_ON_S, "its breaker opens"
    assert delay(worker, "fourth", advance_s=ANSWERED_S) == HANDED_ON_S, "it was acquired before that"
    claimed = delay(worker, "fifth", advance_s=310.0)
    assert (claimed, worker.breakers.states()["store@w1"].state) == (HANDED_ON_S, BreakerState.HALF_OPEN)
    assert delay(worker, "probe", advance_s=ANSWERED_S) == HANDED_ON_S
    opened = worker.breakers.states()["store@w1"]
    assert (opened.state, opened.opened) == (BreakerState.OPEN, 2), "it was tried, and the worker takes no more"
    assert worker.gate.room("say") == 0


def test_what_the_fleet_does_without_is_waited_for_though_one_worker_is_refused_too() -> None:
    worker = bench(Ward(), *[REFUSED] * 9)
    for number in range(3):
        delay(worker, f"job-{number}")
    since = worker.clock.now()
    for name in ("store", "store@w1"):
        worker.breakers.apply(
            Breaker(dependency=name, state=BreakerState.OPEN, epoch=9, worker="w2", since=since, until=since + HOUR)
        )
    assert delay(worker, "next") > 60


@pytest.mark.parametrize(("error", "doubted"), [(HUNG, True), (LATE, False), (JobError("odd"), False)])
def test_a_job_that_hung_casts_doubt_on_the_device(error: TapeError, doubted: bool) -> None:
    worker = bench(Ward(), error)
    worker.run(record())
    assert (worker.gate.device is not None) == doubted


def test_where_nobody_can_probe_a_hung_job_is_only_a_hung_job() -> None:
    worker = bench(Ward(probe=False), HUNG)
    worker.run(record())
    assert worker.gate.device is None


def test_without_a_probe_the_device_rests_and_longer_each_time() -> None:
    ward = Ward(probe=False)
    for _ in range(8):
        ward.quarantine.blame("broken")
        ward.pass_on()
        assert ward.quarantine.reason is None
    assert ward.pauses == [min(LONG_S, REST_S * 2.0**strike) for strike in range(8)]
    ward.quarantine.well()
    ward.quarantine.blame("broken")
    ward.pass_on()
    assert ward.pauses[-1] == REST_S, "a job went well in between"


def test_an_error_while_it_is_probed_outlives_the_probe() -> None:
    ward = Ward(None, None)

    def again() -> None:
        if len(ward.answers) == 2:
            ward.quarantine.blame("again")
        assert ward.quarantine.reason == ("again" if len(ward.answers) == 1 or ward.pauses else "first")

    ward.meanwhile = again
    ward.quarantine.blame("first")
    ward.pass_on()
    assert (len(ward.pauses), ward.quarantine.reason) == (2, None)
    assert ward.begun == [], "two would probe at once"


def test_a_probe_that_breaks_proves_nothing() -> None:
    ward = Ward()
    ward.meanwhile = lambda: ward.answers.append(None) if len(ward.pauses) == 2 else None
    ward.quarantine.blame("broken")
    ward.pass_on()
    assert len(ward.pauses) == 2


@given(
    st.lists(st.sampled_from(["blame", "doubt", "well", "probe"]), max_size=40), st.lists(st.booleans()), st.booleans()
)
def test_it_is_in_use_only_after_a_good_probe(steps: list[str], probes: list[bool], able: bool) -> None:
    """Whatever the order: blamed means out of use, one background at a time, and pauses within their limits."""
    ward, blamed = Ward(probe=able), False
    for step in steps:
        if step == "probe" and ward.begun:
            ward.answers = [*("broken" for well in probes if not well), None]
            ward.pass_on()
            blamed = False
        elif step == "blame" or (step == "doubt" and able):
            getattr(ward.quarantine, step)("broken")
            blamed = True
        elif step in {"doubt", "well"}:
            getattr(ward.quarantine, step)(*(["broken"] if step == "doubt" else []))
        assert (ward.quarantine.reason is not None) == blamed
        assert len(ward.begun) == int(blamed)
    first, cap = (FIRST_S, CAP_S) if able else (REST_S, LONG_S)
    assert all(first <= pause <= cap for pause in ward.pauses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "limit_s", "wrong"),
    [
        ("well", 60.0, None),
        ("ecc", 60.0, "uncorrectable ECC"),
        ("hang", 3.0, "within 3 s"),
        ("gone", 60.0, "ended with"),
    ],
)
def test_a_fresh_process_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, limit_s: float, wrong: str | None
) -> None:
    device = tmp_path / "device"
    device.write_text(state)
    monkeypatch.setenv("CAMPAIGN_DEVICE", str(device))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CAMPAIGN), str(CAMPAIGN.parents[2])]))
    found = run(["heavy"], limit_s=limit_s)
    assert found is None if wrong is None else wrong in (found or "")


def test_a_worker_that_leaves_a_job_to_another_gives_it_the_time_to_take_it() -> None:
    clock = Clock()
    worker = bench(Ward())
    worker.gate = Gate(worker.breakers, worker.kinds, clock=clock)
    for part in (worker.executor, worker.executor._admission, worker.settler):
        part._gate = worker.gate
    elsewhere = tried((FailureClass.RESOURCE, "TAPE-6003"), worker="w1", hint=Hint.ELSEWHERE)
    assert worker.run(record("job-1", past=elsewhere)) is AckType.RELEASE
    assert (worker.gate.room("say"), worker.gate.room("shout")) == (0, None)
    clock.advance(LEFT_S)
    assert worker.gate.room("say") is None
    assert worker.run(record("job-1", past=elsewhere, count=2)) is AckType.ACCEPT, "there may be no other worker"
    assert worker.gate.room("say") is None
    others = tried((FailureClass.RESOURCE, "TAPE-6003"), worker="w2", hint=Hint.ELSEWHERE)
    assert worker.run(record("job-2", past=others)) is AckType.ACCEPT
    assert worker.gate.room("say") is None


def test_only_kinds_that_say_how_are_probed() -> None:
    assert apart([kind(), kind(name="shout")]) is None
    one: Kind = kind()
    assert apart([Kind(one.name, one.params, one.handler, probe=lambda: None)]) is not None
