"""Rows from files: every shape, every way to be wrong, and the split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidError, NotFoundError
from schemas.row import Row
from wire import rows as data
from wire.rows.parts import SPLITS

FINQA = {
    "question": "what is the sum?",
    "table": [["a", "1"], ["b", "2"]],
    "contexts": ["a is 1 ;"],
    "program": "add(1, 2)",
}


def write(path: Path, *records: Any) -> Path:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize(
    ("record", "prompt", "completion"),
    [
        ({"prompt": "2+2=", "completion": "4"}, "2+2=", "4"),
        ({"context": "Explain EPS.", "target": "Earnings per share."}, "Explain EPS.", "Earnings per share."),
        ({"text": "Shares rose."}, "", "Shares rose."),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
            [{"role": "user", "content": "Hi"}],
            "Hello",
        ),
        (FINQA, "a is 1 ;\nQuestion: what is the sum?\nProgram:", "add(1, 2)"),
        (FINQA | {"contexts": []}, "a | 1\nb | 2\nQuestion: what is the sum?\nProgram:", "add(1, 2)"),
    ],
)
def test_every_shape_is_recognised(tmp_path: Path, record: dict[str, Any], prompt: Any, completion: str) -> None:
    (row,) = data.read(write(tmp_path / "rows.jsonl", record))
    assert (row.prompt, row.completion, row.line, row.id) == (prompt, completion, 1, "1")


def test_rows_keep_their_line_and_id_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps({"id": "x7", "text": "a"}).encode()
    rows = data.load(write(tmp_path / "rows.jsonl", first, b"", b"  ", {"text": "b"}))
    assert [(row.id, row.line) for row in rows] == [("x7", 1), ("4", 4)]


def test_a_row_to_generate_for_needs_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]})
    assert [row.completion for row in data.load(path, need="prompt")] == ["", ""]
    with pytest.raises(InvalidError, match="gives no answer"):
        data.load(path)


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        (b"{not json", "line", "column 2 is not JSON"),
        (b'"text"', "line", "not an object"),
        (b"\xff\xfe", "line", "byte 1 is not UTF-8"),
        (b"[" * 100_000, "line", "nested too deeply|not JSON"),
        ({"prompt": "a"}, "completion", "gives no answer"),
        ({"prompt": "a", "completion": 3}, "completion", "is a number, not a string"),
        ({"prompt": "a", "completion": " "}, "completion", "is empty"),
        ({"prompt": None, "completion": "a"}, "prompt", "is null"),
        ({"context": "a"}, "target", "gives no answer"),
        ({"question": "a", "table": [["b"]]}, "program", "gives no answer"),
        ({"question": "a", "table": 3}, "table", "not a list of lists"),
        ({"question": "a", "table": [], "contexts": [1]}, "contexts", "not a list of strings"),
        ({"text": ["a"]}, "text", "is a list"),
        ({"colour": "red"}, "line", "the row has colour; wanted messages"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": {}}, "messages", "an object"),
        ({"messages": ["a"]}, "messages.0", "message 0 is str"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "messages.0.role", "'boss'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "no text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "no question"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
            "messages.1.content",
            "empty",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, bad: Any, field: str, words: str) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "fine"}, bad)
    with pytest.raises(InvalidError, match=words) as caught:
        list(data.read(path))
    assert caught.value.code == "TAPE-1008"
    assert caught.value.place == {"file": "rows.jsonl", "line": 2, "field": field}
    assert "line 2" in caught.value.hint


def test_all_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[b"{"] * 7, {"text": "fine"})
    with pytest.raises(InvalidError) as caught:
        data.load(path)
    assert caught.value.message.startswith("7 bad lines. line 1: ")
    assert "line 5: " in caught.value.message and "line 6" not in caught.value.message


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.rows.files.MAX_LINE", 100)
    with pytest.raises(InvalidError, match="longer than"):
        data.load(write(tmp_path / "rows.jsonl", {"text": "a" * 200}, {"text": "b"}))


def test_no_rows_no_file_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no rows"):
        data.load(write(tmp_path / "empty.jsonl"))
    with pytest.raises(NotFoundError):
        data.load(tmp_path / "missing.jsonl")
    with pytest.raises(InvalidError, match="cannot be read"):
        data.load(tmp_path)
    with pytest.raises(InvalidError, match="no recipe is called 'soup'"):
        data.load(tmp_path / "empty.jsonl", recipe="soup")


def test_a_named_recipe_wins_over_the_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "t", "prompt": "p", "completion": "c"})
    assert data.load(path)[0].completion == "c"
    assert data.load(path, recipe="text")[0].completion == "t"
    with pytest.raises(InvalidError, match="`question` is missing"):
        data.load(path, recipe="finqa")


def test_reading_is_lazy_and_limits_stop_it(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "a"}, {"text": "b"}, b"{broken")
    assert next(data.read(path)).completion == "a"
    assert len(data.load(path, limit=2)) == 2


def test_a_directory_gives_its_splits_by_name(tmp_path: Path) -> None:
    for name in ("formula_train", "xbrl-train", "formula_test", "notes"):
        write(tmp_path / f"{name}.jsonl", *({"text": f"{name} {n}"} for n in range(4)))
    write(tmp_path / "dev.jsonl", {"text": "d"})
    parts = data.splits(tmp_path, limit=3)
    assert [row.completion for row in parts["train"]] == ["formula_train 0", "formula_train 1", "xbrl-train 0"]
    assert len(parts["test"]) == 3 and [row.completion for row in parts["valid"]] == ["d"]


def test_a_single_file_is_split_and_a_nameless_directory_is_train(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", *({"text": str(n)} for n in range(30)))
    for place in (path, tmp_path):
        parts = data.splits(place, valid=5, test=10)
        assert [len(parts[name]) for name in SPLITS] == [15, 5, 10]
    (tmp_path / "none").mkdir()
    with pytest.raises(NotFoundError, match="no data file"):
        data.splits(tmp_path / "none")


@given(st.lists(st.text(max_size=4), min_size=4, max_size=30), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_split_depends_on_the_prompts_only(prompts: list[str], seed: int, order: Any) -> None:
    rows = [Row(prompt, f"answer {at}" if prompt else "same", str(at), at) for at, prompt in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(InvalidError, match="too few"):
            data.split(rows, 1, seed=seed)
        return
    kept, held = data.split(rows, 1, seed=seed)
    assert sorted(row.line for row in [*kept, *held]) == list(range(len(rows)))
    assert not {row.prompt for row in kept} & {row.prompt for row in held}
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert data.split(shuffled, 1, seed=seed) == (kept, held)
