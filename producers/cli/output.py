"""What `tape` prints: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from schemas.errors import TapeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Row = Mapping[str, Any]


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"


STATES = {
    "queued": "cyan",
    "running": "blue",
    "retrying": "yellow",
    "postponed": "yellow",
    "succeeded": "green",
    "ok": "green",
    "warn": "yellow",
    "failed": "red",
    "fail": "red",
    "dead": "bold red",
    "cancelled": "magenta",
    "expired": "magenta",
}
"""Colours of states and check results."""

LABELS = {"attempt": "try", "submitted": "at", "seconds": "took", "way_out": "way out"}
"""Headings that differ from the field's name."""

WIDE = 160
"""Characters of a line where there is no terminal to fit."""

EMPTY: tuple[Any, ...] = (None, "", {}, [])

WORDY = frozenset(
    {"found", "way_out", "meaning", "when", "note", "problem", "value", "file", "path", "want", "have", "cause"}
)
"""Columns that may be broken into lines; the others are what people copy."""


_MARKS = "\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
"""What turns the direction of text, parts lines unseen, or is half a character."""
_CONTROL = re.compile(f"[\\x00-\\x1f\\x7f-\\x9f{_MARKS}]")
_KEPT = re.compile(f"[\\x7f-\\x9f{_MARKS}]")
"""Of these, what neither JSON nor YAML escapes by itself."""


def safe(text: str, *, lines: bool = False) -> str:
    """Return text that a terminal only shows: control and bidi characters are spelled out, as `\\x1b` and `\\u202e`.

    Ids, reasons and payloads may be anybody's, and a terminal obeys what it is sent. With `lines`, new lines stay, and
    tabs are four blanks.
    """
    kept = {"\n": "\n", "\t": "    "} if lines else {}
    return _CONTROL.sub(lambda odd: kept.get(odd[0]) or odd[0].encode("unicode_escape").decode(), text)


class Output:
    """Where a command's words go: a table on a terminal, JSON lines into a pipe, or what `--output` says."""

    def __init__(self, chosen: Format | None = None, *, color: bool | None = None) -> None:
        self.format = chosen or (Format.TABLE if sys.stdout.isatty() else Format.JSONL)
        self._color = color

    @property
    def table(self) -> bool:
        """Whether people read this."""
        return self.format is Format.TABLE

    @property
    def live(self) -> bool:
        """Whether a terminal shows this, where a line can be drawn again."""
        return self.table and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def rows(self, rows: Iterable[Row], columns: Sequence[str] | None = None) -> None:
        """Print rows; a table shows `columns` only, the other formats everything."""
        if self.format is Format.JSONL:
            for row in rows:
                self.line(row)
            return
        if self.format is Format.TABLE:
            raw = [dict(row) for row in rows]
            self._table(raw, columns or (list(raw[0]) if raw else []))
            return
        found = [plain(dict(row)) for row in rows]
        if self.format is Format.YAML:
            self._yaml(found)
        else:
            self._write(_json(found, indent=2))

    def record(self, row: Row) -> None:
        """Print one thing."""
        found = plain(dict(row))
        if self.format is Format.TABLE:
            self._pairs(found)
        elif self.format is Format.YAML:
            self._yaml(found)
        else:
            self._write(_json(found, indent=2 if self.format is Format.JSON else None))

    def line(self, row: Row, text: str = "") -> None:
        """Print one thing of a stream as it comes: for people `text`, with rich's markup; else JSON, or YAML."""
        if self.format is Format.TABLE:
            self.console().print(safe(text), highlight=False, soft_wrap=True)
        elif self.format is Format.YAML:
            self._write("---")
            self._yaml(plain(dict(row)))
        else:
            self._write(_json(plain(dict(row))))

    def text(self, text: str) -> None:
        """Print text of one or more lines, the same in every format."""
        self._write(safe(text, lines=True))

    def note(self, text: str) -> None:
        """Tell people what goes on, on stderr."""
        self.console(stderr=True).print(safe(text), highlight=False, soft_wrap=True, markup=False, style="dim")

    def next(self, *commands: str) -> None:
        """Tell people which commands are useful now, on stderr."""
        for command in commands:
            self.console(stderr=True).print(f"next: {safe(command)}", highlight=False, soft_wrap=True, markup=False)

    def error(self, error: TapeError) -> None:
        """Print one error: code, message, place, way out."""
        console = self.console(stderr=True)

        def tell(label: str, text: str) -> None:
            console.print(f"  {label} {text}", highlight=False, soft_wrap=True, markup=False)

        from rich.text import Text

        # What has several lines is indented, so that nobody's text can be taken for the lines below.
        message = safe(error.message, lines=True).replace("\n", "\n      ")
        console.print(Text.assemble((error.code, "bold red"), " ", message), highlight=False, soft_wrap=True)
        if error.place:
            tell("where:  ", "  ".join(safe(f"{key}={value}") for key, value in error.place.items()))
        tell("way out:", safe(error.hint, lines=True).replace("\n", "\n      "))

    def console(self, *, stderr: bool = False) -> Console:
        """Return the console of stdout or stderr, without colours where they are not wanted."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        wide = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
        off = self._color is False
        return Console(file=stream, width=wide, no_color=off or None, force_terminal=False if off else None)

    def _table(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
        from rich.table import Table
        from rich.text import Text

        console = self.console()
        shown = [column for column in columns if any(row.get(column) not in EMPTY for row in rows)]
        cells = [[_cell(column, row.get(column)) for column in shown] for row in rows]
        widths = [
            max(map(len, [*column, LABELS.get(name, name)]))
            for name, column in zip(shown, zip(*cells, strict=True), strict=True)
        ]
        # The last columns matter least: a terminal that is too narrow for all does without them, not with shreds.
        while len(shown) > 3 and not WORDY & set(shown) and sum(widths) + len(widths) > console.width:
            shown.pop()
            widths.pop()
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        for column in shown:
            table.add_column(
                Text(safe(LABELS.get(column, column).upper())), overflow="fold", no_wrap=column not in WORDY
            )
        for line in cells:
            table.add_row(*line[: len(shown)])
        console.print(table)

    def _pairs(self, row: dict[str, Any]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for key, value in row.items():
            table.add_row(Text(safe(key)), _cell(key, value, lines=True))
        self.console().print(table)

    def _yaml(self, found: Any) -> None:
        import yaml

        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
        if _KEPT.search(text):
            text = yaml.safe_dump(found, sort_keys=False)
        self._write(text.rstrip("\n"))

    def _write(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def plain(value: Any) -> Any:
    """Return `value` as what JSON and YAML know."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, StrEnum):
        return value.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def took(milliseconds: float) -> str:
    """Return a duration for people."""
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.2f} s" if seconds < 60 else f"{int(seconds // 60)}m{seconds % 60:04.1f}s"


def styled(state: str) -> str:
    """Return a state with its colour, as rich's markup."""
    colour = STATES.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _json(found: Any, indent: int | None = None) -> str:
    """JSON in which every character that a terminal would obey is escaped; it reads as the same value."""
    text = json.dumps(found, indent=indent, ensure_ascii=False)
    return _KEPT.sub(lambda odd: f"\\u{ord(odd[0]):04x}", text)


def _cell(column: str, value: Any, *, lines: bool = False) -> Text:
    from rich.text import Text

    if value in EMPTY:
        return Text()
    if column in {"state", "status"}:
        return Text(safe(str(value)), style=STATES.get(str(value), ""))
    if isinstance(value, datetime):
        recent = datetime.now(UTC) - value < timedelta(hours=12)
        with suppress(OverflowError):  # the year 10000 has begun there
            value = value.astimezone()
        return Text(value.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M"))
    return Text(safe(_words(column, value), lines=lines))


def _words(column: str, value: Any) -> str:
    if column == "seconds" and isinstance(value, float | int):
        return took(value * 1000)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:,.1f}"
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict | list) else str(value)
