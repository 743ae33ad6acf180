"""`tape data check`, `add`, `ls`, `show` and `get`: data sets that are checked before anything is trained on them."""

from __future__ import annotations

import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producers.cli.options import grouped
from producers.cli.shell import Shell
from schemas.errors import InvalidError, TapeError

if TYPE_CHECKING:
    from schemas.dataset import DatasetVersion
    from wire.rows.check import Check, Report

PROBLEMS = ("file", "line", "field", "rule", "problem", "way_out")
COLUMNS = ("name", "version", "rows", "parts", "warnings", "created", "by")
SHOWN = 20
LONGEST = 32_000


def add(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(
        help="Data sets: checked rows, registered as versions that never change.", no_args_is_help=True
    )
    family.command(name="check")(grouped(check))
    family.command(name="add")(grouped(register))
    family.command(name="ls")(listed)
    family.command(name="show")(show)
    family.command(name="get")(get)
    app.add_typer(family, name="data")


Train = Annotated[
    Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, TSV or Parquet; or a folder of train, dev and test.")
]
Named = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A data set, or a version or alias of it.")]


@dataclass(frozen=True)
class Reading:
    """What is read besides, and how."""

    validation: Annotated[Path | None, typer.Option(help="Rows to validate on.")] = None
    test: Annotated[Path | None, typer.Option(help="Rows held back for the end.")] = None
    recipe: Annotated[str, typer.Option(help="How records become rows; by default their fields tell.")] = "auto"
    longest: Annotated[int, typer.Option(min=1, help="Characters of a row at most.")] = LONGEST
    report: Annotated[Path | None, typer.Option(help="Write every problem to this file, as JSONL.")] = None


def check(
    context: typer.Context,
    file: Train,
    reading: Reading,
) -> None:
    """Tell everything that is wrong with the rows, where, and how to mend it; nothing is stored."""
    shell: Shell = context.obj
    with _checked(file, reading) as (_, report):
        _tell(shell, report, reading.report)
        shell.output.next(f"tape data add {_given(file, reading)} --name NAME")


def register(
    context: typer.Context,
    file: Train,
    name: Annotated[str, typer.Option(help="The name to register it under.")],
    reading: Reading,
    fix: Annotated[bool, typer.Option("--fix", help="Leave out what is wrong, and register the rest.")] = False,
    mask: Annotated[bool, typer.Option("--mask", help="Write [email] and the like for what looks personal.")] = False,
) -> None:
    """Check the rows and register them; the same rows are the same version, however often they are added."""
    shell: Shell = context.obj
    from producers.dead.desk import myself
    from schemas.dataset import Rule
    from wire.datasets import register as registered
    from wire.registry import checked

    checked(name)
    with _checked(file, reading, mask=mask) as (found, report):
        _tell(shell, report, reading.report, fixing=fix and not report.unread, masked=mask)
        fixed = found.fix() if fix else None
        if mask and (hidden := report.counts[Rule.PERSONAL]):
            fixed = (fixed or Counter()) + Counter({Rule.PERSONAL: hidden})
        if fix and not all(part.count for part in report.parts):
            raise InvalidError("nothing is left of a part once it is mended", code="TAPE-1014", file=str(file))
        with shell.quiet(broker=False):
            version = registered(
                shell.blobs, name, report,
                recipe=reading.recipe, by=myself(), now=datetime.now(UTC), fixed=fixed,
            )  # fmt: skip
    shell.output.record(_row(version) | {"left_out": dict(version.fixed)})
    shell.output.next(
        f"tape submit training --data dataset:{name} --set base=builtin:smollm2", f"tape data show {name}"
    )


def listed(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One data set, with all its versions.")] = None,
) -> None:
    """List the data sets with their newest version, or the versions of one."""
    shell: Shell = context.obj
    from wire.datasets import registry

    found = registry(shell.blobs)
    versions = [found.find(one) for one in found.names()] if name is None else found.versions(name)
    shell.output.rows([_row(one) for one in versions], COLUMNS)
    if not versions:
        shell.output.note("no data set is registered")
        shell.output.next("tape data add rows.jsonl --name NAME")


def show(context: typer.Context, name: Named) -> None:
    """Show a version: its parts, what was wrong with it, and where it came from."""
    shell: Shell = context.obj
    from wire.datasets import pinned, registry

    version = registry(shell.blobs).find(name)
    row = _row(version) | {"fixed": dict(version.fixed), "report": version.report}
    for part, held in version.parts.items():
        row[part] = {"reference": pinned(version, part), **held.model_dump()}
    shell.output.record(row)


def get(
    context: typer.Context,
    name: Named,
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the parts go, a JSONL file each.")],
) -> None:
    """Write the parts of a version to a folder, every byte verified."""
    shell: Shell = context.obj
    from wire.blobs.manifest import blob_name
    from wire.datasets import registry

    store = shell.blobs
    version = registry(store).find(name)
    to.mkdir(parents=True, exist_ok=True)
    for part, held in version.parts.items():
        path = to / f"{part}.jsonl"
        store.fetch(blob_name(held.sha256), path, sha256=held.sha256)
        shell.output.line({"part": part, "file": str(path), "rows": held.rows}, f"{path}  {held.rows} rows")


def _given(file: Path, reading: Reading) -> str:
    """Return what was read, and how, as one writes it in a shell."""
    told: dict[str, object] = {"validation": reading.validation, "test": reading.test}
    if reading.recipe != "auto":
        told["recipe"] = reading.recipe
    if reading.longest != LONGEST:
        told["longest"] = reading.longest
    options = [word for name, value in told.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join([str(file), *options])


def _files(file: Path, reading: Reading) -> dict[str, Path]:
    from wire.rows import members

    if not file.is_dir():
        parts = {"train": file}
    else:
        found = members(file)
        if many := next((files for files in found.values() if len(files) > 1), None):
            raise InvalidError(
                f"{len(many)} files of the folder could be the same part: {many[0].name}, {many[1].name}",
                code="TAPE-1010", field="FILE", hint="name the files: tape data add TRAIN --validation V --test T",
            )  # fmt: skip
        parts = {"validation" if part == "valid" else part: files[0] for part, files in found.items()}
    given = {"validation": reading.validation, "test": reading.test}
    return parts | {part: path for part, path in given.items() if path is not None}


@contextmanager
def _checked(file: Path, reading: Reading, *, mask: bool = False) -> Iterator[tuple[Check, Report]]:
    from wire.rows.check import Check

    files = _files(file, reading)
    with (
        tempfile.TemporaryDirectory(prefix="tape-data-") as folder,
        Check(Path(folder), recipe=reading.recipe, longest=reading.longest, mask=mask) as found,
    ):
        for part in ("train", "validation", "test"):
            if part in files:
                found.take(part, files[part])
        yield found, found.finish()


def _tell(shell: Shell, report: Report, everything: Path | None, *, fixing: bool = False, masked: bool = False) -> None:
    """Print what is wrong and was not hidden, worst first. Raises `InvalidError` (TAPE-1014) where there are errors."""
    from schemas.dataset import Rule

    left = [one for one in report.first if not (masked and one.rule is Rule.PERSONAL)]
    problems = sorted(left, key=lambda one: not one.error)[:SHOWN]
    if not problems:
        shell.output.note("nothing is wrong")
    shell.output.rows(
        [
            {
                "file": one.file, "line": one.line or None, "field": one.field, "rule": one.rule, "error": one.error,
                "problem": one.message, "way_out": one.mend, "part": one.part,
            }
            for one in problems
        ],
        PROBLEMS,
    )  # fmt: skip
    if everything is not None:
        _write(report, everything)
    total = sum(report.counts.values()) - len(report.first) + len(left)
    if total > len(problems) and everything is None:
        shell.output.note(f"{total - len(problems)} more; --report FILE writes all of them")
    for part in report.parts:
        shell.output.note(f"{part.name}: {part.count:,} rows of {part.source.name} could be read")
    errors = report.errors
    if errors and not fixing:
        told = ", ".join(f"{count:,} {rule}" for rule, count in errors.items())
        first = next((one for one in problems if one.error), None)
        hint = f"{report.unread[0]} cannot be read to its end: mend it" if report.unread else None
        place: dict[str, Any] = {"file": first.file, "line": first.line, "field": first.field} if first else {}
        raise InvalidError(f"{sum(errors.values()):,} errors: {told}", code="TAPE-1014", hint=hint, **place)


def _write(report: Report, to: Path) -> None:
    try:
        to.write_bytes(report.problems.read_bytes())
    except OSError as error:
        raise TapeError(f"{to} cannot be written: {error.strerror}", code="TAPE-1010", field="--report") from error


def _row(version: DatasetVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "rows": sum(part.rows for part in version.parts.values()),
        "parts": {part: held.rows for part, held in version.parts.items()},
        "warnings": {str(rule): count for rule, count in version.warnings.items()},
        "created": version.created_at,
        "by": version.created_by,
    }
