"""Rows as tokens, once: the arrays they are kept in, and the name by which somebody else finds them again.

What a row becomes depends on the row, the tokenizer, the length, and the code that does it. The key is a hash over all
of these, so what is found is what would be made. Kept are safetensors: nothing is run when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from schemas.row import Row
from workers.llm import data
from workers.llm import model as models
from workers.llm.data import IGNORED, Encoded, encode

if TYPE_CHECKING:
    import numpy

NAMES = {"tokens": "int32", "ends": "int64", "skipped": "int32", "cut": "uint8"}
OTHERS = frozenset({models.MANIFEST, "README.md", "train.json", "metrics.jsonl"})
"""Files of a model directory that are neither weights nor of any concern to its tokenizer."""
HEADER = 10_000
"""Bytes that the header of four arrays never needs."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")


class Shelf(Protocol):
    """Where tokens are kept for the next training; `workers.tokens.Tokens` is one."""

    def find(self, key: str) -> Path | None: ...
    def keep(self, key: str, path: Path) -> None: ...


class Shelved(Sequence[Row]):
    """Rows whose tokens are kept on a shelf, and looked for there."""

    def __init__(self, rows: Sequence[Row], shelf: Shelf) -> None:
        self.rows, self.shelf = rows, shelf

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


class Tokens(Sequence[Encoded]):
    """Encoded rows in four arrays: all tokens, where each row ends, how many it begins with unlearnt, and whether cut.

    Four bytes a token, and no more than is looked at where they are mapped from a file.
    """

    def __init__(self, columns: dict[str, numpy.ndarray], *, found: bool = False, held: bool = False) -> None:
        self.columns, self.found, self.held = columns, found, held
        self._ends: list[int] = columns["ends"].tolist()
        self._skipped: list[int] = columns["skipped"].tolist()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]
        end, begin = self._ends[index], self._ends[index - 1] if index else 0
        tokens = self.columns["tokens"][begin:end].tolist()
        skipped = self._skipped[index]
        return Encoded(
            tokens, [IGNORED] * skipped + tokens[skipped:], cut=bool(self.columns["cut"][index]), held=self.held
        )

    def __iter__(self) -> Iterator[Encoded]:
        return (self[index] for index in range(len(self)))

    @property
    def cut(self) -> int:
        """How many rows were too long."""
        return int(self.columns["cut"].sum())

    @property
    def sizes(self) -> list[int]:
        """How many tokens each row has."""
        return [end - begin for begin, end in zip([0, *self._ends], self._ends, strict=False)]


def encoded(rows: Sequence[Row], model: models.Model, length: int, *, held: bool = False) -> Tokens:
    """Return the rows as tokens, `length` of each at most: from their shelf, or made and put there.

    `held` marks rows that are only validated on.
    """
    if not isinstance(rows, Shelved) or not rows:
        return made(rows, model.tokenizer, length, held=held)
    name = key(rows, model.path, length)
    path = rows.shelf.find(name)
    if path is not None and (kept := read(path, len(rows), len(model.tokenizer))) is not None:
        return Tokens(kept, found=True, held=held)
    fresh = made(rows, model.tokenizer, length, held=held)
    with TemporaryDirectory(prefix="tape-tokens-") as scratch:
        write(fresh, Path(scratch) / "tokens.safetensors")
        rows.shelf.keep(name, Path(scratch) / "tokens.safetensors")
    return fresh


def made(rows: Iterable[Row], tokenizer: data.Tokenizer, length: int, *, held: bool = False) -> Tokens:
    """Encode rows."""
    import numpy

    tokens: list[Any] = []
    sizes, skipped, cut = [], [], []
    for row in rows:
        one = encode(row, tokenizer, length)
        tokens.append(numpy.asarray(one.input_ids, "int32"))
        sizes.append(len(one.input_ids))
        skipped.append(next((at for at, label in enumerate(one.labels) if label != IGNORED), len(one.labels)))
        cut.append(one.cut)
    joined = numpy.concatenate(tokens or [numpy.zeros(0, "int32")])
    columns = {"tokens": joined, "ends": numpy.cumsum(sizes), "skipped": skipped, "cut": cut}
    return Tokens({name: numpy.asarray(columns[name], kind) for name, kind in NAMES.items()}, held=held)


def key(rows: Iterable[Row], model: Path, length: int) -> str:
    """Return the sha256 over all that decides what these rows become."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps([row.prompt, row.completion]).encode() + b"\n")
    files = (path for path in model.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    about = {
        "rows": content.hexdigest(),
        "tokenizer": {
            path.relative_to(model).as_posix(): models.digest(path) for path in files if path.name not in OTHERS
        },
        "length": length,
        "code": [models.digest(Path(place)) for place in (data.__file__, __file__)],
        "versions": {name: _version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def write(tokens: Tokens, path: Path) -> None:
    """Write the arrays to a file; the same rows give the same bytes."""
    from safetensors.numpy import save_file

    save_file(tokens.columns, path)


def read(path: Path, rows: int, vocabulary: int) -> dict[str, numpy.ndarray] | None:
    """Return the arrays of a file, the tokens mapped and not read; None where they cannot be those of so many rows."""
    import numpy

    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(size, HEADER)))
        columns: dict[str, numpy.ndarray] = {
            name: numpy.memmap(
                path, kind, "r", 8 + size + header[name]["data_offsets"][0], tuple(header[name]["shape"])
            )
            for name, kind in NAMES.items()
            if header[name]["shape"] != [0]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if columns.keys() != NAMES.keys() or any(len(columns[name]) != rows for name in ("ends", "skipped", "cut")):
        return None
    sizes = numpy.diff(columns["ends"], prepend=0)
    whole = columns["ends"][-1] == len(columns["tokens"]) and sizes.min() > 0
    inside = (columns["skipped"] >= 0).all() and (columns["skipped"] <= sizes).all()
    known = columns["tokens"].min() >= 0 and columns["tokens"].max() < vocabulary
    return columns if bool(whole and inside and known) else None
