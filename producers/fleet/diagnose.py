"""Why is a job not running? A pure function of what is known: the first rule that has an answer gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from producers.fleet.case import Case
from producers.fleet.facts import Answer, Blocker, Facts
from producers.fleet.words import WORDS, ago, discarded, hint, refused, span, stops
from producers.fleet.words import count as count_of
from producers.fold import fold, newest
from schemas.control import SILENT_S, BreakerState, parted
from schemas.event import State
from schemas.past import Hint

LATE_S = 5.0
"""Seconds within which a due record is moved and a settled one told of; only after that something is wrong."""
ENOUGH = 5
"""Ended jobs from which a rate may be told."""
FAR = timedelta(days=30)
"""Nobody can tell what is further away."""
BLOCKED = {"TAPE-5010": Blocker.BREAKER, "TAPE-5011": Blocker.QUOTA, "TAPE-3008": Blocker.ELSEWHERE}
"""What a postponed job waits for, by the code in its event; for any other only time must pass."""


def diagnose(facts: Facts) -> Answer:
    """Return the one answer; never raises, and never more than one blocker."""
    view = fold(facts.events).get(facts.job)
    last = newest(event for event in facts.events if event.job == facts.job)
    serving = tuple(seen for seen in facts.fleet.workers if facts.kind and seen.serves(facts.kind, facts.lane))
    case = Case(facts, view, last, serving, ahead(facts))
    for rule in RULES:
        if (found := rule(case)) is not None:
            return found
    return _waiting(case)


def ahead(facts: Facts) -> int | None:
    """Return about how many unfinished jobs of the lane come before this one, running ones included; None: unknown.

    Where several tenants share the queue, each has its turn. Else those in its own partition are counted; the workers
    read all partitions alike, so as many come from each other one, if that many are there. Records that end early and
    the markers of transactions make it an estimate.
    """
    place = facts.place
    if place is None or not facts.queue:
        return None
    if facts.turns is not None:
        return facts.turns.ahead(facts.weight(facts.tenant), facts.weight)
    own = next((one for one in facts.queue if (one.topic, one.partition) == (place.topic, place.partition)), None)
    if own is None:
        return None
    before = max(0, place.offset - max(0, own.start))
    if own.lag >= 0:
        before = min(before, max(0, own.lag - max(1, own.end - place.offset)))
    return before + sum(min(before, one.waiting) for one in facts.queue if one is not own)


def _ended(case: Case) -> Answer | None:
    view, job = case.view, case.facts.job
    if view is None or not view.final:
        return None
    outcome = next((event.outcome for event in reversed(case.facts.events) if event.outcome), None)
    failure = outcome.failure if outcome else case.last.failure if case.last else None
    facts: dict[str, Any] = {"ended": view.updated, "code": failure.code if failure else view.code}
    facts |= {"failure": failure.message, "way out": failure.hint or hint(failure.code)} if failure else {}
    told = f"It {WORDS[view.state]} {ago(case.facts.now, view.updated)}"
    told += f" with {failure.code}: {failure.message.strip().rstrip('.')}." if failure else "."
    steps = {
        State.DEAD: (f"tape dead show {job}", f"tape dead redrive plan {job}"),
        State.FAILED: (f"tape result {job}", f"tape trace {job}"),
    }
    fate = case.facts.fate
    if view.state is State.DEAD and fate is not None and fate.time >= view.updated:
        told += discarded(fate, case.facts.now)
        facts |= {"discarded": fate.time, "by": fate.by, "reason": fate.reason or None}
        steps[State.DEAD] = (f"tape dead show {job}", f"tape dead discard {job} --undo --reason WHY")
    return case.answer(Blocker.ENDED, told, *steps.get(view.state, (f"tape result {job}",)), facts=facts)


def _cancelled(case: Case) -> Answer | None:
    order = case.facts.fleet.cancelled.get(case.facts.job)
    # What was sent again after it died is cancelled all the same: the order stands until it is taken back.
    if order is None:
        return None
    told = "the worker that takes its record says so"
    if case.held:
        told = stops(case.facts.now - order.time, case.holder)
    return case.answer(
        Blocker.CANCELLED, f"It was cancelled {ago(case.facts.now, order.time)} ({order.reason}); {told}.",
        f"tape watch {case.facts.job}",
        facts={"cancelled": order.time, "reason": order.reason, "workers": len(case.takers)},
    )  # fmt: skip


def _paused(case: Case) -> Answer | None:
    job, said = case.facts.job, case.facts.fleet.paused.get(case.facts.job)
    if said is None:
        return None
    told = "it waits until it is resumed"
    if case.held:
        told = stops(case.facts.now - said.time, case.holder)
    return case.answer(
        Blocker.PAUSED, f"It was paused {ago(case.facts.now, said.time)} by {said.by}; {told}.",
        f"tape resume {job}", f"tape cancel {job}",
        facts={"paused": said.time, "by": said.who or None, "reason": said.reason or None},
    )  # fmt: skip


def _running(case: Case) -> Answer | None:
    facts, job, holder = case.facts, case.facts.job, case.holder
    if case.state is not State.RUNNING:
        if holder is None or case.state in (State.RETRYING, State.POSTPONED):
            return None
        return case.answer(
            Blocker.RUNNING, f"It runs on {holder.id}, or waits there for a slot.", f"tape watch {job}",
            facts={"worker": holder.id, "seen": f"{holder.age_s:.0f} s ago"},
        )  # fmt: skip
    view = case.view
    assert view is not None
    worker = view.worker or "a worker"
    heard = max([event.time for event in facts.events if event.job == job], default=facts.now)
    known = facts.fleet.worker(worker)
    quiet = (facts.now - heard).total_seconds() > SILENT_S
    gone = holder is None and (known.silent if known else quiet and bool(facts.fleet.workers))
    more: dict[str, Any] = {"started": view.started, "progress": view.progress, "heard": heard}
    if not gone:
        since = f" since {span(facts.now - view.started)}" if view.started else ""
        return case.answer(Blocker.RUNNING, f"It runs on {worker}{since}.", f"tape watch {job}", facts=more)
    tried = facts.tried
    silence = f"{known.age_s:.0f} s" if known else span(facts.now - heard)
    more |= {"silent": silence, "workers": tried}
    if len(tried) > 1:
        return case.answer(
            Blocker.SUSPECT, f"It is a suspect: {len(tried)} workers took it and fell silent, the last one, "
            f"{worker}, {silence} ago; it is run alone next, and buried after too many.",
            "tape workers", f"tape trace {job}", facts=more,
        )  # fmt: skip
    return case.answer(
        Blocker.LOST, f"Its worker {worker} has been silent for {silence}; another takes the job when the lease ends.",
        "tape workers", f"tape watch {job}", facts=more,
    )  # fmt: skip


def _delayed(case: Case) -> Answer | None:
    facts, last = case.facts, case.last
    if case.state not in (State.RETRYING, State.POSTPONED) or last is None or last.until is None:
        return None
    if facts.place is not None and facts.place.written >= last.time:
        return None  # it was moved already, and waits like any other
    left, failure = last.until - facts.now, last.failure
    if failure is not None and failure.code == "TAPE-3011":  # it is paused no more: that was told before
        failure = None
    more: dict[str, Any] = {"until": last.until}
    more |= {"code": failure.code, "failure": failure.message, "way out": hint(failure.code)} if failure else {}
    why = f": {failure.message.strip().rstrip('.')} ({failure.code})" if failure else ""
    late = -left.total_seconds()
    if late > LATE_S:
        return None if not facts.searched else case.answer(
            Blocker.MOVER, f"It was due {span(-left)} ago and is not back in its queue: no mover moves delayed jobs.",
            "python -m workers.delay", "tape workers", facts=more | {"overdue": span(-left)},
        )  # fmt: skip
    moment = f"in {span(left)}" if late < 0 else "now"
    blocker = BLOCKED.get(failure.code, Blocker.DELAYED) if failure else Blocker.DELAYED
    if blocker is Blocker.ELSEWHERE:
        told = f"Another worker runs this job; this copy of it looks again {moment}."
    elif blocker is Blocker.QUOTA and facts.quota is None:
        told = f"It waited for a quota that its tenant no longer has, and is looked at again {moment}."
        more |= facts.used
    elif blocker is Blocker.QUOTA:
        told = f"It waits for its tenant's quota, and is looked at again {moment}{why}."
        more |= facts.used
    elif blocker is Blocker.BREAKER:
        told = f"It waits for a dependency and is tried again {moment}{why}."
    elif case.state is State.RETRYING:
        told = f"It is tried again {moment}, because attempt {last.attempt} failed{why}."
    else:
        told = f"It is postponed and is taken {moment}{why}."
    start = max(last.until, facts.now) if blocker is Blocker.DELAYED and case.takers else None
    steps = (f"tape watch {facts.job}", *(("tape tenants",) if blocker is Blocker.QUOTA else ()))
    return case.answer(blocker, told, *steps, facts=more, expected_start=start)


def _quota(case: Case) -> Answer | None:
    """A worker that took it now would put it off."""
    facts, said, tally = case.facts, case.facts.quota, case.facts.tally
    if said is None or tally is None or facts.place is None or facts.job in tally.running:
        return None
    running, ticket = tally.in_flight, facts.place.past.ticket
    if said.in_flight is not None and running >= said.in_flight:
        jobs = "job" if running == 1 else "jobs"
        told = f"Its tenant {said.tenant!r} has {running} {jobs} in flight, and may have {said.in_flight}."
    elif said.rate is not None and tally.waiting and not 0 < ticket <= tally.head:
        told = (
            f"{said.rate:g} jobs of its tenant {said.tenant!r} may start a second, and {tally.waiting} wait for that."
        )
    else:
        return None
    told += " It is looked at when a worker takes its record."
    return case.answer(
        Blocker.QUOTA, told, f"tape watch {facts.job}", "tape tenants", ahead=case.ahead, facts=facts.used
    )


def _expired(case: Case) -> Answer | None:
    place, now = case.facts.place, case.facts.now
    if place is None or place.expires_at is None or place.expires_at > now:
        return None
    return case.answer(
        Blocker.EXPIRED, f"It expired {ago(now, place.expires_at)}; the worker that takes its record says so.",
        "tape workers", facts={"expires_at": place.expires_at},
    )  # fmt: skip


def _nobody(case: Case) -> Answer | None:
    facts, kind, lane = case.facts, case.facts.kind, case.facts.lane
    if kind is not None and facts.queue is None:
        told = f"The kind {kind!r} has no topic here, so nobody can take the job."
        return case.answer(Blocker.KIND, told, f"tape topics apply --kind {kind}")
    if kind is None or case.takers:
        return None
    start = f"tape worker --kinds {kind}"
    there = [seen for seen in facts.fleet.workers if not seen.silent]
    told_of: dict[str, Any] = {"waiting": sum(one.waiting for one in facts.queue or ()), "workers": len(there)}
    more: dict[str, Any] = {"ahead": case.ahead, "facts": told_of}
    if not case.serving:
        others = [seen for seen in there if kind in seen.presence.kinds]
        if others:
            told = f"No worker takes the lane {lane!r} of the kind {kind!r}; {count_of(others)} another one."
        else:
            told = f"No worker for the kind {kind!r} is running" + (
                f"; {count_of(there)} other kinds." if there else "."
            )
        return case.answer(Blocker.WORKERS, told, start, "tape workers", **more)
    awake = [seen for seen in case.serving if not seen.silent]
    if not awake:
        last = min(seen.age_s for seen in case.serving)
        told_of |= {"silent": [seen.id for seen in case.serving]}
        told = f"Every worker for the kind {kind!r} is silent, the last one for {last:.0f} s."
        return case.answer(Blocker.SILENT, told, start, "tape workers", **more)
    told_of |= {"draining": [seen.id for seen in awake]}
    told = f"Every worker for the kind {kind!r} is draining and takes nothing new."
    return case.answer(Blocker.DRAINING, told, start, "tape workers", **more)


def _breaker(case: Case) -> Answer | None:
    facts, kind = case.facts, case.facts.kind
    needed = {f"kind:{kind}"}.union(*(seen.presence.needs.get(kind or "", ()) for seen in case.takers))
    away = [(*parted(name), one) for name, one in sorted(facts.fleet.breakers.items())]
    alone = {worker for name, worker, _ in away if worker and name in needed}
    everyone = bool(case.takers) and alone.issuperset(seen.id for seen in case.takers)
    said = next((one for name, worker, one in away if name in needed and (everyone or not worker)), None)
    if said is not None:
        trial = said.state is BreakerState.HALF_OPEN
        barred, more = refused(said.dependency, said.cause or said.fingerprint or "", len(case.takers))
        told = f"{barred or said.dependency + (' is on trial' if trial else ' is away')}: "
        why = said.reason or "it failed too often"
        cause = said.cause.removeprefix(f"{more.get('code')} ") if barred else said.cause  # its code was told
        told += f"{cause if cause and trial else f'{why} ({cause})' if cause else why}; "
        due = said.until - facts.now if said.until else None
        soon = f"in {span(due)}" if due and due > timedelta() else "any moment"
        told += f"{said.worker} tries it with one job." if trial else f"one job tries it again {soon}."
        more |= {"dependency": said.dependency, "breaker": said.state, "since": said.since, "until": said.until}
        return case.answer(
            Blocker.BREAKER, told, "tape workers", ahead=case.ahead, facts=more | {"reason": said.reason or None}
        )
    told_by = {name: seen for seen in case.takers for name in seen.presence.breakers if parted(name)[0] in needed}
    if len({seen.id for seen in told_by.values()}) < len(case.takers) or not told_by:
        return None
    name = min(told_by)
    barred, more = refused(name, "", len(case.takers))
    more |= {"dependency": name, "breaker": told_by[name].presence.breakers[name]}
    told = f"{barred or name + ' is away'}, say the workers of this kind; one job tries it again by and by."
    return case.answer(Blocker.BREAKER, told, "tape workers", ahead=case.ahead, facts=more)


def _missing(case: Case) -> Answer | None:
    facts, job = case.facts, case.facts.job
    if facts.kind is not None and (facts.place is not None or (case.view is not None and not facts.searched)):
        return None
    if facts.kind is None or case.view is None:
        told = "No event tells of this job, and its record is in no queue."
        return case.answer(Blocker.MISSING, told, "tape jobs --since 7d", f"tape dead show {job}")
    if facts.now - case.view.updated <= timedelta(seconds=LATE_S):
        told = "It was just submitted, or its worker is just about to tell of it."
        return case.answer(Blocker.NEXT, told, f"tape watch {job}")
    told = "Its record is not in the queue any more, but no event tells of its end."
    return case.answer(Blocker.MISSING, told, f"tape dead show {job}", f"tape watch {job}", "tape workers")


def _waiting(case: Case) -> Answer:
    facts, job, kind = case.facts, case.facts.job, case.facts.kind or ""
    takers, count = case.takers, case.ahead
    full = bool(takers) and all(kind in seen.presence.full for seen in takers)
    held = sum(seen.presence.held for seen in takers)
    more: dict[str, Any] = {
        "workers": len(takers),
        "slots": sum(seen.presence.slots for seen in takers),
        "waiting": sum(one.waiting for one in facts.queue or ()),
        "waiting in other lanes": facts.other or None,
        "waiting of other tenants": dict(facts.turns.others) or None if facts.turns else None,
        "running": [name for seen in takers for name in seen.presence.running if name != job][:8] or None,
    }
    rate = facts.rate if facts.rate and facts.rate.count >= ENOUGH and facts.rate.seconds > 0 else None
    if rate is not None:
        more["ended a minute"] = round(rate.count / rate.seconds * 60, 1)
    start, early = _expected(facts.now, count, rate.count / rate.seconds) if rate else None, facts.early
    if early is not None and (start is not None or count == 0):
        start = max(start or early, early)
    given = {"ahead": count, "expected_start": start, "facts": more}
    suspect = facts.place is not None and facts.place.past.hint is Hint.ALONE
    if suspect and not count:
        told = "It is a suspect: a process died of it, so it waits until it can run apart from other suspects."
        return case.answer(Blocker.SUSPECT, told, f"tape watch {job}", **given)
    more["suspect"] = True if suspect else None
    if full and (count is None or count <= held):
        told = f"Every slot for the kind {kind!r} is busy; it is among the next."
        return case.answer(Blocker.SLOTS, told, f"tape watch {job}", "tape workers", **given)
    if count:
        jobs = "one job is" if count == 1 else f"about {count:,} jobs are"
        busy = "" if not full else ", and every slot is busy"
        when = f"; it starts in about {span(start - facts.now)}" if start else ""
        return case.answer(
            Blocker.POSITION, f"It waits its turn: {jobs} ahead{busy}{when}.", f"tape watch {job}", "tape workers",
            **given,
        )  # fmt: skip
    if early is not None:
        return case.answer(Blocker.DELAYED, "It waits in its queue for its time.", f"tape watch {job}", **given)
    told = "It is the next: a worker takes it any moment." if count == 0 else "It waits in its queue."
    return case.answer(Blocker.NEXT, told, f"tape watch {job}", **given)


RULES: Sequence[Callable[[Case], Answer | None]] = (
    _ended,
    _cancelled,
    _paused,
    _running,
    _delayed,
    _expired,
    _nobody,
    _missing,
    _breaker,
    _quota,
)
"""In the order of what must be out of the way first; whatever is left waits its turn."""


def _expected(now: datetime, count: int | None, rate: float) -> datetime | None:
    seconds = (count or 0) / rate
    return now + timedelta(seconds=seconds) if count and seconds < FAR.total_seconds() else None
