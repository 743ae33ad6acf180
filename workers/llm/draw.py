"""How an answer's tokens are drawn, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas.errors import InvalidError

if TYPE_CHECKING:
    import torch

    from workers.llm.model import Model

CLOSE = 1e-4
"""Of two logits that lie no further apart either may be the larger one, by the order in which a batch adds them up."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn: temperature 0 is greedy; `stop` strings end an answer and are not part of it."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("stop", all(self.stop), "without empty strings"),
        ):
            if not fine:
                raise InvalidError(f"`{name}` must be {rule}", field=name, value=getattr(self, name))


class Chooser:
    """Chooses each row's next token: the likeliest, or by a generator of its own.

    By Gumbel noise: argmax(logits / T + noise) is distributed as softmax(logits / T) (Maddison et al. 2014,
    arXiv:1411.0030), and a prompt's answer does not depend on which others are computed beside it.
    """

    def __init__(self, sampling: Sampling, at: int) -> None:
        import torch

        self.sampling, self.close = sampling, 0
        self._generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 + at)

    def noise(self, width: int) -> torch.Tensor:
        import torch

        return torch.rand(width, generator=self._generator)


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """Give the next token of each row of (rows, vocabulary); near ties of greedy rows are counted in `close`."""
    import torch

    tokens = [0] * len(choosers)
    alike: dict[Sampling | None, list[int]] = {}
    for row, chooser in enumerate(choosers):
        alike.setdefault(chooser.sampling if chooser.sampling.temperature > 0 else None, []).append(row)
    for sampling, rows in alike.items():
        scores = logits[rows].float() if len(alike) > 1 else logits.float()
        if sampling is None:
            best, order = scores.topk(2)
            for row, close in zip(rows, (best[:, 0] - best[:, 1] < CLOSE).tolist(), strict=True):
                choosers[row].close += close
            found = order[:, 0]
        else:
            noise = torch.stack([choosers[row].noise(scores.shape[-1]) for row in rows])
            found = drawn(scores, sampling, noise).argmax(-1)
        for row, token in zip(rows, found.tolist(), strict=True):
            tokens[row] = token
    return tokens


def drawn(scores: torch.Tensor, sampling: Sampling, noise: torch.Tensor) -> torch.Tensor:
    """Give scores of (rows, vocabulary) whose largest is the token drawn; `noise` is uniform in [0, 1)."""
    import torch

    scores = scores.float() / sampling.temperature
    if sampling.top_p < 1:
        ranked, order = scores.sort(descending=True)
        before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
        ranked = ranked.masked_fill(before >= sampling.top_p, -math.inf)
        scores = torch.empty_like(scores).scatter(-1, order, ranked)
    return scores - torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7))).to(scores.device)


def ends(model: Model) -> set[int]:
    """Give the tokens that end an answer."""
    named = getattr(model.module.generation_config, "eos_token_id", None)
    ends = {*named} if isinstance(named, list) else {named}
    return {end for end in {*ends, model.tokenizer.eos_token_id} if end is not None}


def cut(
    tokenizer: Any, row: Sequence[int], ends: Collection[int], stop: Sequence[str]
) -> tuple[str, int, Literal["stop", "length"]]:
    """Give the text of an answer's tokens, how many they are, and why it ended."""
    length = next((at for at, token in enumerate(row) if token in ends), len(row))
    ended = length < len(row)
    text = tokenizer.decode(row[:length], skip_special_tokens=True)
    found = [at for at in (text.find(part) for part in stop) if at >= 0]
    if not found:
        return text, length, "stop" if ended else "length"
    text = text[: min(found)]
    # the row may have gone on as padding while others in its batch were still answering
    kept = next(
        (count for count in range(length + 1) if covers(tokenizer.decode(row[:count]), stop)),
        length,
    )
    return text, kept, "stop"


def covers(text: str, stop: Sequence[str]) -> bool:
    """Whether a stop string is in the text."""
    return any(part in text for part in stop)


def span(stop: Iterable[str]) -> int:
    """Give how many tokens a stop string may be spread over: a token is at least one byte."""
    return max(len(part.encode()) for part in stop) + 4
