"""Generation and scoring on a tiny model: batches change nothing, stops stop, likelihoods are the model's own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import InvalidError, JobError
from schemas.row import Row
from workers.llm import generate as generation
from workers.llm import model as models
from workers.llm import score
from workers.llm.bases import tiny
from workers.llm.draw import Sampling
from workers.llm.generate import choices, generate
from workers.llm.model import Model

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

PROMPTS = [
    "Headline: Velmora profit",
    "Headline: Quillon profit sinks in the second quarter\nSentiment:",
    "Brastow",
    "Headline: Harrowgate profit soars",
    "in the first quarter, " * 9,
]


@pytest.fixture(scope="module")
def model(texts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model after twenty steps: enough for answers that differ."""
    return models.load(tiny(tmp_path_factory.mktemp("cache"), texts, steps=20, threads=1), device="cpu", threads=1)


@pytest.mark.parametrize("sampling", [Sampling(12), Sampling(12, temperature=1.0, top_p=0.9, seed=5)])
def test_an_answer_does_not_depend_on_its_batch(model: Model, sampling: Sampling) -> None:
    alone = generate(model, PROMPTS, sampling, batch_size=1)
    assert generate(model, PROMPTS, sampling, batch_size=2) == alone
    assert generate(model, PROMPTS, sampling, batch_size=16) == alone
    assert len({reply.text for reply in alone}) > 1


def test_greedy_is_the_likeliest_token_again_and_again(model: Model) -> None:
    import torch

    ids = model.tokenizer.encode(PROMPTS[0], add_special_tokens=False)
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(6):
            logits = model.module(torch.tensor([[*ids, *expected]])).logits[0, -1]
            expected.append(int(logits.argmax()))
    (reply,) = generate(model, [PROMPTS[0]], Sampling(6))
    assert reply.text == model.tokenizer.decode(expected)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (len(ids), 6, "length")


def test_the_seed_decides_what_is_drawn(model: Model) -> None:
    drawn = [generate(model, PROMPTS, Sampling(8, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_draws_follow_the_distribution() -> None:
    import torch

    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = 4_000
    draw = generation._Draw(Sampling(1, temperature=2.0, seed=3), list(range(rows)), 0)
    drawn = draw(torch.zeros(rows, 0), (2 * wanted.log()).expand(rows, -1)).argmax(-1)
    found = torch.bincount(drawn, minlength=4) / rows
    assert torch.allclose(found, wanted, atol=0.03)
    nucleus = generation._Draw(Sampling(1, temperature=2.0, top_p=0.6, seed=3), list(range(rows)), 0)
    kept = Counter(nucleus(torch.zeros(rows, 0), (2 * wanted.log()).expand(rows, -1)).argmax(-1).tolist())
    assert kept.keys() == {0, 1}
    assert kept[0] / rows == pytest.approx(0.5 / 0.8, abs=0.03)


def test_an_end_token_ends_an_answer(model: Model) -> None:
    (reply,) = generate(model, ["Headline: Velmora profit rises in the first quarter\nSentiment: good"], Sampling(40))
    assert (reply.text, reply.completion_tokens, reply.finish_reason) == ("", 0, "stop")


def test_a_stop_string_ends_an_answer_and_is_left_out(model: Model) -> None:
    whole = generate(model, PROMPTS, Sampling(12))
    stop = whole[0].text[3:5]
    stopped = generate(model, PROMPTS, Sampling(12, stop=(stop, "\u2603")))
    assert stopped[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert stopped[0].finish_reason == "stop"
    assert 0 < stopped[0].completion_tokens < whole[0].completion_tokens
    for before, after in zip(whole, stopped, strict=True):
        assert after.text == before.text.split(stop)[0], "the others in the batch go on"


def test_chats_go_through_the_template(model: Model) -> None:
    chat = [{"role": "user", "content": "profit"}]
    asked = "<|user|>profit<|end|><|assistant|>"
    assert generate(model, [chat], Sampling(4)) == generate(model, [asked], Sampling(4))


def test_an_empty_prompt_and_no_prompts(model: Model) -> None:
    assert generate(model, []) == []
    assert generate(model, [""], Sampling(3))[0].prompt_tokens == 1


def test_a_prompt_that_is_too_long_loses_its_beginning_and_says_so(model: Model) -> None:
    long, short = generate(model, ["profit rises " * 600, "profit"], Sampling(4))
    assert long.cut and long.prompt_tokens == model.context - 4
    assert not short.cut
    with pytest.raises(InvalidError, match="takes 512 tokens"):
        generate(model, ["a"], Sampling(512))


def test_progress_and_stopping(model: Model) -> None:
    told: list[dict[str, Any]] = []
    replies = generate(model, PROMPTS, Sampling(2), batch_size=2, progress=told.append)
    assert [record["done"] for record in told] == [1, 2, 3, 4, 5] and all(record["total"] == 5 for record in told)
    assert told[-1]["completion_tokens"] == sum(reply.completion_tokens for reply in replies)
    for call in (
        lambda stop: generate(model, PROMPTS, Sampling(2), batch_size=2, should_stop=stop),
        lambda stop: choices(model, PROMPTS, ["a", "b"], batch_size=2, should_stop=stop),
        lambda stop: score.perplexity(model, [Row("a", "b", "1")], should_stop=stop),
    ):
        with pytest.raises(JobError) as caught:
            call(lambda: True)
        assert caught.value.code == "TAPE-6005"


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"temperature": math.inf}, {"top_p": 0}, {"stop": ("",)}]
)
def test_wrong_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="must be"):
        Sampling(**wrong)


def likelihood(model: Model, prompt: str, label: str) -> float:
    """The label's log-likelihood, worked out the long way: one unpadded pass over prompt and label."""
    import torch

    asked = model.tokenizer.encode(prompt, add_special_tokens=False)
    answer = model.tokenizer.encode(" " + label, add_special_tokens=False)
    with torch.inference_mode():
        logits = model.module(torch.tensor([[*asked, *answer]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(asked) - 1 + at, token]) for at, token in enumerate(answer))


def test_choices_are_the_models_likelihoods(model: Model) -> None:
    labels = ["good", "bad", "good for shareholders of Quillon"]
    found = choices(model, PROMPTS, labels, batch_size=2)
    for prompt, choice in zip(PROMPTS, found, strict=True):
        expected = {label: likelihood(model, prompt, label) for label in labels}
        if not prompt[-1].isspace():
            assert choice.logprobs == pytest.approx(expected, abs=1e-3)
            assert choice.label == max(expected, key=lambda label: expected[label])
        assert sum(choice.shares.values()) == pytest.approx(1)
        assert choice.shares[choice.label] == max(choice.shares.values())


def test_normalised_choices_compare_likelihood_per_token(model: Model) -> None:
    labels = ["good", "in the first quarter"]
    lengths = {label: len(model.tokenizer.encode(" " + label, add_special_tokens=False)) for label in labels}
    (found,) = choices(model, [PROMPTS[0]], labels, normalise=True)
    expected = {label: likelihood(model, PROMPTS[0], label) / lengths[label] for label in labels}
    assert found.label == max(expected, key=lambda label: expected[label])
    ratio = math.log(found.shares[labels[0]] / found.shares[labels[1]])
    assert ratio == pytest.approx(expected[labels[0]] - expected[labels[1]], abs=1e-3)


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", ""]])
def test_labels_must_be_a_choice(model: Model, labels: list[str]) -> None:
    with pytest.raises(InvalidError, match="two labels"):
        choices(model, ["x"], labels)


def test_one_token_labels_and_progress(model: Model) -> None:
    told: list[dict[str, Any]] = []
    found = choices(model, ["a", "b c"], ["!", "?"], progress=told.append)
    assert all(choice.label in {"!", "?"} for choice in found) and told == [{"done": 2, "total": 2}]


def exhausted(*args: Any, **rest: Any) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    "call",
    [
        lambda model: generate(model, ["a"], Sampling(2)),
        lambda model: choices(model, ["a"], ["b", "c"]),
        lambda model: score.perplexity(model, [Row("a", "b", "1")]),
    ],
)
def test_memory_that_runs_out_has_its_code(
    model: Model, monkeypatch: pytest.MonkeyPatch, call: Callable[[Model], Any]
) -> None:
    monkeypatch.setattr(model.module, "forward", exhausted)
    with pytest.raises(JobError) as caught:
        call(model)
    assert caught.value.code == "TAPE-6003"


ROWS = [Row(prompt, "the first quarter was good", str(at)) for at, prompt in enumerate(PROMPTS[:3])]


def test_perplexity_is_weighted_by_tokens_and_the_same_in_any_batch(model: Model) -> None:
    found = score.perplexity(model, ROWS)
    single = [score.perplexity(model, [row]) for row in ROWS]
    assert found.tokens == sum(one.tokens for one in single)
    mean = sum(one.nats_per_token * one.tokens for one in single) / found.tokens
    assert found.nats_per_token == pytest.approx(mean, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-3)
    assert [item["id"] for item in found.items] == ["0", "1", "2"]
    assert sum(item["nats"] for item in found.items) / found.tokens == pytest.approx(mean, abs=1e-3)


def test_perplexity_of_a_completion_is_its_likelihood(model: Model) -> None:
    found = score.perplexity(model, [ROWS[2]])
    end = model.tokenizer.eos_token
    text = ROWS[2].completion + end
    assert found.nats_per_token * found.tokens == pytest.approx(-likelihood(model, PROMPTS[2], text), abs=1e-2)


def test_a_sliding_window_scores_every_token_once(model: Model) -> None:
    row = Row("", "profit rises in the first quarter and falls in the second quarter " * 6, "1")
    whole = score.perplexity(model, [row], max_length=500)
    slid = score.perplexity(model, [row], max_length=32, stride=8)
    assert slid.tokens == whole.tokens > 64
    assert slid.perplexity == pytest.approx(whole.perplexity, rel=0.5)


def test_what_cannot_be_scored(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidError, match="stride"):
        score.perplexity(model, ROWS, max_length=64, stride=64)
    with pytest.raises(InvalidError, match="no token"):
        score.perplexity(model, [])
    monkeypatch.setattr(score, "_nats", lambda model, batch: [math.nan] * len(batch))
    told: list[dict[str, Any]] = []
    with pytest.raises(JobError) as caught:
        score.perplexity(model, ROWS, progress=told.append)
    assert caught.value.code == "TAPE-6009" and told[-1] == {"done": 3, "total": 3}
