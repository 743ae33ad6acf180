"""Packing: several examples in one row, so that nothing is spent on padding, and none of them sees another.

Each example counts its positions from 0. By that alone transformers tells where one ends and the next begins, and masks
attention to the example's own tokens (`masking_utils`); `isolated` tries it on the model at hand before any training.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

from schemas.errors import InvalidError
from workers.llm.data import IGNORED, Encoded

Pack = tuple[Encoded, ...]


class Packs(Sequence[Pack]):
    """Examples in packs of at most `length` tokens together, as few as best fit decreasing makes of them.

    The same examples make the same packs. Each example is in exactly one.
    """

    def __init__(self, rows: Sequence[Encoded], sizes: Sequence[int], length: int) -> None:
        self._rows = rows
        self.members = _fitted(sizes, length)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Pack:  # type: ignore[override]
        return tuple(self._rows[row] for row in self.members[index])

    def __iter__(self) -> Iterator[Pack]:
        return (self[index] for index in range(len(self)))


def _fitted(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Put each row, the longest first, into the fullest pack that still has room for it."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of the pack, by these
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        at = bisect_left(room, (sizes[row], 0))
        if at == len(room):
            packs.append([row])
            free, pack = length, len(packs) - 1
        else:
            free, pack = room.pop(at)
            packs[pack].append(row)
        if free > sizes[row]:
            insort(room, (free - sizes[row], pack))
    return [sorted(pack) for pack in packs]


def collate(packs: Sequence[Pack], pad: int) -> dict[str, Any]:
    """Return a batch of packs as `input_ids`, `labels` and `position_ids`, each of shape [packs, widest].

    There is no mask, for the positions say it all: they begin anew with each example, and each token of padding is an
    example by itself. What an example begins with is not learnt: nothing of its own comes before.
    """
    import torch

    widest = max(sum(len(row.input_ids) for row in pack) for pack in packs)
    tokens, labels, positions = (torch.full((len(packs), widest), filler) for filler in (pad, IGNORED, 0))
    for line, pack in enumerate(packs):
        at = 0
        for row in pack:
            end = at + len(row.input_ids)
            tokens[line, at:end] = torch.tensor(row.input_ids)
            labels[line, at:end] = torch.tensor(row.labels)
            labels[line, at] = IGNORED
            positions[line, at:end] = torch.arange(end - at)
            at = end
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def isolated(module: Any, vocabulary: int) -> None:
    """Raise `InvalidError` (TAPE-1002) unless the model gives a packed example what it gives it alone.

    Tried on two examples of eight tokens: what comes before the second one in its row must change nothing of it.
    """
    import torch

    def asked(*examples: list[int]) -> Any:
        batch = collate([tuple(Encoded(one, one, cut=False) for one in examples)], 0)
        at = [module.device] if hasattr(module, "device") else []
        with torch.no_grad():
            return module(**{name: batch[name].to(*at) for name in ("input_ids", "position_ids")}).logits[0]

    first, second, other = ([(start + 3 * number) % vocabulary for number in range(8)] for start in (1, 2, 0))
    was = module.training
    module.eval()
    packed, beside, alone = asked(first, second)[8:], asked(other, second)[8:], asked(second)
    module.train(was)
    scale = float((alone - asked(first)).abs().max())  # what another example comes to
    seen, moved = float((packed - beside).abs().max()), float((packed - alone).abs().max())
    if seen > 0.001 * scale or moved > (0.01 if packed.dtype == torch.float32 else 0.2) * scale:
        raise InvalidError(
            f"this architecture lets packed examples see each other: {type(module).__name__}", field="packing",
            hint="train without packing",
        )  # fmt: skip
