"""The rows of a training are checked before a model is loaded: errors refuse it, warnings go where its result goes.

Registered rows were checked when they were registered, and their warnings are with their version. Nobody has looked at
rows that were never registered, nor at what two sets have in common.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from schemas.dataset import DatasetVersion, Rule
from schemas.errors import InvalidError
from schemas.job import Training
from schemas.lineage import label
from schemas.row import Row
from wire import datasets
from wire.rows.check import Check, Report
from workers.context import Context

EVERY = 1_000
"""Rows between two looks at whether the job was cancelled."""


def vet(
    context: Context, fixed: Training, rows: Sequence[Row], held: Sequence[Row], *, same: bool = False
) -> dict[str, int]:
    """Return how often each rule warns of the rows to learn (`rows`) and to validate on (`held`) of a request.

    `same` says that both are one file: nothing is held out then, which is told as a `leak` and refuses nothing.

    Raises `InvalidError` (TAPE-1014) where a question to validate on is learnt, and what `Context.check` raises.
    """
    sets = {ref: _set(ref, context) for ref in (fixed.data, fixed.validation) if ref}
    told: Counter[Rule] = Counter()
    for version in {one.version: one for one in sets.values() if one is not None}.values():
        told.update(version.warnings)
    if all(sets.values()) and (not fixed.validation or (not same and _one(sets))):
        return _plain(told)
    with (
        tempfile.TemporaryDirectory(dir=context.scratch, prefix="check-") as folder,
        Check(Path(folder)) as check,
    ):
        uses = [("train", fixed.data, rows, False), ("validation", fixed.validation, held, same)]
        for part, ref, found, again in uses:
            if ref:
                known = again or sets[ref] is not None
                check.take(part, Path(part), rows=_watched(found, context), called=label(ref), known=known)
        report = check.finish()
        if report.counts[Rule.LEAK] and not same:
            raise _refused(report)
        told.update(report.counts)
    return _plain(told)


def _plain(told: Counter[Rule]) -> dict[str, int]:
    return {rule.value: told[rule] for rule in Rule if told[rule]}


def _set(ref: str, context: Context) -> DatasetVersion | None:
    if not ref.startswith(datasets.SCHEME):
        return None
    return datasets.find(context.store, ref, part=datasets.part_for(context.kind, "data"))[0]


def _one(sets: dict[str, DatasetVersion | None]) -> bool:
    """Whether all are parts of one version: they were compared when it was registered."""
    return len({one.version for one in sets.values() if one is not None}) == 1


def _watched(rows: Sequence[Row], context: Context) -> Iterator[Row]:
    for at, row in enumerate(rows):
        if at % EVERY == 0:
            context.check()
        yield row


def _refused(report: Report) -> InvalidError:
    first = next(one for one in report.first if one.rule is Rule.LEAK)
    count = report.counts[Rule.LEAK]
    return InvalidError(
        f"{count:,} rows to learn from ask what is to be validated on; line {first.line}: {first.message}",
        code="TAPE-1014", file=first.file, line=first.line, field=first.field, rule=first.rule.value,
        hint="`tape data check ROWS --validation HELD` lists them; `tape data add`, with --fix, leaves them out",
    )  # fmt: skip
