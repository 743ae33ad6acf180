"""Options in groups: a dataclass whose fields are options is one parameter of a command; groups that several have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from producers.cli.parse import duration, pairs, parameters

Strings = list[str] | None


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with each parameter of a dataclass's type spread into the fields of that, in its place."""
    own = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in own.parameters.items() if is_dataclass(one.annotation)
    }
    fields = {name: _fields(group) for name, group in groups.items()}
    spread = [
        each
        for name, one in own.parameters.items()
        for each in fields.get(name, [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
    ]

    def wrapped(**given: Any) -> Any:
        made = {
            name: group(**{each.name: given.pop(each.name) for each in fields[name]}) for name, group in groups.items()
        }
        return command(**given, **made)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__annotations__ = {one.name: one.annotation for one in spread}
    wrapped.__signature__ = own.replace(parameters=spread)  # type: ignore[attr-defined]
    return wrapped


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)  # each class's in its own module's words
    own = inspect.signature(group).parameters.values()
    return [one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY) for one in own]


@dataclass(frozen=True)
class Params:
    """A job's parameters."""

    params: Annotated[str | None, typer.Option(help="The parameters: JSON, @FILE, or - for stdin.")] = None
    set_: Annotated[Strings, typer.Option("--set", help="One parameter, key=value; lora.rank=4 works.")] = None

    def read(self) -> dict[str, Any]:
        """Return them. Raises `InvalidError`, `NotFoundError`; see `producers.cli.parse.parameters`."""
        return parameters(self.params, self.set_ or [])


@dataclass(frozen=True)
class Treatment:
    """How to treat a job."""

    lane: Annotated[str, typer.Option(help="interactive or bulk.")] = "bulk"
    tenant: Annotated[str | None, typer.Option(help="Whose job it is.")] = None
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may run, e.g. 30m.")] = None
    stall: Annotated[
        str | None, typer.Option(help="How long an attempt may make no progress before it counts as hung.")
    ] = None
    max_attempts: Annotated[int | None, typer.Option(help="Attempts before it is given up.")] = None
    label: Annotated[Strings, typer.Option(help="A label, key=value.")] = None

    def read(self) -> dict[str, Any]:
        """Return it as fields of a request. Raises `InvalidError` (TAPE-1010) that names the wrong option."""
        return {
            "lane": self.lane,
            "tenant": self.tenant,
            "timeout_s": duration(self.timeout, "--timeout").total_seconds() if self.timeout else None,
            "stall_s": duration(self.stall, "--stall").total_seconds() if self.stall else None,
            "max_attempts": self.max_attempts,
            "labels": pairs(self.label or [], "--label"),
        }
