"""The filters that every command about dead letters has, and the desk it works at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from producers.cli.options import Strings
from producers.cli.parse import moment
from producers.cli.shell import Shell
from schemas.errors import InvalidError

if TYPE_CHECKING:
    from producers.dead import Desk, Filter


class Chosen(NamedTuple):
    """What the options of a command mean: a filter, and where to look."""

    filter: Filter
    kinds: tuple[str, ...]
    topic: str | None

    def topics(self, desk: Desk) -> list[str]:
        """Return the dead-letter topics to read. Raises `NotFoundError` (TAPE-2004)."""
        return desk.dead(self.kinds, self.topic)

    @property
    def everything(self) -> bool:
        """Whether nothing narrows it; what is empty does not, as it comes of a shell variable that is not set."""
        return self.topic is None and not any(self.filter.told().values())


@dataclass(frozen=True)
class Filters:
    """The filter's options."""

    jobs: Annotated[Strings, typer.Argument(metavar="[JOB|LETTER]...", help="Only these jobs or letters.")] = None
    kind: Annotated[Strings, typer.Option(help="Only this kind; may be repeated.")] = None
    tenant: Annotated[Strings, typer.Option(help="Only this tenant; may be repeated.")] = None
    class_: Annotated[Strings, typer.Option("--class", help="Only this failure class, e.g. transient; repeatable.")] = (
        None
    )
    code: Annotated[Strings, typer.Option(help="Only this error code, e.g. TAPE-6003; may be repeated.")] = None
    text: Annotated[str | None, typer.Option(help="In the error's text; /…/ is a regular expression.")] = None
    since: Annotated[str | None, typer.Option(help="Died after: 1h, 2d or an ISO time.")] = None
    until: Annotated[str | None, typer.Option(help="Died before: 1h, 2d or an ISO time.")] = None
    older: Annotated[str | None, typer.Option(help="Dead for longer than, e.g. 30m; the same as --until.")] = None
    model: Annotated[str | None, typer.Option(help="The model asked for; a part of its name is enough.")] = None
    attempt: Annotated[str | None, typer.Option(help="How often it was tried: 3, '>=3', '<2'.")] = None
    topic: Annotated[str | None, typer.Option(help="Any dead-letter topic, also another system's.")] = None

    def read(self) -> Chosen:
        """Return what they mean. Raises `InvalidError` (TAPE-1010) that names the wrong one."""
        from producers.dead import Filter

        if self.until and self.older:
            raise InvalidError("--until and --older say the same", code="TAPE-1010", field="--older", hint="give one")
        until = self.until or self.older
        kinds = tuple(self.kind or ())
        if kinds and self.topic:
            raise InvalidError("--kind and --topic say the same", code="TAPE-1010", field="--topic", hint="give one")
        found = Filter(
            kinds=kinds,
            tenants=tuple(self.tenant or ()),
            classes=tuple(self.class_ or ()),
            codes=tuple(self.code or ()),
            text=self.text,
            since=moment(self.since, "--since") if self.since else None,
            until=moment(until, "--until" if self.until else "--older") if until else None,
            model=self.model,
            attempt=self.attempt,
            jobs=tuple(self.jobs or ()),
        )
        return Chosen(found, kinds, self.topic)


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
