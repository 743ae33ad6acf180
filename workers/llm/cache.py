"""Keys and values of many sequences, each in a row of its own that it comes to and leaves between two steps.

    rows = Rows()
    with rows.reading(first, count, start): module(…, past_key_values=rows)    # `count` rows, all from token `start` on
    with rows.writing(lengths):             module(…, past_key_values=rows)    # one token for each row in use

A layer's keys are one tensor of (rows, heads, tokens, width), and every sequence begins at token 0 of its row: so a row
is given to another sequence by copying, and what two sequences begin with is computed once and copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import Cache

if TYPE_CHECKING:
    import torch

STRIDE = 64
"""Rows are made longer by so many tokens at least."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A copy of what was computed of a sequence's beginning: of each layer (heads, tokens, width)."""

    ids: tuple[int, ...]
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class Rows(Cache):  # type: ignore[misc]  # transformers has no types
    """The cache that a model is given; `reading` and `writing` say what it is given it for."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._first = self._count = self._start = 0
        self._at: torch.Tensor | None = None
        self._until = 0
        self._room = (0, 0)

    def fit(self, rows: int, tokens: int) -> None:
        """Make room for so many rows of so many tokens; what is in them stays."""
        if rows <= self._room[0] and tokens <= self._room[1]:
            return
        tokens = tokens if tokens <= self._room[1] else -(-tokens // STRIDE) * STRIDE
        self._room = max(rows, self._room[0]), max(tokens, self._room[1])
        for at, pair in enumerate(self._layers):
            self._layers[at] = (self._grown(pair[0]), self._grown(pair[1]))

    @contextmanager
    def reading(self, first: int, count: int, start: int) -> Iterator[None]:
        """What is computed next are the tokens from `start` on of `count` rows from `first` on."""
        self._first, self._count, self._start, self._at = first, count, start, None
        yield

    @contextmanager
    def writing(self, lengths: torch.Tensor, until: int) -> Iterator[None]:
        """What is computed next is one token of each of the first rows, at these places, the last below `until`."""
        self._first, self._count, self._at, self._until = 0, len(lengths), lengths, until
        yield

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put in what a layer computed of (rows, heads, tokens, width); return all that its queries may look at."""
        if layer_idx == len(self._layers):
            self._layers.append((self._grown(key_states[:0]), self._grown(value_states[:0])))
        keys, values = self._layers[layer_idx]
        if self._at is not None:
            import torch

            rows = torch.arange(self._count, device=self._at.device)
            keys[rows, :, self._at], values[rows, :, self._at] = key_states[:, :, 0], value_states[:, :, 0]
            return keys[: self._count, :, : self._until], values[: self._count, :, : self._until]
        own, end = slice(self._first, self._first + self._count), self._start + key_states.shape[2]
        keys[own, :, self._start : end], values[own, :, self._start : end] = key_states, value_states
        if self._start == 0:
            return key_states, value_states
        return keys[own, :, :end], values[own, :, :end]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a row to another."""
        for pair in self._layers:
            for tensor in pair:
                tensor[target, :, :tokens] = tensor[source, :, :tokens]

    def keep(self, row: int, ids: Sequence[int]) -> Kept:
        """Copy the beginning of a row, the tokens `ids`."""
        end = len(ids)
        return Kept(
            tuple(ids), [(keys[row, :, :end].clone(), values[row, :, :end].clone()) for keys, values in self._layers]
        )

    def put(self, row: int, kept: Kept, tokens: int) -> None:
        """Begin a row with the first tokens of what was kept."""
        for pair, copied in zip(self._layers, kept.layers, strict=True):
            for tensor, part in zip(pair, copied, strict=True):
                tensor[row, :, :tokens] = part[:, :tokens]

    @property
    def token_bytes(self) -> int:
        """What a token takes; 0 before the first was computed."""
        return sum(tensor[:1, :, :1].nbytes for pair in self._layers for tensor in pair)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens lie before those that are computed; of different rows, the fewest are none."""
        return 0 if self._at is not None else self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many tokens may be looked at, and where the first of them lies."""
        return (self._until if self._at is not None else self._start + query_length), 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """None: it grows."""
        return -1

    def _grown(self, tensor: torch.Tensor) -> torch.Tensor:
        rows, tokens = self._room
        # zeros: what a mask hides is multiplied by nothing, and nothing times what lay in memory may be no number
        made = tensor.new_zeros((rows, tensor.shape[1], tokens, tensor.shape[3]))
        made[: tensor.shape[0], :, : tensor.shape[2]] = tensor[:, :, :tokens]
        return made
