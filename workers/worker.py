"""A worker put together: consumers, slots, pipeline, publisher, control, health. `python -m workers` runs one."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from kafka.net.selector import NetworkSelector

from schemas.codec import dump
from schemas.control import Control, Drain, Presence, key
from schemas.errors import TapeError
from schemas.event import Event
from schemas.ids import uuid7
from schemas.job import Lane
from schemas.topics import Names, groups, movers
from wire import metrics
from wire.blobs import Blobs, open_store
from wire.clock import Clock
from wire.follow import Feed
from wire.publish import KafkaPublisher, Publisher, Sent
from wire.settings import Settings
from wire.share import AckType, Listener, ShareConfig, ShareConsumer, ShareError
from workers.admit import Signals
from workers.again import Again
from workers.aside import Aside
from workers.attempt import Record
from workers.breaker import Breakers
from workers.claim import Claims
from workers.control import Controls, follow_control
from workers.delay import Mover
from workers.execute import Executor
from workers.gate import Gate
from workers.guard import Guarded, Guards
from workers.health import Health
from workers.kinds import Kind, load
from workers.lease import LeaseLoop
from workers.meter import Meter
from workers.presence import Announcer, Post
from workers.process import ChildRunner
from workers.queues import Consume, Listening, Queues, Ready, check, mapped, share_config
from workers.quota import Quotas
from workers.runner import InlineRunner, Runner
from workers.scout import Scout, ahead
from workers.settle import Settler
from workers.slots import Pool
from workers.source import Consumer

_LOG = structlog.get_logger("tickertape.worker")
STALE_S = 10.0
"""A loop that has not turned for this long is not live."""
DATED_S = 2.0
"""How long a worker waits at its start for the broker to tell what time it is."""
STOP_S = 6.0
"""What is told to stop at the end of the grace has this long; then it is handed back as it is."""
LINGER_MS = 8.0
"""Under load events wait this long for company: a third of the requests."""


@dataclass(frozen=True, slots=True)
class Options:
    """What one worker does: kinds, room, and when it ends."""

    kinds: tuple[str, ...]
    slots: int = 1
    lanes: tuple[str, ...] = tuple(Lane)
    grace_s: float = 20.0
    health_port: int | None = None
    limit: int | None = None
    idle_s: float | None = None
    housekeep_s: float | None = None
    move: bool = True


class Worker:
    """One worker: built, then `run` until it drained.

    `consume`, `publisher`, `store` and `control` are the ways to the outside; tests give their own.
    """

    def __init__(
        self,
        settings: Settings,
        options: Options,
        *,
        kinds: Mapping[str, Kind] | None = None,
        consume: Consume | None = None,
        publisher: Publisher | None = None,
        store: Blobs | None = None,
        control: Controls | None = None,
    ) -> None:
        self.settings, self.options = settings, options
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid7()[-4:]}"
        self.kinds = dict(kinds) if kinds is not None else load(options.kinds)
        self._names = Names(settings.prefix)
        self._guards = Guards()
        self._store = store or Guarded(self._guards.of("store"), partial(open_store, settings))
        self._hurry, self._ended = threading.Event(), threading.Event()
        self._net: Any = None
        self._stop_at = float("inf")
        self._metrics = metrics.configure(settings, "worker", page=options.health_port is not None)
        self._clock = Clock()
        now = self._clock.now
        self._meter = Meter(self._metrics.meter, self._names, self.kinds, now=now)
        self.health = self._endpoint()
        if consume is None:
            check(settings, self._names, tuple(self.kinds))
        self._publisher = publisher or KafkaPublisher(
            settings, linger_ms=LINGER_MS, name=f"worker-{self.id}", clock=self._clock.time
        )
        self._breakers = Breakers(self.id, now, self._say)
        self._gate = Gate(self._breakers, self.kinds)
        self._control = control or Controls(
            follow_control(settings, self._names.control),
            breaker=partial(self._meter.breaker, self._breakers),
            drain=self._told_to_drain,
            worker=lambda name, there: self._breakers.heard(name, there=there),
        )
        # Tests that bring their own queue bring their own time, too.
        self._mover = (
            Mover(settings, name=self.id, clock=self._clock.time) if options.move and consume is None else None
        )
        self._again = Again()
        self._claims = Claims(worker=self.id, store=self.store, now=now)
        self._quotas = Quotas(worker=self.id, store=self.store, tenant=self._control.tenant)
        self._pools: dict[bool, Pool] = {}
        post = Post(worker=self.id, kinds=self.kinds, lanes=options.lanes, slots=options.slots, started_at=now())
        self._presence = Announcer(self._say, self._unsay, partial(self._seen, post))
        self._aside = Aside(
            self._publisher, lambda record, ack: self.loop.done(record, ack), lambda record: self.loop.keep(record)
        )
        self._scouts: list[Scout] = []
        self._built = False
        self.loop = self._build(consume)
        self._built = True
        self._meter.look(self._breakers, self.loop, self._pools.values(), self._again, self._mover)

    def _build(self, consume: Consume | None) -> LeaseLoop:
        settler = Settler(
            publisher=self._publisher,
            store=self.store,
            names=self._names,
            worker=self.id,
            now=self._clock.now,
            done=self._settled,
            again=self._again,
            gate=self._gate,
        )
        executor = Executor(
            kinds=self.kinds,
            names=self._names,
            settler=settler,
            claims=self._claims,
            gate=self._gate,
            signals=Signals(
                self._clock.now,
                self._control.reason,
                self._hurry.is_set,
                self._ended.wait,
                quotas=self._quotas,
                paused=self._control.paused,
            ),
            again=self._again,
            give=lambda record: self._pool_of(self._names.parse_jobs(record.topic)[0]).give(record),
        )
        for kind in self.kinds.values():
            light = kind.isolation == "thread"
            if light not in self._pools:
                make = partial(self._runner, light)
                name = "thread" if light else "slot"
                work = self._meter.slots(executor.execute, lambda record, seconds: self.loop.spent(record, seconds))
                self._pools[light] = Pool(self.options.slots, make, work, name=name, light=light)
        queues = Queues(
            names=self._names,
            kinds=self.kinds,
            consume=partial(self._open, consume or self._consume),
            pool=self._pool_of,
            weight=self._weight,
            running=lambda: self.loop.running(),
            look=None if consume else self._ahead,
            wall=self._clock.time,
        )
        sources = [source for lane in self.options.lanes for source in queues.lane(lane)]
        self._scouts = queues.scouts
        return LeaseLoop(
            sources, forget=self._again.forget, aside=self._aside, gate=self._gate.room, limit=self.options.limit,
            idle_s=self.options.idle_s,
        )  # fmt: skip

    def _settled(self, record: Record, ack: AckType, event: Event | None) -> None:
        if event is not None:
            self._meter.told(event)
        self.loop.done(record, ack)

    def _pool_of(self, kind: str) -> Pool:
        return self._pools[self.kinds[kind].isolation == "thread"]

    def _runner(self, light: bool) -> Runner:
        if light:
            return InlineRunner(
                self.id, self.settings.cache, self.store, guards=self._guards, heard=self._breakers.report
            )
        heavy = [kind.name for kind in self.kinds.values() if kind.isolation == "process"]
        price = self.settings.price_per_hour
        share = price / self.options.slots if price is not None else None
        settings = self.settings.model_copy(update={"price_per_hour": share})
        return ChildRunner(self.id, settings, kinds=heavy, heard=self._breakers.report)

    def _open(self, consume: Consume, topic: str, group: str, light: bool, fetched: Callable[[int], None]) -> Consumer:
        listener = Listening(lambda places: self.loop.lost(places), self._claims.doubt, fetched)
        return consume(topic, group, light, self._ready_to_turn, listener)

    def _consume(self, topic: str, group: str, light: bool, ready: Ready, listener: Listener) -> Consumer:
        if self._net is None:
            self._net = NetworkSelector(client_id=self.id)
        return ShareConsumer(
            [topic], group, self._config(light=light), net=self._net, on_ready=ready, listener=listener
        )

    def _ahead(self, topic: str, group: str) -> Feed:
        return ahead(self.settings, self._config(light=False), group, topic)

    def _config(self, *, light: bool) -> ShareConfig:
        crowded = self.options.slots < len(self.kinds) * len(self.options.lanes)
        return share_config(self.settings, self.id, batch=light and self.options.limit is None, crowded=crowded)

    def _weight(self, tenant: str) -> float:
        said = self._control.tenants.get(tenant)
        return 1.0 if said is None else said.weight

    def _ready_to_turn(self) -> None:
        if self._built:  # the first consumers may call while the last are still being made
            self.loop.wake()

    def store(self) -> Blobs:
        """Return the object store, which its first call opens."""
        return self._store

    def _endpoint(self) -> Health | None:
        if self.options.health_port is None:
            return None
        probes = {"live": self._live, "ready": self._ready, "busy": self._busy}
        return Health(probes, pages={"metrics": self._metrics.page}, port=self.options.health_port)

    def _live(self) -> tuple[bool, dict[str, Any]]:
        age = self.loop.age
        return age < STALE_S, {"loop_age_s": round(age, 3), "worker": self.id}

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        draining = self.loop.draining
        device = self._gate.device
        return not draining and device is None, {"kinds": sorted(self.kinds), "draining": draining, "device": device}

    def _busy(self) -> tuple[bool, dict[str, Any]]:
        slots = sum(pool.size for pool in self._pools.values())
        return self.loop.held > 0, {"held": self.loop.held, "slots": slots, "waiting": self._again.pending}

    def drain(self, *_: object) -> None:
        """Take nothing more and let running jobs end, within the grace; a second call hands them back at once."""
        if self.loop.draining:
            self._stop()
            return
        _LOG.info("draining", held=self.loop.held, grace_s=self.options.grace_s)
        timer = threading.Timer(self.options.grace_s, self._stop)
        timer.daemon = True
        timer.start()
        self.loop.drain()
        self._presence.now()

    def _told_to_drain(self, message: Drain) -> None:
        if message.worker == self.id and not self.loop.draining:
            _LOG.info("told to drain", reason=message.reason)
            self.drain()

    def _say(self, message: Control) -> None:
        """Put a message on the control topic; one that is lost is said again by whoever said it.

        The answer tells the broker's time: this machine's may be wrong, and what is put off is due by it.
        """
        asked = time.monotonic()
        with suppress(TapeError):
            sent = self._publisher.publish(self._names.control, key=key(message).encode(), value=dump(message))
            sent.add_done_callback(partial(self._dated, asked))

    def _dated(self, asked: float, sent: Future[Sent]) -> None:
        self._clock.heard(None if sent.exception() else sent.result().at_ms, asked)

    def _unsay(self, name: str) -> None:
        self._publisher.publish(self._names.control, key=name.encode(), value=None)

    def _seen(self, post: Post) -> Presence:
        states = {name: circuit.state for name, circuit in self._breakers.states().items()}
        return post.look(
            self.loop.leases(),
            draining=self.loop.draining,
            breakers=states,
            shared=self.loop.shared(),
            now=self._clock.now(),
        )

    def _stop(self) -> None:
        self._stop_at = min(self._stop_at, time.monotonic() + STOP_S)
        self._hurry.set()

    def run(self) -> None:
        """Work until drained, then settle, hand back what is left, and close everything."""
        self._again.start()
        self._claims.start()
        self._quotas.start()
        self._aside.start()
        for scout in self._scouts:
            scout.start()
        for pool in self._pools.values():
            pool.start()
        if self.health is not None:
            self.health.start()
        self._presence.start()
        self._clock.wait(DATED_S)
        if self._mover is not None:
            self._mover.start()
        if self.options.housekeep_s:
            threading.Thread(target=self._keep_house, name="housekeeper", daemon=True).start()
        _LOG.info("worker up", worker=self.id, kinds=sorted(self.kinds), slots=self.options.slots)
        try:
            self.loop.run(until=lambda: time.monotonic() >= self._stop_at)
        except ShareError as error:
            raise mapped(error) from error
        finally:
            self._close()

    def _keep_house(self) -> None:
        """Delete now and then what the groups have finished; any number of workers may do so at once."""
        from wire.housekeeper import Housekeeper

        every_s = self.options.housekeep_s or 0.0
        keeper = Housekeeper(self.settings, [*groups(self._names, tuple(self.kinds)), movers(self._names)])
        # Workers that start together must not sweep together.
        if not self._ended.wait(every_s * random.random()):  # noqa: S311 - spreads load, guards nothing
            keeper.run(self._ended, every_s=every_s, report=_told)

    def _close(self) -> None:
        self._hurry.set()
        self._presence.stop()
        for scout in self._scouts:
            scout.stop(timeout=2.0)
        self._aside.stop(timeout=2.0)
        for pool in self._pools.values():
            pool.stop(timeout=10.0)
        self._again.stop()
        self._claims.stop()
        self._quotas.stop()
        if self._mover is not None:
            self._mover.stop(timeout=5.0)
        self._ended.set()
        try:
            self._publisher.close(timeout=10.0)
        finally:
            self.loop.close(timeout=5.0)
            self._control.close()
            self._metrics.close()
            if self._net is not None:
                self._net.close()
            if self.health is not None:
                self.health.stop()
        _LOG.info("worker down", worker=self.id)


def _told(swept: list[Any] | TapeError) -> None:
    if isinstance(swept, TapeError):
        _LOG.warning("housekeeping failed", error=str(swept))
    elif swept:
        _LOG.info("housekeeping", partitions=len(swept), records=sum(one.before - one.start for one in swept))
