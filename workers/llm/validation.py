"""The loss on held-out rows: each row once and each learnt token alike, however they are shared and batched.

Whoever trains alone or with others, by eight rows at a time or by one, is told the same number but for rounding.
Nothing random is drawn, so how often is validated changes nothing of what is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workers.llm.data import IGNORED
from workers.llm.team import pooled


def shifted(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return logits (tokens, vocabulary) as float32 and targets (tokens) of the tokens that are learnt.

    `logits` are (batch, length, vocabulary) and `labels` (batch, length); the token after each place is its target.
    """
    wanted = labels[:, 1:].reshape(-1)
    kept = wanted != IGNORED
    return logits[:, :-1].reshape(-1, logits.shape[-1])[kept].float(), wanted[kept]


def rounds(count: int, size: int, devices: int, rank: int) -> Iterator[list[int]]:
    """Yield the rows of one process, at most `size` at a time; all processes together have each of `count` once.

    All have as many rounds, for where weights are sharded they work on each together; the last may have no rows.
    """
    for begin in range(0, count, size * devices):
        yield list(range(begin + rank, min(count, begin + size * devices), devices))


def loss(
    module: Any,
    held: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    *,
    size: int,
    place: tuple[int, int] = (1, 0),
    moved: Callable[[], None] = lambda: None,
) -> float:
    """Return the cross entropy in nats per learnt token of all `held` rows; nan where nothing of them is learnt.

    `place` is how many processes there are and which one this is; each gives its own share, and all get the same.
    `moved` is called after each batch of `size` rows. The module is left in evaluation mode.
    """
    import torch
    from torch.nn import functional

    module.eval()
    devices, rank = place
    found = torch.zeros(2, dtype=torch.float64, device=module.device)  # nats, tokens
    for members in rounds(len(held), size, devices, rank):
        batch = collate([held[index] for index in members or [0]])
        inputs = {name: value.to(module.device) for name, value in batch.items()}
        labels = inputs.pop("labels")
        with torch.no_grad():
            logits, targets = shifted(module(**inputs).logits, labels)
            if members:  # else it was only there for the others' sake
                apart = functional.cross_entropy(logits, targets, reduction="none")
                found += torch.stack([apart.double().sum(), apart.new_tensor(len(targets), dtype=torch.float64)])
        moved()
    nats, tokens = pooled(found).tolist()
    return float(nats / tokens) if tokens else math.nan
