"""Check the rows of a data set as a stream, and write them in one shape: what is wrong, where, and how to mend it.

    with Check(folder) as check:
        check.take("train", Path("rows.csv"))
        check.take("test", Path("held.jsonl"))
        report = check.finish()

Memory does not grow with the file: hashes of rows are compared in a database on disk, and problems go to a file.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from schemas.dataset import WARNINGS, Problem, Rule
from schemas.row import Row, texts
from wire.rows.files import found_in
from wire.rows.personal import masked, personal
from wire.rows.shapes import Bad

LONGEST: Final = 32_000
"""Characters of a row, by default: about 8,000 tokens of English."""
BATCH: Final = 5_000
SHOWN: Final = 1_000
"""Problems that are kept to be shown, and the first of each rule; all are in the file."""
LABELS, LABEL = 50, 80
"""Answers are labels when there are at most so many different ones, of at most so many characters."""
ENOUGH, RARE = 20, 10
"""Rows from which on labels are compared, and how many times as often as the rarest the most frequent one may come."""

_SCHEMA = """
CREATE TABLE rows (part INT, number INT, line INT, whole INT, asked INT);
CREATE TABLE gone (part INT, number INT, rule TEXT);
"""
_DUPLICATES = """
SELECT part, number, line, first FROM (
  SELECT part, number, line, row_number() OVER same AS at, first_value(line) OVER same AS first
  FROM rows WINDOW same AS (PARTITION BY part, whole ORDER BY number)
) WHERE at > 1 ORDER BY part, number
"""
_CONFLICTS = """
SELECT part, min(number), min(line), count(DISTINCT whole) FROM rows
GROUP BY part, asked HAVING count(DISTINCT whole) > 1 ORDER BY part, min(number)
"""
_LEAKS = """
SELECT mine.part, mine.number, mine.line, min(held.part), min(held.line) FROM rows AS mine
JOIN (SELECT asked, part, min(line) AS line FROM rows WHERE part > 0 GROUP BY asked, part) AS held
  ON held.asked = mine.asked AND held.part > mine.part
GROUP BY mine.part, mine.number ORDER BY mine.part, mine.number
"""


@dataclass(slots=True)
class Part:
    """A part as it was read: its rows in one shape, and what is known of its answers."""

    name: str
    source: Path
    rows: Path
    count: int = 0
    whole: bool = True
    """Whether it could be read to its end."""
    called: str = ""
    """What its file is called in a problem."""
    known: bool = False
    """Whether its rows were checked before: what they have in common with another part is told, and nothing else."""
    labels: Counter[str] | None = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it: how often each rule was broken, the first problems, the file with all of them, the parts."""

    counts: Counter[Rule]
    first: tuple[Problem, ...]
    problems: Path
    parts: tuple[Part, ...]

    @property
    def unread(self) -> list[str]:
        """The files that could not be read to their ends."""
        return [part.source.name for part in self.parts if not part.whole]

    @property
    def errors(self) -> dict[Rule, int]:
        """What keeps it from being trained on."""
        return {rule: self.counts[rule] for rule in Rule if self.counts[rule] and rule not in WARNINGS}

    @property
    def warnings(self) -> dict[Rule, int]:
        """What is only told."""
        return {rule: self.counts[rule] for rule in Rule if self.counts[rule] and rule in WARNINGS}


class Check:
    """Takes the parts, that which is learnt from first; `folder` is for its files, and the caller's to delete."""

    def __init__(self, folder: Path, *, recipe: str = "auto", longest: int = LONGEST, mask: bool = False) -> None:
        self._folder, self._recipe, self._longest, self._mask = folder, recipe, longest, mask
        self._counts: Counter[Rule] = Counter()
        self._unread: Counter[Rule] = Counter()
        self._first: list[Problem] = []
        self._parts: list[Part] = []
        self._told = (folder / "problems.jsonl").open("w", encoding="utf-8")
        self._base = sqlite3.connect(folder / "hashes.db", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", "cache_size=-32000"):
            self._base.execute(f"PRAGMA {pragma}")
        self._base.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._told.close()
        self._base.close()

    def take(
        self, name: str, path: Path, *, rows: Iterable[Row] | None = None, called: str = "", known: bool = False
    ) -> None:
        """Read a part. Raises what `wire.rows.records` raises.

        `rows` are what the file holds, where somebody has read it already, `called` is how its problems name the file,
        and of a part that is `known` only leaks are told.
        """
        part = Part(name, path, self._folder / f"{name}.jsonl", called=called or path.name, known=known)
        index = len(self._parts)
        self._parts.append(part)
        seen: list[tuple[int, ...]] = []
        given = found_in(path, self._recipe) if rows is None else ((row.line, row) for row in rows)
        with part.rows.open("wb") as out:
            for line, found in given:
                if isinstance(found, Bad):
                    part.whole = part.whole and not found.last
                    self._unread[found.rule] += 1
                    self._tell(found.rule, part, line, found.name, found.problem)
                    continue
                out.write(self._written(part, found))
                seen.append((index, part.count, line, *_hashes(found)))
                if (length := _length(found)) > self._longest:
                    told = f"the row has {length:,} characters, and {self._longest:,} are allowed"
                    self._tell(Rule.LONG, part, line, "line", told)
                    self._base.execute("INSERT INTO gone VALUES (?, ?, ?)", (index, part.count, Rule.LONG))
                part.count += 1
                if len(seen) >= BATCH:
                    self._keep(seen)
        self._keep(seen)
        if not part.count:
            self._tell(Rule.NONE, part, 0, "", "there is no row that can be read")

    def finish(self) -> Report:
        """Compare the rows with each other and return the report."""
        parts = self._parts
        for part, number, line, first in self._base.execute(_DUPLICATES):
            self._leave(Rule.DUPLICATE, part, number, line, f"the row is that of line {first} again")
        for part, _, line, answers in self._base.execute(_CONFLICTS):
            told = f"what is asked here has {answers} different answers"
            self._tell(Rule.CONFLICT, parts[part], line, "completion", told)
        for part, number, line, held, there in self._base.execute(_LEAKS):
            told = f"the same is asked in line {there} of the {parts[held].name} part ({parts[held].called})"
            self._leave(Rule.LEAK, part, number, line, told)
        for one in parts:
            self._balance(one)
        self._told.flush()
        return Report(Counter(self._counts), tuple(self._first), self._folder / "problems.jsonl", tuple(parts))

    def fix(self) -> Counter[Rule]:
        """Write the parts anew without the rows at fault; return how many records are left out, by what was wrong."""
        left = Counter(self._unread)
        asked = "SELECT number, min(rule) FROM gone WHERE part = ? GROUP BY number ORDER BY number"
        for index, part in enumerate(self._parts):
            gone = self._base.execute(asked, (index,))
            following, clean = gone.fetchone(), part.rows.with_suffix(".clean")
            with part.rows.open("rb") as before, clean.open("wb") as after:
                for number, text in enumerate(before):
                    if following is not None and following[0] == number:
                        left[Rule(following[1])] += 1
                        part.count -= 1
                        following = gone.fetchone()
                    else:
                        after.write(text)
            clean.replace(part.rows)
        return left

    def _written(self, part: Part, row: Row) -> bytes:
        """Return a row in its one shape; tell what looks personal in it."""
        plain = row.plain()
        data = (json.dumps(plain, ensure_ascii=False) + "\n").encode()
        found = dict.fromkeys((name, *one) for name, text in _named(row) for one in personal(text))
        for name, kind, words in found:
            self._tell(Rule.PERSONAL, part, row.line, name, f"this looks like somebody's {kind}: {_hidden(words)}")
        if found and self._mask:
            data = (json.dumps(_masked(plain, row.line), ensure_ascii=False) + "\n").encode()
        if part.labels is not None:
            part.labels[row.completion.strip()] += 1
            if len(part.labels) > LABELS or len(row.completion) > LABEL:
                part.labels = None
        return data

    def _keep(self, seen: list[tuple[int, ...]]) -> None:
        self._base.execute("BEGIN")
        self._base.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", seen)
        self._base.execute("COMMIT")
        seen.clear()

    def _balance(self, part: Part) -> None:
        labels = part.labels
        if labels is None or part.count < ENOUGH or len(labels) * 2 > part.count:
            return
        (most, often), (least, rarely) = labels.most_common(1)[0], labels.most_common()[-1]
        if len(labels) == 1:
            self._tell(Rule.IMBALANCE, part, 0, "completion", f"every answer is {most!r}")
        elif often >= RARE * rarely:
            told = f"{most!r} is the answer {often:,} times, and {least!r} {rarely:,} times"
            self._tell(Rule.IMBALANCE, part, 0, "completion", told)

    def _leave(self, rule: Rule, part: int, number: int, line: int, told: str) -> None:
        self._tell(rule, self._parts[part], line, "line", told)
        self._base.execute("INSERT INTO gone VALUES (?, ?, ?)", (part, number, rule))

    def _tell(self, rule: Rule, part: Part, line: int, name: str, told: str) -> None:
        if part.known and rule is not Rule.LEAK:
            return
        found = Problem(rule=rule, part=part.name, file=part.called, line=line, field=name, message=told)
        self._counts[rule] += 1
        if len(self._first) < SHOWN or self._counts[rule] == 1:
            self._first.append(found)
        self._told.write(found.model_dump_json() + "\n")


def _length(row: Row) -> int:
    return sum(map(len, texts(row)))


def _hashes(row: Row) -> tuple[int, int]:
    """Return what tells a row from all others, and what tells its question from all others; ids do not count."""
    asked = row.prompt if isinstance(row.prompt, str) else json.dumps(row.prompt)
    question = hashlib.blake2b((asked or row.completion).encode(), digest_size=8)
    whole = question.copy()
    whole.update(b"\0" + row.completion.encode())
    return _number(whole.digest()), _number(question.digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, signed=True)


def _named(row: Row) -> Iterator[tuple[str, str]]:
    """Yield what is read of a row, and its id, each with its field: the file's where the field is there as it is."""
    yield "id", row.id
    if isinstance(row.prompt, str):
        shape = {"prompt": row.prompt, "completion": row.completion} if row.prompt else {"text": row.completion}
        for name, text in shape.items():
            yield next((own for own, held in row.fields.items() if held == text and own != "id"), name), text
        return
    for at, text in enumerate(texts(row)):
        yield f"messages.{at}.content", text


def _masked(plain: dict[str, Any], line: int) -> dict[str, Any]:
    """Return a row with nothing personal in it; an id that was gets the line behind it, and is still the only such."""
    found = {name: _without(held) for name, held in plain.items()}
    return found if found["id"] == plain["id"] else found | {"id": f"{found['id']}-{line}"}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: held if name == "role" else _without(held) for name, held in value.items()}
    return [_without(held) for held in value] if isinstance(value, list) else masked(value)


def _hidden(words: str) -> str:
    """Return just so much of it that it can be found again: a report must not spread what it warns of."""
    return f"{words[:3]}…{words[-2:]}"
