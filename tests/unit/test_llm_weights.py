"""Only safetensors in the directory itself are loaded, and all of the model must be in them; else TAPE-1009."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_rig import ROWS

from schemas.errors import InvalidError
from workers.llm import model as models
from workers.llm.settings import TrainParams
from workers.llm.train import train
from workers.llm.weights import INDEX, SHOWN, WHOLE

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(blank: Path, tmp_path: Path) -> Path:
    """The blank model in a folder of the test's own, without its manifest."""
    path = tmp_path / "model"
    shutil.copytree(blank, path)
    (path / models.MANIFEST).unlink()
    return path


@pytest.fixture(scope="module")
def adapter(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    train(TrainParams(steps=1, batch_size=1, rank=2, threads=1, device="cpu"), base=blank, rows=ROWS[:1], out=out)
    return out


def edit(file: Path, change: Change) -> None:
    """Change the tensors of a safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def describe(path: Path, **fields: Any) -> None:
    """Change fields of the model's config."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


def index(path: Path, name: str) -> None:
    """Say that all tensors are in the file `name`; the weights themselves go there, or stay as `x.safetensors`."""
    from safetensors.torch import load_file

    tensors = load_file(path / WHOLE)
    (path / WHOLE).rename(path / "x.safetensors")
    given = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, name)}
    (path / INDEX).write_text(json.dumps(given))


def refused(path: Path, words: str, adapter: Path | None = None) -> InvalidError:
    with pytest.raises(InvalidError, match=words) as caught:
        models.load(path, adapter=adapter, device="cpu")
    assert caught.value.code == "TAPE-1009"
    assert caught.value.place["file"].startswith(str(adapter or path))
    assert caught.value.hint
    return caught.value


def test_a_tensor_that_is_missing_is_named_and_not_made_up(copy: Path, tmp_path: Path) -> None:
    edit(copy / WHOLE, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight"))
    refused(copy, r"lack 1 tensor of the model: transformer\.h\.1\.mlp\.c_fc\.weight ")
    with pytest.raises(InvalidError, match="lack 1 tensor"):
        train(TrainParams(steps=1, device="cpu", threads=1), base=copy, rows=ROWS[:1], out=tmp_path / "out")


def test_weights_of_another_architecture_are_refused_with_a_bounded_list(copy: Path) -> None:
    from transformers import BertConfig

    described = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=600, is_decoder=True
    ).to_dict()
    (copy / "config.json").write_text(json.dumps(described | {"model_type": "bert"}))
    told = refused(copy, r"lack \d+ tensors of the model: .* and \d+ more")
    assert told.message.count(",") == SHOWN - 1


def test_a_tensor_of_another_shape_is_told_with_both(copy: Path) -> None:
    describe(copy, n_positions=64)
    refused(copy, r"1 tensor of another shape than in the model: transformer\.wpe\.weight is 512×\d+ and not 64×\d+")


@pytest.mark.parametrize("family", ["GPT2", "Llama", "Mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_tied_or_a_buffer_is_not_missing(copy: Path, family: str, tied: bool) -> None:
    import transformers

    rows = len(models.load(copy, device="cpu").tokenizer)
    shape: dict[str, Any] = (
        {"n_embd": 16, "n_layer": 1, "n_head": 2}
        if family == "GPT2"
        else {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2}
    )  # fmt: skip
    more = {"num_local_experts": 2} if family == "Mixtral" else {}
    config = getattr(transformers, f"{family}Config")(vocab_size=rows, tie_word_embeddings=tied, **shape, **more)
    module = transformers.AutoModelForCausalLM.from_config(config)
    module.save_pretrained(copy)
    if family == "GPT2":  # as OpenAI's own files have it
        import torch

        edit(copy / WHOLE, lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}))
    loaded = models.load(copy, device="cpu").module
    assert type(loaded) is type(module)
    if not tied:
        edit(copy / WHOLE, lambda tensors: tensors.pop("lm_head.weight"))
        refused(copy, r"lack 1 tensor of the model: lm_head\.weight")


def test_an_expert_that_lacks_a_tensor_is_named(copy: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=600, num_key_value_heads=2, num_local_experts=3, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(copy)
    lost = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    edit(copy / WHOLE, lambda tensors: tensors.pop(lost))
    refused(copy, f"lack 1 tensor that others like them have: {lost} ")
    more = {lost.replace("w1", other) for other in ("w2", "w3")}
    edit(copy / WHOLE, lambda tensors: [tensors.pop(name) for name in more])
    refused(copy, r"2 tensors of another shape than in the model: model.layers.1.mlp.experts.down_proj is 2×16×16")


def test_an_adapter_that_is_not_whole_or_does_not_fit_is_refused(blank: Path, adapter: Path, tmp_path: Path) -> None:
    assert models.load(blank, adapter=adapter, device="cpu").adapter == adapter

    def broken(name: str, change: Change) -> Path:
        path = tmp_path / name
        shutil.copytree(adapter, path)
        (path / models.MANIFEST).unlink()
        edit(path / "adapter_model.safetensors", change)
        return path

    key = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    refused(blank, r"the adapter lacks 1 tensor: .*h\.0\.attn\.c_attn", broken("less", lambda one: one.pop(key)))
    more = broken("more", lambda one: one.update({key.replace("h.0", "h.9"): one[key].clone()}))
    refused(blank, r"no place for, 1 tensor: .*h\.9\.attn", more)
    wide = broken("wide", lambda one: one.update({key: one[key].repeat(2, 1)}))
    refused(blank, "the adapter does not fit the base: .*size mismatch", wide)
    gone = broken("gone", lambda one: None)
    (gone / "adapter_model.safetensors").rename(gone / "x.safetensors")
    refused(blank, "adapter_model.safetensors is missing", gone)


@pytest.mark.parametrize("kind", ["XLORA", "MULTITASK_PROMPT_TUNING", "NONSENSE"])
def test_an_adapter_that_would_open_files_of_its_own_is_refused(
    blank: Path, adapter: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "other"
    shutil.copytree(adapter, path)
    (path / models.MANIFEST).unlink()
    config = json.loads((path / models.ADAPTER).read_text())
    (path / models.ADAPTER).write_text(json.dumps(config | {"peft_type": kind}))
    refused(blank, f"{kind} cannot be merged", path)


@pytest.mark.parametrize(
    "name", ["weights.dat", "sub/pytorch_model.bin", "../good/model.safetensors", "sub/x.safetensors"]
)
def test_an_index_leads_nowhere_but_to_safetensors_beside_it(
    copy: Path, blank: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    index(copy, name)
    (copy / "sub").mkdir()
    shutil.copytree(blank, tmp_path / "good")
    if name.endswith(".safetensors"):
        shutil.copy(blank / WHOLE, copy / name)
    else:
        torch.save(load_file(blank / WHOLE), copy / name)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    told = refused(copy, "which is no safetensors file beside it")
    assert name in told.message
    with pytest.raises(InvalidError):
        models.fingerprint(copy)
    given = json.loads((copy / INDEX).read_text())
    given["weight_map"] = dict.fromkeys(given["weight_map"], str(tmp_path / "good" / WHOLE))
    (copy / INDEX).write_text(json.dumps(given))
    refused(copy, "which is no safetensors file beside it")


@pytest.mark.parametrize("given", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_that_is_none_is_refused(copy: Path, given: str) -> None:
    index(copy, "x.safetensors")
    (copy / INDEX).write_text(given)
    refused(copy, "weight_map|is not")


def test_what_an_index_names_must_be_there_and_sound(copy: Path, blank: Path, tmp_path: Path) -> None:
    index(copy, "y.safetensors")
    refused(copy, "y.safetensors is missing")
    for broken in (b"", b"x" * 7, b"\x80\x02" * 80, (blank / WHOLE).read_bytes()[:-1], b"\x02" + b"\0" * 7 + b"[]"):
        (copy / "y.safetensors").write_bytes(broken)
        refused(copy, "y.safetensors is no whole safetensors file")
    (copy / "y.safetensors").unlink()
    (copy / "y.safetensors").symlink_to(blank / WHOLE)
    refused(copy, "y.safetensors leads out of the directory")


def test_neither_weights_nor_an_index_is_told(copy: Path) -> None:
    (copy / WHOLE).rename(copy / "x.safetensors")
    refused(copy, f"there is neither {WHOLE} nor {INDEX}")


def test_an_index_of_files_beside_it_is_loaded_also_from_a_hub_cache(copy: Path, tmp_path: Path) -> None:
    index(copy, "x.safetensors")
    assert models.load(copy, device="cpu").path == copy
    snapshot = tmp_path / "hub" / "snapshots" / "0123"
    shutil.copytree(copy, snapshot)
    (tmp_path / "hub" / "blobs").mkdir()
    (snapshot / "x.safetensors").rename(tmp_path / "hub" / "blobs" / "4567")
    (snapshot / "x.safetensors").symlink_to("../../blobs/4567")
    models.load(snapshot, device="cpu")
    assert models.fingerprint(snapshot) == models.fingerprint(copy)


def test_which_files_an_index_chooses_is_part_of_the_fingerprint(copy: Path) -> None:
    index(copy, "x.safetensors")
    alone = models.fingerprint(copy)
    shutil.copy(copy / "x.safetensors", copy / "y.safetensors")
    edit(copy / "y.safetensors", lambda tensors: tensors["transformer.wte.weight"].zero_())
    first = models.fingerprint(copy)
    text = (copy / INDEX).read_text()
    (copy / INDEX).write_text(text.replace("x.safetensors", "y.safetensors"))
    assert len({alone, first, models.fingerprint(copy)}) == 3


def test_other_ways_to_other_weights_are_closed(copy: Path, adapter: Path, blank: Path) -> None:
    (copy / "sub").mkdir()
    shutil.copy(blank / WHOLE, copy / "sub" / "x.safetensors")
    for more in (
        {"transformers_weights": "sub/x.safetensors"},
        {"text_config": {"transformers_weights": "x.safetensors"}},
    ):
        before = (copy / "config.json").read_text()
        describe(copy, **more)
        refused(copy, "transformers_weights")
        (copy / "config.json").write_text(before)
    before = (copy / "config.json").read_text()
    describe(copy, _attn_implementation="kernels-community/flash-attn")
    refused(copy, "code of its own")
    (copy / "config.json").write_text(before)
    part = copy / "shard-00001-model-00001-of-00001.safetensors"
    shutil.copy(blank / WHOLE, part)
    refused(copy, "distributed checkpoint")
    part.unlink()
    shutil.copy(adapter / models.ADAPTER, copy)
    refused(copy, "a model and an adapter")


def test_a_directory_without_a_tokenizer_is_told_so(copy: Path, tmp_path: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    told = refused(copy, "there is no tokenizer in the directory")
    assert "save_pretrained" in told.hint
    with pytest.raises(InvalidError, match="no tokenizer"):
        train(TrainParams(steps=1, device="cpu", threads=1), base=copy, rows=ROWS[:1], out=tmp_path / "out")
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    refused(copy, "there is no tokenizer in the directory")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_before_training(copy: Path, tmp_path: Path) -> None:
    tokenizer = models.load(copy, device="cpu").tokenizer
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|more|>", "<|most|>"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(InvalidError, match=f"up to number {rows + 1}, and the model embeddings for {rows} ") as caught:
        train(TrainParams(steps=1, device="cpu", threads=1), base=copy, rows=ROWS[:1], out=tmp_path / "out")
    assert caught.value.code == "TAPE-1009"
