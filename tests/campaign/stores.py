"""Rows about the store and the disk: 9, 10, 11, 16, 20."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.event import EventType
from tests.campaign.oracle import orphans
from tests.campaign.row import Facts, local, plain, proxy_of, row, shaky_store
from tests.campaign.stage import NotRun, Scene, Stage
from wire.blobs import open_store


def unspent(scene: Scene, *but: str) -> None:
    """No attempt was spent and nothing became a dead letter, as it must be for an outage."""
    for event in scene.events():
        if event.outcome is not None and event.job not in but:
            assert event.outcome.status == "succeeded", f"{event.job} is {event.outcome.status} for an outage"
            assert event.attempt == 1, f"{event.job} was charged attempt {event.attempt} for an outage"


@row(
    9,
    "store 503 burst",
    "a proxy that answers 503 with Retry-After: 1",
    shaky_store,
    weaker="a TCP proxy of our own for toxiproxy",
    quiet=True,
)
def busy(stage: Stage, scene: Scene) -> Facts:
    """Nothing is dead-lettered for an outage, no attempt is spent, the breaker opens and closes by itself."""
    scene.workers(2, "--slots", "2")
    scene.jobs(6, name="before", size=5_000)
    assert scene.finish(30.0), "the jobs before the fault did not end"
    proxy = proxy_of(scene)
    proxy.set("busy")
    began = time.monotonic()
    scene.jobs(16, name="during", seconds=0.1, size=5_000, quick=4)
    time.sleep(12.0)
    asked, took = proxy.refused, time.monotonic() - began
    proxy.set("pass")
    back = scene.next_end(60.0)
    assert scene.finish(90.0), "not every job ended after the burst"
    unspent(scene)
    assert asked / took < 60, f"{asked / took:.0f} calls a second while the store asked for mercy"
    assert ("store", "open") in scene.breakers(), "the breaker of the store never opened"
    assert scene.breakers()[-1] == ("store", "closed"), f"the last word on the store is {scene.breakers()[-1]}"
    return Facts(back, f"{asked / took:.1f} calls/s during the burst")


@row(
    10,
    "store hangs or cuts mid-body",
    "a proxy that ends answers after 300 kB, then passes nothing",
    shaky_store,
    weaker="a TCP proxy of our own for toxiproxy",
    quiet=True,
)
def cut(stage: Stage, scene: Scene) -> Facts:
    """What is read is verified, no half upload is seen, deadlines are kept."""
    scene.worker("--slots", "2")
    data = random.Random(10).randbytes(2_000_000)
    reference = f"inputs/data@{hashlib.sha256(data).hexdigest()}"
    open_store(scene.settings).put("inputs/data", data)
    proxy = proxy_of(scene)
    proxy.cut_after, proxy.cuts = 300_000, 8
    proxy.drop()
    scene.jobs(6, name="cut", quick=0, data=reference, size=400_000)
    scene.wait(lambda: scene.ends() >= 2, "no job ended while answers were cut", 60.0)
    proxy.set("hang")
    scene.jobs(4, name="hung", quick=0, data=reference, size=400_000)
    time.sleep(6.0)
    proxy.set("pass")
    back = scene.next_end(60.0)
    assert scene.finish(90.0), "not every job ended after the hang"
    assert proxy.cut > 0, "no answer was cut"
    reads = {event.outcome.result.get("read") for event in scene.events() if event.outcome is not None}
    assert reads == {len(data)}, f"jobs read {reads} bytes of {len(data)}"
    assert not (left := orphans(scene.settings)), f"nobody names {left[0]}"
    return Facts(back, f"{proxy.cut} answers cut, 6 s of silence")


@row(
    11,
    "store down",
    "a proxy that refuses every connection",
    shaky_store,
    sizes=("25 s", "10 minutes"),
    weaker="a TCP proxy of our own for toxiproxy",
    quiet=True,
)
def down(stage: Stage, scene: Scene) -> Facts:
    """Acquisition pauses, no attempt is spent, work resumes by itself."""
    scene.workers(2, "--slots", "2")
    scene.jobs(6, name="before", size=1_000)
    assert scene.finish(30.0), "the jobs before the fault did not end"
    proxy, length = proxy_of(scene), stage.pick(25.0, 600.0)
    proxy.set("refuse")
    scene.jobs(20, name="during", quick=0, size=1_000)
    time.sleep(length)
    postponed = sum(event.type is EventType.POSTPONED for event in scene.events())
    proxy.set("pass")
    back = scene.next_end(330.0)
    assert scene.finish(120.0), "not every job ended after the outage"
    unspent(scene)
    assert ("store", "open") in scene.breakers(), "the breaker of the store never opened"
    assert postponed < 60, f"{postponed} postponements of 20 jobs: acquisition did not pause"
    return Facts(back, f"{length:g} s down, {postponed} postponements of 20 jobs")


@contextmanager
def small_disk(stage: Stage, name: str) -> Iterator[Scene]:
    """A scene with a file system of two megabytes in it."""
    with plain(stage, name) as scene:
        small = scene.folder / "small"
        small.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise NotRun(f"no tmpfs: {made.stderr.strip()}")
        try:
            yield scene
        finally:
            for crew in scene.crews:
                crew.process.kill()
                crew.process.wait()
            subprocess.run(["umount", "-l", str(small)], check=False)


@row(16, "disk full", "a tmpfs of 2 MB as the worker's home", small_disk)
def full(stage: Stage, scene: Scene) -> Facts:
    """A clear failure class, scratch is cleaned, no half artifact can be seen, and the next job runs."""
    small = scene.folder / "small"
    scene.worker(TAPE_HOME=str(small))
    scene.job("much", do="spill", size=4 << 20)
    scene.jobs(4, name="little", size=1_000)
    assert scene.finish(60.0), "not every job ended"
    (dead,) = (event for event in scene.events() if event.job == "much" and event.outcome is not None)
    assert dead.failure is not None
    assert dead.failure.code == "TAPE-6012", f"the code is {dead.failure.code}"
    litter = [path for path in (small / "scratch").rglob("*") if path.is_file()]
    assert not litter, f"{litter[0].name} was left in scratch"
    assert not (left := orphans(scene.settings)), f"nobody names {left[0]}"
    return Facts(None, f"{dead.failure.code} ({dead.failure.failure.value}), scratch clean")


@row(20, "corrupted artifact", "a byte of an input changed in the store", local)
def corrupted(stage: Stage, scene: Scene) -> Facts:
    """It is found by its hash before use: the job does not succeed with wrong bytes."""
    scene.worker()
    store, data = open_store(scene.settings), random.Random(20).randbytes(300_000)
    for name in ("good", "flipped"):
        store.put(f"inputs/{name}", data)
    changed = 0
    for path in (scene.folder / "store").rglob("*"):
        if path.is_file() and "flipped" in str(path) and path.stat().st_size >= len(data):
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 1
            path.chmod(0o644)
            path.write_bytes(raw)
            changed += 1
    assert changed == 1, f"{changed} files were changed"
    digest = hashlib.sha256(data).hexdigest()
    for name in ("good", "flipped"):
        scene.job(name, data=f"inputs/{name}@{digest}")
    assert scene.finish(60.0), "not every job ended"
    ends = {event.job: event for event in scene.events() if event.outcome is not None}
    assert ends["good"].type is EventType.SUCCEEDED
    failure = ends["flipped"].failure
    assert failure is not None, "wrong bytes were taken for right"
    assert failure.code == "TAPE-6007", f"the code is {failure.code}"
    return Facts(None, f"{failure.code} ({failure.failure.value})")


ROWS = [busy, cut, down, full, corrupted]
