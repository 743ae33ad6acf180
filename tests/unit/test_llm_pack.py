"""Packing: fewer rows, the same losses; no example sees another, or is counted from where another ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_rig import ROWS

from schemas.errors import InvalidError
from workers.llm import model as models
from workers.llm import pack
from workers.llm.data import IGNORED, Encoded, encode
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.train import train

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]


@given(st.lists(st.integers(1, 32), max_size=80))
def test_each_row_is_in_one_pack_and_none_is_too_long(sizes: list[int]) -> None:
    rows = [Encoded([0] * size, [0] * size, cut=False) for size in sizes]
    packs = pack.Packs(rows, sizes, 32)
    assert sorted(row for members in packs.members for row in members) == list(range(len(sizes)))
    assert all(sum(sizes[row] for row in members) <= 32 for members in packs.members)
    half = [members for members in packs.members if 2 * sum(sizes[row] for row in members) <= 32]
    assert len(half) <= 1, "two that are half empty would have been one"
    assert packs.members == pack.Packs(rows, sizes, 32).members
    assert [sum(len(row.input_ids) for row in found) for found in packs] == [
        sum(sizes[row] for row in members) for members in packs.members
    ]


def test_what_fits_exactly_leaves_no_room() -> None:
    rows = [Encoded([0] * size, [0] * size, cut=False) for size in (5, 3, 8, 2, 6)]
    assert pack.Packs(rows, [5, 3, 8, 2, 6], 8).members == [[2], [3, 4], [0, 1]]


def test_a_batch_begins_anew_with_each_example_and_learns_no_first_token() -> None:
    one, other = Encoded([5, 6, 7], [IGNORED, 6, 7], cut=False), Encoded([8, 9], [8, 9], cut=False)
    batch = pack.collate([(one, other), (other,)], 1)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [8, 9, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED, 9, IGNORED, IGNORED, IGNORED]]


def losses(module: Any, batch: dict[str, Any]) -> list[list[float]]:
    """The loss of each learnt token, row by row, as the models shift their labels."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.no_grad():
        logits = module(**{name: value for name, value in batch.items() if name != "labels"}).logits
    each = cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    learnt = batch["labels"][:, 1:] != IGNORED
    return [[float(loss) for loss in line[mask]] for line, mask in zip(each, learnt, strict=True)]


@pytest.fixture(params=["gpt2", "llama", "mistral", "gpt2-eager"])
def model(request: pytest.FixtureRequest, blank: Path) -> models.Model:
    """A GPT-2, a Llama and a model with a sliding window, all with the tokenizer of the tests."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    found = models.load(blank, device="cpu", threads=1)
    small = {
        "vocab_size": len(found.tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    if request.param == "llama":
        found.module = LlamaForCausalLM(LlamaConfig(**small)).eval()
    if request.param == "mistral":
        found.module = MistralForCausalLM(MistralConfig(sliding_window=7, **small)).eval()
    if request.param == "gpt2-eager":
        found.module.set_attn_implementation("eager")
    found.module.config.use_cache = False  # as `prepare` has it: a cache keeps transformers from telling them apart
    return found


def test_a_packed_example_has_the_losses_it_has_alone(model: models.Model) -> None:
    rows = [encode(row, model.tokenizer, 48) for row in ROWS]
    packs = pack.Packs(rows, [len(row.input_ids) for row in rows], 100)
    assert len(packs) < len(rows) / 2
    packed = losses(model.module, pack.collate(list(packs), model.tokenizer.pad_token_id))
    alone = [losses(model.module, pack.collate([(row,)], 0))[0] for row in rows]
    by_row = [loss for members in packs.members for row in members for loss in alone[row]]
    together = [loss for line in packed for loss in line]
    assert len(together) == sum(label != IGNORED for row in rows for label in row.labels)
    assert together == pytest.approx(by_row, abs=1e-5)
    one_long = pack.collate(list(packs), 0)
    one_long["position_ids"] = one_long["position_ids"].new_ones(one_long["position_ids"].shape).cumsum(-1) - 1
    seen = [loss for line in losses(model.module, one_long) for loss in line]
    assert max(abs(one - other) for one, other in zip(seen, by_row, strict=True)) > 1e-3, "else it shows nothing"


def test_a_model_that_would_let_them_see_each_other_is_refused(
    model: models.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack.isolated(model.module, len(model.tokenizer))
    real = type(model.module).forward

    def blind(self: Any, input_ids: Any, position_ids: Any) -> Any:
        return real(self, input_ids=input_ids)

    monkeypatch.setattr(type(model.module), "forward", blind)
    with pytest.raises(InvalidError, match="see each other") as caught:
        pack.isolated(model.module, len(model.tokenizer))
    assert caught.value.place["field"] == "packing"


def test_a_model_that_counts_on_is_refused(blank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is seen of another example, but it is known how long that was."""
    module = models.load(blank, device="cpu", threads=1).module
    module.config.use_cache = False
    real = type(module).forward

    def counting(self: Any, input_ids: Any, position_ids: Any) -> Any:
        size = input_ids.shape[1]
        alone = (position_ids.diff(prepend=position_ids[:, :1]) < 0).cumsum(-1)[0]
        mask = (alone[:, None] == alone[None, :]).tril()[None, None]
        import torch

        return real(self, input_ids=input_ids, attention_mask=mask, position_ids=torch.arange(size)[None])

    monkeypatch.setattr(type(module), "forward", counting)
    with pytest.raises(InvalidError, match="see each other"):
        pack.isolated(module, 300)


def run(blank: Path, out: Path, **given: Any) -> tuple[TrainResult, list[dict[str, Any]]]:
    settings = {"steps": None, "epochs": 4, "batch_size": 16, "lr": 1e-3, "threads": 1, "device": "cpu", "warmup": 0}
    told: list[dict[str, Any]] = []
    return train(TrainParams(**settings | given), base=blank, rows=ROWS, out=out, progress=told.append), told


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_over_all_rows_is_the_same_step(blank: Path, tmp_path: Path, method: str) -> None:
    plain, steps = run(blank, tmp_path / "plain", method=method)
    packed, others = run(blank, tmp_path / "packed", method=method, packing=True, max_length=64)
    assert (plain.steps, packed.steps, packed.rows, plain.packs) == (4, 4, len(ROWS), None)
    assert packed.packs is not None and packed.packs < len(ROWS) / 2
    assert packed.tokens == plain.tokens
    for one, other in zip(steps, others, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_validation_rows_are_not_packed(blank: Path, tmp_path: Path) -> None:
    settings = TrainParams(steps=1, batch_size=4, warmup=0.9, lr=1e-6, threads=1, device="cpu")
    packed = settings.model_copy(update={"packing": True})
    one, other = (
        train(given, base=blank, rows=ROWS, valid=ROWS[:5], out=tmp_path / str(given.packing))
        for given in (settings, packed)
    )
    assert one.valid_loss == pytest.approx(other.valid_loss, abs=1e-4)
