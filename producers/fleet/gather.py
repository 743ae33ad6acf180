"""What is known of one job, gathered within seconds however long its queue is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from producers.fleet.diagnose import ENOUGH, diagnose
from producers.fleet.facts import Answer, Blocker, Facts, Place, Rate, Standing, Turns
from producers.fleet.lookout import Lookout
from producers.fleet.tenants import tallies
from producers.fleet.view import Fleet, dated
from producers.fold import newest
from producers.handle import SKEW, born
from schemas import codec, past
from schemas.dead import Became, Fate
from schemas.errors import InvalidError, NotFoundError, TapeError
from schemas.event import Event, EventType, State
from schemas.ids import checked
from schemas.job import Job, Lane
from schemas.quota import Tally
from wire.follow import Received, Since
from wire.partition import partition_for

SEARCH_S = 1.0
"""Seconds that may be spent on finding the job's record in its queue."""
TURNS_S = 2.0
"""Seconds that may be spent on counting whose jobs wait, where tenants share a queue."""
RATE_S = 0.5
"""Seconds that may be spent on counting what ended lately."""
WINDOWS_S = (10.0, 300.0)
"""How far back ended jobs are counted: the near past where it tells enough, else more."""
THREADS = 8
TENANTS = 100
"""Tenants that are told apart in a queue: those with the most jobs."""


def why(lookout: Lookout, job: str, since: datetime | None = None) -> Answer:
    """Say why a job is not running. Events are looked for from `since` on, or from the birth of its id.

    Raises `InvalidError` (TAPE-1004) for what is no job's id, `NotFoundError` (TAPE-2002) when nothing tells of it,
    `UnavailableError`, `AuthError`.
    """
    answer = diagnose(gather(lookout, checked(job, field="job"), since))
    if answer.state is None and answer.blocker is Blocker.MISSING:
        raise NotFoundError("no event tells of this job, and it is in no queue", code="TAPE-2002", job=job)
    return answer


def gather(lookout: Lookout, job: str, since: datetime | None = None) -> Facts:
    """Return what events, control topic, job topic and share group tell of a job."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="tape-why") as threads:
        fleet = threads.submit(lookout.fleet)
        events = _events(lookout, job, since or born(job))
        if not events:
            return _strange(lookout, job, fleet.result(), threads)
        last = newest(events) or events[-1]
        kind, lane = last.kind, last.lane
        known = Facts(job=job, now=lookout.now(), kind=kind, lane=lane, events=events)
        ended = diagnose(known)
        if ended.blocker is Blocker.ENDED:
            return replace(known, fate=_fate(lookout, job)) if ended.state is State.DEAD else known
        rate = threads.submit(_rate, lookout, kind, lane)
        standing = _standing(lookout, kind)
        queue = _of(standing, lookout.names.jobs(kind, lane))
        place, searched, turns = None, False, None
        waits = last.until is not None and last.until > lookout.now()
        if queue is not None and last.type is not EventType.RUNNING and not waits:
            place, searched = _find(lookout, job, queue, _since(events))
            turns = _turns(lookout, place, queue, fleet.result(), kind) if place is not None else None
        tenant = last.tenant
        return Facts(
            job=job,
            now=lookout.now(),
            kind=kind,
            lane=lane,
            events=events,
            tenant=tenant,
            tally=_tally(lookout, fleet.result(), tenant),
            place=place,
            searched=searched,
            turns=turns,
            queue=queue,
            other=sum(one.waiting for one in standing) - sum(one.waiting for one in queue or ()),
            fleet=fleet.result(),
            rate=rate.result(),
        )


def _fate(lookout: Lookout, job: str) -> Fate | None:
    """The last word on a job's dead letters, if it is that they stay dead; None also where to tell takes too long."""
    fates: dict[str, Fate] = {}
    for record in lookout.records(lookout.names.letters, "start", SEARCH_S):
        if record is None:
            return None
        if record.value is not None and job.encode() in record.value:
            with suppress(ValueError):
                fate = Fate.model_validate_json(record.value)
                fates |= {fate.letter: fate} if fate.job == job else {}
    last = max(fates.values(), key=lambda fate: fate.time, default=None)
    return last if last is not None and last.became is Became.DISCARDED else None


def _events(lookout: Lookout, job: str, since: datetime) -> tuple[Event, ...]:
    found: dict[str, Event] = {}
    try:
        with lookout.follower.read(lookout.names.events, since=since, key=job.encode()) as feed:
            for record in (record for batch in feed for record in batch):
                with suppress(TapeError):
                    event = codec.parse(Event, record.value or b"")
                    found.setdefault(event.id, event)
    except NotFoundError:
        return ()
    return tuple(event for event in found.values() if event.job == job)


def _strange(lookout: Lookout, job: str, fleet: Fleet, threads: ThreadPoolExecutor) -> Facts:
    """A job of which no event tells: a plain client's, that nobody took yet. All queues are searched at once."""
    names, wanted = lookout.names, []
    for topic in sorted(lookout.topics()):
        with suppress(InvalidError):
            wanted.append((topic, *names.parse_jobs(topic)))
    kinds = sorted({kind for _, kind, _ in wanted})
    standings = dict(zip(kinds, threads.map(lambda kind: _standing(lookout, kind), kinds), strict=True))
    queues = {topic: _of(standings[kind], topic) or () for topic, kind, _ in wanted}
    found = threads.map(lambda one: _find(lookout, job, queues[one[0]], None), wanted)
    for (topic, kind, lane), (place, searched) in zip(wanted, found, strict=True):
        if place is not None:
            other = sum(one.waiting for one in standings[kind] if one.topic != topic)
            return Facts(
                job=job, now=lookout.now(), kind=kind, lane=lane, place=place, searched=searched,
                queue=queues[topic], other=other, fleet=fleet, rate=_rate(lookout, kind, lane), tenant=place.tenant,
                tally=_tally(lookout, fleet, place.tenant), turns=_turns(lookout, place, queues[topic], fleet, kind),
            )  # fmt: skip
    return Facts(job=job, now=lookout.now(), searched=True, fleet=fleet)


def _standing(lookout: Lookout, kind: str) -> list[Standing]:
    return lookout.standing(lookout.names.group(kind), [lookout.names.jobs(kind, lane) for lane in Lane])


def _of(standing: Iterable[Standing], topic: str) -> tuple[Standing, ...] | None:
    return tuple(one for one in standing if one.topic == topic) or None


def _since(events: Sequence[Event]) -> datetime | None:
    """The moment since when the record that waits now may lie in the queue.

    A record that was written again is younger than the event that says so; one that was only handed back is as old as
    the job. The submitter's clock may be a little ahead of the record's.
    """
    told = next((event for event in events if event.type is EventType.QUEUED), None)
    again = [event for event in events if event.until is not None or (event.redrive and event.type is EventType.QUEUED)]
    moment = again[-1].time if again else told.time if told else None
    return moment - SKEW if moment is not None else None


def _find(lookout: Lookout, job: str, queue: Sequence[Standing], since: datetime | None) -> tuple[Place | None, bool]:
    """Return the job's newest unfinished record, and whether the queue was searched to its end.

    First where Kafka's partitioner puts the id, from `since` or the group's start on; then, for clients that place
    records by themselves, everywhere else. What is younger is read on within the budget, for there may be a newer one.
    """
    if not queue:
        return None, True
    topic, key = queue[0].topic, job.encode()
    starts = {one.partition: one.start for one in queue}
    home = partition_for(key, len(queue))
    begin: Since = {home: starts.get(home, 0)} if since is None else since
    until = lookout.clock() + SEARCH_S
    found: Place | None = None
    for record in lookout.records(topic, begin, SEARCH_S, key):
        if record is None:
            return found, False
        if record.offset >= starts.get(record.partition, 0):
            found = _place(record)
    if found is not None:
        return found, True
    for record in lookout.records(topic, starts, max(0.0, until - lookout.clock())):
        if record is None:
            return found, False
        if _subject(record) == key:
            found = _place(record)
    return found, True


def _tally(lookout: Lookout, fleet: Fleet, tenant: str) -> Tally | None:
    said = fleet.tenants.get(tenant)
    return tallies(lookout, [said]).get(tenant) if said is not None else None


def _turns(lookout: Lookout, place: Place, queue: Sequence[Standing], fleet: Fleet, kind: str) -> Turns | None:
    """Count who waits, where the workers say that tenants share the queue; None where they do not, or in too long."""
    if all(kind not in seen.presence.shared for seen in fleet.workers):
        return None
    waiting: Counter[str] = Counter()
    own, starts = 0, {one.partition: one.start for one in queue}
    for record in lookout.records(place.topic, starts, TURNS_S):
        if record is None:
            return None
        name = codec.tenant_of(record.value)
        waiting[name] += 1
        if name == place.tenant and (record.partition, record.offset) != (place.partition, place.offset):
            before = record.offset < place.offset if record.partition == place.partition else None
            own += dated(record.timestamp_ms) <= place.written if before is None else before
    del waiting[place.tenant]
    return Turns(own, dict(waiting.most_common(TENANTS)))


def _place(record: Received) -> Place:
    expires, begins, tenant = None, None, "default"
    with suppress(TapeError):
        envelope = codec.decode(record.value, record.headers)
        job = codec.parse(Job, envelope.data)
        expires, begins, tenant = job.expires_at, job.not_before, job.tenant
    return Place(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        written=dated(record.timestamp_ms),
        past=past.read(record.headers),
        expires_at=expires,
        not_before=begins,
        tenant=tenant,
    )


def _subject(record: Received) -> bytes | None:
    """The job's id as a worker tells it: `ce_subject`, else the key."""
    headers: dict[str, bytes | None] = {name.lower(): raw for name, raw in record.headers}
    return headers.get("ce_subject") or record.key


def _rate(lookout: Lookout, kind: str, lane: str) -> Rate | None:
    """Count what ended lately; None where that cannot be told in time."""
    until = lookout.clock() + RATE_S
    rate = None
    for window in WINDOWS_S:
        since = lookout.now() - timedelta(seconds=window)
        count = 0
        for record in lookout.records(lookout.names.events, since, max(0.0, until - lookout.clock())):
            if record is None:
                return rate
            count += _ends(record, kind, lane)
        rate = Rate(count, window)
        if count >= ENOUGH:
            break
    return rate


def _ends(record: Received, kind: str, lane: str) -> bool:
    # Most events are of other kinds or end nothing: a look at the bytes is a tenth of the time of reading them.
    if record.value is None or b'"outcome"' not in record.value or kind.encode() not in record.value:
        return False
    with suppress(TapeError):
        event = codec.parse(Event, record.value)
        return event.outcome is not None and (event.kind, event.lane) == (kind, lane)
    return False
