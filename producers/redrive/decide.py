"""Decisions without a plan: letters discarded, restored, or sent again from an export that was mended by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from producers.dead.desk import Desk
from producers.dead.letter import Letter
from producers.dead.pen import Pen, Pens
from producers.redrive.back import Errand, back
from producers.redrive.pace import BATCH, batches
from producers.redrive.patch import check
from schemas import codec
from schemas.dead import Became, Fate
from schemas.errors import InvalidError
from wire.transact import Outgoing


@dataclass(slots=True)
class Decided:
    """What came of it: how many were decided so, and of the others why not."""

    done: int
    others: dict[str, int]

    def skip(self, why: str) -> None:
        """Count one that was not."""
        self.others[why] = self.others.get(why, 0) + 1


def decide(desk: Desk, letters: Iterable[Letter], became: Became, reason: str) -> Decided:
    """Discard letters, or restore discarded ones; those for which it is too late are counted and left alone.

    Raises what the broker raises; what was decided until then stays so, and doing it again does the rest.
    """

    def fate(letter: Letter, pen: Pen, found: Decided) -> tuple[Fate, list[Outgoing]] | None:
        known = pen.decided(str(letter.place), letter.origin.place)
        if became is Became.RESTORED and (known is None or known.became is not Became.DISCARDED):
            found.skip(str(known.became) if known else "not discarded")
            return None
        if became is Became.DISCARDED and known is not None:
            found.skip(f"already {known.became}")
            return None
        return Fate(
            became=became, letter=str(letter.place), origin=letter.origin.place, job=letter.job, kind=letter.kind,
            code=letter.origin.code, replay=letter.replays, by=desk.who, reason=reason, time=desk.now(),
        ), []  # fmt: skip

    return _write(desk, letters, fate)


def resend(desk: Desk, letters: Iterable[tuple[Letter, bool]], reason: str) -> Decided:
    """Send letters of an export back, each once, with the values that they have there.

    A mended one must be a valid request. Raises `InvalidError` before the batch with the wrong one is written.
    """
    mended: dict[str, bool] = {}

    def checked() -> Iterator[Letter]:
        for letter, changed in letters:
            if changed and letter.lane is not None:
                check(codec.parse_object(codec.decode(letter.record.value, letter.record.headers).data), letter.kind)
            mended[str(letter.place)] = changed
            yield letter

    def fate(letter: Letter, pen: Pen, found: Decided) -> tuple[Fate, list[Outgoing]] | None:
        known = pen.decided(str(letter.place), letter.origin.place)
        if known is not None:
            found.skip(f"already {known.became}")
            return None
        errand = Errand(desk.names, None, desk.who, reason, desk.now())
        try:
            return back(letter, letter.record.value, errand, mended=mended[str(letter.place)])
        except InvalidError as error:
            found.skip(error.message)
            return None

    return _write(desk, checked(), fate)


Choice = Callable[[Letter, Pen, Decided], tuple[Fate, list[Outgoing]] | None]


def _write(desk: Desk, letters: Iterable[Letter], choice: Choice) -> Decided:
    total = Decided(0, {})
    with closing(Pens(desk)) as pens:
        for batch in batches(letters, BATCH):
            topics: dict[str, list[Letter]] = {}
            for letter in batch:
                topics.setdefault(letter.place.topic, []).append(letter)
            for topic, some in topics.items():
                found = Decided(0, {})
                pens.use(topic, partial(_once, some, choice, found))
                total.done += found.done
                for why, count in found.others.items():
                    total.others[why] = total.others.get(why, 0) + count
    return total


def _once(letters: Iterable[Letter], choice: Choice, found: Decided, pen: Pen) -> None:
    found.done, found.others = 0, {}  # it may be done again
    fates: list[Fate] = []
    records: list[Outgoing] = []
    origins: set[str | None] = set()
    for letter in letters:
        chosen = None if letter.origin.place in origins else choice(letter, pen, found)
        if chosen is not None:
            fates.append(chosen[0])
            records += chosen[1]
            origins |= {letter.origin.place} - {None}
    if fates:
        pen.write(fates, records)
    found.done = len(fates)
