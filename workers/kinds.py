"""Kinds of work: a name, its parameters, the handler and how it runs. The set is open.

A package adds a kind with one decorated function and an entry point:

    @kind("echo", params=Echo, isolation="thread")
    def echo(context: Context, params: Echo) -> Succeeded: ...

    [project.entry-points."tickertape.kinds"]
    echo = "my_package:echo"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from schemas.errors import InvalidError
from schemas.outcome import Verdict
from workers.context import Context
from workers.policy import Policy

GROUP = "tickertape.kinds"
BUILTIN = {
    "training": "workers.handlers.training:training",
    "evaluation": "workers.handlers.evaluation:evaluation",
    "inference": "workers.handlers.inference:inference",
}

P = TypeVar("P", bound=BaseModel)
Isolation = Literal["process", "thread"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of work."""

    name: str
    params: type[BaseModel]
    handler: Callable[[Context, Any], Verdict]
    isolation: Isolation = "process"
    max_attempts: int = 3
    timeout_s: float | None = None
    retry: Policy | None = None
    needs: tuple[str, ...] = ()
    probe: Callable[[], None] | None = None

    @property
    def recorded(self) -> bool:
        """Whether the outcome is created once in the store too; light kinds have only their event."""
        return self.isolation == "process"

    def __call__(self, context: Context, params: Any) -> Verdict:
        """Run the handler."""
        return self.handler(context, params)


def kind(
    name: str,
    *,
    params: type[P],
    isolation: Isolation = "process",
    max_attempts: int = 3,
    timeout_s: float | None = None,
    retry: Policy | None = None,
    needs: Iterable[str] = (),
    probe: Callable[[], None] | None = None,
) -> Callable[[Callable[[Context, P], Verdict]], Kind]:
    """Make a kind of a handler.

    `isolation="process"` runs it in a warm child process that may crash, hang or eat memory without harming the
    worker, and keeps its outcome in the store. `"thread"` is for light work: thousands a second, no protection, and a
    timeout, a cancellation or a pause that only a handler which calls `context.check()` obeys: nobody can stop a
    thread, so one that never does keeps its slot to its end, and how it ends counts. `retry` says how patient the queue
    is with its failures; without it the kind's own policy counts (`workers.policy`), with `max_attempts`. `needs` names
    what the kind cannot work without, such as `judge:HOST`: while that is away no job of the kind is taken. `probe` is
    for kinds that use an accelerator: it uses it a little and raises what it meets; see `workers.quarantine`.
    """

    def make(handler: Callable[[Context, P], Verdict]) -> Kind:
        return Kind(name, params, handler, isolation, max_attempts, timeout_s, retry, tuple(needs), probe)

    return make


def available() -> dict[str, str]:
    """Return the names of all kinds that can be loaded here, each with where it comes from."""
    return BUILTIN | {point.name: point.value for point in _points()}


def load(names: Iterable[str]) -> dict[str, Kind]:
    """Load kinds by name. Raises `InvalidError` (TAPE-1003) for one that is unknown or does not load."""
    known = available()
    found: dict[str, Kind] = {}
    for name in names:
        if name not in known:
            raise InvalidError(
                f"no handler for the kind {name!r} is installed", code="TAPE-1003", field="--kinds",
                hint=f"known: {', '.join(sorted(known))}; a package adds one through the entry point {GROUP!r}",
            )  # fmt: skip
        found[name] = _load(name, known[name])
    return found


def _load(name: str, reference: str) -> Kind:
    module, _, attribute = reference.partition(":")
    try:
        loaded = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidError(f"the kind {name!r} does not load: {error}", code="TAPE-1003", field=reference) from error
    if not isinstance(loaded, Kind) or loaded.name != name:
        raise InvalidError(
            f"{reference} is not the kind {name!r}", code="TAPE-1003", field=reference,
            hint="decorate the handler with @workers.kinds.kind and use the kind's name as the entry point's",
        )  # fmt: skip
    return loaded


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)
