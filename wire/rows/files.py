"""Files of records, read as streams: JSONL, JSON arrays, CSV, TSV and Parquet. No file is ever held in memory.

A record comes with the line it begins in (Parquet: its number), and so does what is wrong with one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from schemas.dataset import Rule
from schemas.errors import InvalidError, NotFoundError, SetupError
from schemas.row import Need, Row
from wire.rows.recipes import known, rows
from wire.rows.shapes import Bad

MAX_LINE: Final = 16 * 2**20
"""Bytes of a line, or of a record, at most."""
PIECE: Final = 1 << 20
HEAD: Final = 4_096
"""Characters in which an array must begin; else the file is one record."""
SHOWN = 5
_OPENING = re.compile(r'\s*(?:\{\s*"(?:[^"\\]|\\.)*"\s*:\s*)?\[')
_WHITE = re.compile(r"[\s,]*")

Found = Iterator[tuple[int, Any]]
"""Line, and a record or a `Bad`."""


def records(path: Path) -> Found:
    """Yield the records of a file, told by its suffix; what has another one is read as JSONL.

    Raises `NotFoundError` (TAPE-2003), `InvalidError` (TAPE-1008) for what is no readable file, and `SetupError`
    (TAPE-8003) where a library is missing.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet(path)
            return
        with path.open("rb") as file:
            yield from FORMATS.get(suffix, _jsonl)(file)
    except FileNotFoundError:
        raise NotFoundError("there is no such data file", code="TAPE-2003", file=str(path)) from None
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidError(
            f"the data file cannot be read: {error.strerror}", code="TAPE-1008", file=str(path)
        ) from None


def read(path: Path, *, recipe: str = "auto", need: Need = "completion") -> Iterator[Row]:
    """Stream the rows of a file; blank lines are passed over.

    Raises `InvalidError` (TAPE-1008) at the first bad line, with file, line, field and how to mend it, and
    `NotFoundError` (TAPE-2003) where there is no file.
    """
    for line, found in found_in(path, recipe, need):
        if isinstance(found, Bad):
            raise _error(path, [(line, found)])
        yield found


def load(path: Path, *, recipe: str = "auto", need: Need = "completion", limit: int | None = None) -> list[Row]:
    """Read all rows of a file, or the first `limit`; all bad lines are looked at before one error names them.

    Raises what `read` raises, and `InvalidError` (TAPE-1008) where the file holds no row at all.
    """
    good: list[Row] = []
    bad: list[tuple[int, Bad]] = []
    for line, found in found_in(path, recipe, need):
        if isinstance(found, Bad):
            bad.append((line, found))
        else:
            good.append(found)
        if limit is not None and len(good) >= limit:
            break
    if bad:
        raise _error(path, bad)
    if not good:
        raise InvalidError("the file holds no rows", code="TAPE-1008", file=str(path), hint="write one object a line")
    return good


def found_in(path: Path, recipe: str = "auto", need: Need = "completion") -> Iterator[tuple[int, Row | Bad]]:
    """Yield the rows of a file, and what is wrong with the others, each with its line. Raises what `records` raises."""
    chosen = known(recipe)
    for line, found in records(path):
        try:
            if isinstance(found, Bad):
                raise found
            for row in rows(found, line, chosen, need):
                yield line, row
        except Bad as bad:
            yield line, bad


def _error(path: Path, bad: list[tuple[int, Bad]]) -> InvalidError:
    line, first = bad[0]
    message = first.problem
    if len(bad) > 1:
        more = "; ".join(f"line {at}: {other.problem}" for at, other in bad[1:SHOWN])
        message = f"{len(bad)} bad lines. line {line}: {message}; {more}" + (" …" if len(bad) > SHOWN else "")
    hint = f"mend {'these lines' if len(bad) > 1 else f'line {line}'} and submit again"
    return InvalidError(message, code="TAPE-1008", file=path.name, line=line, field=first.name, hint=hint)


def _jsonl(file: BinaryIO) -> Found:
    line = 0
    while raw := file.readline(MAX_LINE + 1):
        line += 1
        if len(raw) > MAX_LINE:
            yield line, Bad("line", f"the line is longer than {MAX_LINE >> 20} MiB", Rule.LONG)
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE)
        elif raw.strip():
            try:
                yield line, _parsed(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw)
            except Bad as bad:
                yield line, bad


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Bad("line", f"byte {error.start + 1} is not UTF-8", Rule.ENCODING) from None
    except json.JSONDecodeError as error:
        raise Bad("line", f"column {error.colno} is not JSON: {error.msg}", Rule.JSON) from None
    except RecursionError:
        raise Bad("line", "the JSON is nested too deeply", Rule.JSON) from None


def _json(file: BinaryIO) -> Found:
    """Read a JSON array record by record, also where it is the one field of an object, as `{"dev": [...]}`."""
    decoder = json.JSONDecoder()
    try:
        text = _more(file, "").removeprefix("\ufeff")
        while (
            (opening := _OPENING.match(text)) is None
            and len(text) < HEAD
            and len(more := _more(file, text)) > len(text)
        ):
            text = more
        if opening is None:
            yield 1, json.loads(text + file.read().decode("utf-8"))
            return
        at, line = opening.end(), 1 + text.count("\n", 0, opening.end())
        while True:
            white = _WHITE.match(text, at)
            assert white is not None
            line, at = line + text.count("\n", at, white.end()), white.end()
            if text[at : at + 1] == "]":
                return
            try:
                record, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                rest = text[at:]
                if len(rest) <= MAX_LINE and len(more := _more(file, rest)) > len(rest):
                    text, at = more, 0
                    continue
                yield line, Bad("line", f"the record that begins here is not JSON: {error.msg}", Rule.JSON, last=True)
                return
            yield line, record
            line, at = line + text.count("\n", at, end), end
            if at > PIECE:
                text, at = text[at:], 0
    except UnicodeDecodeError as error:
        yield 1, Bad("line", f"the file is not UTF-8: {error.reason}", Rule.ENCODING, last=True)
    except json.JSONDecodeError as error:
        yield error.lineno, Bad("line", f"column {error.colno} is not JSON: {error.msg}", Rule.JSON, last=True)
    except RecursionError:
        yield 1, Bad("line", "the JSON is nested too deeply", Rule.JSON, last=True)


def _more(file: BinaryIO, text: str) -> str:
    """Return the text with the next piece behind it, cut between two characters."""
    piece = file.read(max(PIECE, len(text)))
    for _ in range(3):
        try:
            return text + piece.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.end < len(piece) or not (last := file.read(1)):
                raise
            piece += last
    return text + piece.decode("utf-8")


def _csv(file: BinaryIO, delimiter: str = ",") -> Found:
    csv.field_size_limit(MAX_LINE)
    lines = (raw.decode("utf-8-sig", "surrogateescape") for raw in file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    head: list[str] = []
    try:
        for cells in reader:
            line = reader.line_num
            if not cells:
                continue
            if not head:
                head = [cell.strip() for cell in cells]
                if len(set(head)) < len(head) or not all(head):
                    yield line, Bad("line", "the header names a column twice, or not at all", Rule.HEADER, last=True)
                    return
            elif len(cells) != len(head):
                yield line, Bad("line", f"the row has {len(cells)} cells, and the header {len(head)}", Rule.CELLS)
            elif any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
                yield line, Bad("line", "the row is not UTF-8", Rule.ENCODING)
            else:
                yield line, {name: cell for name, cell in zip(head, cells, strict=True) if cell}
    except csv.Error as error:
        yield reader.line_num, Bad("line", f"the row is not CSV: {error}", Rule.CSV, last=True)


def _tsv(file: BinaryIO) -> Found:
    return _csv(file, "\t")


def _parquet(path: Path) -> Found:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SetupError(
            "Parquet needs the package pyarrow", code="TAPE-8003", file=path.name,
            hint="pip install 'tickertape[parquet]', or write JSONL",
        ) from None  # fmt: skip
    line = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=500):
                for record in batch.to_pylist():
                    line += 1
                    yield line, {name: value for name, value in record.items() if value is not None}
    except ArrowException as error:
        yield line + 1, Bad("line", f"the file is not Parquet: {str(error).splitlines()[0]}", Rule.PARQUET, last=True)


FORMATS: dict[str, Callable[[BinaryIO], Found]] = {".json": _json, ".csv": _csv, ".tsv": _tsv}
