"""Every error has a listed code and a way out, and crosses processes and messages whole."""

from __future__ import annotations

import pickle
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import errors
from schemas.codec import dump, parse
from schemas.errors import CODES, InvalidError, JobError, TapeError
from schemas.foreign import FOREIGN
from schemas.outcome import TEXT_LIMIT, Failure

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for layer in ("schemas", "wire", "producers", "workers", "examples") for path in (ROOT / layer).rglob("*.py")
]
TREE = {found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, TapeError)}


def test_every_code_in_the_source_is_listed() -> None:
    used = {code: path for path in SOURCES for code in re.findall(r"TAPE-\d{4}", path.read_text(encoding="utf-8"))}
    assert len(used) > 20
    assert {code: str(path) for code, path in used.items() if code not in CODES} == {}


def test_every_code_tells_its_meaning_and_a_way_out() -> None:
    assert list(CODES) == sorted(CODES)
    for code, entry in CODES.items():
        assert re.fullmatch(r"TAPE-[1-8]\d{3}", code)
        assert entry.meaning and entry.hint, code
        assert not entry.hint.endswith("."), code
    meanings = [entry.meaning for entry in CODES.values()]
    assert len(set(meanings)) == len(meanings)


def test_the_page_tells_every_code_and_every_foreign_exception_in_order() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0][2:] for line in page if line.startswith("| TAPE-")] == list(CODES)
    told = [line.split(" | ") for line in page if line.startswith("| `")]
    assert [(row[0][3:-1], row[2], row[3]) for row in told] == [
        (row.exception, row.code, row.entry.failure.value) for row in FOREIGN
    ]


@pytest.mark.parametrize("kind", sorted(TREE, key=lambda kind: kind.__name__))
def test_every_error_of_the_tree_has_a_listed_default_and_stands_in_the_docstring(kind: type[TapeError]) -> None:
    assert kind("x").code == kind.default in CODES
    assert kind.__name__ in (errors.__doc__ or "")


def test_an_unlisted_code_fails_at_once() -> None:
    with pytest.raises(KeyError):
        TapeError("x", code="TAPE-9999")


@pytest.mark.parametrize("kind", sorted(TREE, key=lambda kind: kind.__name__))
def test_an_error_survives_pickling(kind: type[TapeError]) -> None:
    error = kind("it broke", code="TAPE-6003", hint="mend it", file="a.jsonl", line=7, kind="echo", none=None)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == "TAPE-6003 it broke [file=a.jsonl line=7 kind=echo]; mend it"


def test_an_error_with_a_place_that_cannot_be_pickled_still_crosses() -> None:
    lock = threading.Lock()
    assert pickle.loads(pickle.dumps(JobError("x", lock=lock, path=Path("a")))).place == {
        "lock": str(lock),
        "path": "a",
    }


def test_an_error_is_one_line() -> None:
    assert "\n" not in str(InvalidError("two\nlines", file="a\nb"))


@given(st.text(), st.text(), st.text(), st.floats() | st.integers() | st.booleans())
def test_a_failure_can_always_be_written_and_read(message: str, place: str, detail: str, number: float) -> None:
    failure = Failure.of(JobError(message + "\udcff", file=place, number=number), detail=detail)
    assert parse(Failure, dump(failure)) == failure


def test_the_texts_of_a_failure_are_bounded() -> None:
    long = "x" * (2 * TEXT_LIMIT)
    failure = Failure.of(JobError(long, hint=long, file=long), detail=long + "end")
    assert len(dump(failure)) < 5 * TEXT_LIMIT
    assert failure.detail is not None
    assert failure.detail.endswith("end")
    assert Failure.of(JobError("x")).detail is None


def test_a_failure_takes_new_codes_of_the_same_form_only() -> None:
    assert Failure(failure="permanent", code="TAPE-8999", message="x").code == "TAPE-8999"
    for code in ("TAPE-1", "tape-1001", "TAPE-١٢٣٤", "TAPE-10010"):
        with pytest.raises(InvalidError, match="code: String should match pattern"):
            parse(Failure, {"failure": "permanent", "code": code, "message": "x"})
