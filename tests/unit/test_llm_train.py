"""Training on a tiny model: it learns, says how far it is, stops when told, and leaves safe and equal files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from train_rig import ROWS, files

from schemas.errors import InvalidError, JobError, SetupError
from schemas.row import Row
from workers.llm import launch, methods
from workers.llm import model as models
from workers.llm.generate import choices
from workers.llm.score import perplexity
from workers.llm.settings import TrainParams
from workers.llm.train import train
from workers.llm.watch import Running

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]


def params(**given: Any) -> TrainParams:
    return TrainParams(**{"steps": 6, "batch_size": 4, "lr": 3e-3, "threads": 1, "device": "cpu"} | given)


@pytest.fixture(scope="module")
def adapter(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of six steps with dropout and accumulation."""
    out = tmp_path_factory.mktemp("adapter")
    train(params(dropout=0.1, accumulation=2), base=blank, rows=ROWS, out=out)
    return out


def test_the_same_seed_gives_the_same_bytes(blank: Path, adapter: Path, tmp_path: Path) -> None:
    train(params(dropout=0.1, accumulation=2), base=blank, rows=ROWS, out=tmp_path / "again")
    train(params(dropout=0.1, accumulation=2, seed=1), base=blank, rows=ROWS, out=tmp_path / "other")
    assert files(adapter) == files(tmp_path / "again")
    weights = "adapter_model.safetensors"
    assert files(adapter)[weights] != files(tmp_path / "other")[weights]


def test_what_lies_in_the_output_is_safe_and_listed(adapter: Path, blank: Path) -> None:
    names = {member.name for member in adapter.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "manifest.json", "metrics.jsonl",
        "tokenizer.json", "tokenizer_config.json", "train.json",
    }  # fmt: skip
    models.check(adapter, adapter=True)
    manifest = json.loads((adapter / models.MANIFEST).read_text())
    assert manifest["base"] == models.fingerprint(blank) and manifest["base_name"] == blank.name
    assert {entry["path"] for entry in manifest["files"]} == names - {"manifest.json"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == blank.name
    assert config["target_modules"] == sorted(config["target_modules"]) == ["c_attn", "c_fc", "c_proj"]
    written = "".join((adapter / name).read_text() for name in names if name.endswith((".json", ".jsonl")))
    assert str(blank.parent) not in written, "no path of this machine may leave it"
    recorded = json.loads((adapter / "train.json").read_text())
    assert recorded["params"]["dropout"] == 0.1 and recorded["versions"].keys() == {
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "numpy",
    }


def test_progress_tells_every_step(blank: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[dict[str, Any]] = []
    result = train(
        params(), base=blank, rows=ROWS, valid=ROWS[:4], out=tmp_path / "out", progress=told.append
    )  # fmt: skip
    assert told.pop() == {"step": 6, "valid_loss": round(result.valid_loss or 0, 6), "best_step": 6}
    assert told.pop() == {"phase": "validation", "part": 1}
    assert [record["step"] for record in told] == [1, 2, 3, 4, 5, 6]
    assert told[0].keys() == {
        "step", "steps", "epoch", "loss", "lr", "grad_norm", "tokens", "samples", "tokens_per_s", "eta_s",
    }  # fmt: skip
    assert [record["samples"] for record in told] == [4, 8, 12, 16, 20, 24]
    assert told[-1]["tokens"] == result.tokens and result.samples == 24
    assert all(record["steps"] == 6 and record["tokens_per_s"] > 0 and record["grad_norm"] > 0 for record in told)
    assert told[-1]["eta_s"] == 0 and told[-1]["epoch"] == 1.5
    assert told[0]["lr"] == 0 and told[1]["lr"] == 3e-3 > told[-1]["lr"], "warm-up, then cosine"
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines[:-1]] == [record["loss"] for record in told]
    assert lines[-1] == {"step": 6, "valid_loss": result.valid_loss}
    assert result.first_loss == pytest.approx(told[0]["loss"], abs=1e-5)
    assert (result.steps, result.rows, result.cut, result.stopped) == (6, 16, 0, False)
    assert 0 < result.trainable < 0.2 * result.parameters
    out, err = capfd.readouterr()
    assert out == "" and err == "", "the libraries must keep quiet"


def test_a_full_fine_tune_learns_and_loads_as_a_model(blank: Path, tmp_path: Path) -> None:
    result = train(params(method="full", steps=80), base=blank, rows=ROWS, out=tmp_path / "full")
    assert result.loss < 0.2 < result.first_loss
    assert result.trainable == result.parameters
    model = models.load(tmp_path / "full")
    picked = choices(model, [row.prompt for row in ROWS], ["good", "bad"])
    assert [choice.label for choice in picked] == [row.completion for row in ROWS]
    before = choices(models.load(blank), [row.prompt for row in ROWS], ["good", "bad"])
    assert [choice.label for choice in before] != [row.completion for row in ROWS]


def test_an_adapter_changes_the_base_it_was_made_on_and_refuses_others(blank: Path, tmp_path: Path) -> None:
    train(params(steps=30, lr=1e-2), base=blank, rows=ROWS, out=tmp_path / "lora")
    base, tuned = models.load(blank), models.load(blank, adapter=tmp_path / "lora")
    assert perplexity(tuned, ROWS).perplexity < 0.5 * perplexity(base, ROWS).perplexity
    assert tuned.parameters == base.parameters, "the adapter is merged"
    train(params(method="full", steps=2), base=blank, rows=ROWS, out=tmp_path / "other")
    with pytest.raises(InvalidError, match="made on another base"):
        models.load(tmp_path / "other", adapter=tmp_path / "lora")
    (tmp_path / "lora" / models.MANIFEST).unlink()
    assert models.load(tmp_path / "other", adapter=tmp_path / "lora").adapter


def test_stopping_leaves_no_weights(blank: Path, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    result = train(
        params(steps=50), base=blank, rows=ROWS, valid=ROWS, out=tmp_path, progress=told.append,
        should_stop=lambda: len(told) >= 2,
    )  # fmt: skip
    assert result.stopped and result.steps < 5 and result.valid_loss is None
    assert [member.name for member in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_epochs_count_when_steps_are_not_given(blank: Path, tmp_path: Path) -> None:
    result = train(params(steps=None, epochs=2, batch_size=8), base=blank, rows=ROWS, out=tmp_path)
    assert (result.steps, result.epochs) == (4, 2.0)
    assert result.tokens % 2 == 0 and result.tokens > 0


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_schedules(blank: Path, tmp_path: Path, schedule: str) -> None:
    rates: list[float] = []
    train(
        params(steps=4, schedule=schedule, warmup=0), base=blank, rows=ROWS, out=tmp_path,
        progress=lambda record: rates.append(record["lr"]),
    )  # fmt: skip
    if schedule == "constant":
        assert rates == [3e-3] * 4
    else:
        assert rates == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])


def test_long_rows_are_cut_and_counted(blank: Path, tmp_path: Path) -> None:
    rows = [*ROWS, Row("profit " * 2_000, "good", "long")]
    result = train(params(steps=1, max_length=64, batch_size=17), base=blank, rows=rows, out=tmp_path)
    assert result.cut == 1 and result.tokens < 17 * 64


def test_a_loss_that_is_not_finite_ends_the_training(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward

    def broken(self: Any, *args: Any, **rest: Any) -> Any:
        output = forward(self, *args, **rest)
        output["loss"] = output["loss"] * float("nan")
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "forward", broken)
    with pytest.raises(JobError, match="the loss is nan") as caught:
        train(params(method="full"), base=blank, rows=ROWS, out=tmp_path)
    assert caught.value.code == "TAPE-6009" and caught.value.place == {"step": 1}
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("raised", "code"),
    [(RuntimeError("DefaultCPUAllocator: can't allocate memory"), "TAPE-6003"), (ValueError("odd"), "TAPE-6014")],
)
def test_what_the_trainer_raises_is_mapped(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    from transformers import Trainer

    def failing(self: Any, *args: Any, **rest: Any) -> None:
        raise raised

    monkeypatch.setattr(Trainer, "training_step", failing)
    with pytest.raises(JobError) as caught:
        train(params(), base=blank, rows=ROWS, out=tmp_path)
    assert caught.value.code == code and caught.value.__cause__ is raised


def test_layers_that_are_not_there_are_named(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="LoRA fits none of the layers") as caught:
        train(params(targets=("q_proj",)), base=blank, rows=ROWS, out=tmp_path)
    assert "c_attn" in caught.value.hint


def test_nothing_to_train_on(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no rows"):
        train(params(), base=blank, rows=[], out=tmp_path)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 2}, {"method": "magic"}, {"colour": 1}, {"dropout": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainParams(**wrong)


def test_llama_gets_lora_on_all_its_linear_layers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    found = methods._targets(LlamaForCausalLM(config))
    assert found == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_fast_steps_are_told_together(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.llm.watch.TELL_S", 3600.0)
    told: list[dict[str, Any]] = []
    train(params(), base=blank, rows=ROWS, out=tmp_path, progress=told.append)
    first, last = told
    assert (first["step"], last["step"]) == (1, 6)
    assert "losses" not in first
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert len(losses) == 6, "the metrics have them all"
    assert last["losses"] == 5
    assert last["loss_mean"] == pytest.approx(statistics.fmean(losses[1:]), abs=1e-5)
    assert last["loss_variance"] == pytest.approx(statistics.pvariance(losses[1:]), abs=1e-4)
    assert (last["loss_min"], last["loss_max"]) == (
        pytest.approx(min(losses[1:]), abs=1e-5), pytest.approx(max(losses[1:]), abs=1e-5),
    )  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_running_statistics_are_those_of_the_list(values: list[float]) -> None:
    running = Running()
    for value in values:
        running.add(value)
    assert running.count == len(values)
    assert running.mean == pytest.approx(statistics.fmean(values), abs=1e-6, rel=1e-9)
    assert running.variance == pytest.approx(statistics.pvariance(values), abs=1e-3, rel=1e-6)
    assert (running.lowest, running.highest) == (min(values), max(values))


def test_a_cpu_takes_no_more_processes_than_it_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(devices: int) -> None:
        launch.check(TrainParams(batch_size=64, devices=devices, device="cpu"))

    monkeypatch.setattr(models, "cores", lambda: 4)
    check(4)
    with pytest.raises(SetupError, match="8 processes are asked for, and this machine takes 4 at most") as caught:
        check(8)
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-8003", "devices")
    monkeypatch.setattr(models, "cores", lambda: 1)
    check(2)


def test_no_run_begins_with_more_threads_than_a_machine_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    began: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", began.append)
    monkeypatch.setattr(models, "cores", lambda: 2)
    assert [models.pin(count) for count in (1, 256, 100_000)] == [1, 256, 256]
    monkeypatch.setattr(models, "cores", lambda: 128)
    assert models.pin(100_000) == 512
    assert models.pin(600, exactly=True) == 600, "begun on a larger machine: it decides about bytes"
    assert began == [1, 256, 256, 512, 600]
