"""The lease loop on twins: what it acquires, renews, gives back, and whom it serves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from lease_rig import LOCK_S, Rig
from worker_twin import NAMES, Clock

from wire.share import AckType, OffsetRange, Record
from wire.share.errors import AuthenticationError, LeaseLostError, SessionLostError
from workers.lease import ROTATE_S, TICK_S, UNSETTLED
from workers.round import WEIGHTS, Rate


@pytest.fixture
def rig() -> Rig:
    return Rig(lanes=("bulk",))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_no_more_is_acquired_than_can_run(slots: int) -> None:
    rig = Rig(slots)
    rig.send("bulk", 20)
    rig.send("interactive", 20)
    done = 0
    while done < 40:
        rig.turn(0.05)
        group = rig.log.group(NAMES.group("say"))
        locked = sum(group.state(NAMES.jobs("say", lane), 0).locked() for lane in WEIGHTS)
        assert locked <= slots, "more is leased than there are slots"
        assert not rig.pool.queue
        for record in list(rig.pool.running):
            rig.pool.end(rig.loop, record)
            done += 1
    rig.turn()
    assert rig.state("bulk") == (20, 0)
    assert rig.state("interactive") == (20, 0)
    assert rig.loop.held == 0
    assert len(rig.forgotten) == 40


@pytest.mark.parametrize(("slots", "kinds"), [(1, ("say",)), (1, ("say", "shout", "sing")), (3, ("say", "shout"))])
def test_every_lane_is_served_by_its_weight_when_all_are_full(slots: int, kinds: tuple[str, ...]) -> None:
    rig = Rig(slots, kinds)
    for kind in kinds:
        rig.send("bulk", 100, kind)
        rig.send("interactive", 100, kind)
    served: Counter[tuple[str, str]] = Counter()
    while served.total() < 60:
        for record in rig.turn(0.01):
            served[NAMES.parse_jobs(record.topic)] += 1
        for record in list(rig.pool.running):
            rig.pool.end(rig.loop, record)
    for kind in kinds:
        assert served[kind, "bulk"] >= 60 // len(kinds) // 5 - 3, f"bulk starves: {served}"
        assert served[kind, "interactive"] >= served[kind, "bulk"]


def test_bulk_is_served_beside_an_interactive_lane_that_never_ends() -> None:
    rig = Rig(1)
    rig.send("bulk", 3)
    served = []
    for _ in range(40):
        rig.send("interactive", 1)
        served += [NAMES.parse_jobs(record.topic)[1] for record in rig.turn(1.0)]
        for record in list(rig.pool.running):
            rig.pool.end(rig.loop, record)
    assert served.count("bulk") == 3


@pytest.mark.parametrize("kind", ["say", "shout", "sing"])
@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_one_slot_finds_the_only_job_among_many_sources(kind: str, lane: str) -> None:
    rig = Rig(1, ("say", "shout", "sing"))
    rig.turn()
    rig.send(lane, 1, kind)
    started = rig.clock()
    assert rig.until_started().topic == NAMES.jobs(kind, lane)
    assert rig.clock() - started <= 6 * (TICK_S + ROTATE_S)
    assert all(one.most <= 1 for one in rig.consumers.values())


def test_a_source_is_not_left_before_it_could_answer() -> None:
    rig = Rig(1)
    rig.loop.step()
    first = [lane for (_, lane), one in rig.consumers.items() if one.asked]
    assert first == ["interactive"]
    rig.clock.advance(ROTATE_S / 2)
    rig.loop.step()
    assert [lane for (_, lane), one in rig.consumers.items() if one.asked] == first
    rig.clock.advance(ROTATE_S)
    rig.loop.step()
    rig.loop.step()
    assert [lane for (_, lane), one in rig.consumers.items() if one.asked] == ["bulk"]


def test_leases_are_renewed_at_a_third_of_the_lock_and_run_once(rig: Rig) -> None:
    rig.send()
    rig.turn()
    (job,) = rig.turn()
    renewed: list[float] = []
    consumer = rig.consumers["say", "bulk"]
    original = consumer.acknowledge

    def watch(record: Record, kind: AckType = AckType.ACCEPT) -> None:
        if kind is AckType.RENEW:
            renewed.append(rig.clock())
        original(record, kind)

    consumer.acknowledge = watch  # type: ignore[method-assign]
    for _ in range(400):  # ten minutes: twenty times the lock
        assert rig.turn(1.5) == []
    gaps = {round(after - before, 3) for before, after in pairwise(renewed)}
    assert gaps <= {LOCK_S / 3, LOCK_S / 3 + 0.5}
    rig.pool.end(rig.loop, job)
    rig.turn()
    assert rig.state() == (1, 0)


def test_a_lost_lease_keeps_its_slot_and_takes_no_other_down(rig: Rig) -> None:
    rig.send(times=2)
    rig.turn()
    (job,) = rig.turn()
    rig.log.group(NAMES.group("say")).restart()
    assert rig.turn() == []
    assert rig.loop.held == 0
    for _ in range(5):
        assert rig.turn(1.0) == [], "the slot was given away while its job still runs"
    rig.pool.end(rig.loop, job)
    rig.turn()
    (again,) = rig.turn()
    assert again.offset == job.offset
    assert again is not job
    rig.pool.end(rig.loop, again)
    rig.turn()
    (second,) = rig.turn()
    assert second.offset == 1


def test_a_job_that_lost_its_lease_cannot_settle_the_next_holders() -> None:
    rig = Rig(2, lanes=("bulk",))
    rig.send()
    rig.turn()
    (zombie,) = rig.turn()
    rig.log.group(NAMES.group("say")).restart()
    rig.turn()
    (fresh,) = rig.turn()
    assert (fresh.offset, fresh is zombie) == (zombie.offset, False)
    rig.pool.end(rig.loop, zombie, AckType.RELEASE)
    rig.turn()
    assert rig.loop.held == 1
    assert rig.log.group(NAMES.group("say")).state(fresh.topic, 0).locked() == 1
    rig.pool.end(rig.loop, fresh)
    rig.turn()
    assert rig.state() == (1, 0)


def test_losing_and_getting_the_same_record_again_at_once_is_one_lease(rig: Rig) -> None:
    rig.send()
    rig.turn()
    (job,) = rig.turn()
    consumer = rig.consumers["say", "bulk"]
    consumer.lose(SessionLostError("gone"))
    rig.log.group(NAMES.group("say")).state(job.topic, 0).release(consumer.member_id)
    consumer.asked = 1
    consumer.fetch()  # redelivered before the loop has heard of the loss
    rig.turn()
    assert rig.loop.held == 1
    rig.pool.end(rig.loop, job)
    (again,) = rig.turn()
    rig.pool.end(rig.loop, again)
    rig.turn()
    rig.turn()
    assert rig.state() == (1, 0)
    rig.send()
    rig.turn()
    assert len(rig.turn()) == 1, "the slot was lost with the lease"


@pytest.mark.parametrize("moment", [AckType.ACCEPT, AckType.RENEW])
def test_a_refused_acknowledgement_does_not_end_the_loop(rig: Rig, moment: AckType) -> None:
    rig.send(times=2)
    rig.turn()
    (job,) = rig.turn()
    consumer = rig.consumers["say", "bulk"]
    original = consumer.acknowledge

    def refuse(record: Record, kind: AckType = AckType.ACCEPT) -> None:
        if kind is moment:
            raise LeaseLostError("not held", [OffsetRange(record.topic, 0, record.offset, record.offset)])
        original(record, kind)

    consumer.acknowledge = refuse  # type: ignore[method-assign]
    rig.turn(LOCK_S / 3)
    rig.pool.end(rig.loop, job)
    rig.turn()
    assert rig.loop.held == 0
    consumer.acknowledge = original  # type: ignore[method-assign]
    assert [record.offset for record in rig.turn()] == [1]


def test_a_fatal_error_ends_the_loop(rig: Rig) -> None:
    def refuse(*_: object) -> list[Record]:
        raise AuthenticationError("no")

    rig.consumers["say", "bulk"].poll = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(AuthenticationError):
        rig.loop.run(until=lambda: False)


def test_a_drain_gives_back_what_no_slot_has_started_and_takes_nothing_more() -> None:
    rig = Rig(1, light=True, lanes=("bulk",))
    rig.send(times=30)
    rig.turn()
    (running,) = rig.turn()
    assert len(rig.pool.queue) >= 1
    rig.loop.drain()
    assert rig.loop.draining
    rig.turn()
    assert list(rig.pool.queue) == []
    assert rig.loop.held == 1
    rig.turn()
    state = rig.log.group(NAMES.group("say")).state(running.topic, 0)
    assert state.locked() == 1
    rig.pool.end(rig.loop, running)
    rig.loop.run(until=lambda: False)
    assert (rig.loop.held, state.locked()) == (0, 0)
    assert rig.state()[1] == 29


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_is_kept_over_all_lanes_and_slots(light: bool, limit: int) -> None:
    rig = Rig(4, ("say", "shout"), light=light, limit=limit)
    for kind in ("say", "shout"):
        for lane in WEIGHTS:
            rig.send(lane, 10, kind)
    started = []
    for _ in range(20):
        started += rig.turn(0.1)
    assert len(started) == limit
    for record in started:
        rig.pool.end(rig.loop, record)
    rig.loop.run(until=lambda: False)
    assert rig.loop.held == 0


def test_what_came_beyond_the_limit_is_released_at_once() -> None:
    rig = Rig(2, limit=1, lanes=("bulk",))
    rig.send(times=5)
    consumer = rig.consumers["say", "bulk"]
    rig.loop.step()
    consumer.asked = 5  # a whole batch, as brokers may send in batch mode
    consumer.fetch()
    rig.loop.step()
    assert len(rig.pool.start()) == 1
    assert rig.log.group(NAMES.group("say")).state(NAMES.jobs("say", "bulk"), 0).locked() == 1


def test_the_one_job_of_once_is_not_given_back_before_a_slot_took_it() -> None:
    rig = Rig(1, limit=1, lanes=("bulk",))
    rig.send()
    for _ in range(4):  # no slot has started anything yet
        rig.loop.step()
        for consumer in rig.consumers.values():
            consumer.fetch()
    (job,) = rig.pool.start()
    rig.pool.end(rig.loop, job)
    rig.loop.run(until=lambda: False)
    assert rig.state() == (1, 0)


def test_an_idle_worker_ends_only_when_it_had_nothing_for_long() -> None:
    rig = Rig(1, lanes=("bulk",), idle_s=10.0)
    rig.turn(9.0)
    rig.send()
    rig.turn()
    (job,) = rig.turn()
    for _ in range(10):
        rig.turn(5.0)
    assert not rig.loop.draining
    rig.pool.end(rig.loop, job)
    rig.turn()
    rig.turn(9.0)
    assert not rig.loop.draining
    rig.turn(1.0)
    rig.loop.run(until=lambda: False)
    assert rig.loop.draining


def test_close_settles_releases_and_leaves_whatever_fails() -> None:
    rig = Rig(4)
    rig.send(times=2)
    rig.turn()
    first, second = rig.turn()
    rig.pool.end(rig.loop, first)
    original = rig.consumers["say", "interactive"].close

    def trouble(timeout: float = 5.0) -> None:
        original(timeout)
        raise LeaseLostError("late")

    rig.consumers["say", "interactive"].close = trouble  # type: ignore[method-assign]
    rig.loop.close(1.0)
    assert rig.log.group(NAMES.group("say")).members == []
    state = rig.log.group(NAMES.group("say")).state(second.topic, 0)
    assert (state.locked(), state.start) == (0, 1)


def test_the_age_is_the_time_since_the_last_turn(rig: Rig) -> None:
    rig.turn()
    rig.clock.advance(3.0)
    assert rig.loop.age == 3.0


def test_the_rate_follows_what_is_settled() -> None:
    clock = Clock()
    rate = Rate(clock)
    for _ in range(100):
        clock.advance(0.1)
        rate.add(50)
    assert rate.value == pytest.approx(500, rel=0.01)


def test_light_pools_keep_a_buffer_that_grows_with_the_rate() -> None:
    rig = Rig(2, light=True, lanes=("bulk",))
    rig.send(times=5000)
    most = 0
    for _ in range(200):
        rig.turn(0.05)
        most = max(most, len(rig.pool.queue) + len(rig.pool.running))
        for _ in range(len(rig.pool.queue) + len(rig.pool.running)):
            if rig.pool.running:
                rig.pool.end(rig.loop, rig.pool.running[0])
                rig.pool.start()
    assert 10 < most < 2100
    assert rig.state()[1] < 4500


@pytest.mark.parametrize(("seconds", "at_hand"), [(0.001, True), (0.5, False)])
def test_a_light_slot_has_its_next_job_at_hand_unless_jobs_are_long(seconds: float, at_hand: bool) -> None:
    """However long it takes until an end is durable: that is no work of the slot's."""
    rig = Rig(1, light=True, lanes=("bulk",))
    rig.send(times=60)
    idle = 0
    for _ in range(20):
        started = rig.turn(0.3)
        idle += not started
        for found in started:
            rig.pool.end(rig.loop, found)
            rig.loop.spent(found, seconds)
    assert (idle <= 2) == at_hand


@pytest.mark.parametrize(("light", "most"), [(True, UNSETTLED), (False, 1)])
def test_a_light_job_that_ended_needs_no_slot_while_its_end_is_confirmed(light: bool, most: int) -> None:
    """A broker takes its time to confirm. A heavy job's outcome waits for a store that is away: no more is taken."""
    rig = Rig(1, light=light, lanes=("bulk",))
    rig.send(times=UNSETTLED + 200)
    ended = []
    for _ in range(3 * UNSETTLED):
        for found in rig.turn(0.01):
            rig.pool.running.remove(found)
            rig.loop.spent(found, 0.5)  # no buffer is kept for jobs as long as this
            ended.append(found)
    assert most <= len(ended) <= most + 2
    done = len(ended)
    for found in ended:
        rig.loop.done(found, AckType.ACCEPT)
    assert any(rig.turn(0.01) for _ in range(6)), "the next one is taken when they are"
    assert rig.state()[0] == done
