"""What is wrong with a data set: a file for each rule, the words it is told in, what is left when it is mended."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.dataset import MENDS, WARNINGS, Problem, Rule
from wire.rows.check import Check, Report
from wire.rows.personal import masked, personal

OPEN: list[Check] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().__exit__()


GOOD = {"prompt": "2+2=", "completion": "4"}


def lines(*records: Any) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records)


def checked(folder: Path, files: dict[str, tuple[str, bytes]], **options: Any) -> tuple[Check, Report]:
    """Check parts, each a file name and its bytes."""
    work = folder / "work"
    work.mkdir()
    check = Check(work, **options)
    OPEN.append(check)
    for part, (name, data) in files.items():
        (folder / name).write_bytes(data)
        check.take(part, folder / name)
    return check, check.finish()


def rows(report: Report, part: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.parts[part].rows.read_text().splitlines()]


LABELS = [{"prompt": f"q{at}", "completion": "rare" if at < 2 else "often"} for at in range(40)]
CASES: dict[str, tuple[str, bytes, int, str, str]] = {
    "json": ("a.jsonl", lines(GOOD, b"{nope"), 2, "line",
             "column 2 is not JSON: Expecting property name enclosed in double quotes"),
    "json-array": ("a.json", b'[{"text": "a"},\n {"text": }]', 2, "line",
                   "the record that begins here is not JSON: Expecting value"),
    "csv": ("a.csv", b'prompt,completion\na,b\n"open,c\n', 3, "line", "the row is not CSV: unexpected end of data"),
    "parquet": ("a.parquet", b"PAR1 nothing of the kind", 1, "line",
                "the file is not Parquet: Parquet magic bytes not found in footer. Either the file is corrupted or "
                "this is not a parquet file."),
    "encoding": ("a.jsonl", lines(GOOD, b'{"text": "\xff"}'), 2, "line", "byte 11 is not UTF-8"),
    "encoding-csv": ("a.csv", b"prompt,completion\na,\xff\n", 2, "line", "the row is not UTF-8"),
    "encoding-half": ("a.jsonl", lines(GOOD, rb'{"text": "\ud800"}'), 2, "line",
                      "the row holds half of a character (a lone surrogate)"),
    "header": ("a.csv", b"prompt,prompt\na,b\n", 1, "line", "the header names a column twice, or not at all"),
    "cells": ("a.csv", b"prompt,completion\na,b,c\nd,e\n", 2, "line", "the row has 3 cells, and the header 2"),
    "missing": ("a.jsonl", lines(GOOD, {"completion": "4"}), 2, "line",
                "the row has completion; wanted messages, or prompt and completion, or context and target, or text"),
    "type": ("a.jsonl", lines(GOOD, {"prompt": 3, "completion": "4"}), 2, "prompt",
             "`prompt` is a number, not a string"),
    "type-line": ("a.jsonl", lines(GOOD, [1]), 2, "line", "the line is a list, not an object"),
    "empty": ("a.jsonl", lines(GOOD, {"prompt": "a", "completion": " "}), 2, "completion", "`completion` is empty"),
    "answer": ("a.jsonl", lines(GOOD, {"prompt": "a"}), 2, "completion",
               "the row asks and gives no answer to learn from or to compare with"),
    "long": ("a.jsonl", lines(GOOD, {"text": "a" * 300}), 2, "line",
             "the row has 300 characters, and 200 are allowed"),
    "conflict": ("a.jsonl", lines(GOOD, GOOD | {"completion": "5"}), 1, "completion",
                 "what is asked here has 2 different answers"),
    "duplicate": ("a.jsonl", lines(GOOD, GOOD | {"id": "other"}), 2, "line", "the row is that of line 1 again"),
    "personal": ("a.jsonl", lines(GOOD, {"text": "write to ann.lee@example.com"}), 2, "text",
                 "this looks like somebody's email: ann…om"),
    "imbalance": ("a.jsonl", lines(*LABELS), 0, "completion", "'often' is the answer 38 times, and 'rare' 2 times"),
    "imbalance-one": ("a.jsonl", lines(*({"prompt": str(at), "completion": "yes"} for at in range(20))), 0,
                      "completion", "every answer is 'yes'"),
    "none": ("a.jsonl", b"\n\n", 0, "", "there is no row that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_rule_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    file, data, line, field, message = CASES[name]
    rule = Rule(name.partition("-")[0])
    _, report = checked(tmp_path, {"train": (file, data)}, longest=200)
    (found,) = [one for one in report.first if one.rule is rule]
    assert found == Problem(rule=rule, part="train", file=file, line=line, field=field, message=message)
    assert (found.error, found.mend) == (rule not in WARNINGS, MENDS[rule])
    assert (rule in report.errors) == found.error == (rule not in report.warnings)
    assert [Problem.model_validate_json(one) for one in report.problems.read_text().splitlines()] == [*report.first]


def test_every_rule_has_a_file_and_a_way_out() -> None:
    assert {Rule(name.partition("-")[0]) for name in CASES} | {Rule.LEAK} == set(Rule) == set(MENDS)


def test_a_question_of_the_test_is_not_learnt_from(tmp_path: Path) -> None:
    held = lines({"prompt": "3+3=", "completion": "6"}, GOOD | {"completion": "four"})
    check, report = checked(
        tmp_path,
        {
            "train": ("train.jsonl", lines(GOOD, {"text": "only here"}, {"text": "there too"})),
            "validation": ("valid.jsonl", lines({"text": "there too"})),
            "test": ("test.jsonl", held),
        },
    )
    assert [(one.rule, one.part, one.line, one.message) for one in report.first] == [
        (Rule.LEAK, "train", 1, "the same is asked in line 2 of the test part (test.jsonl)"),
        (Rule.LEAK, "train", 3, "the same is asked in line 1 of the validation part (valid.jsonl)"),
    ]
    assert report.errors == {Rule.LEAK: 2}
    assert check.fix() == {Rule.LEAK: 2}
    assert [row["text"] for row in rows(report)] == ["only here"]
    assert [part.count for part in report.parts] == [1, 1, 2], "what is held back stays whole"


def test_a_clean_set_has_one_shape(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    data = lines(
        {"context": "EPS?", "target": "Earnings per share."}, {"messages": chat, "n": 1}, {"text": "Up."}, GOOD
    )
    _, report = checked(tmp_path, {"train": ("a.jsonl", data)})
    assert (report.counts, report.parts[0].count) == ({}, 4)
    assert rows(report) == [
        {"id": "1", "prompt": "EPS?", "completion": "Earnings per share."},
        {"id": "2", "messages": chat},
        {"id": "3", "text": "Up."},
        {"id": "4", **GOOD},
    ]


def test_what_is_fixed_is_left_out_and_counted_once(tmp_path: Path) -> None:
    long = {"text": "x" * 300}
    check, report = checked(
        tmp_path, {"train": ("a.jsonl", lines(GOOD, b"{", GOOD, long, long, {"prompt": "p"}))}, longest=200
    )
    assert report.counts == Counter({Rule.JSON: 1, Rule.ANSWER: 1, Rule.DUPLICATE: 2, Rule.LONG: 2})
    left = check.fix()
    assert left == Counter({Rule.JSON: 1, Rule.ANSWER: 1, Rule.DUPLICATE: 2, Rule.LONG: 1}), "one row has two faults"
    assert rows(report) == [{"id": "1", **GOOD}]
    assert report.parts[0].count == 1


def test_a_file_that_breaks_off_is_not_whole(tmp_path: Path) -> None:
    for name in ("json-array", "csv", "parquet", "header"):
        file, data, *_ = CASES[name]
        (tmp_path / name).mkdir()
        _, report = checked(tmp_path / name, {"train": (file, data)})
        assert not report.parts[0].whole, name
    (tmp_path / "lines").mkdir()
    _, report = checked(tmp_path / "lines", {"train": ("a.jsonl", lines(b"{", GOOD))})
    assert report.parts[0].whole


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mail ann.lee+x@mail.example.co.uk now", ["email"]),
        ("card 4111 1111 1111 1111 or 4111111111111111", ["card", "card"]),
        ("amex 3782 822463 10005", ["card"]),
        ("not one: 4111 1111 1111 1112, 1234567890123456, 2015 2014 2013 2012", []),
        ("IBAN DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432", ["iban", "iban"]),
        ("no IBAN DE89 3704 0044 0532 0130 01", []),
        ("ssn 078-05-1120, not 000-12-3456 or 900-12-3456", ["ssn"]),
        ("call +49 30 901820 or (212) 555-0199", ["phone", "phone"]),
        ("sales rose 1,452.4 to 2,457 in 2019-2020 by 3.5 % and $ 12 345 678", []),
        ("", []),
    ],
)
def test_what_looks_personal(text: str, kinds: list[str]) -> None:
    assert sorted(kind for kind, _ in personal(text)) == sorted(kinds)
    hidden = masked(text)
    assert list(personal(hidden)) == []
    assert sum(hidden.count(f"[{kind}]") for kind in set(kinds)) == len(kinds)
    if not kinds:
        assert hidden == text


def test_what_looks_personal_is_told_field_by_field(tmp_path: Path) -> None:
    data = lines(
        {"context": "ask a.b@example.com or c.d@example.com", "target": "a.b@example.com, a.b@example.com"},
        {"id": "e.f@example.com", "prompt": "who?", "completion": "none"},
        {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "078-05-1120"}]},
    )
    _, report = checked(tmp_path, {"train": ("a.jsonl", data)})
    assert [(one.line, one.field, one.message.split()[-2:]) for one in report.first] == [
        (1, "context", ["email:", "a.b…om"]),
        (1, "context", ["email:", "c.d…om"]),
        (1, "target", ["email:", "a.b…om"]),
        (2, "id", ["email:", "e.f…om"]),
        (3, "messages.1.content", ["ssn:", "078…20"]),
    ]
    assert report.warnings == {Rule.PERSONAL: 5}


def test_what_looks_personal_can_be_hidden(tmp_path: Path) -> None:
    mail = "a.b@example.com"
    chat = [{"role": "user", "content": mail}, {"role": "assistant", "content": f"to {mail}"}]
    data = lines({"id": mail, "messages": chat}, {"id": mail, "text": "none"}, {"id": "7", "text": "some"})
    _, report = checked(tmp_path, {"train": ("a.jsonl", data)}, mask=True)
    assert report.counts == {Rule.PERSONAL: 4}
    first, second, third = rows(report)
    assert first["messages"] == [
        {"role": "user", "content": "[email]"},
        {"role": "assistant", "content": "to [email]"},
    ]
    assert [row["id"] for row in (first, second, third)] == ["[email]-1", "[email]-2", "7"], "no two become one"
    assert mail not in report.problems.read_text(), "a report must not spread what it warns of"


def test_an_entity_whose_labels_differ_is_a_conflict(tmp_path: Path) -> None:
    found = [{"value": "Ford", "label": label} for label in ("Positive", "neutral", "positive")]
    _, report = checked(tmp_path, {"train": ("a.jsonl", lines({"content": "Ford rose.", "annotations": found}))})
    assert report.counts == {Rule.CONFLICT: 1}
    assert [row["completion"] for row in rows(report)] == ["positive", "neutral"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the rows, and as many problems: less than a tenth more memory for each."""
    used = []
    for count in (3_000, 30_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        data = b"".join(
            lines({"prompt": f"question {at % (count // 2)}", "completion": f"{at % (count // 2)}" + "x" * 40})
            for at in range(count)
        )
        (folder / "work").mkdir()
        (folder / "a.jsonl").write_bytes(data)
        del data
        tracemalloc.start()
        with Check(folder / "work") as check:
            check.take("train", folder / "a.jsonl")
            report = check.finish()
            check.fix()
        used.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.counts == {Rule.DUPLICATE: count // 2}
        assert report.parts[0].count == count // 2
    assert used[1] < used[0] + 4_000_000, used


TEXTS = st.sampled_from(["a", "b", "c d", "é", "1"])
RECORDS = st.one_of(
    st.builds(lambda asked, told: {"prompt": asked, "completion": told}, TEXTS, TEXTS),
    st.builds(lambda text: {"text": text}, TEXTS),
    st.sampled_from([{"prompt": ""}, {"text": 3}, {}, [], b"{"]),
)


@given(st.lists(RECORDS, max_size=12), st.lists(RECORDS, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_mended_set_has_no_errors_and_only_rows_that_were_there(train: list[Any], held: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        check, report = checked(Path(one), {"train": ("a.jsonl", lines(*train)), "test": ("b.jsonl", lines(*held))})
        before = [[json.dumps(r) for r in rows(report, part)] for part in (0, 1)]
        check.fix()
        after = [[json.dumps(r) for r in rows(report, part)] for part in (0, 1)]
        for part in (0, 1):
            left = Counter(before[part])
            left.subtract(Counter(after[part]))
            assert min(left.values(), default=0) >= 0
        if not all(after):
            return
        data = {
            name: (f"{name}.jsonl", ("\n".join(kept) + "\n").encode())
            for name, kept in zip(("train", "test"), after, strict=True)
        }
        _, again = checked(Path(two), data)
        assert again.errors == {}
        assert again.counts[Rule.DUPLICATE] == 0
