"""The engine: whatever comes and goes beside it, a sequence's answer is what the model says to it alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from workers.llm.draw import CLOSE, Chooser, Sampling, choose
from workers.llm.engine import SHARED, Asked, Engine, fits, order, token_bytes
from workers.llm.model import Model

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

WORDS, END = 50, 49
SHAPE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=256)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **SHAPE)),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(vocab_size=WORDS, num_key_value_heads=2, sliding_window=8, **SHAPE)
    ),
}


def made(family: str) -> Model:
    """A model of random weights, large enough that its answers differ, with a tokenizer of letters."""
    torch.manual_seed(4)
    module = CONFIGS[family]().eval()
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.mul_(3 if tensor.dim() > 1 else 1)
    module.generation_config.eos_token_id = END
    tokenizer = SimpleNamespace(eos_token_id=END, decode=lambda ids, **_: "".join(chr(97 + one) for one in ids))
    return Model(module, tokenizer, Path("none"), None, "cpu", 256)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    return made(request.param)


def alone(model: Model, ids: list[int], count: int) -> list[int]:
    """The likeliest token again and again, computed anew each time."""
    known = list(ids)
    while len(known) < len(ids) + count:
        with torch.inference_mode():
            known.append(int(model.module(torch.tensor([known])).logits[0, -1].argmax()))
        if known[-1] == END:
            break
    return known[len(ids) :]


def answers(engine: Engine, asked: list[Asked]) -> dict[int, Asked]:
    for one in asked:
        engine.add(one)
    found = {}
    while engine.busy:
        found.update({one.at: one for one in engine.step()})
    return found


token = some.integers(0, WORDS - 2)
beginnings = some.lists(token, min_size=SHARED, max_size=2 * SHARED)
endings = some.lists(token, min_size=1, max_size=12)


@given(
    shared=some.lists(beginnings, min_size=1, max_size=3),
    asked=some.lists(
        some.tuples(some.integers(0, 3), some.integers(0, 2 * SHARED), endings, some.integers(1, 8), some.booleans()),
        min_size=1, max_size=9,
    ),
    rows=some.integers(1, 5),
    tokens=some.sampled_from([1, 90, 100_000]),
    kept=some.sampled_from([0, 40, 100_000]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_an_answer_is_that_of_the_model_alone(
    model: Model, shared: list[list[int]], asked: list[Any], rows: int, tokens: int, kept: int
) -> None:
    """Of prompts that begin alike or not, that come while others are under way, in little room or much."""
    size = token_bytes(model)
    engine = Engine(model, rows=rows, budget=tokens * size, kept=kept * size)
    given, found = dict[int, tuple[list[int], int]](), dict[int, Asked]()
    for at, (which, upto, ending, count, steps) in enumerate(asked):
        ids = [*(shared[which][:upto] if which < len(shared) else []), *ending]
        given[at] = (ids, count)
        engine.add(Asked(at, ids, Sampling(count)))
        for _ in range(2 * steps):
            found.update({one.at: one for one in engine.step()})
    while engine.busy:
        found.update({one.at: one for one in engine.step()})
    assert found.keys() == given.keys()
    for name, (ids, count) in given.items():
        if not found[name].chooser.close:
            assert found[name].answer == alone(model, ids, count)
    assert engine.read + engine.copied >= sum(len(ids) for ids, _ in given.values())


def test_what_prompts_begin_with_is_computed_once(model: Model) -> None:
    begin = [(7 * at) % (END - 1) for at in range(100)]
    engine = Engine(model, rows=4)
    first = [Asked(at, [*begin, at, at + 1], Sampling(3)) for at in range(4)]
    later = [Asked(at, [*begin, at], Sampling(3)) for at in range(4, 6)]
    found = answers(engine, first)
    assert (engine.read, engine.copied) == (100 + 4 * 2, 400), "once for the four"
    found |= answers(engine, later)
    assert (engine.read, engine.copied) == (108 + 2, 600), "and never again"
    for one in (*first, *later):
        assert found[one.at].answer == alone(model, one.ids, 3)


def test_a_short_beginning_is_not_shared(model: Model) -> None:
    begin = list(range(SHARED - 1))
    engine = Engine(model)
    answers(engine, [Asked(at, [*begin, 40 + at], Sampling(2)) for at in range(3)])
    assert (engine.read, engine.copied) == (3 * SHARED, 0)


def test_who_ends_leaves_and_who_waits_comes(model: Model) -> None:
    """Two rows: the short ones pass through one while the long one has the other."""
    engine = Engine(model, rows=2)
    counts = [12, 2, 2, 2, 2]
    asked = [Asked(at, [at + 1, 9, 8], Sampling(count)) for at, count in enumerate(counts)]
    alone_steps = len(alone(model, asked[0].ids, 12))
    order_of_ends = list(answers(engine, asked))
    assert order_of_ends[-1] == 0 or alone_steps < 12
    assert engine.steps <= 1 + max(alone_steps, 4)


def test_there_are_no_more_rows_than_fit(model: Model) -> None:
    size = token_bytes(model)
    engine = Engine(model, budget=30 * size)
    for at in range(6):
        engine.add(Asked(at, [at + 1] * 5, Sampling(5)))
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine._live))
    assert most <= 3


def test_memory_that_was_no_number_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in memory behind a row's end is multiplied by nothing: it must be a number."""
    model = made("llama")
    dirty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *size, **rest: dirty(self, *size, **rest).fill_(torch.nan)
    )
    asked = [Asked(at, [at + 1] * (3 + 5 * at), Sampling(4)) for at in range(3)]
    found = answers(Engine(model), asked)
    assert all(found[one.at].answer == alone(model, one.ids, 4) for one in asked)


def test_draws_do_not_depend_on_who_is_beside(model: Model) -> None:
    sampling = Sampling(8, temperature=1.2, top_p=0.9, seed=5)
    ids = [[at + 1, 7, 9] * (1 + at) for at in range(4)]
    together = answers(Engine(model), [Asked(at, one, sampling) for at, one in enumerate(ids)])
    mixed = Engine(model, rows=2)
    apart = answers(mixed, [*(Asked(at, ids[at], sampling) for at in (2, 0)), Asked(9, [3], Sampling(4))])
    assert apart[2].answer == together[2].answer and apart[0].answer == together[0].answer
    assert len({tuple(one.answer) for one in together.values()}) == 4


def test_near_ties_are_counted() -> None:
    choosers = [Chooser(Sampling(), at) for at in range(3)]
    logits = torch.tensor([[1.0, 1.0 + CLOSE / 2, 0.0], [0.0, 2.0, 1.0], [3.0, 0.0, 3.0 - 2 * CLOSE]])
    assert choose(logits, choosers) == [1, 1, 0]
    assert [one.close for one in choosers] == [1, 0, 0]


def test_it_says_which_models_it_runs() -> None:
    assert fits(made("gpt2")) and fits(made("llama"))
    assert not fits(made("mistral")), "a layer there looks back eight tokens only"
    stretched = made("llama")
    stretched.module.config.rope_parameters = {"rope_type": "dynamic"}
    assert not fits(stretched), "its positions depend on the longest sequence"


def test_the_longest_come_first_and_those_that_begin_alike_together() -> None:
    begin = list(range(SHARED))
    asked = [[1], [*begin, 1], [2] * 40, [*begin, 2, 3], [5, 6]]
    assert order(asked) == [2, 3, 1, 4, 0]


def test_a_key_and_a_value_of_each_layer_and_head(model: Model) -> None:
    engine = Engine(model)
    answers(engine, [Asked(0, [1, 2, 3], Sampling(1))])
    (keys, _), *_ = cast(Any, engine)._cache._layers
    layers = len(cast(Any, engine)._cache._layers)
    assert token_bytes(model) == 2 * layers * keys[0, :, 0].nbytes
