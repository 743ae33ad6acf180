"""What a handler sees of the world: its job, the store, a scratch folder, progress, cancellation, and dependencies.

A judge, a feed, any service over the network is called through the context, by the name that the kind declares:

    @kind("verdict", params=Verdicts, needs=("judge",))
    def verdict(context: Context, params: Verdicts) -> Verdict:
        def ask() -> dict[str, Any]:
            answer = requests.post(URL, json=question, timeout=30)
            answer.raise_for_status()
            return answer.json()

        reply = context.call("judge", ask)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

from schemas.artifact import Artifact
from schemas.errors import JobError
from wire.blobs import Blobs
from wire.blobs.manifest import publish
from workers.checkpoint import Checkpoints
from workers.guard import Guards, Told, nobody

T = TypeVar("T")
CHECKPOINT = "checkpoint"
"""What the progress of a kept checkpoint is called."""


def measured(checkpoint: object) -> float | None:
    """Return how far a checkpoint is, None if that is no finite number from 0 on."""
    if not isinstance(checkpoint, SupportsFloat):
        return None
    try:
        found = float(checkpoint)
    except (OverflowError, ValueError, TypeError):
        return None
    return found if 0 <= found < math.inf else None


class CancelledByRequest(Exception):  # noqa: N818 - not an error: the way out of a handler that was asked to stop
    """Raised by `Context.check`, caught by the runner."""


@dataclass(slots=True)
class Context:
    """One attempt, as its handler sees it."""

    job: str
    kind: str
    attempt: int
    worker: str
    tenant: str
    cache: Path
    scratch: Path
    open_store: Callable[[], Blobs]
    report: Callable[[dict[str, Any]], None]
    stopped: Callable[[], bool]
    deadline: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    guards: Guards = field(default_factory=Guards)
    told: Told = nobody
    spent: Callable[[], dict[str, Any]] = dict
    """What the attempt took so far, as far as that is measured here: fields of `schemas.outcome.Usage`."""
    _store: Blobs | None = None

    @property
    def store(self) -> Blobs:
        """The object store, opened when first asked for."""
        if self._store is None:
            self._store = self.open_store()
        return self._store

    def progress(self, **data: Any) -> None:
        """Tell the world how far the job is; numbers and short texts only."""
        self.report(data)

    def advanced(self, checkpoint: float, **data: Any) -> None:
        """Tell that a checkpoint is kept where the next attempt finds it: how far it is, in steps, rows or epochs.

        An attempt that comes further than all before it is not spent, however it ends: a job that nears its end
        with every attempt does end. Call it once the checkpoint is durable, never before.
        """
        if (found := measured(checkpoint)) is None:
            raise ValueError("a checkpoint is a finite number from 0 on, no larger than a float can be")
        self.report({**data, CHECKPOINT: found})

    def checkpoints(self) -> Checkpoints:
        """Return the job's checkpoints: take up the newest, keep new ones while the work goes on. A context manager.

        with context.checkpoints() as kept:
            last = kept.newest(context.scratch)
            for step in range(last.step if last else 0, steps):
                ...
                if step % 100 == 0 and not kept.busy:
                    kept.keep(step, folder)
        """
        return Checkpoints(
            lambda: self.store, job=self.job, kind=self.kind, attempt=self.attempt, advanced=self.advanced
        )

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this job to stop."""
        return self.stopped()

    def check(self) -> None:
        """Raise when the job was cancelled or paused, or ran past its deadline (TAPE-7001). Call it between steps.

        Call it at least every two seconds: after five a process that was told to stop is killed, and a light job, which
        has none, cannot be stopped by anything else.
        """
        if self.stopped():
            raise CancelledByRequest
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise JobError("the attempt ran past its timeout", code="TAPE-7001")

    def call(self, dependency: str, what: Callable[[], T]) -> T:
        """Call something outside by `what`, behind the breaker of `dependency`; name it in the kind's `needs` too.

        `what` raises where the call failed (`raise_for_status`, whatever the HTTP library), and has a timeout of its
        own. Busy and lost calls are repeated for half a minute at most, as `Retry-After` asks. What fails then is
        an error of the class `dependency`: let it pass, and the job waits for its dependency without an attempt spent.
        Raises like `check` when the job is to stop meanwhile.
        """
        try:
            return self.guards.of(dependency).patiently(what, stopped=self._over, told=self.told)
        except Exception:
            self.check()
            raise

    def _over(self) -> bool:
        return self.stopped() or (self.deadline is not None and time.monotonic() > self.deadline)

    def keep(self, name: str, directory: Path, **metadata: Any) -> Artifact:
        """Store a folder as an artifact of this job: its files by hash, the manifest last."""
        return publish(self.store, directory, job=self.job, kind=self.kind, name=name, metadata=metadata)
