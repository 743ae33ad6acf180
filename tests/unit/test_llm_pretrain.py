"""Models from nothing: text in blocks, a tokenizer and weights by the seed, and experts whose load is even."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_llm_resume import STEPS, Bench, Killed
from train_rig import ROWS, files

from schemas.architecture import Architecture
from schemas.errors import InvalidError
from schemas.row import Row
from workers.llm import model as models
from workers.llm import pretrain
from workers.llm.data import IGNORED
from workers.llm.draw import Sampling
from workers.llm.generate import generate
from workers.llm.score import perplexity
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.train import train

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]
SHAPE = {"layers": 2, "heads": 2, "width": 32, "context": 64, "vocabulary": 300}
DENSE = Architecture(**SHAPE)
SPARSE = Architecture(**SHAPE, family="moe", experts=4, dropout=0.1)
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    assert blank, "torch is here"

    def made(architecture: Architecture, seed: int = 0) -> Path:
        path = tmp_path_factory.mktemp("made") / f"{architecture.family}-from-scratch"
        tokenizer = pretrain.bpe(pretrain.texts(ROWS), size=architecture.vocabulary, context=architecture.context)
        pretrain.blank(path, architecture, tokenizer, seed=seed)
        return path

    return made


def letters() -> Any:
    """A tokenizer to whom each letter is a token, and 0 the end."""
    return SimpleNamespace(
        eos_token_id=0, chat_template=None, encode=lambda text, add_special_tokens: [ord(one) for one in text]
    )


texts = st.lists(st.text("abcxyz \n", max_size=30), min_size=1, max_size=12)


@given(texts, st.integers(8, 20))
def test_every_token_is_predicted_once_and_none_is_cut_off(written: list[str], length: int) -> None:
    rows = [Row("", text, str(number)) for number, text in enumerate(written)]
    made = pretrain.blocks(rows, letters(), length)
    stream = [0, *(token for text in written for token in (*map(ord, text), 0))]
    targets = [token for block in made for token in block.labels[1:]]
    assert targets == stream[1:], "in order, each once"
    assert all(block.labels == [IGNORED, *block.input_ids[1:]] for block in made), "nothing predicts the first"
    assert all(len(block.input_ids) == length for block in made[:-1])
    assert 2 <= len(made[-1].input_ids) <= length, "a block without a target would have no loss"
    assert not any(block.cut for block in made)


def test_a_row_with_a_prompt_is_a_document_of_both() -> None:
    made = pretrain.blocks([Row("Revenue:", "rose", "1"), Row("", "It fell.", "2")], letters(), 64)
    assert "".join(chr(token) if token else "|" for token in made[0].input_ids) == "|Revenue: rose|It fell.|"


def test_the_same_seed_is_the_same_bytes_and_digits_are_single(build: Build) -> None:
    one, two, other = build(SPARSE), build(SPARSE), build(SPARSE, seed=1)
    assert files(one) == files(two)
    assert files(one)["tokenizer.json"] == files(other)["tokenizer.json"]
    assert files(one)["model.safetensors"] != files(other)["model.safetensors"]
    tokenizer, sha256 = pretrain.borrow(one)
    assert sha256 == files(one)["tokenizer.json"]
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    text = "Harrowgate ¥ 12 — übrig\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text, "bytes: there is no text that it cannot write"


@pytest.mark.parametrize("architecture", [DENSE, SPARSE], ids=["gpt2", "moe"])
def test_it_is_built_as_asked(build: Build, architecture: Architecture) -> None:
    model = models.load(build(architecture))
    config = model.module.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (2, 2, 32)
    assert model.context == 64
    assert config.vocab_size == len(model.tokenizer) <= 300
    if architecture.family == "moe":
        assert (config.num_local_experts, config.num_experts_per_tok, config.router_aux_loss_coef) == (4, 2, 0.01)
    untrained = perplexity(model, ROWS).nats_per_token
    assert untrained == pytest.approx(math.log(len(model.tokenizer)), abs=0.15), "it knows nothing yet"


def run(base: Path, out: Path, architecture: Architecture, told: list[Any] | None = None, **more: Any) -> TrainResult:
    params = {"steps": 60, "batch_size": 4, "accumulation": 2, "lr": 1e-2, "max_length": 32, "threads": 1}
    return train(
        TrainParams(**params | more, method="pretrain", architecture=architecture, device="cpu"), base=base, rows=ROWS,
        valid=ROWS[:3], out=out, progress=None if told is None else told.append,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", [DENSE, SPARSE], ids=["gpt2", "moe"])
def test_it_learns_to_read_and_loads_as_a_model(build: Build, tmp_path: Path, architecture: Architecture) -> None:
    base = build(architecture)
    done = run(base, tmp_path / "out", architecture)
    assert done.first_loss == pytest.approx(math.log(300), abs=0.5)
    assert done.valid_loss is not None and done.valid_loss < 1.0
    assert (done.rows, done.cut) == (len(ROWS), 0)
    assert done.blocks is not None and done.blocks * 32 >= sum(len(text) for text in pretrain.texts(ROWS)) / 10
    model = models.load(tmp_path / "out")
    # the validation's loss is plain cross entropy: what the blocks come to, without any auxiliary term
    held = pretrain.blocks(ROWS[:3], model.tokenizer, 32)
    import torch

    total = count = 0.0
    for block in held:
        ids = torch.tensor([block.input_ids])
        with torch.no_grad():
            total += float(model.module(input_ids=ids, labels=ids).loss) * (len(block.labels) - 1)
        count += len(block.labels) - 1
    assert done.valid_loss == pytest.approx(total / count, rel=1e-4)
    assert "profit" in generate(model, ["Headline: Velmora"], Sampling(max_new_tokens=12))[0].text
    assert (tmp_path / "out" / "config.json").read_text().count("output_router_logits") <= 1


def test_the_record_of_a_mixture_tells_where_its_tokens_go(build: Build, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    run(build(SPARSE), tmp_path / "out", SPARSE, told, steps=3)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()][:-1]
    steps = [record for record in told if "loss" in record]
    assert [line["expert_load"] for line in lines] == [record["expert_load"] for record in steps]
    for line in lines:
        assert len(line["expert_load"]) == 4
        assert sum(line["expert_load"]) == pytest.approx(1, abs=1e-3)
        assert 0.25 <= line["load_max"] <= 0.5, "of two experts for each token one gets at most half of all"
        assert 0 < line["load_entropy"] <= math.log(4) + 1e-6
        assert 0 < line["router_entropy"] <= math.log(4) + 1e-6
        assert line["dropped_tokens"] == 0
        assert line["balance_loss"] == pytest.approx(2, abs=0.3), "two, where the load of two experts each is even"
    assert lines[0]["router_entropy"] > math.log(4) - 0.05, "random routers have no preference"


def test_what_experts_are_told_to_leave_out_is_counted(build: Build) -> None:
    """Mixtral drops nothing; whether that is so is counted, not supposed."""
    import torch

    from workers.llm.router import Router

    model = models.load(build(SPARSE))
    router = Router(model.module)

    def refuse(_module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, chosen, weights = given
        chosen = chosen.clone()
        chosen[:3] = 4  # no expert has this number: the first three tokens are dropped
        return hidden, chosen, weights

    experts = model.module.model.layers[1].mlp.experts
    experts._forward_pre_hooks.clear()
    experts.register_forward_pre_hook(refuse)
    experts.register_forward_pre_hook(router._routed(1))
    model.module.train()
    ids = torch.arange(20).reshape(2, 10)
    router(model.module, {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}, None)
    assert router.take()["dropped_tokens"] == 3


def test_the_loss_is_cross_entropy_and_its_gradient_evens_the_load(build: Build) -> None:
    import torch

    from workers.llm.router import Router

    ids = torch.arange(40).reshape(2, 20)
    ids[1, 15:] = 7
    labels = ids.clone()
    labels[1, 15:] = IGNORED
    mask = (labels != IGNORED).long()

    def gate(weight: float) -> tuple[float, float, Any]:
        model = models.load(build(Architecture(**SHAPE, family="moe", experts=4)))
        model.module.train()
        router = Router(model.module)
        router.weight = weight
        loss, _ = router(model.module, {"input_ids": ids, "labels": labels, "attention_mask": mask}, None)
        loss.backward()
        plain = model.module(input_ids=ids, attention_mask=mask, labels=labels).loss
        grad = model.module.model.layers[0].mlp.gate.weight.grad.clone()
        return float(loss.detach()), float(plain.detach()), grad

    without, plain, still = gate(0.0)
    with_it, _, pulled = gate(5.0)
    assert without == pytest.approx(plain, rel=1e-6)
    assert with_it == without, "what is told is comparable with a dense model's"
    assert not torch.allclose(still, pulled), "and yet it is learnt from"


def test_without_the_balancing_loss_the_load_is_less_even(build: Build, tmp_path: Path) -> None:
    entropies = {}
    for balance in (0.0, 0.1):
        architecture = Architecture(**SHAPE, family="moe", experts=4, experts_per_token=1, balance=balance)
        told: list[dict[str, Any]] = []
        run(build(architecture), tmp_path / str(balance), architecture, told)
        last = [record for record in told if "loss" in record][-10:]
        entropies[balance] = sum(record["load_entropy"] for record in last) / len(last)
    assert entropies[0.1] > math.log(4) - 0.1
    assert entropies[0.0] < entropies[0.1] - 0.1


SETTINGS: dict[str, Any] = {"method": "pretrain", "architecture": SPARSE, "max_length": 16}


@pytest.fixture(scope="module")
def whole(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that nobody disturbed."""
    return Bench(build(SPARSE), tmp_path_factory.mktemp("whole")).run(**SETTINGS).out


@pytest.mark.parametrize("deaths", [(5,), (2, 3, 11)])
def test_whoever_dies_and_goes_on_ends_in_the_same_bytes(
    build: Build, whole: Path, tmp_path: Path, deaths: tuple[int, ...]
) -> None:
    """Each attempt builds its base anew, as the workers do."""
    bench = Bench(build(SPARSE), tmp_path)
    for step in deaths:
        with pytest.raises(Killed):
            bench.run(die_at=step, **SETTINGS)
        bench.base = build(SPARSE)
    last = bench.run(**SETTINGS)
    assert last.resumed == (deaths[-1] - 1) // 2 * 2
    assert (last.exact, last.steps) == (True, STEPS)
    assert files(last.out) == files(whole), "weights, metrics with the experts' load, settings: all of it"


def test_another_weight_of_the_balancing_loss_is_another_training(build: Build, tmp_path: Path) -> None:
    bench = Bench(build(SPARSE), tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5, **SETTINGS)
    other = SPARSE.model_copy(update={"balance": 0.5})
    assert bench.run(**SETTINGS | {"architecture": other}).resumed == 0


def test_it_stops_when_told_and_goes_on(build: Build, whole: Path, tmp_path: Path) -> None:
    bench = Bench(build(SPARSE), tmp_path)
    assert bench.run(stop_at=4, **SETTINGS).stopped
    last = bench.run(**SETTINGS)
    assert last.resumed == 5
    assert files(last.out) == files(whole)


def test_where_memory_runs_out_fewer_blocks_are_taken_at_a_time(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import MixtralForCausalLM

    real = MixtralForCausalLM.forward

    def greedy(self: Any, input_ids: Any = None, **more: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids=input_ids, **more)

    monkeypatch.setattr(MixtralForCausalLM, "forward", greedy)
    bench = Bench(build(SPARSE), tmp_path)
    done = bench.run(**SETTINGS | {"batch_size": 4, "accumulation": 1})
    assert (done.steps, done.exact) == (STEPS, False)
    assert {"reason": "out of memory", "batch_size": 2, "accumulation": 2} in bench.told


def test_it_ends_early_with_the_best_weights(build: Build, tmp_path: Path) -> None:
    held = [Row("", "sinks rises rises falls Sentiment Quillon good bad bad Headline", "x")]
    bench = Bench(build(SPARSE), tmp_path)
    done = bench.run(
        valid=held, steps=200, validation_steps=5, patience=2, checkpoint_steps=None,
        **SETTINGS | {"lr": 2e-2, "accumulation": 1},
    )  # fmt: skip
    assert done.best_step is not None and done.best_step < done.steps < 200


def test_a_tokenizer_that_cannot_be_borrowed_is_told(build: Build, tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as missing:
        pretrain.borrow(tmp_path)
    assert (missing.value.code, missing.value.message) == ("TAPE-1009", "tokenizer.json is missing")
    assert missing.value.place["field"] == "tokenizer"
    base = build(DENSE)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(InvalidError, match="the tokenizer has no end token"):
        pretrain.borrow(base)
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidError, match="the tokenizer cannot be loaded"):
        pretrain.borrow(base)
