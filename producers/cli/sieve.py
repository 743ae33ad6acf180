"""The filters that every command about dead letters has, and the desk it works at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from producers.cli.parse import moment
from producers.cli.shell import Shell
from schemas.errors import InvalidError

if TYPE_CHECKING:
    from producers.dead import Desk, Filter

Strings = list[str] | None

OPTIONS: dict[str, Any] = {
    "jobs": Annotated[Strings, typer.Argument(metavar="[JOB|LETTER]...", help="Only these jobs or letters.")],
    "kind": Annotated[Strings, typer.Option(help="Only this kind; may be repeated.")],
    "tenant": Annotated[Strings, typer.Option(help="Only this tenant; may be repeated.")],
    "class_": Annotated[Strings, typer.Option("--class", help="Only this failure class, e.g. transient; repeatable.")],
    "code": Annotated[Strings, typer.Option(help="Only this error code, e.g. TAPE-6003; may be repeated.")],
    "text": Annotated[str | None, typer.Option(help="In the error's text; /…/ is a regular expression.")],
    "since": Annotated[str | None, typer.Option(help="Died after: 1h, 2d or an ISO time.")],
    "until": Annotated[str | None, typer.Option(help="Died before: 1h, 2d or an ISO time.")],
    "older": Annotated[str | None, typer.Option(help="Dead for longer than, e.g. 30m; the same as --until.")],
    "model": Annotated[str | None, typer.Option(help="The model asked for; a part of its name is enough.")],
    "attempt": Annotated[str | None, typer.Option(help="How often it was tried: 3, '>=3', '<2'.")],
    "topic": Annotated[str | None, typer.Option(help="Any dead-letter topic, also another system's.")],
}


class Chosen(NamedTuple):
    """What the options of a command mean: a filter, and where to look."""

    filter: Filter
    kinds: tuple[str, ...]
    topic: str | None

    def topics(self, desk: Desk) -> list[str]:
        """Return the dead-letter topics to read. Raises `NotFoundError` (TAPE-2004)."""
        return desk.dead(self.kinds, self.topic)


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the filter's options; it gets what they mean as `chosen`."""
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for name, parameter in own.parameters.items() if name != "chosen"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in OPTIONS.items()]
    head = [parameter.replace(kind=keyword) for parameter in kept]

    def wrapped(**given: Any) -> Any:
        chosen = choose(**{name: given.pop(name) for name in OPTIONS})
        return command(chosen=chosen, **given)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*head, *more]}
    wrapped.__signature__ = own.replace(parameters=[*head, *more])  # type: ignore[attr-defined]
    return wrapped


def choose(**given: Any) -> Chosen:
    """Read the filter's options. Raises `InvalidError` (TAPE-1010) that names the wrong one."""
    from producers.dead import Filter

    if given["until"] and given["older"]:
        raise InvalidError("--until and --older say the same", code="TAPE-1010", field="--older", hint="give one")
    until = given["until"] or given["older"]
    kinds = tuple(given["kind"] or ())
    if kinds and given["topic"]:
        raise InvalidError("--kind and --topic say the same", code="TAPE-1010", field="--topic", hint="give one")
    found = Filter(
        kinds=kinds,
        tenants=tuple(given["tenant"] or ()),
        classes=tuple(given["class_"] or ()),
        codes=tuple(given["code"] or ()),
        text=given["text"],
        since=moment(given["since"], "--since") if given["since"] else None,
        until=moment(until, "--until" if given["until"] else "--older") if until else None,
        model=given["model"],
        attempt=given["attempt"],
        jobs=tuple(given["jobs"] or ()),
    )
    return Chosen(found, kinds, given["topic"])


@contextmanager
def desk(shell: Shell) -> Iterator[Desk]:
    """Open the desk with quiet logs. Raises `UnavailableError` (TAPE-5001) at once where no broker listens."""
    from producers.dead import Desk

    with shell.quiet():
        yield Desk.open(shell.settings)


def sure(shell: Shell, yes: bool, what: str) -> None:
    """Ask a person at a terminal. Raises `InvalidError` (TAPE-1010) where nobody can be asked, without `--yes`."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidError(f"this would {what}", code="TAPE-1010", field="--yes", hint="add --yes to do it")
    typer.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)
