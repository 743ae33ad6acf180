"""Scores: the arithmetic, against values worked out by hand or by an independent count."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidError
from schemas.row import Row
from workers.llm import score
from workers.llm.score import Item


def answers(*pairs: str) -> list[Item]:
    return [Item(str(at), pair[0], pair[1], pair[0] == pair[1]) for at, pair in enumerate(pairs)]


def test_importing_the_package_imports_no_torch() -> None:
    names = "bases, data, generate, model, score, train"
    code = f"import sys; from workers.llm import {names}; print({{'torch', 'transformers', 'peft'}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "set()\n"


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("Positive", " positive.", True),
        ("$1,200", "1200", True),
        ("faulty  brakes", '"Faulty brakes"', True),
        ("12.5%", "12.5", False),
        ("1,2", "12", False),
        ("no", "not", False),
    ],
)
def test_what_counts_as_a_match(expected: str, got: str, same: bool) -> None:
    assert score.matched(expected, got) is same


def test_items_are_laid_beside_their_rows() -> None:
    rows = [Row("a", " yes", "r1"), Row("b", "no", "r2")]
    found = score.items(rows, ["Yes.", "maybe"])
    assert found == [Item("r1", "yes", "Yes.", True), Item("r2", "no", "maybe", False)]
    assert score.exact_match(found).value == 0.5
    with pytest.raises(InvalidError, match="2 rows and 1 answers"):
        score.items(rows, ["yes"])


def test_the_interval_is_wilsons() -> None:
    found = score.rate(8, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)
    assert score.rate(0, 0).value == 0.0
    assert score.rate(0, 12).low == 0.0 and score.rate(5, 5).high == 1.0


def test_a_report_counts_by_label() -> None:
    found = score.report(answers("aa", "aa", "ab", "bb", "bx", "cc"))
    assert found.accuracy.right == 4 and found.accuracy.n == 6
    assert found.confusion == {"a": {"a": 2, "b": 1}, "b": {"b": 1, "x": 1}, "c": {"c": 1}}
    assert found.labels["a"].precision == 1.0 and found.labels["a"].recall == pytest.approx(2 / 3)
    assert found.labels["b"].f1 == 0.5
    assert found.macro_f1 == pytest.approx((0.8 + 0.5 + 1.0) / 3)
    assert (found.majority_label, found.majority.right) == ("a", 3)


def test_a_label_never_hit_has_no_f1_and_spelling_does_not_matter() -> None:
    found = score.report([Item("1", "up", "Up.", True), Item("2", "down", "sideways", False)])
    assert found.labels["down"].f1 == 0.0
    assert found.confusion["up"] == {"up": 1}
    with pytest.raises(InvalidError, match="nothing to score"):
        score.report([])


def test_two_runs_side_by_side() -> None:
    a, b = answers("aa", "aa", "ab", "ab", "ab"), answers("aa", "ab", "aa", "aa", "ab")
    found = score.compare(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither, found.n) == (1, 1, 2, 1, 5)
    assert (found.a.value, found.b.value, found.p) == (0.4, 0.6, 1.0)


def test_runs_are_paired_by_id_whatever_their_order() -> None:
    a = answers("aa", "bx", "cc")
    assert score.compare(a, a[::-1]) == score.compare(a, a)


def test_runs_over_other_items_are_not_compared() -> None:
    with pytest.raises(InvalidError, match="not over the same items"):
        score.compare(answers("aa"), answers("ba"))
    with pytest.raises(InvalidError, match="not over the same items"):
        score.compare(answers("aa"), answers("aa", "aa"))
    with pytest.raises(InvalidError, match="occurs twice"):
        score.compare([Item("1", "a", "a", True)] * 2, answers("aa"))


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_is_the_share_of_coin_rows_at_least_as_lopsided(a: int, b: int) -> None:
    n = min(a + b, 11)
    a = min(a, n)
    b = n - a
    rows = list(product((0, 1), repeat=n))
    extreme = sum(1 for row in rows if abs(2 * sum(row) - n) >= abs(a - b))
    assert score.mcnemar(a, b) == pytest.approx(extreme / len(rows))
    assert score.mcnemar(a, b) == score.mcnemar(b, a)
