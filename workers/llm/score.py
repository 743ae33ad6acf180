"""Scores with their counts: perplexity, exact match, accuracy and F1 by label, and the paired comparison of two runs.

All but `perplexity` are pure functions over what was answered; importing this module imports no torch.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schemas.errors import InvalidError, JobError
from schemas.row import Row
from workers.failures import classify
from workers.llm.data import IGNORED, Encoded, encode

if TYPE_CHECKING:
    from workers.llm.model import Model

Z95 = 1.959963984540054
EDGES = re.compile(r"^[\s\"'`*.,;:!?()\[\]]+|[\s\"'`*.,;:!?()\[\]]+$")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


@dataclass(frozen=True, slots=True)
class Item:
    """One question as it went: what was expected, what came, and whether that is right."""

    id: str
    expected: str
    got: str
    right: bool


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its counts and its 95 % interval (Wilson)."""

    right: int
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Precision, recall and F1 of one label, with how often it was expected."""

    precision: float
    recall: float
    f1: float
    n: int


@dataclass(frozen=True, slots=True)
class Report:
    """Accuracy, macro F1 and the counts behind them; `majority` is what always naming the commonest label reaches."""

    accuracy: Rate
    macro_f1: float
    labels: dict[str, LabelScore]
    confusion: dict[str, dict[str, int]]
    majority: Rate
    majority_label: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same items; `p` is McNemar's exact two-sided probability for the items only one has right."""

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    a: Rate
    b: Rate
    p: float


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood per scored token, and how many tokens those were."""

    perplexity: float
    nats_per_token: float
    tokens: int
    rows: int
    items: list[dict[str, Any]] = field(default_factory=list)


def normalise(text: str) -> str:
    """Make two ways to write one answer equal: case, outer punctuation, spaces, a `$`, thousands' commas.

    >>> normalise(' "$1,200 million." ')
    '1200 million'
    """
    folded = " ".join(text.casefold().replace("$", " ").split())
    return THOUSANDS.sub("", EDGES.sub("", folded))


def matched(expected: str, got: str) -> bool:
    """Say whether an answer is the expected one but for how it is written."""
    return normalise(expected) == normalise(got)


def items(rows: Sequence[Row], answers: Sequence[str]) -> list[Item]:
    """Lay rows beside the answers to them; an answer is right where it `matched`."""
    if len(rows) != len(answers):
        raise InvalidError(f"{len(rows)} rows and {len(answers)} answers", field="answers")
    return [
        Item(row.id, row.completion.strip(), answer.strip(), matched(row.completion, answer))
        for row, answer in zip(rows, answers, strict=True)
    ]


def rate(right: int, n: int) -> Rate:
    """Give a share with its Wilson interval; of nothing, all are 0 and the interval says nothing."""
    if n == 0:
        return Rate(0, 0, 0.0, 0.0, 1.0)
    share, z2 = right / n, Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Rate(right, n, share, middle - half if right else 0.0, middle + half if right < n else 1.0)


def exact_match(found: Sequence[Item]) -> Rate:
    """Give the share of items that are right."""
    return rate(sum(item.right for item in found), len(found))


def report(found: Sequence[Item]) -> Report:
    """Score a classification: accuracy, F1 per label and their mean, the confusion counts, the majority baseline.

    An answer that is none of the expected labels counts as wrong and stands in the confusion as it came.
    """
    if not found:
        raise InvalidError("there is nothing to score", field="items")
    expected = Counter(item.expected for item in found)
    known = {normalise(label): label for label in expected}
    pairs = Counter((item.expected, known.get(normalise(item.got), item.got)) for item in found)
    scores = {label: _label(label, pairs, expected) for label in sorted(expected)}
    confusion = {
        label: {got: count for (wanted, got), count in sorted(pairs.items()) if wanted == label} for label in scores
    }
    commonest = min(expected, key=lambda label: (-expected[label], label))
    return Report(
        accuracy=exact_match(found),
        macro_f1=sum(score.f1 for score in scores.values()) / len(scores),
        labels=scores,
        confusion=confusion,
        majority=rate(expected[commonest], len(found)),
        majority_label=commonest,
    )


def _label(label: str, pairs: Counter[tuple[str, str]], expected: Counter[str]) -> LabelScore:
    hit = pairs[label, label]
    named = sum(count for (_, got), count in pairs.items() if got == label)
    precision = hit / named if named else 0.0
    recall = hit / expected[label]
    f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
    return LabelScore(precision, recall, f1, expected[label])


def compare(a: Sequence[Item], b: Sequence[Item]) -> Comparison:
    """Set two runs over the same items side by side, paired by id.

    Raises `InvalidError` where the runs do not hold the same items.
    """
    left, right = {item.id: item for item in a}, {item.id: item for item in b}
    if len(left) != len(a) or len(right) != len(b):
        raise InvalidError("an id occurs twice in one run", field="id", hint="give every row an id of its own")
    if left.keys() != right.keys() or any(left[key].expected != right[key].expected for key in left):
        raise InvalidError("the two runs are not over the same items", field="id", hint="evaluate both on one file")
    counts = Counter((left[key].right, right[key].right) for key in left)
    only_a, only_b = counts[True, False], counts[False, True]
    return Comparison(
        n=len(left),
        both=counts[True, True],
        only_a=only_a,
        only_b=only_b,
        neither=counts[False, False],
        a=exact_match(a),
        b=exact_match(b),
        p=mcnemar(only_a, only_b),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Give McNemar's exact two-sided p: how likely so lopsided a split is where a fair coin decides.

    >>> mcnemar(1, 9)
    0.021484375
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**n))


def perplexity(
    model: Model,
    rows: Sequence[Row],
    *,
    max_length: int = 1024,
    stride: int | None = None,
    batch_size: int = 8,
    progress: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Perplexity:
    """Measure how well a model foresees the rows' completions (of a `text` row: all of it), weighted by tokens.

    A row longer than the window is read in windows that advance by `stride` (half of one by default); every token is
    scored once, with at least `max_length - stride` tokens before it where there are so many.
    Raises `JobError` TAPE-6005 once `should_stop` says so, TAPE-6009 where the likelihood is not finite.
    """
    window = min(max_length, model.context)
    stride = window // 2 if stride is None else stride
    if not 0 < stride < window:
        raise InvalidError(f"`stride` must be between 1 and {window - 1}", field="stride", value=stride)
    encoded = [encode(row, model.tokenizer, 1 << 30) for row in rows]
    pieces = sorted(_windows(encoded, window, stride), key=lambda piece: -len(piece[1]))
    lost, counted = [0.0] * len(rows), [0] * len(rows)
    try:
        for start in range(0, len(pieces), batch_size):
            if should_stop is not None and should_stop():
                raise JobError("the job was cancelled", code="TAPE-6005")
            batch = pieces[start : start + batch_size]
            for (at, _, labels), nats in zip(batch, _nats(model, batch), strict=True):
                lost[at] += nats
                counted[at] += sum(label != IGNORED for label in labels[1:])
            if progress is not None:
                progress({"done": min(start + batch_size, len(pieces)), "total": len(pieces)})
    except Exception as error:
        known = classify(error)
        if known is error:
            raise
        raise known from error
    total = sum(counted)
    if not total:
        raise InvalidError("there is no token to score", field="rows")
    mean = sum(lost) / total
    if not math.isfinite(mean):
        raise JobError(f"the likelihood is {mean}", code="TAPE-6009", hint="the model's weights are broken")
    records = [
        {"id": row.id, "tokens": n, "nats": round(nats, 4)} for row, n, nats in zip(rows, counted, lost, strict=True)
    ]
    return Perplexity(math.exp(mean), mean, total, len(rows), records)


def _windows(encoded: Sequence[Encoded], window: int, stride: int) -> Iterable[tuple[int, list[int], list[int]]]:
    for at, row in enumerate(encoded):
        scored = 0
        for start in range(0, len(row.input_ids), stride):
            end = min(start + window, len(row.input_ids))
            labels = [IGNORED] * (scored - start) + row.labels[scored:end]
            if any(label != IGNORED for label in labels[1:]):
                yield at, row.input_ids[start:end], labels
            scored = end
            if end == len(row.input_ids):
                break


def _nats(model: Model, batch: Sequence[tuple[int, list[int], list[int]]]) -> list[float]:
    import torch
    from torch.nn.functional import cross_entropy

    widest = max(len(ids) for _, ids, _ in batch)
    pad = model.tokenizer.pad_token_id

    def padded(values: Iterable[list[int]], filler: int) -> torch.Tensor:
        rows = [[*value, *[filler] * (widest - len(value))] for value in values]
        return torch.tensor(rows, device=model.device)

    ids = padded((ids for _, ids, _ in batch), pad)
    labels = padded((labels for _, _, labels in batch), IGNORED)
    mask = padded(([1] * len(ids) for _, ids, _ in batch), 0)
    with torch.inference_mode():
        logits = model.module(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
    return [float(total) for total in losses.double().sum(1)]
