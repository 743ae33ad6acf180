"""Rows in other files than JSONL, and financial data as others publish it."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dataset import Rule
from schemas.errors import InvalidError, SetupError
from wire.rows import Bad, load, members, records
from wire.rows import files as module

GOOD = [{"prompt": "a", "completion": "b"}, {"prompt": "c, d", "completion": 'say "e"\nand f'}]
REAL = Path(os.environ.get("TAPE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def pairs(path: Path, **options: Any) -> list[tuple[Any, str]]:
    return [(row.prompt, row.completion) for row in load(path, **options)]


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.csv", 'prompt,completion\na,b\n\n"c, d","say ""e""\nand f"\n', [2, 5]),
        ("a.tsv", 'prompt\tcompletion\na\tb\nc, d\t"say ""e""\nand f"\n', [2, 4]),
        ("a.csv", '\ufeffcompletion, prompt\r\nb,a\r\n"say ""e""\nand f","c, d"\r\n', [2, 4]),
        ("a.json", json.dumps(GOOD, indent=1), [2, 6]),
        ("a.json", " [\n" + ",\n".join(map(json.dumps, GOOD)) + "\n]\n", [2, 3]),
        ("a.json", json.dumps({"dev": GOOD}), [1, 1]),
        ("a.ndjson", "\n".join(map(json.dumps, GOOD)), [1, 2]),
        ("a.parquet", "", [1, 2]),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, text: str, places: list[int]) -> None:
    path = parquet(tmp_path / name, GOOD) if name.endswith("parquet") else written(tmp_path / name, text)
    assert pairs(path) == [("a", "b"), ("c, d", 'say "e"\nand f')]
    assert [row.line for row in load(path)] == places


def test_a_single_object_is_one_row(tmp_path: Path) -> None:
    assert pairs(written(tmp_path / "a.json", json.dumps(GOOD[0], indent=1))) == [("a", "b")]


@pytest.mark.parametrize(
    ("name", "text", "field", "words"),
    [
        ("a.json", '{"text": "a"', "line", "column 13 is not JSON"),
        ("a.json", '[{"text": "a"}', "line", "the file ends, and its array does not"),
        ("a.json", '[{"text": "a"}, 3]', "line", "the line is a number, not an object"),
        ("a.json", b'[{"text": "\xff"}]', "line", "the file is not UTF-8"),
        ("a.json", "[" * 100_000, "line", "nested too deeply|not JSON"),
        ("a.csv", "prompt,completion\na,\n", "completion", "gives no answer"),
        ("a.csv", "prompt,completion\n,b\n", "line", "the row has completion; wanted messages"),
        ("a.csv", "prompt,\na,b\n", "line", "the header names a column twice, or not at all"),
    ],
)
def test_what_is_wrong_with_it_is_told(tmp_path: Path, name: str, text: str | bytes, field: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        load(written(tmp_path / name, text))
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1008", field)


LONG = "9" * 5_000
ARRAYS: dict[str, tuple[str, int, int, str]] = {
    "two arrays": ('[{"text": "a"}]\n[{"text": "b"}]', 1, 2, "something stands behind the end of the array"),
    "garbage": ('[{"text": "a"}]\n\n GARBAGE {{{', 1, 3, "something stands behind the end of the array"),
    "two fields": ('{"train": [{"text": "a"}],\n"test": []}', 1, 1, "the array is not the object's only field"),
    "no brace": ('{"train": [{"text": "a"}]\n', 1, 2, "the file ends, and its object does not"),
    "two braces": ('{"train": [{"text": "a"}]}\n}', 1, 2, "something stands behind the end of the array"),
    "another end": ('{"train": [{"text": "a"}]]', 1, 1, "the object does not end"),
    "no comma": ('[{"text": "a"}\n{"text": "b"}]', 1, 2, "there is no comma between two records"),
    "a comma first": ('[,{"text": "a"}]', 0, 1, "the record that begins here is not JSON: Expecting value"),
    "commas last": ('[{"text": "a"},\n,,]', 1, 2, "the record that begins here is not JSON: Expecting value"),
    "a comma last": ('[{"text": "a"},\n]', 1, 2, "the record that begins here is not JSON: Expecting value"),
    "deep": ('[{"text": "a"},\n' + "[" * 100_000, 1, 2, "the JSON is nested too deeply"),
    "a long number": ('[{"text": "a"},\n{"text": "b", "n": ' + LONG + '},\n{"text": "c"}]', 2, 2,
                      "a number has more than 4,300 digits"),
    "one long number": ('{"text": "b", "n": ' + LONG + "}", 0, 1, "a number has more than 4,300 digits"),
}  # fmt: skip


@pytest.mark.parametrize("piece", [1, 7, 4_900, 1 << 20])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_not_all_of_the_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, piece: int
) -> None:
    """What stood behind the first array was passed over, with the rows in it."""
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(module, "HEAD", 64)
    text, good, line, message = ARRAYS[name]
    found = list(records(written(tmp_path / "a.json", text)))
    [(at, bad)] = [(at, one) for at, one in found if isinstance(one, Bad)]
    assert (len(found) - 1, at, bad.rule, bad.problem) == (good, line, Rule.JSON, message)
    assert bad.last == ("number" not in name or "one" in name)


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans()), max_size=5), st.integers(1, 9))
def test_a_number_may_be_cut_by_a_piece(items: list[Any], piece: int) -> None:
    before, module.PIECE = module.PIECE, piece  # type: ignore[misc]
    try:
        found = module._json(io.BytesIO(json.dumps(items).encode()))
        assert [one for _, one in found] == items
    finally:
        module.PIECE = before  # type: ignore[misc]


def test_one_record_is_not_longer_than_a_line_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 100)
    monkeypatch.setattr(module, "PIECE", 8)
    monkeypatch.setattr(module, "HEAD", 64)
    [(line, bad)] = records(written(tmp_path / "a.json", json.dumps({"text": "a" * 200})))
    assert (line, bad.rule, bad.last) == (1, Rule.LONG, True)


def test_a_line_with_a_long_number_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "n": ' + LONG + '}\n{"text": "c"}\n')
    with pytest.raises(InvalidError, match="a number has more than 4,300 digits") as caught:
        load(path)
    assert (caught.value.code, caught.value.place["line"]) == ("TAPE-1008", 2)


@pytest.mark.parametrize("text", [r'{"text": "a\ud800"}', r'{"id": "\ud800", "prompt": "a", "completion": "b"}',
                                  r'{"messages": [{"role": "user", "content": "\udc00"}]}'])  # fmt: skip
def test_half_a_character_is_refused_before_a_tokenizer_meets_it(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "a"}\n' + text + "\n")
    with pytest.raises(InvalidError, match="half of a character") as caught:
        load(path, need="prompt")
    assert (caught.value.code, caught.value.place["file"], caught.value.place["line"]) == ("TAPE-1008", "a.jsonl", 2)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SetupError, match="Parquet needs the package pyarrow") as caught:
        load(written(tmp_path / "a.parquet", b""))
    assert caught.value.code == "TAPE-8003"
    assert "tickertape[parquet]" in caught.value.hint


def test_a_line_that_is_too_long_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 100)
    text = "\n".join(json.dumps({"text": "a" * size}) for size in (10, 500, 20))
    found = list(records(written(tmp_path / "a.jsonl", text)))
    assert [(line, isinstance(one, Bad)) for line, one in found] == [(1, False), (2, True), (3, False)]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=40), st.integers(), st.none())), max_size=6
    ),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_an_array_is_read_in_pieces_of_any_size(items: list[Any], piece: int, chance: random.Random) -> None:
    """Wherever a piece ends, in a character, a string or between two records, the same records come."""
    before, module.PIECE = module.PIECE, piece  # type: ignore[misc]
    try:
        for wrapped in (items, {'a"b': items}):
            text = json.dumps(wrapped, ensure_ascii=False, indent=chance.choice([None, 1]))
            assert [found for _, found in module._json(io.BytesIO(text.encode()))] == items
    finally:
        module.PIECE = before  # type: ignore[misc]


def test_a_folder_has_one_file_a_part(tmp_path: Path) -> None:
    for name in ("x_train.csv", "x-dev.parquet", "test.json", "notes.md"):
        (tmp_path / name).touch()
    assert {part: [file.name for file in found] for part, found in members(tmp_path).items()} == {
        "train": ["x_train.csv"], "valid": ["x-dev.parquet"], "test": ["test.json"],
    }  # fmt: skip


PAGE = {
    "id": "p1", "pre_text": ["before ."], "post_text": ["after ."], "table": [["", "2019"], ["sales", "3"]],
    "qa": {"question": "sales?", "program": "add(1, 2)"},
}  # fmt: skip
TALK = {
    "id": "c1",
    "doc": {"pre_text": "before .", "post_text": "after .", "table": {"2019": {"sales": 3.0}}},
    "dialogue": {"conv_questions": ["sales?", "and twice?"], "turn_program": ["3", "multiply(3, 2)"]},
}
REPORT = {
    "table": {"table": [["", "2019"], ["Sales", "3"]]},
    "paragraphs": [{"text": "Sales rose."}],
    "questions": [
        {"question": "Sales?", "answer": 3, "scale": "million"},
        {"question": "Which?", "answer": ["a", "b"], "scale": ""},
    ],
}
NEWS = {
    "content": "Ford rose, GM fell.",
    "annotations": [
        {"value": "Ford", "label": "Positive"},
        {"value": "GM", "label": "Negative"},
        {"value": "Ford", "label": "Neutral"},
        {"value": "Ford", "label": "positive"},
    ],
}


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (PAGE, [("before .\n | 2019\nsales | 3\nafter .\nQuestion: sales?\nProgram:", "add(1, 2)")]),
        (TALK, [
            ("before .\nsales of 2019 is 3.0 ;\nafter .\nQuestion: sales?\nProgram:", "3"),
            ("before .\nsales of 2019 is 3.0 ;\nafter .\nQuestion: sales?\nProgram: 3\nQuestion: and twice?\nProgram:",
             "multiply(3, 2)"),
        ]),
        (REPORT, [
            (" | 2019\nSales | 3\nSales rose.\nQuestion: Sales?\nAnswer:", "3 million"),
            (" | 2019\nSales | 3\nSales rose.\nQuestion: Which?\nAnswer:", "a, b"),
        ]),
        (NEWS, [
            ("Ford rose, GM fell.\nSentiment towards Ford:", "positive"),
            ("Ford rose, GM fell.\nSentiment towards GM:", "negative"),
            ("Ford rose, GM fell.\nSentiment towards Ford:", "neutral"),
        ]),
    ],
    ids=["finqa", "convfinqa", "tatqa", "finentity"],
)  # fmt: skip
def test_foreign_records_become_rows(tmp_path: Path, record: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    path = written(tmp_path / "a.json", json.dumps([record]))
    assert pairs(path) == wanted
    ids = [row.id for row in load(path)]
    first = str(record.get("id", 1))
    assert ids == ([first] if len(wanted) == 1 else [f"{first}-{at}" for at in range(len(wanted))])


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        (TALK | {"dialogue": 3}, "dialogue", "`dialogue` is a number, not an object"),
        (TALK | {"dialogue": {"conv_questions": ["a"], "turn_program": ["1", "2"]}}, "dialogue.turn_program",
         "1 questions and 2 programs do not belong together"),
        (TALK | {"doc": {"pre_text": "a", "table": {"2019": 3}}}, "doc.table", "column '2019' is a number"),
        (REPORT | {"questions": 3}, "questions", "`paragraphs` and `questions` are not lists"),
        (REPORT | {"questions": [{"question": "a"}]}, "completion", "gives no answer"),
        (NEWS | {"annotations": None}, "annotations", "`annotations` is null, not a list"),
        (NEWS | {"annotations": [{"value": "x"}]}, "label", "`label` is missing"),
        (NEWS | {"annotations": [3]}, "value", "`value` is to be in an object, and this is a number"),
        (REPORT | {"questions": [3]}, "question", "`question` is to be in an object, and this is a number"),
        (REPORT | {"paragraphs": [3]}, "text", "`text` is to be in an object, and this is a number"),
        (PAGE | {"table": [3]}, "table", "`table` is not a list of lists"),
        (PAGE | {"qa": {"question": "a"}}, "qa.program", "gives no answer"),
        ({"question": "a", "table": None}, "table", "neither `contexts` nor `table` holds facts"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_foreign_records(tmp_path: Path, record: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        load(written(tmp_path / "a.jsonl", json.dumps(record)))
    assert caught.value.place["field"] == field


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not on this machine")
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("finqa/finqa_dev.jsonl", 883), ("convfinqa/convfinqa_dev.json", 1_490),
        ("tatqa/tatqa_dataset_dev.json", 1_668),
        ("finlora/formula_train.jsonl", 800),
    ],
)  # fmt: skip
def test_the_real_files_are_read_to_the_last_row(file: str, count: int) -> None:
    assert len(load(REAL / file)) == count
