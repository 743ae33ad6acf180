"""Carrying letters back: batch by batch, each in one transaction with its fates, whoever else wants the pen too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from producers.dead.desk import Desk
from producers.dead.letter import Letter
from producers.dead.pen import Pen, Pens
from producers.redrive.back import Errand, back
from producers.redrive.patch import Patch
from schemas.dead import Fate, Place
from schemas.errors import TapeError
from schemas.redrive import Line, Plan
from wire.transact import Outgoing

DENIED = "TAPE-4003"
ALONE = frozenset({"TAPE-1001", "TAPE-1002", "TAPE-1004", "TAPE-1006", "TAPE-1012", "TAPE-2004", DENIED})
"""Errors that may be one letter's own fault: the others of its batch go without it."""


class Carrier:
    """Moves letters of one plan. `moved` and `left` tell what became of each; what was decided before counts too.

    `heed` is called before the pen is taken again, and raises if the redrive is not ours any more.
    """

    def __init__(self, desk: Desk, plan: Plan, *, heed: Callable[[], None], sleep: Callable[[float], None]) -> None:
        self._desk, self._plan = desk, plan
        self._patch = Patch(plan.patch) if plan.patch else None
        self._pens = Pens(desk, heed=heed, sleep=sleep)
        self.moved: dict[str, Fate] = {}
        self.left: dict[str, str] = {}
        self._denied: dict[str | None, str] = {}

    def learn(self, lines: Iterable[Line]) -> None:
        """Take the pens, and learn what became of these letters before."""
        topics: dict[str, list[str]] = {}
        for line in lines:
            topics.setdefault(line.letter.partition("/")[0], []).append(line.letter)
        for topic, letters in topics.items():
            self._pens.use(topic, partial(self._learn, letters))

    def waits(self, line: Line) -> bool:
        """Whether nothing became of a line's letter yet."""
        return line.letter not in self.moved and line.letter not in self.left

    def leave(self, place: Place, why: str) -> None:
        """Note that a letter stays."""
        self.left[str(place)] = why

    def carry(self, topic: str, letters: list[Letter]) -> None:
        """Move letters of one topic in one transaction; those that are refused stay, and are in `left`.

        Raises what the broker raises, also when the pen is taken from us again and again (TAPE-3006).
        """
        try:
            self._pens.use(topic, partial(self._write, letters))
        except _Refused as refused:
            if len(letters) == 1:
                self._refused(topic, letters[0], refused.error)
                return
            for letter in letters:
                self.carry(topic, [letter])

    def _refused(self, topic: str, letter: Letter, error: TapeError) -> None:
        why = f"{error.code} {error.message}"
        if error.code == DENIED:
            # Its topic may be closed to us, or all may be: the pen is taken anew, which raises if it is all.
            self._pens.drop(topic)
            why = self._denied[letter.origin.target] = f"{why}, for {letter.origin.target}"
        self.leave(letter.place, why)

    def close(self) -> None:
        """Put the pens down."""
        self._pens.close()

    def _learn(self, letters: Sequence[str], pen: Pen) -> None:
        for letter in letters:
            fate = pen.decided(letter, None)
            if fate is not None:
                self._note(letter, fate)

    def _write(self, letters: Sequence[Letter], pen: Pen) -> None:
        errand = Errand(self._desk.names, self._plan.id, self._desk.who, self._plan.reason, self._desk.now())
        fates: list[Fate] = []
        records: list[Outgoing] = []
        for letter in letters:
            place = str(letter.place)
            known = pen.decided(place, letter.origin.place)
            if known is not None:
                self._note(place, known)
                continue
            if (denied := self._denied.get(letter.origin.target)) is not None:
                self.leave(letter.place, denied)
                continue
            try:
                value = letter.record.value if self._patch is None else self._patch.apply(letter)
                fate, more = back(letter, value, errand, mended=self._patch is not None)
            except TapeError as error:
                self.leave(letter.place, f"{error.code} {error.message}")
                continue
            if fate.origin is not None and any(fate.origin == other.origin for other in fates):
                self.leave(letter.place, "another letter tells of the same record")
                continue
            fates.append(fate)
            records += more
        if not fates:
            return
        try:
            pen.write(fates, records)
        except TapeError as error:
            if error.code in ALONE:
                raise _Refused(error) from error
            raise
        self.moved.update((fate.letter, fate) for fate in fates)

    def _note(self, letter: str, fate: Fate) -> None:
        if fate.redrive == self._plan.id and fate.letter == letter:
            self.moved[letter] = fate
        else:
            self.left[letter] = f"{fate.became} by {fate.by}"


class _Refused(Exception):  # noqa: N818 - carried no further than this module
    def __init__(self, error: TapeError) -> None:
        super().__init__(str(error))
        self.error = error
