"""Run one attempt's handler: in this thread, or in a warm child process that may die without harm."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from opentelemetry import trace
from pydantic_core import from_json, to_json

from schemas.errors import JobError, TapeError
from schemas.outcome import Cancelled, Failed, Failure, Succeeded, Usage, Verdict
from wire.blobs import Blobs
from workers.attempt import Attempt
from workers.context import CHECKPOINT, CancelledByRequest, Context
from workers.failures import classify
from workers.gate import needs
from workers.guard import Guards
from workers.kinds import Kind

_TRACER = trace.get_tracer("tickertape.worker")
RESULT_LIMIT = 512 * 1024
"""Bytes of a result and its list of artifacts: with the rest of the outcome they must fit into one event."""
_VERDICTS = (Succeeded, Failed, Cancelled)
Heard = Callable[[str, str, Failure | None], None]
"""Hears what a running job found of a dependency: the job, the dependency, and the failure, None if it answers."""


def unheard(_job: str, _dependency: str, _failure: Failure | None) -> None:
    """Tell nobody."""


def hear(heard: Heard, attempt: Attempt, dependency: str, failure: Failure | None) -> None:
    """Pass on what an attempt found, as far as its kind declares the dependency: no other breaker is ever asked."""
    if dependency in needs(attempt.kind):
        heard(attempt.id, dependency, failure)


class Runner(Protocol):
    """Where a slot's jobs run."""

    def warm(self) -> None: ...

    def run(
        self, attempt: Attempt, report: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]
    ) -> Verdict: ...

    def close(self) -> None: ...


class InlineRunner:
    """Runs handlers in the slot's own thread: for light kinds."""

    def __init__(
        self,
        worker: str,
        cache: Path,
        open_store: Callable[[], Blobs],
        *,
        guards: Guards | None = None,
        heard: Heard = unheard,
    ) -> None:
        self._worker, self._cache, self._open_store = worker, cache, open_store
        self._guards, self._heard = guards or Guards(), heard
        self._scratch = Path(tempfile.gettempdir())

    def warm(self) -> None:
        """Nothing to start."""

    def run(self, attempt: Attempt, report: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]) -> Verdict:
        """Run the attempt here and return its verdict; a timeout is obeyed where the handler calls `check`."""

        def told(dependency: str, error: TapeError | None) -> None:
            hear(self._heard, attempt, dependency, Failure.of(error) if error else None)

        context = Context(
            job=attempt.id,
            kind=attempt.kind.name,
            attempt=attempt.number,
            worker=self._worker,
            tenant=attempt.job.tenant,
            cache=self._cache,
            scratch=self._scratch,
            open_store=self._open_store,
            report=report,
            stopped=stopped,
            deadline=time.monotonic() + attempt.timeout_s if attempt.timeout_s else None,
            labels=attempt.job.labels,
            guards=self._guards,
            told=told,
        )
        return call(attempt.kind, context, attempt.params)

    def close(self) -> None:
        """Nothing to close."""


def call(kind: Kind, context: Context, params: Any) -> Verdict:
    """Call a handler; whatever it raises or returns becomes a verdict of the closed set, never a false success."""
    started = time.monotonic()
    try:
        verdict: Any = kind(context, params)
        if not isinstance(verdict, _VERDICTS):
            raise JobError(f"the handler of {kind.name} returned a {type(verdict).__name__}", code="TAPE-6004")
        if isinstance(verdict, Succeeded):
            verdict = _plain(verdict)
    except CancelledByRequest:
        verdict = Cancelled()
    except Exception as error:
        told = classify(error)
        if told.code == "TAPE-6005":
            return Cancelled(usage=Usage(seconds=time.monotonic() - started))
        trace.get_current_span().record_exception(error)
        verdict = Failed(failure=Failure.of(told, detail=traceback.format_exc()))
    seconds = time.monotonic() - started
    # Not `model_copy`: it costs a light job twice as much.
    usage = Usage(**{**vars(verdict.usage), "seconds": seconds})
    return type(verdict)(**{**vars(verdict), "usage": usage})  # type: ignore[no-any-return]


def _plain(verdict: Succeeded) -> Succeeded:
    """Return the verdict with its result as plain JSON of bounded size. Raises `JobError` (TAPE-6011)."""
    if not verdict.result and not verdict.artifacts:
        return verdict
    try:
        data = to_json(verdict.result, inf_nan_mode="constants")
        plain = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise JobError(f"the result is not JSON: {error}", code="TAPE-6011", field="result") from error
    size = len(data) + sum(len(artifact.model_dump_json()) for artifact in verdict.artifacts)
    if size > RESULT_LIMIT:
        raise JobError(
            f"the result has {size} bytes and at most {RESULT_LIMIT} are kept", code="TAPE-6011", field="result"
        )
    return verdict.model_copy(update={"result": plain})


MOVES = ("step", CHECKPOINT, "phase", "part")
"""The progress that counts as movement: whatever else a job tells meanwhile does not."""


class Movement:
    """Whether an attempt moves: it goes on in what it counts by (`MOVES`), or, before it did, what it tells changes."""

    def __init__(self, stall_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s, self._clock = stall_s, clock
        self._last: dict[str, object] = {}
        self._other: object = None
        self._since = clock()
        self.told = "nothing"
        """What it told last, in short."""

    def seen(self, progress: Mapping[str, Any]) -> None:
        """Take in what the attempt tells."""
        now = self._last | {name: progress[name] for name in MOVES if name in progress}
        if now != self._last or (not now and progress != self._other):
            self._last, self._other, self._since = now, progress, self._clock()
            self.told = str(dict(progress))[:200]

    def stalled(self) -> bool:
        """Whether it stood still for too long."""
        return self._stall_s is not None and self._clock() - self._since > self._stall_s


class Scratch:
    """A folder for one attempt, gone afterwards."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self._parent = parent

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(dir=self._parent))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
