"""The variants of LoRA, a base in four bits, memory and precision: what is trained is what is loaded again."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from resume_rig import SETTINGS, Bench, Killed
from train_rig import ROWS, files

from schemas.errors import SetupError
from workers.llm import methods, quantise
from workers.llm import model as models
from workers.llm.score import perplexity
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.train import train

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]
bits = pytest.mark.skipif(find_spec(quantise.PACKAGE) is None, reason="the qlora extra is not installed")
QLORA = pytest.param({"method": "qlora"}, marks=bits)


@pytest.fixture(scope="module")
def llama(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with the tokenizer of the tests and random weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer, path = AutoTokenizer.from_pretrained(blank), tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run(base: Path, out: Path, **given: Any) -> TrainResult:
    settings = {"steps": 8, "batch_size": 4, "lr": 1e-2, "threads": 1, "device": "cpu", "warmup": 0}
    return train(TrainParams(**settings | given), base=base, rows=ROWS, valid=ROWS, out=out)


def logits(module: Any, tokenizer: Any) -> Any:
    import torch

    batch = tokenizer([str(row.prompt) for row in ROWS[:3]], return_tensors="pt", padding=True)
    module.eval()
    with torch.no_grad():
        return module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("given", [{"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_variants_of_lora_are_loaded_as_they_were_trained(
    blank: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, given: dict[str, Any]
) -> None:
    base, kept = blank if kind == "gpt2" else llama, []
    save = methods.save

    def keeping(module: Any, model: models.Model, *rest: Any) -> None:
        kept.append(logits(module, model.tokenizer))
        save(module, model, *rest)

    monkeypatch.setattr("workers.llm.train.save", keeping)
    run(base, tmp_path / "tuned", rank=4, alpha=8, **given)
    loaded = models.load(base, adapter=tmp_path / "tuned", device="cpu")
    found = logits(loaded.module, loaded.tokenizer)
    assert (found - kept[0]).abs().max() < 1e-4
    untrained = models.load(base, device="cpu")
    assert (found - logits(untrained.module, untrained.tokenizer)).abs().max() > 0.1, "it learnt something"
    config = json.loads((tmp_path / "tuned" / models.ADAPTER).read_text())
    assert (config["use_rslora"], config["use_dora"]) == (given.get("rslora", False), given.get("dora", False))
    recorded = json.loads((tmp_path / "tuned" / methods.CONFIG).read_text())["params"]
    assert given.items() <= recorded.items()


def test_rslora_is_scaled_by_the_root_of_the_rank(blank: Path, tmp_path: Path) -> None:
    """With alpha/√r the same step changes more: read without it the adapter is another one."""
    run(blank, tmp_path / "tuned", rank=16, alpha=8, rslora=True)
    right = models.load(blank, adapter=tmp_path / "tuned", device="cpu")
    path = tmp_path / "tuned" / models.ADAPTER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": False}))
    (tmp_path / "tuned" / models.MANIFEST).unlink()
    wrong = models.load(blank, adapter=tmp_path / "tuned", device="cpu")
    assert perplexity(right, ROWS).perplexity != pytest.approx(perplexity(wrong, ROWS).perplexity, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"dora": True, "rslora": True},
        {"packing": True, "max_length": 64, "accumulation": 1, "batch_size": 3},
        {"gradient_checkpointing": True},
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "method": "full"},
        QLORA,
        pytest.param(
            {"method": "qlora", "dora": True, "packing": True, "max_length": 64, "gradient_checkpointing": True,
             "precision": "bfloat16"}, marks=bits,
        ),
    ],
)  # fmt: skip
def test_whoever_dies_and_goes_on_ends_in_the_same_bytes(blank: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    given = {"steps": 8, "validation_steps": 3} | given
    calm = Bench(blank, tmp_path / "calm").run(**given)
    stormy = Bench(blank, tmp_path / "stormy")
    for step in (3, 6):
        with pytest.raises(Killed):
            stormy.run(die_at=step, **given)
    last = stormy.run(**given)
    assert last.resumed in {3, 4} and last.exact, "none is begun while another is on its way"
    assert files(last.out) == files(calm.out)
    other = Bench(blank, tmp_path / "other").run(**given | {"seed": 1})
    assert files(other.out) != files(calm.out)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_gives_the_same_bytes(
    blank: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
    from transformers.models.llama.modeling_llama import LlamaAttention

    block, calls = GPT2Attention if kind == "gpt2" else LlamaAttention, [0]
    real = block.forward

    def counted(self: Any, *args: Any, **rest: Any) -> Any:
        calls[0] += 1
        return real(self, *args, **rest)

    monkeypatch.setattr(block, "forward", counted)
    base, found = blank if kind == "gpt2" else llama, {}
    for wanted in (False, True):
        calls[0], out = 0, tmp_path / str(wanted)
        settings = TrainParams(
            steps=4, batch_size=4, threads=1, device="cpu", method=method, dropout=0.1, gradient_checkpointing=wanted
        )
        train(settings, base=base, rows=ROWS, out=out)
        weights = next(out.glob("*.safetensors"))
        found[wanted] = (models.digest(weights), (out / "metrics.jsonl").read_text(), calls[0])
    assert found[True][:2] == found[False][:2]
    assert found[True][2] == 2 * found[False][2], "each layer is computed again on the way back"


def test_the_precision_is_what_was_asked_and_what_learns_is_float32(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen: dict[str, set[Any]] = {}
    from transformers import Trainer

    real = Trainer.training_step

    def looking(self: Any, model: Any, *rest: Any) -> Any:
        name = self.args.output_dir
        seen.setdefault(name, set()).update((one.dtype, one.requires_grad) for one in model.parameters())
        seen[name].add(torch.is_autocast_enabled("cpu"))
        return real(self, model, *rest)

    monkeypatch.setattr(Trainer, "training_step", looking)
    losses = {}
    for method in ("full", "lora"):
        for precision in ("auto", "float32", "bfloat16"):
            done = run(blank, tmp_path / f"{method}-{precision}", method=method, precision=precision, steps=2)
            assert done.precision == ("bfloat16" if precision == "bfloat16" else "float32")
            losses[method, precision] = done.loss
            (dtypes,) = seen.values()
            seen.clear()
            assert (torch.float32, True) in dtypes
            assert (torch.bfloat16, True) not in dtypes
            assert ((torch.bfloat16, False) in dtypes) == (method == "lora" and precision == "bfloat16")
        assert losses[method, "auto"] == losses[method, "float32"]
        assert losses[method, "bfloat16"] != losses[method, "auto"], "it is computed in another precision"
        assert losses[method, "bfloat16"] == pytest.approx(losses[method, "auto"], rel=0.02)


@bits
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_base_in_four_bits_is_smaller_and_still_learns(
    blank: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:  # fmt: skip
    from bitsandbytes.nn import Linear4bit

    base, kinds = blank if kind == "gpt2" else llama, []
    save = methods.save

    def looking(module: Any, *rest: Any) -> None:
        kinds.extend(type(layer) for layer in module.modules())
        save(module, *rest)

    monkeypatch.setattr("workers.llm.train.save", looking)
    lora = run(base, tmp_path / "lora", steps=30)
    kinds.clear()
    done = run(base, tmp_path / "qlora", method="qlora", steps=30, validation_steps=5)
    assert any(issubclass(one, Linear4bit) for one in kinds)
    assert (done.parameters, done.trainable) == (lora.parameters, lora.trainable)
    assert done.loss < 0.9 * done.first_loss
    assert done.loss == pytest.approx(lora.loss, abs=0.5), "close to what the base in full learns"
    tuned = models.load(base, adapter=tmp_path / "qlora", device="cpu")
    assert perplexity(tuned, ROWS).nats_per_token == pytest.approx(done.valid_loss, abs=0.3), "on the base in full"
    recorded = json.loads((tmp_path / "qlora" / methods.CONFIG).read_text())
    assert "bitsandbytes" in recorded["versions"]
    out, err = capfd.readouterr()
    assert out == "" and err == "", "the libraries must keep quiet"


@bits
def test_a_validation_leaves_a_base_in_four_bits_as_it_was(blank: Path, tmp_path: Path) -> None:
    """On a CPU with bfloat16 bitsandbytes would rearrange it, and no gradient came from then on."""
    often, never = (
        run(blank, tmp_path / str(every), method="qlora", steps=6, validation_steps=every) for every in (1, None)
    )
    weights = "adapter_model.safetensors"
    assert models.digest(often.out / weights) == models.digest(never.out / weights)


def test_four_bits_without_the_package_are_refused_before_anything_is_encoded(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda _: None)
    monkeypatch.setattr("workers.llm.train.encoded", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(SetupError, match="bitsandbytes") as caught:
        run(blank, tmp_path, method="qlora")
    assert caught.value.code == "TAPE-8003"
    assert "tickertape[qlora]" in caught.value.hint


def test_bfloat16_where_there_is_none_is_refused(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    for device in ("auto", "cuda"):
        params = TrainParams(precision="bfloat16", device=device)
        with pytest.raises(SetupError, match="no bfloat16") as caught:
            methods.computed(params)
        assert caught.value.code == "TAPE-8003"
    assert methods.computed(TrainParams(precision="bfloat16", device="cpu")) == "bfloat16"
    assert methods.computed(TrainParams()) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert methods.computed(TrainParams()) == "bfloat16"


def test_old_requests_keep_their_fingerprint() -> None:
    """A checkpoint that an older worker kept is taken up: what was added later is left out where it says nothing."""
    from workers.llm import resume

    params = TrainParams(**{name: value for name, value in SETTINGS.items() if name != "checkpoint_steps"})
    facts = resume.facts(params, "base", [], device="cpu", threads=1)
    assert facts["request"] == "3ce82653859889ead85ddb33b1be161f55aaa0e7927f14f9e823992698508261"
