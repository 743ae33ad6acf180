"""Rows about workers and the jobs that take them down: 3, 4, 5, 6, 12, 13, 14, 15, 24."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from fleet import kill

from schemas.errors import FailureClass
from schemas.event import EventType
from tests.campaign.oracle import finals, orphans
from tests.campaign.row import Facts, brief_locks, plain, row
from tests.campaign.stage import Crew, NotRun, Scene, Stage

POINTS = ("acquire", "run", "artifact", "outcome", "acknowledge")
SHIM = Path(__file__).parent / "clock.c"
CGROUPS = Path("/sys/fs/cgroup")
CGROUP = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "memory"


@row(
    3,
    "workers join and leave all the time",
    "SIGTERM and SIGKILL in a loop beside a steady worker",
    sizes=("5 workers", "20 workers"),
)
def churn(stage: Stage, scene: Scene) -> Facts:
    """Every job ends once; the others do not pause."""
    scene.worker()
    dice, rounds = random.Random(3), int(stage.pick(5, 20))
    scene.jobs(30 + rounds * 4, seconds=0.4)
    for number in range(rounds):
        crew = scene.worker("--grace", "2")
        time.sleep(dice.uniform(0.2, 1.5))
        crew.signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
        crew.end(20)
    assert scene.finish(60.0), "not every job ended"
    ends = sorted(event.time for event in finals(scene.settings))
    gap = max((after - before).total_seconds() for before, after in pairwise(ends))
    assert gap < 5.0, f"no job ended for {gap:.1f} s while others came and went"
    return Facts(None, f"{rounds} came and went, longest pause {gap:.2f} s")


@row(4, "job 10× longer than the lock", "a job of 20 s under a lock of 2 s", brief_locks, quiet=True)
def long_jobs(stage: Stage, scene: Scene) -> Facts:
    """It is renewed and never runs twice."""
    scene.workers(2)
    scene.job("long-heavy", seconds=20.0, size=1_000)
    scene.job("long-quick", "quick", seconds=20.0)
    assert scene.finish(60.0), "the long jobs did not end"
    assert len(scene.marks()) == 2, f"{len(scene.marks())} starts of two jobs"
    return Facts(None, "2 starts of 2 jobs")


@row(
    5,
    "worker kill -9 at each step",
    "SIGKILL at named points of the worker's own code",
    sizes=("once each", "4 times each"),
)
def killed_at_each_step(stage: Stage, scene: Scene) -> Facts:
    """Another worker has it in less than 5 s, there is one outcome and no orphan upload."""
    worst, rounds = 0.0, int(stage.pick(1, 4))
    for number in range(rounds):
        for point in POINTS:
            once = scene.folder / f"died-{number}-{point}"
            armed = {"CAMPAIGN_POINT": point, "CAMPAIGN_ONCE": str(once)}
            pair = scene.workers(2, **armed)
            before, job = scene.ends(), f"{point}-{number}"
            scene.job(job, seconds=0.2, size=50_000)
            scene.wait(once.exists, f"no worker came to {point}", 20.0, 0.01)
            died, starts = time.monotonic(), len(scene.marks(job))
            scene.wait(
                lambda job=job, starts=starts, before=before: len(scene.marks(job)) > starts or scene.ends() > before,
                f"nobody took the job on after {point}", 30.0,
            )  # fmt: skip
            worst = max(worst, time.monotonic() - died)
            assert scene.finish(30.0), f"the job did not end after a death at {point}"
            assert sum(crew.process.poll() == -signal.SIGKILL for crew in pair) == 1
            for crew in pair:
                crew.process.kill()
                crew.end()
    buried(scene)
    assert worst < 5.0, f"it took {worst:.1f} s until another worker had the job"
    assert not (left := orphans(scene.settings)), f"nobody names {left[0]}"
    return Facts(worst, f"{len(POINTS) * rounds + 1} kills, no orphan blob")


def buried(scene: Scene) -> None:
    """A worker dies when its job's dead letter is durable and its record not yet rejected: the job stays dead."""
    once, first = scene.folder / "died-buried", scene.folder / "first"
    first.touch()
    armed = {"CAMPAIGN_POINT": "acknowledge", "CAMPAIGN_ONCE": str(once)}
    pair = scene.workers(2, **armed)
    scene.job("buried", do="once", failing=str(first), top={"max_attempts": 1})
    scene.wait(once.exists, "no worker came to acknowledge the dead letter", 20.0, 0.01)
    scene.job("after", "quick")
    assert scene.finish(30.0), "the job after it did not end"
    time.sleep(4.0)  # the record is handed out again within a second or so
    for crew in pair:
        crew.process.kill()
        crew.end()
    assert len(scene.marks("buried")) == 1, "a job that was buried ran again, as its worker died before the reject"


@row(6, "zombie: frozen past its lock, thawed", "SIGSTOP, SIGCONT", brief_locks, quiet=True)
def zombie(stage: Stage, scene: Scene) -> Facts:
    """Its outcome is refused, and it says so."""
    crews = scene.workers(2)
    worst = 0.0
    for number, seconds in enumerate((1.0, 6.0)):
        job = f"job-{number}"
        scene.job(job, seconds=seconds, size=1_000)
        first = scene.started(job)[0]
        frozen: Crew = next(crew for crew in crews if crew.pid == first.pid)
        frozen.signal(signal.SIGSTOP)
        began = time.monotonic()
        scene.started(job, 2)
        worst = max(worst, time.monotonic() - began)
        if seconds < 2:
            assert scene.finish(30.0), "the job did not end on the other worker"
        frozen.signal(signal.SIGCONT)
        scene.wait(
            lambda frozen=frozen, job=job: any(
                line.get("event") == "late outcome refused" and line.get("job") == job for line in frozen.lines()
            ),
            "the zombie did not say that it was refused", 30.0,
        )  # fmt: skip
        assert scene.finish(30.0), "the job did not end"
    return Facts(worst, "thawed after the end, and in the middle")


@row(
    12,
    "clock ±2 h, jumping",
    "a preloaded clock that reads its offset from a file",
    weaker="a shim of our own for libfaketime",
    quiet=True,
)
def clock(stage: Stage, scene: Scene) -> Facts:
    """Leases, claims and back-off do not mind, and the store takes what such a worker signs."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotRun("no C compiler for the clock's shim")
    shim, offset = scene.folder / "clock.so", scene.folder / "offset"
    made = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(SHIM), "-ldl"], check=False)
    if made.returncode:
        raise NotRun("the clock's shim does not compile")
    offset.write_text("0")
    scene.worker()
    crew = scene.worker(LD_PRELOAD=str(shim), CAMPAIGN_CLOCK=str(offset))
    for number, hours in enumerate((2, -2, 0, 2)):
        offset.write_text(str(hours * 3600))
        scene.job(f"long-{number}", seconds=3.0)
        scene.jobs(8, name=f"jump-{number}", seconds=0.2)
        (scene.folder / f"first-{number}").touch()
        scene.job(f"again-{number}", do="once", failing=str(scene.folder / f"first-{number}"))
        time.sleep(1.0)
    assert scene.finish(60.0), "not every job ended while the clock jumped"
    moved = {line["timestamp"][:13] for line in crew.lines() if "timestamp" in line}
    assert len(moved) > 1, "the shim did not move the worker's clock"
    starts = Counter(mark.job for mark in scene.marks())
    wrong = [job for job, count in starts.items() if count != 1 + job.startswith("again")]
    assert not wrong, f"{wrong[0]} ran {starts[wrong[0]]} times"
    return Facts(None, f"the worker's clock said {', '.join(sorted(moved))} h")


@row(13, "poison pill that segfaults", "ctypes.string_at(0) in a handler")
def poison(stage: Stage, scene: Scene) -> Facts:
    """The worker lives, it is a dead letter after three crashes, its neighbours go on."""
    crew = scene.worker("--slots", "2")
    scene.job("poison", do="segfault")
    scene.jobs(12, name="neighbour", seconds=0.3, size=500)
    assert scene.finish(90.0), "not every job ended"
    (dead,) = (event for event in scene.events() if event.type is EventType.DEAD)
    assert (dead.job, dead.attempt) == ("poison", 3), f"{dead.job} died at attempt {dead.attempt}"
    assert dead.failure is not None
    assert dead.failure.failure is FailureClass.CRASHED
    assert crew.process.poll() is None, "the worker died of it"
    return Facts(None, f"dead after 3, {dead.failure.code}")


@contextmanager
def limited(stage: Stage, name: str) -> Iterator[Scene]:
    """A scene whose workers can be given a limit of memory."""
    with plain(stage, name) as scene:
        trial = CGROUP / f"{name}-trial"
        try:
            trial.mkdir()
            allowed = any((trial / file).exists() for file in ("memory.max", "memory.limit_in_bytes"))
            trial.rmdir()
        except OSError as error:
            raise NotRun(f"no memory cgroup can be made: {error}") from error
        if not allowed:
            raise NotRun("cgroups here cannot limit memory")
        try:
            yield scene
        finally:
            for crew in scene.crews:
                crew.process.kill()
                crew.process.wait()
            for group in CGROUP.glob(f"{scene.settings.prefix}*"):
                with suppress(OSError):  # a process of it may still be ending; an empty group does no harm
                    group.rmdir()


@row(14, "out of memory", "a cgroup of 600 MB around each worker: the kernel kills", limited)
def memory(stage: Stage, scene: Scene) -> Facts:
    """Class resource: a retry with a smaller batch, then another worker, then a dead letter."""
    crews = [confined(scene), confined(scene)]
    scene.job("eased", do="hog", size=100 << 20, batch_size=6)
    scene.job("hopeless", do="hog", size=400 << 20, batch_size=8)
    scene.jobs(6, name="neighbour")
    assert scene.finish(90.0), "not every job ended"
    ends = {event.job: event for event in scene.events() if event.outcome is not None}
    eased, dead = ends["eased"].outcome, ends["hopeless"]
    assert eased is not None
    assert eased.status == "succeeded", "the smaller batch was not tried"
    assert eased.attempt == 2
    assert dead.type is EventType.DEAD
    assert dead.failure is not None
    assert dead.failure.failure is FailureClass.RESOURCE
    workers = {mark.worker for mark in scene.marks("hopeless")}
    assert len(workers) == 2, "it was not tried on another worker"
    assert "by the kernel, for memory" in dead.failure.message, dead.failure.message
    assert all(crew.process.poll() is None for crew in crews), "a worker died of it"
    return Facts(None, f"smaller batch helped one; the other dead after {dead.attempt} on 2 workers, both alive")


def confined(scene: Scene) -> Crew:
    """Start a worker that has 600 MB with all its processes, as a container would."""
    crew = scene.worker()
    group = CGROUP / f"{scene.settings.prefix}{crew.pid}"
    group.mkdir()
    limit = next(group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists())
    limit.write_text(str(600 << 20))
    for process in [psutil.Process(crew.pid), *psutil.Process(crew.pid).children(recursive=True)]:
        (group / "cgroup.procs").write_text(str(process.pid))
    return crew


@row(15, "device error or hang", "a fake device: raises as CUDA does, or hangs where no signal reaches")
def device(stage: Stage, scene: Scene) -> Facts:
    """The device is quarantined, the job handed on, its worker unhealthy; and back when the device is mended."""
    state = scene.folder / "device"
    state.write_text("ecc")
    bad = scene.worker("--health-port", "0", CAMPAIGN_DEVICE=str(state))
    good = scene.worker("--health-port", "0")
    first = met(scene, bad, "ecc")
    scene.wait(lambda: not ready(bad), "the worker whose device failed still says that it is ready", 5.0)
    assert ready(good), "the other worker is not ready either"
    starts = sum(mark.pid == bad.pid for mark in scene.marks())
    scene.jobs(12, name="beside", quick=0, do="device", seconds=0.2)
    assert scene.finish(60.0), "not every job ended on the other worker"
    assert sum(mark.pid == bad.pid for mark in scene.marks()) == starts, "it took jobs although its device is broken"
    assert not ready(bad), "the other jobs' success made it ready"
    state.write_text("well")
    back = scene.wait(lambda: ready(bad), "it is not ready although its device was mended", 30.0)
    state.write_text("hang")
    second = met(scene, bad, "hang", top={"timeout_s": 3.0})
    assert not ready(bad), "its device hangs, and it says that it is ready"
    failures = {event.job: event.failure for event in scene.events() if event.type is EventType.RETRYING}
    found = [failures[job].failure.value for job in (first, second)]  # type: ignore[union-attr]
    assert found == ["resource", "timeout"], f"the failures are {found}"
    return Facts(back, "handed on after 1 attempt each, quarantined until a probe passed; a hang was killed at 3 s")


def met(scene: Scene, bad: Crew, name: str, **fields: Any) -> str:
    """Send jobs that use the device until the worker with the bad one takes one, which then ends elsewhere."""
    for number in range(30):
        job = f"{name}-{number}"
        scene.job(job, do="device", **fields)
        marks = scene.started(job)
        assert scene.finish(60.0), f"{job} did not end"
        if marks[0].pid == bad.pid:
            workers = [mark.pid for mark in scene.marks(job)]
            assert len(workers) == 2, f"{job} was started {len(workers)} times"
            assert workers[1] != bad.pid, f"{job} was not handed on"
            return job
    raise AssertionError("the worker with the bad device took no job")


def ready(crew: Crew) -> bool:
    """Ask a worker whether it would take jobs."""
    url = crew.log.read_text().split("health on ")[1].split()[0].rstrip('",').replace("/live", "/ready")
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


@row(24, "SIGTERM, then SIGKILL after the grace", "signals", quiet=True)
def terminated(stage: Stage, scene: Scene) -> Facts:
    """The job is handed back, its attempt is not charged; who is killed after all is charged one."""
    crew = scene.worker("--grace", "0.5")
    scene.job("drained", seconds=4.0, size=500)
    scene.job("drained-quick", "quick", seconds=4.0)
    scene.started("drained")
    scene.started("drained-quick")
    crew.signal(signal.SIGTERM)
    assert crew.end(30) == 0, "a drained worker must end with 0"
    ended = time.monotonic()
    scene.worker()
    worst = scene.started("drained", 2)[1].at - ended
    scene.started("drained-quick", 2)
    charged = [mark.attempt for job in ("drained", "drained-quick") for mark in scene.marks(job)]
    assert scene.marks("drained")[1].attempt == 1, f"the drain was charged: attempts {charged}"
    assert scene.finish(40.0), "not every job ended"
    scene.worker()
    scene.job("killed", seconds=3.0)
    kill(scene.started("killed")[0].pid)
    assert scene.started("killed", 2)[1].attempt == 2, "a death was not counted"
    return Facts(worst, f"attempts after the drain: {charged}")


ROWS = [churn, long_jobs, killed_at_each_step, zombie, clock, poison, memory, device, terminated]
