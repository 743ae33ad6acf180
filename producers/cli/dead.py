"""`tape dead ls|show|export|import|discard|audit`: dead letters, looked at and decided about."""

from __future__ import annotations

import sys
from collections import Counter, deque
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from producers.cli import redrive
from producers.cli.exits import Exit
from producers.cli.options import grouped
from producers.cli.output import safe
from producers.cli.parse import moment
from producers.cli.shell import Shell
from producers.cli.sieve import Filters, desk, sure
from schemas.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from producers.cli.sieve import Chosen
    from producers.dead import Desk, Letter
    from producers.redrive.decide import Decided

COLUMNS = ("job", "kind", "code", "class", "died", "tries", "replays", "tenant", "status", "problem")
GROUPED = ("letters", "kinds", "tenants", "oldest", "newest", "example", "problem")
GROUPS = ("code", "class", "kind", "tenant", "model", "status")
TEXT = 60
"""Characters of an error text in a table."""
NAME = 24
"""Characters of a name there, which anybody may have written: it is not to squeeze the other columns."""
WIDEST = {"job": 36, "example": 36, "kinds": 36, "problem": TEXT}
PAYLOAD = 3_000
"""Characters of a payload that a person is shown; `export` gives all."""

Reason = Annotated[str, typer.Option(help="Why; it is kept in the audit trail.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(help="Dead letters: look at them, send them back, discard them.")
    family.command(name="ls")(grouped(listed))
    family.command()(show)
    family.command()(grouped(export))
    family.command(name="import")(imported)
    family.command()(grouped(discard))
    family.command()(audit)
    redrive.add(family)
    app.add_typer(family, name="dead")


def listed(
    context: typer.Context,
    by: Annotated[str | None, typer.Option(help="Group by code, class, kind, tenant, model or status.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the redriven and discarded ones.")] = False,
    status: Annotated[list[str] | None, typer.Option(help="waiting, redriven, discarded or twin.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest ones.")] = 50,
    *,
    filters: Filters,
) -> None:
    """List the dead letters that wait for a decision, newest last."""
    shell: Shell = context.obj
    from producers.dead.filters import STATUSES

    chosen = filters.read()
    for name, value, known in (("--by", by, GROUPS), *(("--status", one, STATUSES) for one in status or ())):
        if value is not None and value not in known:
            raise InvalidError(
                f"{value!r} is not known here", code="TAPE-1010", field=name, hint=f"use one of {', '.join(known)}"
            )
    counts: Counter[str] = Counter()
    rows: deque[dict[str, Any]] = deque(maxlen=None if by else limit)
    with desk(shell) as found:
        for letter in found.select(chosen.filter, chosen.topics(found), ()):
            counts[letter.status] += 1
            if everything or letter.status in (status or ["waiting"]):
                rows.append(letter.row() if by is None else _brief(letter))
    ordered = sorted(rows, key=lambda row: row["died"])
    if by is not None:
        groups = _grouped(ordered, by)
        shell.output.rows([_fitted(row) for row in groups] if shell.output.table else groups, (by, *GROUPED))
    else:
        shell.output.rows([_fitted(_short(row)) for row in ordered] if shell.output.table else ordered, COLUMNS)
    total = sum(counts[name] for name in (counts if everything else status or ["waiting"]))
    told = ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "no dead letters"
    shell.output.note(told + (f"; the newest {limit} are shown, raise --limit" if not by and total > limit else ""))
    if counts["waiting"]:
        example = ordered[-1]["job"] if ordered else "JOB"
        where = _topic(chosen.topic)
        shell.output.next(
            *([] if by else [f"tape dead ls --by code{where}"]), f"tape dead show {quote(example)}{where}"
        )


def show(
    context: typer.Context,
    letter: Annotated[str, typer.Argument(metavar="JOB|LETTER", help="A job's id, or TOPIC/PARTITION/OFFSET.")],
    topic: Annotated[str | None, typer.Option(help="Any dead-letter topic, also another system's.")] = None,
) -> None:
    """Show everything about one dead letter: why, the attempts before, the payload, and what to do next."""
    shell: Shell = context.obj
    from producers.dead import export as exports
    from producers.dead.view import people

    with desk(shell) as found:
        one = found.find(letter, [topic] if topic else None)
    if shell.output.table:
        shell.output.record(people(one, PAYLOAD))
    else:
        past = one.past.model_dump(mode="json", exclude_none=True)
        fate = one.fate.model_dump(mode="json", exclude_none=True) if one.fate else None
        shell.output.record({**one.row(), **exports.line(one), "model": one.model, "past": past, "fate": fate,
                             "detail": one.origin.detail, "dialect": one.origin.dialect})  # fmt: skip
    job, where = quote(one.job), _topic(topic)
    if one.status == "waiting":
        shell.output.next(
            f"tape dead redrive plan {job}{where}", f"tape dead ls --code {quote(one.origin.code)}{where}",
            f"tape dead discard {job}{where} --reason WHY",
        )  # fmt: skip
    elif one.fate is not None and one.fate.redrive:
        watch = [f"tape watch {job}"] if one.lane is not None else []  # of a foreign record no event will tell
        shell.output.next(f"tape dead redrive status {one.fate.redrive}", *watch)
    elif one.status == "discarded":
        shell.output.next(f"tape dead discard {job}{where} --undo --reason WHY")


def _topic(named: str | None) -> str:
    """What a command needs to find letters of another topic again."""
    return f" --topic {quote(named)}" if named else ""


def export(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option(help="Where to; default: stdout.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the redriven and discarded ones.")] = False,
    *,
    filters: Filters,
) -> None:
    """Write dead letters as JSON lines, every byte of them; mend the values there and `tape dead import` them."""
    shell: Shell = context.obj
    import json

    from producers.dead import export as exports

    chosen = filters.read()
    count = 0
    out = sys.stdout if file is None else _opened(file)
    try:
        with desk(shell) as found:
            statuses = () if everything else ("waiting",)
            for letter in found.select(chosen.filter, chosen.topics(found), statuses):
                out.write(json.dumps(exports.line(letter), ensure_ascii=False) + "\n")
                count += 1
        out.flush()
    finally:
        if file is not None:
            out.close()
    if named := (chosen.filter.jobs if not count else ()):
        raise NotFoundError(
            "no dead letter of that name waits",
            code="TAPE-2005",
            job=", ".join(named),
            hint="`tape dead ls --all` lists them; --all exports all",
        )
    shell.output.note(f"{count:,} letters" + (f" in {file}" if file else ""))
    if file is not None and count:
        shell.output.next(f"tape dead import {quote(str(file))} --reason WHY")


def _opened(file: Path) -> TextIO:
    try:
        return file.open("w", encoding="utf-8")
    except OSError as error:
        raise NotFoundError(
            f"{file} cannot be written: {error.strerror}",
            code="TAPE-2003",
            file=str(file),
            hint="name a file in a folder that there is",
        ) from error


def imported(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="An export, its values mended or not.")],
    reason: Reason,
    yes: Yes = False,
) -> int:
    """Send the letters of an export back, with the values they have there; each goes once, however often you try."""
    shell: Shell = context.obj
    from producers.dead import export as exports
    from producers.redrive.decide import resend
    from schemas.topics import Names

    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error.strerror}", code="TAPE-2003", file=str(file)) from error
    letters = list(exports.parse(lines, Names(shell.settings.prefix), str(file)))
    mended = sum(changed for _, changed in letters)
    sure(shell, yes, f"send {len(letters):,} letters back, {mended:,} of them mended")
    with desk(shell) as found:
        decided = resend(found, letters, reason)
    return _told(shell, decided, "sent", {"mended": mended})


def discard(
    context: typer.Context,
    reason: Reason,
    undo: Annotated[bool, typer.Option("--undo", help="Let discarded ones wait again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them; change nothing.")] = False,
    yes: Yes = False,
    *,
    filters: Filters,
) -> int:
    """Decide that letters stay dead. Nothing is deleted: `ls --all` still has them, and `--undo` takes it back."""
    shell: Shell = context.obj
    from producers.redrive.decide import decide
    from schemas.dead import Became

    chosen = filters.read()
    if chosen.everything:
        raise InvalidError(
            "this would discard every dead letter there is", code="TAPE-1010",
            hint="name jobs, or a filter such as --code TAPE-6003 or --older 30d",
        )  # fmt: skip
    with desk(shell) as found:
        wanted = ("discarded",) if undo else ("waiting", "twin")
        letters = [letter.lighten() for letter in found.select(chosen.filter, chosen.topics(found), wanted)]
        if not letters:
            raise _none(found, chosen, undo=undo)
        verb = "restore" if undo else "discard"
        if dry_run:
            shell.output.record({f"would_{verb}": len(letters), "codes": _codes(letters)})
            return Exit.OK
        sure(shell, yes, f"{verb} {len(letters):,} letters")
        decided = decide(found, letters, Became.RESTORED if undo else Became.DISCARDED, reason)
    return _told(shell, decided, f"{verb}ed" if not undo else "restored", {})


def audit(
    context: typer.Context,
    since: Annotated[str | None, typer.Option(help="From then on: 1h, 2d or an ISO time.")] = None,
    by: Annotated[str | None, typer.Option(help="Only what this person did; a part of user@host.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest ones.")] = 100,
) -> None:
    """List who decided what about which letter, when and why; newest last."""
    shell: Shell = context.obj
    start = moment(since, "--since") if since else None
    with desk(shell) as found:
        fates = [fate for name, fate in found.fates().items() if name == fate.letter]
    taken = [
        fate for fate in sorted(fates, key=lambda fate: fate.time)
        if (start is None or fate.time >= start) and (by is None or by in fate.by)
    ]  # fmt: skip
    rows = [fate.model_dump(exclude={"schema_version"}) | {"became": fate.became.value} for fate in taken[-limit:]]
    shell.output.rows(rows, ("time", "by", "became", "job", "kind", "code", "redrive", "reason", "letter"))
    if len(taken) > limit:
        shell.output.note(f"{len(taken) - limit:,} older decisions left out; raise --limit")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    line = next(iter(row["message"].splitlines()), "")
    return {
        **row,
        "tenant": row["tenant"] if row["tenant"] != "default" else "",
        "status": row["status"] if row["status"] != "waiting" else "",
        "replays": row["replays"] or "",
        "problem": _cut(line, TEXT),
    }


def _fitted(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts leave room for each other: anybody may write a letter, and anything into it."""
    return {
        name: _cut(safe(value), WIDEST.get(name, NAME)) if isinstance(value, str) else value
        for name, value in row.items()
    }


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _brief(letter: Letter) -> dict[str, Any]:
    """A row for a group of any size: the error's text is what costs."""
    row = _short({**letter.row(), "model": letter.model})
    return row | {"message": row["problem"], "status": letter.status, "tenant": letter.tenant}


def _grouped(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row[by]), []).append(row)
    found = []
    for name, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        texts = Counter(_short(row)["problem"] for row in members)
        found.append({
            by: name,
            "letters": len(members),
            "kinds": ", ".join(sorted({row["kind"] for row in members})) if by != "kind" else None,
            "tenants": len({row["tenant"] for row in members}) if by != "tenant" else None,
            "oldest": min(row["died"] for row in members),
            "newest": max(row["died"] for row in members),
            "example": members[-1]["job"],
            "problem": texts.most_common(1)[0][0],
        })  # fmt: skip
    return found


def _codes(letters: list[Letter]) -> dict[str, int]:
    return dict(Counter(letter.origin.code for letter in letters).most_common())


def _none(found: Desk, chosen: Chosen, *, undo: bool) -> NotFoundError:
    """Why there is nothing to decide about: it was decided already, or there are no such letters."""
    fates = sorted({letter.status for letter in found.select(chosen.filter, chosen.topics(found), ())})
    if undo and fates:
        return NotFoundError("none of them is discarded", code="TAPE-2005", hint="tape dead ls --status discarded")
    if fates:
        hint = "nothing is left to do; `tape dead audit` says who did it, `--undo` takes a discard back"
        return NotFoundError(f"already {' or '.join(fates)}", code="TAPE-2005", hint=hint)
    return NotFoundError("no such letters", code="TAPE-2005", hint="tape dead ls --all")


def _told(shell: Shell, decided: Decided, verb: str, more: dict[str, Any]) -> int:
    shell.output.record({verb: decided.done, **more, "left": decided.others})
    if decided.done:
        shell.output.next("tape dead audit --since 5m")
    return Exit.PARTLY if decided.others and decided.done else Exit.INVALID if decided.others else Exit.OK
