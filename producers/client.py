"""The client: submit jobs, wait for them, watch them, pause them, cancel them.

from producers import Client

with Client("127.0.0.1:9092") as client:
    job = client.submit("inference", {"model": "builtin:tiny", "prompt": "Revenue rose"})
    print(job.result(timeout=60).result)
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Unpack

import structlog
from opentelemetry import trace

from producers import upload as uploads
from producers.cancel import concluded, keep
from producers.feed import Feed
from producers.handle import JobHandle, born
from producers.ports import Ports
from producers.request import Message, Options, Prepared, Request, event_message, prepare, traced
from schemas import codec, control
from schemas.control import Cancel, Control, Pause, Resume
from schemas.errors import ConflictError, InvalidError, NotFoundError, TapeError, UnavailableError
from schemas.event import FINAL, Event, State, follow
from schemas.ids import checked, uuid7
from schemas.job import PARAMS
from schemas.lineage import SCHEME, TOP, ModelVersion
from schemas.model import Strict
from schemas.outcome import Outcome, outcome_name
from schemas.topics import Names
from wire import datasets
from wire.registry import Registry
from wire.settings import Settings
from wire.telemetry import inject

WINDOW = 500
"""Jobs of `submit_many` that may be on their way to the broker at once."""

LOOK_S = 5.0
"""How long a job's events are looked for: after that what was asked for is left to the workers alone."""
BEGINNING = datetime.fromtimestamp(0, UTC)

_log = structlog.get_logger("producers.client")


class Client:
    """A connection to the queue for those who ask for work. Safe to share between threads; close it when done."""

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, ports: Ports | None = None) -> None:
        """Prepare a client; nothing is connected before the first call that needs it.

        `url` is the broker's `host:port`; without it, and without `settings`, environment and profile tell. Raises
        `InvalidError` (TAPE-1007) when a setting is wrong.
        """
        if settings is None:
            settings = Settings.load(kafka_url=url)
        elif url is not None:
            settings = settings.model_copy(update={"kafka_url": url})
        self.settings = settings
        self.names = Names(settings.prefix)
        self._ports = ports or Ports(settings)
        self.feed = Feed(lambda since, stop: self._ports.follow(self.names.events, since, stop))
        self._tracer = trace.get_tracer("tickertape")
        self._kinds: frozenset[str] = frozenset(PARAMS)

    def submit(
        self,
        subject: Strict | str | Request,
        params: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> JobHandle:
        """Submit one job, and return when the broker has it on disk (acks=all).

        `subject` is the parameters of a kind (`Training(...)`), a kind's name with `params`, or a whole `Request`.
        With `key`, the same tenant and key are the same job: it is submitted again only as long as it has no outcome.

        Raises `InvalidError` (TAPE-1002 a wrong field, 1003 an unknown kind, 1006 too large), `ConflictError`
        (TAPE-3005: the key belongs to another request), `UnavailableError` (TAPE-5001, 5003).
        """
        return self._confirm(self._send(Request.of(subject, params, **options)))

    def submit_many(self, requests: Iterable[Strict | Request], *, window: int = WINDOW) -> Generator[JobHandle]:
        """Submit jobs one after the other without waiting for each, and yield a handle as each is confirmed.

        Lazy: take the handles (in the order of the requests), or nothing is sent. At most `window` jobs are on their
        way at once, so `requests` may be endless. Raises as `submit` does; the jobs before the wrong one are confirmed.
        """
        waiting: deque[_Sent] = deque()
        refused: TapeError | None = None
        try:
            for request in requests:
                try:
                    waiting.append(self._send(Request.of(request)))
                except TapeError as error:
                    refused = error
                    break
                if len(waiting) >= window:
                    yield self._confirm(waiting.popleft())
            while waiting:
                yield self._confirm(waiting.popleft())
        finally:
            # Left early: what is on its way already gets its `queued` event all the same.
            for sent in waiting:
                with suppress(TapeError):
                    self._confirm(sent)
        if refused is not None:
            raise refused

    def known(self, kind: str) -> None:
        """Raise `InvalidError` (TAPE-1003), with the known kinds, for a kind that no topic here serves."""
        if kind in self._kinds:
            return
        # The set of kinds is open: a kind exists here when its topic does.
        found = set()
        for topic in self._ports.topics():
            with suppress(InvalidError):
                found.add(self.names.parse_jobs(topic)[0])
        self._kinds = frozenset(found | set(PARAMS))
        if kind not in self._kinds:
            raise InvalidError(
                f"{kind!r} is no kind that this cluster has a topic for",
                code="TAPE-1003",
                kind=kind,
                hint=f"known: {', '.join(sorted(self._kinds))}; `tape topics apply --kind NAME` adds one",
            )

    def job(self, job: str, *, since: datetime | None = None) -> JobHandle:
        """Return a handle of a job that somebody submitted; its events are looked for from `since` on.

        Without `since`, the id tells when it was made, or all kept events are read. Nothing is asked yet, so an id
        that nobody has is noticed by waiting in vain.
        """
        return JobHandle(self, self.feed.join(job, since or born(job)), stored=True)

    def cancel(self, job: str, reason: str = "cancelled on request") -> State | None:
        """Tell every worker to stop a job; return, once that is confirmed, where its events say that it is now.

        A job at its end stays as it is. One that nobody runs ends at once, as far as this client reaches the store
        (`producers.cancel` tells which); else when a worker comes to it. None: no event tells of it. Raises
        `InvalidError` (TAPE-1004) for what can be no job's id.
        """
        order = Cancel(job=checked(job, field="job"), reason=reason, time=datetime.now(UTC))
        self._order(order)
        until = time.monotonic() + LOOK_S
        events = self._look(job, until)
        event = concluded(events, reason, by=f"client:{self.settings.tenant}", now=order.time)
        if event is not None and time.monotonic() < until and self._concluded(event, events):
            events.append(event)
        return _state(events)

    def pause(self, job: str, reason: str = "", *, who: str | None = None) -> State | None:
        """Let a job wait until it is resumed; return, once that is confirmed, where its events said that it was.

        A running one is stopped: what keeps checkpoints keeps another and goes on from it, all else begins anew then.
        One at its end stays as it is, one that is paused already stays so by the first word. `who` asks for it, by
        default user@host. None: no event tells of the job; should it come, it waits. Raises as `cancel` does.
        """
        before = self.paused(job)
        state = _state(self._look(job, time.monotonic() + LOOK_S))
        # A record on what has ended would hold whatever of it is sent back from the dead letters.
        if before is None and state not in FINAL:
            self._order(Pause(job=job, reason=reason, who=_who(who), time=datetime.now(UTC)))
        return state

    def resume(self, job: str, reason: str = "", *, who: str | None = None) -> State | None:
        """Let a paused job go on: at the next look at it, within a minute. One that is not paused stays as it is.

        Returns where its events say that it is now; raises as `pause` does.
        """
        if self.paused(job) is not None:
            self._order(Resume(job=job, reason=reason, who=_who(who), time=datetime.now(UTC)))
        return _state(self._look(job, time.monotonic() + LOOK_S))

    def paused(self, job: str) -> Pause | None:
        """Return who paused a job, when and why; None where it is not paused. Raises as `cancel` does."""
        name, found = control.key(Resume(job=checked(job, field="job"), time=BEGINNING)), None
        for record in self._ports.scan(self.names.control, BEGINNING, name.encode()):
            with suppress(TapeError):
                message = control.read(record.value)
                if record.value is None or isinstance(message, Pause | Resume):
                    found = message if isinstance(message, Pause) else None
        return found

    def cancelled(self, job: str) -> Cancel | None:
        """Return the order by which a job is cancelled, None where there is none. Raises as `cancel` does."""
        found = None
        for record in self._ports.scan(self.names.control, BEGINNING, checked(job, field="job").encode()):
            with suppress(TapeError):
                message = control.read(record.value)
                found = message if isinstance(message, Cancel) else None
        return found

    def _order(self, order: Control) -> None:
        """Tell every worker something; return when that is confirmed."""
        subject = control.key(order)
        headers = codec.encode(
            codec.Envelope(
                id=uuid7(),
                type=f"tape.control.{order.action}.v1",
                source=f"/tickertape/client/{self.settings.tenant}",
                data=b"",
                subject=subject,
                time=datetime.now(UTC).isoformat(),
            )
        )
        message = Message(self.names.control, subject, order.model_dump_json().encode(), headers)
        self._await(self._ports.publish(message), message.topic)

    def _look(self, job: str, until: float) -> list[Event]:
        """Return a job's events, as far as they are found in time."""
        return list(takewhile(lambda _: time.monotonic() < until, self.scan(born(job), job=job)))

    def _concluded(self, event: Event, events: list[Event]) -> bool:
        """Keep and tell the end of a job that nobody runs; False where that fails or lasts: a worker ends it then."""

        def work() -> None:
            assert event.outcome is not None
            with suppress(TapeError):
                keep(self._ports.blobs, event.outcome, events)
                told = event_message(event, self.names.events)
                self._await(self._ports.publish(told), told.topic)
                done.append(event)

        done: list[Event] = []
        thread = threading.Thread(target=work, name="cancel", daemon=True)  # a store that hangs may do so for minutes
        thread.start()
        thread.join(LOOK_S)
        return bool(done)

    def upload(self, path: str | Path) -> str:
        """Put a local file into the store and return its `blob:` reference; uploading it again sends nothing."""
        return uploads.upload(self._ports.blobs, Path(path))

    def pin(self, reference: str, *, part: str) -> str:
        """Return the reference to what `dataset:NAME` or `model:NAME` means now; `part` counts where rows name none.

        Raises `NotFoundError` (TAPE-2008) for what is not registered, `InvalidError` (TAPE-1010) where several fit.
        """
        if reference.startswith(SCHEME):
            version = Registry(self._ports.blobs, TOP, ModelVersion).find(reference.removeprefix(SCHEME))
            return f"{SCHEME}{version.name}@{version.version}"
        return datasets.pinned(*datasets.find(self._ports.blobs, reference, part=part))

    def outcome(self, job: str) -> Outcome | None:
        """Return the outcome that the store keeps of a job; None when there is none (yet): a redrive may bring one."""
        try:
            found = codec.parse(Outcome, self._ports.blobs.read(outcome_name(job)), job=job)
        except NotFoundError:
            return None
        return found if found.final else None

    def scan(self, since: datetime, *, job: str | None = None) -> Iterator[Event]:
        """Yield the events from `since` until now, of one job or of all; those that cannot be read are skipped."""
        for record in self._ports.scan(self.names.events, since, None if job is None else job.encode()):
            if record.value is None:
                continue
            try:
                yield codec.parse(Event, record.value)
            except TapeError as error:
                _log.warning("an event was skipped", code=error.code, error=error.message)

    def close(self) -> None:
        """Wait until everything is sent, stop following, close the connections."""
        self.feed.close()
        self._ports.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request) -> _Sent:
        self.known(request.kind)
        prepared = prepare(request, self.names, tenant=self.settings.tenant)
        if not prepared.keyed:
            # Joined before it is published: a running feed cannot miss what happens next.
            log = self.feed.join(prepared.job, prepared.time, fresh=True)
            return _Sent(prepared, JobHandle(self, log, stored=False), self._publish(prepared))
        first = self._claim(prepared)
        if first is None:
            log = self.feed.join(prepared.job, prepared.time, fresh=True)
        elif self.outcome(prepared.job) is None:
            log = self.feed.renew(prepared.job, first, prepared.time)
        else:
            return _Sent(prepared, JobHandle(self, self.feed.join(prepared.job, first), stored=True), None)
        return _Sent(prepared, JobHandle(self, log, stored=True), self._publish(prepared))

    def _publish(self, prepared: Prepared) -> Future[Any]:
        attributes = {
            "tape.job": prepared.job,
            "tape.kind": prepared.kind,
            "tape.tenant": prepared.tenant,
            "messaging.system": "kafka",
            "messaging.destination.name": prepared.request.topic,
        }
        span = self._tracer.start_span("tape.submit", kind=trace.SpanKind.PRODUCER, attributes=attributes)
        with trace.use_span(span):
            future = self._ports.publish(traced(prepared.request, inject()))
        future.add_done_callback(lambda _: span.end())
        return future

    def _confirm(self, sent: _Sent) -> JobHandle:
        if sent.future is not None:
            self._await(sent.future, sent.prepared.request.topic)
            # After the request and not before it: an event never tells of a job that is not there. Nobody's work
            # depends on it, so it is not waited for; `close` does.
            self._ports.publish(sent.prepared.queued).add_done_callback(_untold)
        return sent.handle

    def _await(self, future: Future[Any], topic: str) -> None:
        try:
            future.result(self._ports.publish_timeout_s)
        except TimeoutError as error:
            raise UnavailableError(
                f"not confirmed within {self._ports.publish_timeout_s:g} s", code="TAPE-5003", topic=topic
            ) from error

    def _claim(self, prepared: Prepared) -> datetime | None:
        """Take the idempotency key; return when it was first used, or None for the first time.

        Costs one conditional write to the store, and for a key that was used before two reads. Raises `ConflictError`
        (TAPE-3005) when the key belongs to another request.
        """
        name = f"runs/{prepared.job}/request.json"
        mine = {"fingerprint": prepared.fingerprint, "kind": prepared.kind, "time": prepared.time.isoformat()}
        try:
            self._ports.blobs.create(name, json.dumps(mine).encode())
            return None
        except ConflictError:
            first = codec.parse_object(self._ports.blobs.read(name))
        if first.get("fingerprint") != prepared.fingerprint:
            raise ConflictError(
                "the idempotency key was used for another request",
                code="TAPE-3005",
                job=prepared.job,
                kind=first.get("kind"),
                time=first.get("time"),
            )
        return datetime.fromisoformat(str(first["time"]))


@dataclass(frozen=True, slots=True)
class _Sent:
    """A job on its way: what it was made of, its handle, and the confirmation (None when it was done before)."""

    prepared: Prepared
    handle: JobHandle
    future: Future[Any] | None


def _state(events: Iterable[Event]) -> State | None:
    state: State | None = None
    for event in events:
        state = follow(state, event)
    return state


def _who(named: str | None) -> str:
    if named is not None:
        return named
    from producers.dead.desk import myself

    return myself()


def _untold(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        _log.warning("a job is queued, but no event tells of it", error=str(error))
