"""The pages of `docs/` that are made from the code: states, and errors with what foreign exceptions become."""

from __future__ import annotations

from schemas.errors import CODES
from schemas.event import FINAL, STATE_OF, TRANSITIONS, EventType, State
from schemas.foreign import FOREIGN

_MEANING = {
    State.QUEUED: "published; no worker has it yet, or it was redriven",
    State.RUNNING: "a worker holds its lease and runs it",
    State.RETRYING: "an attempt failed and another will be made",
    State.POSTPONED: "it waits without spending an attempt: for a dependency, a quota, or until it is resumed",
    State.SUCCEEDED: "done; the outcome holds the result and its artifacts",
    State.FAILED: "it cannot succeed; the outcome holds the failure",
    State.CANCELLED: "stopped on request",
    State.EXPIRED: "not started before `expires_at`",
    State.DEAD: "needs a human; the original record is on the dead-letter topic",
}

_TOLD = {
    EventType.QUEUED: "labels",
    EventType.RUNNING: "attempt, worker, started_at",
    EventType.PROGRESS: "attempt, worker, progress (what it holds is the kind's own)",
    EventType.RETRYING: "attempt, worker, failure",
    EventType.POSTPONED: "attempt, worker, failure",
    EventType.SUCCEEDED: "outcome: result, artifacts, usage",
    EventType.FAILED: "failure, outcome",
    EventType.CANCELLED: "outcome",
    EventType.EXPIRED: "failure, outcome",
    EventType.DEAD: "failure, outcome",
}

_FAMILIES = {
    "1": "The input is wrong",
    "2": "What was named does not exist",
    "3": "Somebody else was first, or the state differs",
    "4": "Credentials",
    "5": "A dependency does not answer",
    "6": "A job failed while it ran",
    "7": "A deadline passed",
    "8": "This machine lacks something",
}

_HEAD = "<!-- Made from the code by `tape schemas export`; a test holds it equal. -->\n\n"


def states() -> str:
    """Return the page of the states, their events and what may follow what."""
    lines = [
        "# The states of a job\n",
        "Every transition is one event on `tape.events`, keyed by the job's id: those that workers tell of a job are",
        "in order. The submitter's own `queued` is on its way meanwhile and may come after the first `running`.",
        "`schemas.event.follow` folds them; an event that the table does not allow (late, repeated) changes nothing.\n",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> queued",
        *(f"    {state} --> {after}" for state in State for after in _ordered(TRANSITIONS[state])),
        *(f"    {state} --> [*]" for state in State if state in FINAL),
        "```\n",
        "| state | meaning | final | may be followed by |",
        "|---|---|---|---|",
    ]
    for state in State:
        after = ", ".join(_ordered(TRANSITIONS[state])) or "nothing"
        lines.append(f"| {state} | {_MEANING[state]} | {'yes' if state in FINAL else 'no'} | {after} |")
    lines += [
        "",
        "`running` after `running` is another worker that took over a lost lease. Light jobs go from `queued` straight",
        "to their end; their one event tells when they started. `queued` after `dead` is a redrive, the only way",
        "back: its event's `redrive` is 1 or more, where the submitter's own, which may come late, has 0.\n",
        "The `ce_type` of an event is `tape.event.NAME.v1`.\n",
        "| event | state after it | tells, beside job, kind, lane, tenant and time |",
        "|---|---|---|",
        *(f"| {name} | {STATE_OF[name] or 'unchanged'} | {_TOLD[name]} |" for name in EventType),
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _ordered(found: frozenset[State]) -> list[State]:
    return [state for state in State if state in found]


def errors() -> str:
    """Return the page of every error code."""
    lines = [
        "# Errors\n",
        "Every error has a stable code, one sentence, the place where it happened and a way out. The class says what",
        "happens to a job that fails with it: `invalid` and `permanent` are never retried, `transient` is retried,",
        "`resource` is retried with less, `dependency` waits without spending an attempt, `crashed` counts against the",
        "job that took its worker down, `timeout` is a deadline that passed.",
    ]
    for digit, family in _FAMILIES.items():
        lines += ["", f"## TAPE-{digit}xxx: {family}\n", "| code | meaning | class | severity | way out |"]
        lines.append("|---|---|---|---|---|")
        for code in sorted(CODES):
            if code.startswith(f"TAPE-{digit}"):
                entry = CODES[code]
                lines.append(_row((code, entry.meaning, entry.failure, entry.severity, entry.hint)))
    lines += [
        "",
        "## Foreign exceptions\n",
        "What a job raises that is none of ours is looked up here, from the top; the first row that fits wins. A name",
        "fits the class and what inherits from it; built-in classes have no package, `*` stands for anything. Where a",
        "row gives way to the cause, that is what the exception was raised from, urllib3's and urllib's reason, or a",
        "member of an exception group. A suspect device is one that the worker, not the job, has to answer for.",
        "",
        "| exception | when | code | class | severity | device | way out |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in FOREIGN:
        flat = one.flat()
        names = ("exception", "when", "code", "class", "severity", "device", "way_out")
        told = {
            name: f"`{flat[name]}`" if name in ("exception", "when") and flat[name] else flat[name] for name in names
        }
        lines.append(_row(tuple(told.values())))
    return _HEAD + "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
