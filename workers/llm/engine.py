"""Continuous batching: sequences come and go between steps, and each step gives all of them their next token.

    engine = Engine(model)
    engine.add(Asked(0, ids, Sampling(max_new_tokens=8)))
    while engine.busy:
        for done in engine.step(): ...

After Yu et al. 2022 (Orca, OSDI 22): no sequence waits for the longest one of its batch. What several prompts begin
with is computed once: among those that are begun together, and from a few kept ones (as Zheng et al. 2024, SGLang,
arXiv:2312.07104, without the tree).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers.llm.cache import Kept, Rows
from workers.llm.draw import Chooser, Sampling, choose, covers, ends, span

if TYPE_CHECKING:
    import torch

    from workers.llm.model import Model

SHARED = 32
"""A beginning of fewer tokens is not worth sharing."""
READ = 2_048
"""Tokens of prompts, padding included, that are computed at once, and between two steps."""
ROWS = 64
"""Sequences at once, at most."""
BUDGET, KEPT = 1 << 30, 1 << 28
"""Bytes of keys and values: of sequences under way, and of beginnings that are kept for others."""
LENGTHENING = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that depend on how long the longest sequence of a batch is."""


class Asked:
    """A prompt's tokens, at least one, and how its answer is drawn; `at` names it, and its randomness."""

    __slots__ = ("answer", "at", "chooser", "ids", "sampling", "span")

    def __init__(self, at: int, ids: Sequence[int], sampling: Sampling) -> None:
        self.at, self.ids, self.sampling = at, list(ids), sampling
        self.answer: list[int] = []
        self.chooser = Chooser(sampling, at)
        self.span = span(sampling.stop) if sampling.stop else 0

    @property
    def computed(self) -> int:
        """Tokens whose keys and values there are: all but the one that was chosen last."""
        return len(self.ids) + len(self.answer) - 1

    @property
    def most(self) -> int:
        """Tokens that it may become."""
        return len(self.ids) + self.sampling.max_new_tokens

    @property
    def beginning(self) -> tuple[int, ...]:
        """What those have in common that may share more."""
        return tuple(self.ids[:SHARED])


def fits(model: Model) -> bool:
    """Whether the engine runs a model: full attention in all layers, and positions that depend on no other sequence."""
    config = model.module.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and not config.is_encoder_decoder
        and rope.get("rope_type") not in LENGTHENING
        and config._attn_implementation == "sdpa"
    )


class Engine:
    """Answers what is asked of one model, first come, first served; for one thread."""

    def __init__(self, model: Model, *, rows: int = ROWS, budget: int = BUDGET, kept: int = KEPT) -> None:
        self._model, self._ends = model, ends(model)
        self._cache, self._rows = Rows(), rows
        self._tokens = budget // token_bytes(model)
        self._waiting: deque[Asked] = deque()
        self._live: list[Asked] = []
        self._kept: OrderedDict[tuple[int, ...], Kept] = OrderedDict()
        self._kept_bytes = kept
        self.read = self.copied = self.steps = 0
        """Tokens of prompts that were computed, and that were copied instead; steps."""

    @property
    def busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._waiting or self._live)

    def add(self, asked: Asked) -> None:
        """Take a sequence in; it begins when there is room for all that it may become."""
        self._waiting.append(asked)

    def step(self) -> list[Asked]:
        """Begin what there is room for, give each sequence its next token, and return those that ended."""
        import torch

        done, left = [], READ
        with torch.inference_mode():
            while left > 0 and (group := self._next(left)):
                first = len(self._live)
                self._live += group
                logits, computed = self._begin(group, first)
                left -= computed
                done += self._advance(first, logits)
            if self._live:
                done += self._advance(0, self._continue())
        self.steps += 1
        return done

    def _next(self, left: int) -> list[Asked]:
        """Take those that begin together: the first in the queue, and who shares its beginning, or is as long."""
        window = [self._waiting.popleft() for _ in range(min(len(self._waiting), 2 * self._rows))]
        group: list[Asked] = []
        if window and self._room(window[:1]):
            head = window[0]
            family = [one for one in window if one.beginning == head.beginning]
            alike = [one for one in window if 4 * len(one.ids) >= 3 * len(head.ids) >= 3 * len(one.ids)]
            for one in family if len(family) > 1 and len(head.ids) > SHARED else alike:
                more = [*group, one]
                if group and (max(len(each.ids) for each in more) * len(more) > left or not self._room(more)):
                    break
                group = more
        taken = {id(one) for one in group}
        self._waiting.extendleft(one for one in reversed(window) if id(one) not in taken)
        return group

    def _room(self, more: list[Asked]) -> bool:
        """Whether so many rows of such a length may be; one alone always may."""
        rows = [*self._live, *more]
        return len(rows) == 1 or (len(rows) <= self._rows and len(rows) * max(one.most for one in rows) <= self._tokens)

    def _begin(self, group: list[Asked], first: int) -> tuple[torch.Tensor, int]:
        """Compute prompts into rows from `first` on; return the logits after each, and the tokens it took."""
        self._cache.fit(first + len(group), max(one.most for one in self._live))
        head = group[0].ids
        # each computes its last token at least: the logits after it are wanted
        shared = min(_common(head, one.ids[:-1]) for one in group)
        kept, start = self._find(head[:shared])
        if kept is not None:
            self._cache.put(first, kept, start)
        if len(group) > 1 and shared - start >= SHARED:
            self._read([head[start:shared]], first, start)
            start = shared
        for row in range(first + 1, first + len(group)):
            self._cache.move(first, row, start)
        parts = [one.ids[start:] for one in group]
        logits = self._read(parts, first, start)
        if start >= SHARED and len(group) > 1:
            self._keep(first, head[:start])
        else:
            for row, one in enumerate(group, first):
                self._keep(row, one.ids)
        self.copied += start * len(group)
        return logits, max(map(len, parts)) * len(parts)

    def _read(self, parts: list[list[int]], first: int, start: int) -> torch.Tensor:
        """Compute these tokens of rows from `first` on, their places from `start` on; return the logits after each."""
        import torch

        device = self._model.device
        longest = max(map(len, parts))
        ids = torch.tensor([[*part, *[0] * (longest - len(part))] for part in parts], device=device)
        places = torch.arange(start, start + longest, device=device)
        last = sorted({len(part) - 1 for part in parts})
        mask = None
        if start:
            seen = places[:, None] >= torch.arange(start + longest, device=device)
            mask = torch.zeros(seen.shape, dtype=self._model.module.dtype, device=device).masked_fill(~seen, -math.inf)
            mask = mask[None, None]
        with self._cache.reading(first, len(parts), start):
            logits = self._model.module(
                input_ids=ids, attention_mask=mask, position_ids=places.expand(len(parts), -1),
                past_key_values=self._cache, use_cache=True, logits_to_keep=torch.tensor(last, device=device),
            ).logits  # fmt: skip
        self.read += sum(map(len, parts))
        found: torch.Tensor = logits[torch.arange(len(parts)), [last.index(len(part) - 1) for part in parts]]
        return found

    def _continue(self) -> torch.Tensor:
        """Compute the token of each row that was chosen last; return the logits after it."""
        import torch

        device = self._model.device
        ids = torch.tensor([[one.answer[-1]] for one in self._live], device=device)
        places = torch.tensor([one.computed for one in self._live], device=device)
        until = max(one.computed for one in self._live) + 1
        ahead = torch.arange(until, device=device) > places[:, None]
        mask = torch.zeros(ahead.shape, dtype=self._model.module.dtype, device=device).masked_fill(ahead, -math.inf)
        with self._cache.writing(places, until):
            logits: torch.Tensor = self._model.module(
                input_ids=ids, attention_mask=mask[:, None, None], position_ids=places[:, None],
                past_key_values=self._cache, use_cache=True, logits_to_keep=1,
            ).logits  # fmt: skip
        return logits[:, -1]

    def _advance(self, first: int, logits: torch.Tensor) -> list[Asked]:
        """Choose the next token of the rows from `first` on; who ends leaves, the last row takes its place."""
        rows = self._live[first:]
        for one, token in zip(rows, choose(logits, [one.chooser for one in rows]), strict=True):
            one.answer.append(token)
        ended = [at for at, one in enumerate(rows, first) if self._over(one)]
        done = [self._live[at] for at in ended]
        for at in reversed(ended):
            last = self._live.pop()
            if at < len(self._live):
                self._cache.move(len(self._live), at, last.computed)
                self._live[at] = last
        return done

    def _over(self, one: Asked) -> bool:
        if one.answer[-1] in self._ends or len(one.answer) >= one.sampling.max_new_tokens:
            return True
        return bool(one.span) and covers(self._model.tokenizer.decode(one.answer[-one.span :]), one.sampling.stop)

    def _find(self, ids: list[int]) -> tuple[Kept | None, int]:
        """Find the longest beginning that was kept."""
        found = max(((_common(ids, kept.ids), key) for key, kept in self._kept.items()), default=(0, ()))
        if found[0] < SHARED:
            return None, 0
        self._kept.move_to_end(found[1])
        return self._kept[found[1]], found[0]

    def _keep(self, row: int, ids: list[int]) -> None:
        key = tuple(ids)
        if len(ids) < SHARED or key in self._kept or len(ids) * token_bytes(self._model) > self._kept_bytes:
            return
        self._kept[key] = self._cache.keep(row, key)
        while sum(kept.bytes for kept in self._kept.values()) > self._kept_bytes:
            self._kept.popitem(last=False)


def order(asked: list[list[int]]) -> list[int]:
    """Sort: the longest first, as what will not fit into memory shows at once, and together what begins alike."""
    longest: dict[tuple[int, ...], int] = {}
    keys = [tuple(ids[:SHARED]) for ids in asked]
    for key, ids in zip(keys, asked, strict=True):
        longest[key] = max(longest.get(key, 0), len(ids))
    return sorted(range(len(asked)), key=lambda at: (-longest[keys[at]], keys[at], -len(asked[at])))


def token_bytes(model: Model) -> int:
    """Give the bytes that keys and values of one token take in all layers."""
    config = model.module.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.module.dtype.itemsize)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Give how many elements two sequences begin with alike, by halving."""
    low, high = 0, min(len(left), len(right))
    left, right = tuple(left[:high]), tuple(right[:high])
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
