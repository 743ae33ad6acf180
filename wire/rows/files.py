"""Files of records, read as streams: JSONL, JSON arrays, CSV, TSV and Parquet. No file is ever held in memory.

A record comes with the line it begins in (Parquet: its number), and so does what is wrong with one.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from schemas.dataset import Rule
from schemas.errors import InvalidError, NotFoundError, SetupError
from schemas.row import Need, Row, texts
from wire.rows.recipes import known, rows
from wire.rows.shapes import Bad

MAX_LINE: Final = 16 * 2**20
"""Bytes of a line, or of a record, at most."""
PIECE: Final = 1 << 20
HEAD: Final = 4_096
"""Characters in which an array must begin; else the file is one record."""
SHOWN = 5
_OPENING = re.compile(r'\s*(?:\{\s*"(?:[^"\\]|\\.)*"\s*:\s*)?\[')
_WHITE = re.compile(r"[ \t\r\n]*")
_DECODER, _MEASURER = json.JSONDecoder(), json.JSONDecoder(parse_int=len)
NESTED: Final = "the JSON is nested too deeply"

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
                _writable(row)
                yield line, row
        except Bad as bad:
            yield line, bad


def _writable(row: Row) -> None:
    """Raise `Bad` for text that JSON can spell and UTF-8 cannot, and no tokenizer takes."""
    try:
        for text in (row.id, *texts(row)):
            text.encode()
    except UnicodeEncodeError:
        raise Bad("line", "the row holds half of a character (a lone surrogate)", Rule.ENCODING) from None


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
    except ValueError:
        raise Bad("line", _digits(), Rule.JSON) from None
    except RecursionError:
        raise Bad("line", NESTED, Rule.JSON) from None


def _digits() -> str:
    """Say why a number was not read: Python takes no longer ones, for they cost time by the square of their length."""
    return f"a number has more than {sys.get_int_max_str_digits():,} digits"


def _json(file: BinaryIO) -> Found:
    """Read a JSON array record by record, also where it is the one field of an object, as `{"dev": [...]}`."""
    try:
        text = _more(file, "").removeprefix("\ufeff")
        while (
            (opening := _OPENING.match(text)) is None
            and len(text) < HEAD
            and len(more := _more(file, text)) > len(text)
        ):
            text = more
        if opening is None:
            yield _single(text, file.read(MAX_LINE + 1))
            return
        yield from _items(file, text, opening)
    except UnicodeDecodeError as error:
        yield 1, Bad("line", f"the file is not UTF-8: {error.reason}", Rule.ENCODING, last=True)


def _single(text: str, rest: bytes) -> tuple[int, Any]:
    """Return the one record that a file is."""
    if len(rest) > MAX_LINE:
        told = f"the file is no array of records, and longer than a record may be ({MAX_LINE >> 20} MiB)"
        return 1, Bad("line", told, Rule.LONG, last=True)
    try:
        return 1, json.loads(text + rest.decode("utf-8"))
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        return error.lineno, Bad("line", f"column {error.colno} is not JSON: {error.msg}", Rule.JSON, last=True)
    except ValueError:
        return 1, Bad("line", _digits(), Rule.JSON, last=True)
    except RecursionError:
        return 1, Bad("line", NESTED, Rule.JSON, last=True)


def _items(file: BinaryIO, text: str, opening: re.Match[str]) -> Found:
    """Read the records of an array behind its bracket, and see that nothing else is in the file."""
    at, line = opening.end(), 1 + text.count("\n", 0, opening.end())
    separated, first = True, True
    while True:
        if at > PIECE:
            text, at = text[at:], 0
        white = _WHITE.match(text, at)
        assert white is not None
        line, at = line + text.count("\n", at, white.end()), white.end()
        if at == len(text):
            if not (text := _more(file, "")):
                yield line, Bad("line", "the file ends, and its array does not", Rule.JSON, last=True)
                return
            at = 0
            continue
        if text[at] == "]" and (first or not separated):
            break
        if not separated:
            if text[at] != ",":
                yield line, Bad("line", "there is no comma between two records", Rule.JSON, last=True)
                return
            separated, at = True, at + 1
            continue
        try:
            record, end = _decoded(text, at)
            # A number may go on in the next piece; what else decodes is whole.
            cut = end + 2 >= len(text) and not isinstance(record, dict | list | str)
            problem = ""
        except json.JSONDecodeError as error:
            record, end, cut, problem = None, at, True, error.msg
        except RecursionError:
            yield line, Bad("line", NESTED, Rule.JSON, last=True)
            return
        rest = text[at:] if cut else ""
        if cut and len(rest) <= MAX_LINE and len(more := _more(file, rest)) > len(rest):
            text, at = more, 0
            continue
        if problem:
            yield line, Bad("line", f"the record that begins here is not JSON: {problem}", Rule.JSON, last=True)
            return
        yield line, record
        line, at = line + text.count("\n", at, end), end
        separated = first = False
    yield from _closed(file, text[at + 1 :], line, "{" if "{" in opening[0] else "")


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """Return the record that begins there, or what is wrong with its numbers; and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Read once more without the numbers' values, so that the records behind it can be read.
        return Bad("line", _digits(), Rule.JSON), _MEASURER.raw_decode(text, at)[1]


def _closed(file: BinaryIO, text: str, line: int, brace: str) -> Found:
    """Yield what is wrong behind the bracket that closes the array: there is to be the object's brace and no more."""
    while text or (text := _more(file, "")):
        white = _WHITE.match(text)
        assert white is not None
        line, text = line + white[0].count("\n"), text[white.end() :]
        if brace and text:
            if text[0] != "}":
                told = "the array is not the object's only field" if text[0] == "," else "the object does not end"
                yield line, Bad("line", told, Rule.JSON, last=True)
                return
            brace, text = "", text[1:]
        elif text:
            yield line, Bad("line", "something stands behind the end of the array", Rule.JSON, last=True)
            return
    if brace:
        yield line, Bad("line", "the file ends, and its object does not", Rule.JSON, last=True)


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
