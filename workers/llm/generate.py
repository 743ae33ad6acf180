"""Ask a model: batched text for many prompts, and the choice between given answers.

Prompts are sorted by length, padded on the left and run in batches; answers come back in the order asked. Greedy text
does not depend on the batch, and neither does sampled text: every prompt draws from a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from schemas.errors import InvalidError, JobError
from schemas.job import APART
from schemas.row import Prompt
from workers.failures import classify
from workers.llm.data import joint, render
from workers.llm.draw import Sampling, covers, cut, drawn, ends, span
from workers.llm.model import Model

if TYPE_CHECKING:
    import torch

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: the text, the tokens it cost, and why it ended; `cut` says that the prompt lost its beginning."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer chosen of those given, with each one's share of the probability (they sum to 1)."""

    label: str
    shares: Mapping[str, float] = field(default_factory=dict)
    logprobs: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    cut: bool = False


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    sampling: Sampling | None = None,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Reply]:
    """Answer every prompt, a text or a chat (by the tokenizer's template), in the order given.

    `progress` gets done, total and completion_tokens after every batch. Raises `JobError` TAPE-6005 once `should_stop`
    says so, TAPE-6003 where memory runs out.
    """
    chosen = sampling or Sampling()
    room = model.context - chosen.max_new_tokens
    if room < 1:
        raise InvalidError(
            f"the model takes {model.context} tokens in all", field="max_new_tokens", value=chosen.max_new_tokens
        )
    asked = [_tokens(model, prompt, room) for prompt in prompts]
    replies: list[Reply | None] = [None] * len(asked)
    spent = done = 0
    try:
        for at, answer, count, reason in _answers(model, [ids for ids, _ in asked], chosen, batch_size, should_stop):
            replies[at] = Reply(answer, len(asked[at][0]), count, reason, asked[at][1])
            spent, done = spent + count, done + 1
            if progress is not None:
                progress({"done": done, "total": len(asked), "completion_tokens": spent})
    except Exception as error:
        known = classify(error)
        if known is error:
            raise
        raise known from error
    return [reply for reply in replies if reply is not None]


def choices(
    model: Model,
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    *,
    normalise: bool = False,
    batch_size: int = 16,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Choice]:
    """Choose for every prompt the label that the model finds likeliest as its completion.

    The whole label counts, as it does for a model that was tuned to write it. `normalise` divides by the label's tokens
    instead: it favours long words whose end follows from their beginning. The prompt is read once, not once a label.
    Raises what `generate` raises.
    """
    if len(set(labels)) != len(labels) or len(labels) < 2 or not all(labels):
        raise InvalidError("give at least two labels, all different and none empty", field="labels")
    asked, answers = [], []
    for prompt in prompts:
        own = [
            model.tokenizer.encode(joint(prompt, label, model.tokenizer), add_special_tokens=False) for label in labels
        ]
        answers.append(own)
        asked.append(_tokens(model, prompt, model.context - max(map(len, own))))
    chosen: list[Choice | None] = [None] * len(asked)
    done = 0
    try:
        for batch in _batches([len(ids) for ids, _ in asked], batch_size):
            _halt(should_stop)
            sums = _likelihoods(model, [asked[at][0] for at in batch], [answers[at] for at in batch])
            for at, logprobs in zip(batch, sums, strict=True):
                chosen[at] = _choose(labels, logprobs, answers[at], asked[at], normalise)
            done += len(batch)
            if progress is not None:
                progress({"done": done, "total": len(asked)})
    except Exception as error:
        known = classify(error)
        if known is error:
            raise
        raise known from error
    return [choice for choice in chosen if choice is not None]


def _choose(
    labels: Sequence[str],
    logprobs: list[float],
    answers: list[list[int]],
    asked: tuple[list[int], bool],
    normalise: bool,
) -> Choice:
    scores = [value / (len(answer) if normalise else 1) for value, answer in zip(logprobs, answers, strict=True)]
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    shares = {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
    label = labels[scores.index(best)]
    return Choice(label, shares, dict(zip(labels, logprobs, strict=True)), len(asked[0]), asked[1])


def _tokens(model: Model, prompt: Prompt, room: int) -> tuple[list[int], bool]:
    ids = model.tokenizer.encode(render(prompt, model.tokenizer), add_special_tokens=False)
    if not ids:
        ids = [model.tokenizer.bos_token_id or model.tokenizer.eos_token_id]
    return ids[-room:], len(ids) > room


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Group positions by length, the longest first: what will not fit into memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _halt(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise JobError("the job was cancelled", code="TAPE-6005")


def _padded(model: Model, asked: list[list[int]]) -> dict[str, torch.Tensor]:
    import torch

    widest = max(map(len, asked))
    pad = model.tokenizer.pad_token_id
    ids = [[*[pad] * (widest - len(one)), *one] for one in asked]
    mask = [[*[0] * (widest - len(one)), *[1] * len(one)] for one in asked]
    return {
        "input_ids": torch.tensor(ids, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }


def _answers(
    model: Model,
    asked: list[list[int]],
    sampling: Sampling,
    rows: int,
    should_stop: Callable[[], bool] | None,
) -> Iterator[tuple[int, str, int, Literal["stop", "length"]]]:
    """Give each prompt's answer as it is ready: its place, text, tokens, and why it ended."""
    from workers.llm.engine import Asked, Engine, fits, order

    if not fits(model):
        for batch in _batches([len(ids) for ids in asked], rows):
            _halt(should_stop)
            for at, answer in zip(batch, _answer(model, [asked[at] for at in batch], batch, sampling), strict=True):
                yield at, *answer
        return
    engine, end = Engine(model, rows=rows), ends(model)
    for at in order(asked):
        engine.add(Asked(at, asked[at], sampling))
    while engine.busy:
        _halt(should_stop)
        for one in engine.step():
            yield one.at, *cut(model.tokenizer, one.answer, end, sampling.stop)


def _answer(
    model: Model, asked: list[list[int]], positions: list[int], sampling: Sampling
) -> Iterator[tuple[str, int, Literal["stop", "length"]]]:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    batch = _padded(model, asked)
    start = batch["input_ids"].shape[1]
    end = ends(model)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(end) or None,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    draw = [_Draw(sampling, positions, start)] if sampling.temperature > 0 else []
    halt = [_Stop(model.tokenizer, sampling.stop, start)] if sampling.stop else []
    with torch.inference_mode():
        output = model.module.generate(
            **batch,
            generation_config=config,
            logits_processor=LogitsProcessorList(draw),
            stopping_criteria=StoppingCriteriaList(halt),
        )
    for row in output[:, start:].tolist():
        yield cut(model.tokenizer, row, end, sampling.stop)


class _Draw:
    """Draws each row's next token with a generator of its own, by adding Gumbel noise and leaving the choice greedy.

    argmax(logits / T + Gumbel) is distributed as softmax(logits / T); so a prompt's answer does not depend on which
    others share its batch.
    """

    def __init__(self, sampling: Sampling, positions: list[int], start: int) -> None:
        import torch

        self.sampling, self.start = sampling, start
        self.generators = [torch.Generator().manual_seed(sampling.seed * APART + at) for at in positions]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        noise = torch.stack([torch.rand(scores.shape[-1], generator=one) for one in self.generators])
        return drawn(scores, self.sampling, noise)


class _Stop:
    """Ends the rows whose text holds a stop string; only the last tokens are looked at."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.span = span(stop)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
        import torch

        tails = input_ids[:, self.start :][:, -self.span :].tolist()
        done = [covers(self.tokenizer.decode(tail), self.stop) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


def _likelihoods(model: Model, asked: list[list[int]], answers: list[list[list[int]]]) -> list[list[float]]:
    """Give every label's log-likelihood after every prompt: one pass over the prompts, a short one over the labels."""
    import torch

    batch = _padded(model, asked)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    flat = [answer for own in answers for answer in own]
    count, longest = len(answers[0]), max(map(len, flat))
    with torch.inference_mode():
        read = model.module(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        first = read.logits[:, -1].float().log_softmax(-1)
        sums = [float(first[at // count, answer[0]]) for at, answer in enumerate(flat)]
        if longest > 1:
            cache = read.past_key_values
            cache.batch_repeat_interleave(count)
            pad = model.tokenizer.pad_token_id
            fed = torch.tensor([[*one[:-1], *[pad] * (longest - len(one))] for one in flat], device=model.device)
            wide = mask.repeat_interleave(count, 0)
            steps = positions[:, -1:].repeat_interleave(count, 0) + torch.arange(1, longest, device=model.device)
            logits = model.module(
                input_ids=fed,
                attention_mask=torch.cat([wide, torch.ones_like(fed)], 1),
                position_ids=steps,
                past_key_values=cache,
                use_cache=True,
            ).logits
            for at, answer in enumerate(flat):
                after = logits[at, : len(answer) - 1].float().log_softmax(-1)
                sums[at] += sum(float(after[step, token]) for step, token in enumerate(answer[1:]))
    return [sums[at : at + count] for at in range(0, len(sums), count)]
