"""What happens to the world that no single step of a process does."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from producers.cancel import concluded, keep
from schemas.errors import ConflictError
from schemas.event import Event, EventType
from schemas.recur import Recurring
from tests.simulation.hand import LIGHT
from tests.unit.worker_twin import NAMES

if TYPE_CHECKING:
    from tests.simulation.world import World

HOURS_2 = 7200.0


def _restart(world: World, _: random.Random) -> None:
    for kind in ("say", LIGHT):
        world.log.group(NAMES.group(kind)).restart()


def _jump(world: World, choose: random.Random) -> None:
    watch = choose.choice([world.client, *(actor.watch for actor in (*world.hands, *world.carriers))])
    watch.skew = choose.choice((-HOURS_2, -30.0, 0.0, 30.0, HOURS_2))


def _cut(world: World, choose: random.Random) -> None:
    actor = choose.choice([*world.hands, *world.carriers])
    actor.link.brokers = not actor.link.brokers


def _store(world: World, choose: random.Random) -> None:
    for hand in choose.choice([world.hands, world.hands[:1]]):
        hand.link.store = not hand.link.store


def _kill(world: World, choose: random.Random) -> None:
    world.dies(choose.choice([*world.hands, *world.carriers]))


def _drain(world: World, choose: random.Random) -> None:
    hand = choose.choice(world.hands)
    hand.hurry() if hand.draining else hand.drain()


def _resend(world: World, choose: random.Random) -> None:
    if world.requests:
        world.resend(choose.choice(list(world.requests)))


def _redrive(world: World, choose: random.Random) -> None:
    if waiting := world.letters():
        world.redrive(choose.choice(waiting))


def _cancel(world: World, choose: random.Random) -> None:
    if world.requests:
        world.cancel(choose.choice(list(world.requests)))


def _pause(world: World, choose: random.Random) -> None:
    if world.requests:
        world.pause(choose.choice(list(world.requests)))


def _resume(world: World, choose: random.Random) -> None:
    if world.paused:
        world.pause(choose.choice(sorted(world.paused)), over=True)


def _conclude(world: World, choose: random.Random) -> None:
    """Whoever cancels a job takes it for waiting, rightly or not, and ends it as a client does."""
    names = [name for name in world.requests if not world.oracle.jobs[name].light]
    name = choose.choice(names) if names else ""
    if not name or world.oracle.jobs[name].way == "wrong":  # no client of ours wrote that
        return
    world.cancel(name)
    now = world.client.now()
    waiting = Event(id=name, type=EventType.QUEUED, job=name, kind="say", time=now)
    told = concluded([waiting], "enough", by="client", now=now, recorded={"say"})
    assert told is not None and told.outcome is not None
    dead = any(world.oracle.letters[at][1].job == name for at in world.letters())
    sent_back = world.oracle.jobs[name].redriven and not dead  # else a client sees that it does not wait
    events = [event for event in world.oracle.events if event.job == name and sent_back]
    with suppress(ConflictError):
        keep(world.store, told.outcome, events)
        if choose.random() < 0.8:  # else it dies in between
            world.log.append(NAMES.events, name.encode(), told.model_dump_json().encode())


def _recur(world: World, choose: random.Random) -> None:
    """A job is to be submitted again and again; it ends by a tombstone."""
    cron = f"*/{choose.choice((10, 30))} * * * * *"
    template = Recurring(name="often", cron=cron, kind="say", params={"text": "good"}, added_at=world.client.now())
    world.log.append(NAMES.recurring, b"often", template.model_dump_json(exclude_none=True).encode())


FAULTS: dict[str, Callable[[World, random.Random], object]] = {
    "the brokers restart": _restart,
    "a clock jumps": _jump,
    "the brokers are cut off": _cut,
    "the store is cut off": _store,
    "a process is killed": _kill,
    "a worker is drained": _drain,
    "a request is sent again": _resend,
    "a dead letter is sent back": _redrive,
    "a job is cancelled": _cancel,
    "a job is paused": _pause,
    "a job is resumed": _resume,
    "a job is cancelled and ended": _conclude,
    "a job recurs": _recur,
}
