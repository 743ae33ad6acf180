"""Rows about what is sent and what becomes of it: 17, 18, 19, 21, 22, 23, 25."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fleet import Crew
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka.errors import MessageSizeTooLargeError
from test_bad_input import corpus

from producers import Client
from producers.dead import Desk, Filter
from producers.redrive import state
from producers.redrive.pace import Pace
from producers.redrive.plan import Wish, plan
from producers.redrive.run import Runner
from schemas.dead import HEADER, Became
from schemas.errors import InvalidError
from schemas.event import EventType
from schemas.redrive import Phase
from tests.campaign.proxy import Proxy
from tests.campaign.row import Facts, row
from tests.campaign.stage import Scene, Stage
from wire.follow import KafkaFollower


@row(17, "the same event twice", "published twice at once, and again when it has ended")
def twice(stage: Stage, scene: Scene) -> Facts:
    """The second returns the first's result."""
    scene.workers(2, "--slots", "2")
    for number in range(10):
        for _ in range(2):
            scene.job(f"job-{number}", seconds=0.2, size=1_000)
    assert scene.finish(60.0), "not every job ended"
    for number in range(10):
        scene.job(f"job-{number}", seconds=0.2, size=1_000)
    scene.job("last")
    assert scene.finish(60.0), "the last job did not end"
    time.sleep(2.0)
    starts = Counter(mark.job for mark in scene.marks())
    assert max(starts.values()) == 1, f"{starts.most_common(1)[0][0]} ran {max(starts.values())} times"
    return Facts(None, f"{sum(starts.values())} starts of 31 records")


@row(
    18,
    "bad JSON, UTF-8, null, wrong types",
    "the corpus of tests/fault/test_bad_input.py",
    sizes=("every fourth", "all of it"),
)
def bad(stage: Stage, scene: Scene) -> Facts:
    """Dead letters with the bytes verbatim; the worker never wedges."""
    crew = scene.worker("--slots", "2")
    records = corpus()[:: int(stage.pick(4, 1))]
    sent = {}
    producer = KafkaProducer(bootstrap_servers=scene.settings.kafka_url, acks="all", max_request_size=2 << 20)
    for number, one in enumerate(records):
        topic = scene.names.jobs("quick" if one.kind == "light" else "heavy", one.lane)
        at = producer.send(topic, key=one.key, value=one.value, headers=list(one.headers)).get(30)
        sent[at.topic, str(at.partition), str(at.offset)] = one
        if number % 10 == 0:
            scene.job(f"good-{number}", "quick" if number % 20 else "heavy")
    producer.close()
    found: dict[tuple[str, ...], object] = {}

    def read() -> bool:
        for kind in ("heavy", "quick", "unknown"):
            with KafkaFollower(scene.settings).read(scene.names.dead(kind)) as feed:
                for record in (record for batch in feed for record in batch):
                    told = dict(record.headers)
                    found[tuple((told[HEADER + part] or b"").decode() for part in ("topic", "partition", "offset"))] = (
                        record
                    )
        return len(found) >= len(sent)

    scene.wait(read, "not every bad record became a dead letter", 60.0, 1.0)
    assert scene.finish(30.0), "not every good job ended"
    for place, record in found.items():
        original = sent[place]  # type: ignore[index]
        assert (record.key, record.value) == (original.key, original.value), original.maker  # type: ignore[attr-defined]
        assert tuple(record.headers[: len(original.headers)]) == original.headers, original.maker  # type: ignore[attr-defined]
    assert crew.process.poll() is None, "the worker died"
    return Facts(None, f"{len(sent)} bad records, each verbatim in the dead letters")


@row(19, "huge message or header bomb", "20 MB through the client and past it, 900 kB of headers")
def huge(stage: Stage, scene: Scene) -> Facts:
    """A clear refusal at the client, the claim check offered; no crash."""
    crew = scene.worker()
    with Client(settings=scene.settings) as client:
        try:
            client.submit("inference", {"model": "builtin:smollm2", "prompt": "x" * (20 << 20)})
            raise AssertionError("the client sent 20 MB")
        except InvalidError as error:
            assert error.code == "TAPE-1006", f"the code is {error.code}"
            assert "store" in str(error), f"no way out: {error}"
    producer = KafkaProducer(bootstrap_servers=scene.settings.kafka_url, acks="all", max_request_size=32 << 20)
    topic = scene.names.jobs("quick", "bulk")
    try:
        producer.send(topic, key=b"huge", value=b"x" * (20 << 20)).get(30)
        raise AssertionError("the broker took 20 MB")
    except MessageSizeTooLargeError:
        producer.close()  # it repeats its first error for ever
    producer = KafkaProducer(bootstrap_servers=scene.settings.kafka_url, acks="all", max_request_size=2 << 20)
    producer.send(topic, key=b"bomb", value=b"{", headers=[(f"x-{n}", b"\xff" * 900) for n in range(1_000)]).get(30)
    producer.close()
    scene.jobs(6, name="after")
    assert scene.finish(30.0), "the jobs after it did not end"
    dead = [event for event in scene.events() if event.type is EventType.DEAD]
    assert [event.job for event in dead] == ["bomb"], f"dead: {[event.job for event in dead]}"
    assert crew.process.poll() is None, "the worker died"
    return Facts(None, "refused by client and broker; the bomb is a dead letter")


ACCOUNTS: dict[str, dict[str, str]] = {}


@contextmanager
def guarded(stage: Stage, name: str) -> Iterator[Scene]:
    """A broker with a list of rights; the workers have an account that may do everything until it may not."""
    url, account = stage.guarded()
    with stage.scene(name, **stage.everything() | {"kafka_url": url, "replication": 1}) as scene:
        ACCOUNTS[scene.settings.prefix] = account
        for kind in (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID):
            rights(scene, right(kind, "*"))
        rights(scene, right(ResourceType.CLUSTER, "kafka-cluster"))
        yield scene


def right(kind: ResourceType, name: str, *, may: bool = True) -> ACL:
    """A line of the list: what the workers may do, or may not write."""
    what = ACLOperation.ALL if may else ACLOperation.WRITE
    how = ACLPermissionType.ALLOW if may else ACLPermissionType.DENY
    return ACL("User:worker", "*", what, how, ResourcePattern(kind, name))


def rights(scene: Scene, line: ACL, *, gone: bool = False) -> None:
    """Put a line into the broker's list, or take it out."""
    admin = KafkaAdminClient(bootstrap_servers=scene.settings.kafka_url)
    try:
        admin.delete_acls([line]) if gone else admin.create_acls([line])
    finally:
        admin.close()


@row(
    21,
    "dead-letter topic missing or forbidden",
    "the topic is deleted, or a DENY on it, while a job must be buried",
    guarded,
)
def topic_gone(stage: Stage, scene: Scene) -> Facts:
    """The source record is not acknowledged, and the worker is loud."""
    crew = scene.worker(**ACCOUNTS[scene.settings.prefix])
    shut = right(ResourceType.TOPIC, scene.names.dead("heavy"), may=False)
    scene.delete(scene.names.dead("quick"))
    rights(scene, shut)
    try:
        for kind in ("quick", "heavy"):
            scene.submit(f"poison-{kind}", kind, params={"unknown": 1})
        scene.jobs(6, name="neighbour")
        for kind in ("quick", "heavy"):
            topic = scene.names.jobs(kind, "bulk")
            scene.wait(lambda topic=topic: loud(crew, topic), f"nothing was said of the {kind} one", 60.0)
        time.sleep(3.0)
        ended = {event.job for event in scene.events() if event.outcome is not None}
        assert not ended & {"poison-quick", "poison-heavy"}, f"{ended} ended without a dead letter"
    finally:
        scene.prepare("quick")
        rights(scene, shut, gone=True)
    began = time.monotonic()
    assert scene.finish(60.0), "not every job ended when the topic was back"
    assert crew.process.poll() is None, "the worker died"
    return Facts(time.monotonic() - began, "one deleted, one denied; both held until it was mended")


def loud(crew: Crew, topic: str) -> bool:
    """Whether the worker complains that something of this topic's records is not confirmed."""
    return any(line.get("event") == "not confirmed yet" and line.get("topic") == topic for line in crew.lines())


@row(22, "everything fails", "a model that never answers", sizes=("12 s", "30 s"), quiet=True)
def all_fail(stage: Stage, scene: Scene) -> Facts:
    """The breaker opens, there is no hot loop, and all is done when the model is back."""
    failing = scene.folder / "failing"
    failing.touch()
    scene.workers(2, "--slots", "4")
    scene.jobs(60, quick=2, do="fail", failing=str(failing))
    scene.wait(lambda: any(state == "open" for _, state in scene.breakers()), "no breaker opened", 30.0)
    before, length = len(scene.marks()), stage.pick(12.0, 30.0)
    time.sleep(length)
    rate = (len(scene.marks()) - before) / length
    failing.unlink()
    back = scene.next_end(90.0)
    assert scene.finish(120.0), "not every job ended when the model was back"
    assert rate < 3, f"{rate:.1f} starts a second while nothing can succeed"
    ends = Counter(str(event.outcome.status) for event in scene.events() if event.outcome is not None)
    assert ends.keys() == {"succeeded"}, f"an outage became {ends}"
    return Facts(back, f"{before} starts before the breaker, {rate:.2f}/s after")


@row(23, "redrive of what still fails", "dead letters sent back unmended", sizes=("200", "10,000"))
def redriven(stage: Stage, scene: Scene) -> Facts:
    """Halts by itself, keeps the rate, can be resumed, guards against loops, is audited."""
    count = int(stage.pick(200, 10_000))
    scene.worker()
    scene.many(count, "dead", "quick", params={"unknown": 1})
    scene.lives |= dict.fromkeys(scene.sent, 2)
    assert scene.finish(60.0 + count / 100), "not every job was buried"
    desk = Desk.open(scene.settings)

    def planned(replays: int) -> state.Kept:
        wish = Wish(Filter(), desk.topics(), desk.now(), desk.who, max_replays=replays, reason="campaign")
        return state.create(desk.blobs, *plan(wish, desk.letters(desk.dead(["quick"])), lambda kinds: {}))

    kept = planned(3)
    assert kept.redrive.plan.letters == count
    halted = Runner(desk, kept, Pace(canary=10, halt_above=20.0, rate=100.0)).run()
    assert halted.phase is Phase.HALTED, f"it is {halted.phase} although every job failed again"
    assert halted.moved <= 10, f"{halted.moved} were moved before it halted"
    began = time.monotonic()
    done = Runner(
        desk, state.load(desk.blobs, kept.redrive.plan.id), Pace(rate=100.0, halt_above=100.0, wait=True)
    ).run()
    took = time.monotonic() - began
    assert (done.phase, done.moved) == (Phase.DONE, count), f"it is {done.phase} with {done.moved} moved"
    assert took > (count - 10) / 100 * 0.9, f"{count} went in {took:.1f} s at 100 a second"
    fates = Counter({fate.letter: fate.became for fate in desk.fates().values()}.values())
    assert fates == {Became.REDRIVEN: count}, f"the audit trail tells of {dict(fates)}"
    scene.wait(lambda: _buried(scene) >= 2 * count, "not every redriven job died again", 90.0, 0.5 + count / 2_000)
    again = planned(1)
    assert again.redrive.plan.letters == 0, f"{again.redrive.plan.letters} would go round once more"
    return Facts(None, f"halted at {halted.moved}, then {count - halted.moved} in {took:.1f} s at 100/s; guard holds")


def _buried(scene: Scene) -> int:
    return len({event.id for event in scene.events() if event.type is EventType.DEAD})


@row(25, "collector down", "one that refuses, and one that never answers", quiet=True)
def collector(stage: Stage, scene: Scene) -> Facts:
    """No effect on jobs, nor on the worker's end."""
    with Proxy(1, mode="hang") as silent:
        urls = ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.port}")
        crews: list[Crew] = [scene.worker(TAPE_OTLP_ENDPOINT=url) for url in urls]
        began = time.monotonic()
        scene.jobs(40, size=500)
        assert scene.finish(30.0), "the jobs did not end"
        took = time.monotonic() - began
        began = time.monotonic()
        for crew in crews:
            crew.signal(signal.SIGTERM)
        codes = [crew.end(40) for crew in crews]
        ended = time.monotonic() - began
    assert codes == [0, 0], f"the workers ended with {codes}"
    assert ended < 20, f"the workers took {ended:.0f} s to end"
    return Facts(None, f"40 jobs in {took:.1f} s, ended in {ended:.1f} s")


ROWS = [twice, bad, huge, topic_gone, all_fail, redriven, collector]
