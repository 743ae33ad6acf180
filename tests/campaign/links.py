"""Rows about brokers and the way to them: 1, 2, 7, 8."""

from __future__ import annotations

import time

import psutil
from fleet import kill

from tests.campaign.row import Facts, alone, proxy_of, row, shaky_broker
from tests.campaign.stage import Scene, Stage


@row(1, "broker kill -9 and restart", "SIGKILL of the JVM, same log dir", alone)
def broker_killed(stage: Stage, scene: Scene) -> Facts:
    """Nothing acknowledged is lost, workers reconnect, the backlog drains; a claimed job does not run twice."""
    scene.workers(2, "--slots", "2")
    scene.job("long", seconds=12.0)
    scene.started("long")
    scene.jobs(30, seconds=0.5, size=2_000)
    scene.wait(lambda: scene.ends() >= 4, "the queue stands still before the fault")
    scene.hush()
    broker = stage.broker("one")
    pid = broker.status().nodes[0].pid
    assert pid is not None
    kill(pid)
    scene.wait(lambda: not broker.status().running, "the broker did not die", 10.0)
    broker.start(tie=True)
    back = scene.next_end()
    scene.finish()
    starts = len(scene.marks("long"))
    assert starts == 1, f"the long job, claimed and alive, was started {starts} times"
    return Facts(back, f"{len(scene.marks())} starts of 31 jobs")


@row(
    2,
    "leader or coordinator bounce",
    "SIGKILL and restart of one broker of three, in turn",
    sizes=("3 bounces", "20 bounces"),
)
def brokers_bounce(stage: Stage, scene: Scene) -> Facts:
    """No group is stuck, leases are acquired anew."""
    scene.workers(2, "--slots", "2")
    bounces, worst, cluster = int(stage.pick(3, 20)), 0.0, stage.broker("three")
    for number in range(bounces):
        for job in range(8):
            scene.job(f"bounce-{number}-{job}", "quick" if job % 2 else "heavy", seconds=0.3)
        scene.hush()
        node = number % 3 + 1
        cluster.kill_node(node)
        worst = max(worst, scene.next_end(60.0))
        cluster.start_node(node, tie=True)
        scene.wait(lambda: cluster.status().running, "a broker did not come back", 60.0)
        time.sleep(2.0)
    return Facts(worst, f"{bounces} bounces")


@row(
    7,
    "partition worker↔broker",
    "a proxy that loses both ways, then each way",
    shaky_broker,
    sizes=("7 s each", "12 s each"),
    weaker="a TCP proxy of our own for nft in a network namespace; all clients are cut off, not one worker",
    quiet=True,
)
def partitioned(stage: Stage, scene: Scene) -> Facts:
    """Bounded retries, no double effect, work goes on within seconds. (Both workers and all clients are cut off.)"""
    scene.workers(2, "--slots", "2")
    proxy, worst = proxy_of(scene), 0.0
    for mode in ("hang", "deaf", "mute"):
        scene.jobs(8, name=mode, seconds=0.5, size=1_000)
        scene.hush()
        proxy.set(mode)  # type: ignore[arg-type]
        time.sleep(stage.pick(7.0, 12.0))
        proxy.set("pass")
        worst = max(worst, scene.next_end(60.0))
        assert scene.finish(60.0), f"after the way was {mode} for a while, not every job ended"
    return Facts(worst, f"hang, deaf, mute; {stage.pick(7.0, 12.0):g} s each")


@row(
    8,
    "slow or throttled broker",
    "a proxy: 50 ms a piece, 400 kB/s",
    shaky_broker,
    weaker="a TCP proxy of our own for toxiproxy",
)
def slow(stage: Stage, scene: Scene) -> Facts:
    """Back-pressure, flat memory."""
    crew = scene.worker("--slots", "2")
    scene.jobs(10, name="warm")
    assert scene.finish(30.0), "the first jobs did not end"
    process = psutil.Process(crew.pid)
    before, proxy = process.memory_info().rss, proxy_of(scene)
    proxy.delay_s, proxy.rate = 0.05, 400_000.0
    scene.jobs(60, name="slow", quick=2)
    assert scene.finish(90.0), "the jobs did not end behind a slow line"
    grown = (process.memory_info().rss - before) / 1e6
    proxy.delay_s = proxy.rate = 0.0
    assert grown < 30, f"the worker grew by {grown:.0f} MB"
    return Facts(None, f"the worker grew by {grown:.1f} MB")


ROWS = [broker_killed, brokers_bounce, partitioned, slow]
