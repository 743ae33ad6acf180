"""The built-in kinds with a model so small that it is made in a second: from references to artifacts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import Artifact
from schemas.job import Evaluation, Inference, Training
from schemas.outcome import Cancelled, Failed, Succeeded, Verdict
from wire import datasets
from wire.blobs.manifest import blob_name, materialise, read_manifest
from wire.blobs.memory import Memory
from wire.rows.check import Check
from workers.context import CancelledByRequest, Context
from workers.handlers import models
from workers.handlers.evaluation import evaluation
from workers.handlers.inference import inference
from workers.handlers.training import training
from workers.lineage import models as registry
from workers.runner import call

pytestmark = [pytest.mark.model, pytest.mark.slow]
ROWS = [
    {"id": f"r{number}", "prompt": f"Headline: {who} profit {how}\nSentiment:", "completion": f" {mood}"}
    for number, (who, how, mood) in enumerate(
        (who, how, mood)
        for who in ("Harrowgate", "Velmora", "Quillon", "Brastow")
        for how, mood in (("rises", "good"), ("falls", "bad"))
    )
]


@pytest.fixture(scope="module")
def store() -> Memory:
    store = Memory()
    store.put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    store.put("bad.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    return store


Make = Callable[..., Context]


@pytest.fixture
def make(store: Memory, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    def context(kind: str, *, stopped: Callable[[], bool] = lambda: False, told: list[Any] | None = None) -> Context:
        return Context(
            job=f"job-{time.monotonic_ns()}", kind=kind, attempt=1, worker="w", tenant="t", cache=tmp_path / "cache",
            scratch=tmp_path_factory.mktemp("scratch"), open_store=lambda: store,
            report=(told if told is not None else []).append, stopped=stopped,
        )  # fmt: skip

    return context


def succeeded(verdict: Verdict) -> Succeeded:
    assert isinstance(verdict, Succeeded), verdict
    return verdict


@pytest.fixture(scope="module")
def adapter(store: Memory, blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A LoRA adapter that the training kind made of the blank model."""
    told: list[dict[str, Any]] = []
    context = Context(
        job="train-1", kind="training", attempt=1, worker="w", tenant="t", cache=tmp_path_factory.mktemp("cache"),
        scratch=tmp_path_factory.mktemp("scratch"), open_store=lambda: store, report=told.append,
        stopped=lambda: False, spent=lambda: {"energy_wh": 0.25, "cost": 1.5},
    )  # fmt: skip
    params = Training(
        base=f"file:{blank}", data="blob:rows.jsonl", validation="blob:rows.jsonl", steps=4, batch_size=4, threads=1,
        max_length=32,
    )  # fmt: skip
    verdict = succeeded(call(training, context, params))
    assert verdict.usage.training_tokens > 0
    assert (verdict.result["steps"], verdict.result["rows"], verdict.result["method"]) == (4, len(ROWS), "lora")
    assert verdict.result["validation_loss"] > 0
    steps = [entry for entry in told if "loss" in entry]
    assert steps and all((entry["energy_wh"], entry["cost"]) == (0.25, 1.5) for entry in steps)
    assert verdict.usage.training_samples == 16 == steps[-1]["samples"]
    (artifact,) = verdict.artifacts
    return artifact


def test_training_makes_an_adapter_with_its_lineage(adapter: Artifact, store: Memory, tmp_path: Path) -> None:
    manifest = read_manifest(store, adapter)
    assert (manifest.name, manifest.kind, manifest.job) == ("adapter", "training", "train-1")
    assert manifest.metadata["data"] == "blob:rows.jsonl"
    assert manifest.metadata["request"]["steps"] == 4
    paths = {file.path for file in manifest.files}
    assert "adapter_model.safetensors" in paths
    assert not [path for path in paths if path.endswith((".bin", ".pt", ".pkl"))]
    materialise(store, adapter, tmp_path / "out")


@pytest.mark.parametrize(("baseline", "names"), [(True, {"base", "adapter"}), (False, {"adapter"})])
def test_evaluation_measures_the_adapter_beside_its_base(
    adapter: Artifact, make: Make, blank: Path, store: Memory, baseline: bool, names: set[str]
) -> None:
    params = Evaluation(
        model=f"file:{blank}", adapter=adapter.uri, data="blob:rows.jsonl", baseline=baseline, threads=1,
        metrics=["perplexity", "exact_match", "accuracy"], labels=["good", "bad"], max_new_tokens=2,
    )  # fmt: skip
    verdict = succeeded(call(evaluation, make("evaluation"), params))
    assert {"base", "adapter", "model"} & set(verdict.result) == names
    assert verdict.result["n"] == len(ROWS)
    for name in names:
        assert verdict.result[name]["perplexity"]["value"] > 1
        assert verdict.result[name]["exact_match"]["n"] == len(ROWS)
        assert 0 <= verdict.result[name]["accuracy"]["macro_f1"] <= 1
    assert ("comparison" in verdict.result) == baseline
    manifest = read_manifest(store, verdict.artifacts[0])
    assert {file.path for file in manifest.files} == {"report.json", *(f"{name}.jsonl" for name in names)}
    assert verdict.usage.prompt_tokens > 0


def test_a_registered_set_is_trained_on_and_named_for_ever(
    make: Make, blank: Path, store: Memory, tmp_path: Path
) -> None:
    """The newest version is meant; what was trained on is in the result, whatever is registered later."""
    parts = {"train": ROWS[:4], "validation": ROWS[4:6], "test": ROWS[6:]}
    with Check(tmp_path) as check:
        for part, rows in parts.items():
            (tmp_path / f"{part}.in").write_text("".join(json.dumps(row) + "\n" for row in rows))
            check.take(part, tmp_path / f"{part}.in")
        report = check.finish()
        now = datetime(2030, 1, 2, tzinfo=UTC)
        version = datasets.register(store, "moods", report, recipe="prompt", by="me", now=now)
    params = Training(
        base=f"file:{blank}", data="dataset:moods", validation="dataset:moods", recipe="finlora", steps=2, batch_size=2,
        threads=1, max_length=32,
    )  # fmt: skip
    done = succeeded(call(training, make("training"), params))
    pinned = f"dataset:moods@{version.version}"
    assert (done.result["data"], done.result["validation"]) == (f"{pinned}#train", f"{pinned}#validation")
    assert done.result["rows"] == 4
    measured = Evaluation(model=f"file:{blank}", data="dataset:moods", metrics=["perplexity"], max_length=32, threads=1)
    assert succeeded(call(evaluation, make("evaluation"), measured)).result["n"] == len(ROWS[6:])
    lost = call(training, make("training"), params.model_copy(update={"data": "dataset:moods#nothing"}))
    assert isinstance(lost, Failed)
    assert (lost.failure.code, lost.failure.hint) == ("TAPE-2008", "it has train, validation, test")


def test_the_second_training_on_the_same_rows_finds_their_tokens(make: Make, blank: Path, store: Memory) -> None:
    told: list[dict[str, Any]] = []
    given = Training(
        base=f"file:{blank}", data="blob:rows.jsonl", validation="blob:rows.jsonl", steps=2, batch_size=2, threads=1,
        max_length=40, packing=True, gradient_checkpointing=True, precision="bfloat16",
        lora={"rslora": True, "dora": True},
    )  # fmt: skip
    first = succeeded(call(training, make("training", told=told), given))
    assert (first.result["precision"], first.result["rows"]) == ("bfloat16", len(ROWS))
    assert 0 < first.result["packs"] < len(ROWS)
    again = succeeded(call(training, make("training", told=told), given))
    assert again.result["loss"] == first.result["loss"]
    other = given.model_copy(update={"max_length": 41, "packing": False, "precision": "auto"})
    assert succeeded(call(training, make("training", told=told), other)).result["packs"] is None
    heard = [record["tokenised"] for record in told if "tokenised" in record]
    assert heard == ["made", "cached", "made"]
    assert {blob.name.split("/")[0] for blob in store.list("tokens/")} == {"tokens"}
    settings = json.loads(materialised(store, first, "train.json"))["params"]
    assert settings["rslora"] and settings["dora"] and settings["packing"] and settings["gradient_checkpointing"]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the qlora extra is not installed")
def test_an_adapter_made_on_four_bits_is_registered_as_an_adapter(make: Make, blank: Path, store: Memory) -> None:
    params = Training(
        base=f"file:{blank}", data="blob:rows.jsonl", method="qlora", steps=2, batch_size=2, threads=1, max_length=32,
        publish_as="small",
    )  # fmt: skip
    done = succeeded(call(training, make("training"), params))
    assert (done.artifacts[0].name, done.result["method"]) == ("adapter", "qlora")
    version = registry(store).find("small")
    assert (version.method, version.request["method"]) == ("lora", "qlora")
    assert "bitsandbytes" in version.versions
    asked = Inference(model="model:small", prompt="Headline:", max_new_tokens=2, threads=1)
    assert succeeded(call(inference, make("inference"), asked)).usage.completion_tokens > 0
    card = materialised(store, done, "README.md")
    assert card.startswith("---\nlibrary_name: peft")
    assert "| method | qlora |" in card


def materialised(store: Memory, done: Succeeded, name: str) -> str:
    [file] = [file for file in read_manifest(store, done.artifacts[0]).files if file.path == name]
    return store.read(blob_name(file.sha256)).decode()


def test_perplexity_alone_keeps_no_items(make: Make, blank: Path, store: Memory) -> None:
    params = Evaluation(model=f"file:{blank}", data="blob:rows.jsonl", metrics=["perplexity"], threads=1, limit=3)
    verdict = succeeded(call(evaluation, make("evaluation"), params))
    assert verdict.result["n"] == 3
    assert [file.path for file in read_manifest(store, verdict.artifacts[0]).files] == ["report.json"]


@pytest.mark.parametrize("way", ["prompt", "messages"])
def test_one_answer_is_in_the_result(make: Make, blank: Path, way: str) -> None:
    given: dict[str, Any] = {"prompt": "Headline:"}
    if way == "messages":
        given = {"messages": [{"role": "user", "content": "Headline?"}]}
    params = Inference(model=f"file:{blank}", max_new_tokens=3, threads=1, **given)
    verdict = succeeded(call(inference, make("inference"), params))
    assert isinstance(verdict.result["text"], str)
    assert verdict.artifacts == []
    assert 0 < verdict.usage.completion_tokens <= 3
    assert verdict.usage.prompt_tokens > 0


def test_answers_to_a_file_are_an_artifact_in_its_order(
    adapter: Artifact, make: Make, blank: Path, store: Memory, tmp_path: Path
) -> None:
    params = Inference(
        model=f"file:{blank}", adapter=adapter.uri, data="blob:rows.jsonl", max_new_tokens=2, batch_size=3, threads=1
    )
    verdict = succeeded(call(inference, make("inference"), params))
    assert verdict.result == {"rows": len(ROWS)}
    materialise(store, verdict.artifacts[0], tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in ROWS]
    assert sum(line["completion_tokens"] for line in lines) == verdict.usage.completion_tokens


def test_a_model_stays_warm_and_only_so_many_do(make: Make, blank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(models, "_warm", type(models._warm)())
    monkeypatch.setattr("workers.llm.model.load", lambda *args, **options: loaded.append((args, options)) or object())
    context = make("inference")
    first = models.model_for(context, f"file:{blank}", None, 1)
    assert models.model_for(context, f"file:{blank}", None, 1) is first
    assert len(loaded) == 1
    for threads in range(2, 2 + models.KEPT):
        models.model_for(context, f"file:{blank}", None, threads)
    assert len(models._warm) == models.KEPT
    assert models.model_for(context, f"file:{blank}", None, 1) is not first


@pytest.mark.parametrize("kind", ["training", "evaluation", "inference"])
def test_a_cancelled_job_stops_in_the_middle(make: Make, blank: Path, kind: str) -> None:
    told: list[dict[str, Any]] = []

    def stopped() -> bool:
        return any(entry.get("step") not in ("load", "train") for entry in told)

    model = f"file:{blank}"
    handler, params = {
        "training": (training, Training(base=model, data="blob:rows.jsonl", steps=500, batch_size=2, threads=1)),
        "evaluation": (
            evaluation,
            Evaluation(model=model, data="blob:rows.jsonl", batch_size=1, threads=1, metrics=["perplexity"]),
        ),
        "inference": (
            inference,
            Inference(model=model, data="blob:rows.jsonl", batch_size=1, max_new_tokens=2, threads=1),
        ),
    }[kind]
    verdict = call(handler, make(kind, stopped=stopped, told=told), params)
    assert isinstance(verdict, Cancelled), verdict
    if kind == "training":
        assert verdict.usage.training_tokens > verdict.usage.training_samples > 0, "it was learnt from until then"
    assert len(told) < 100


@pytest.mark.parametrize(
    ("data", "code"),
    [("blob:bad.jsonl", "TAPE-1008"), ("blob:none.jsonl", "TAPE-2001"), ("file:/nonexistent", "TAPE-2003")],
)
@pytest.mark.parametrize("kind", ["training", "evaluation", "inference"])
def test_bad_data_is_told_before_a_model_is_loaded(
    make: Make, blank: Path, data: str, code: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("workers.llm.model.load", load)
    model = f"file:{blank}"
    handler, params = {
        "training": (training, Training(base=model, data=data)),
        "evaluation": (evaluation, Evaluation(model=model, data=data)),
        "inference": (inference, Inference(model=model, data=data)),
    }[kind]
    verdict = call(handler, make(kind), params)
    assert isinstance(verdict, Failed)
    assert verdict.failure.code == code


def test_check_raises_what_the_runner_knows(make: Make) -> None:
    context = make("training", stopped=lambda: True)
    assert context.cancelled
    with pytest.raises(CancelledByRequest):
        context.check()
