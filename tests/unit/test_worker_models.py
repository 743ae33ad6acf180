"""A training that registers what it made: from references to a version, its card, and `model:` references to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_rig import ROWS

from schemas.errors import InvalidError, JobError, NotFoundError, TapeError
from schemas.job import Inference, Training
from schemas.lineage import TOP, ModelVersion, label
from schemas.outcome import Cancelled, Failed, Succeeded, Verdict
from schemas.version import Move
from wire.blobs.manifest import read_manifest
from wire.blobs.memory import Memory
from wire.registry import Registry
from workers import lineage
from workers.checkpoint import clear
from workers.context import Context
from workers.handlers.inference import inference
from workers.handlers.models import model_for
from workers.handlers.training import training
from workers.llm import model as models
from workers.llm import resume
from workers.refs import resolve
from workers.runner import call

pytestmark = pytest.mark.model
LINES = "".join(json.dumps({"prompt": row.prompt, "completion": row.completion}) + "\n" for row in ROWS)
Make = Callable[..., Context]


class Bench:
    """One store with rows and a base in it, and jobs that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.jobs = folder, Memory(), 0
        self.registry = Registry(self.store, TOP, ModelVersion)
        self.store.put("rows.jsonl", LINES.encode())

    def context(self, kind: str = "training", job: str | None = None, attempt: int = 1) -> Context:
        self.jobs += 1
        scratch = self.folder / f"scratch-{self.jobs}"
        scratch.mkdir()
        return Context(
            job=job or f"job-{self.jobs}", kind=kind, attempt=attempt, worker="w", tenant="acme",
            cache=self.folder / "cache", scratch=scratch, open_store=lambda: self.store, report=lambda _: None,
            stopped=lambda: False,
        )  # fmt: skip

    def train(self, base: Path | str, job: str | None = None, attempt: int = 1, **given: Any) -> Succeeded:
        params = Training(**{
            "base": base if isinstance(base, str) else f"file:{base}", "data": "blob:rows.jsonl", "steps": 3,
            "batch_size": 4, "threads": 1, "max_length": 32, "publish_as": "mood", **given,
        })  # fmt: skip
        return succeeded(call(training, self.context(job=job, attempt=attempt), params))


def succeeded(verdict: Verdict) -> Succeeded:
    assert isinstance(verdict, Succeeded), verdict
    return verdict


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def trained(bench: Bench, blank: Path) -> Succeeded:
    return bench.train(blank, job="first", validation="blob:rows.jsonl")


@pytest.fixture
def version(bench: Bench, trained: Succeeded) -> ModelVersion:
    return bench.registry.find(trained.result["model"])


def bytes_of(bench: Bench, verdict: Succeeded) -> dict[str, str]:
    return {file.path: file.sha256 for file in read_manifest(bench.store, verdict.artifacts[0]).files}


def test_the_version_says_all_that_it_was_made_of(bench: Bench, version: ModelVersion, trained: Succeeded) -> None:
    assert (version.name, version.method, version.job, version.attempt) == ("mood", "lora", "first", 1)
    assert (version.created_by, version.seed, version.exact) == ("acme", 0, True)
    assert trained.result["model"] == f"mood@{version.version}"
    assert version.artifact == trained.artifacts[0]
    rows = bench.store.stat("rows.jsonl").sha256
    assert (version.data, version.data_sha256) == (f"blob:rows.jsonl@sha256:{rows}", rows)
    assert (version.validation, version.validation_sha256) == (version.data, rows)
    assert version.base_sha256 == trained.result["base_sha256"]
    assert (version.request["data"], version.request["steps"]) == ("blob:rows.jsonl", 3), "as it was sent"
    assert (version.settings["threads"], version.settings["rank"]) == (1, 8), "as it was done"
    assert version.metrics["loss"] == trained.result["loss"]
    assert {"python", "tickertape", "torch", "transformers", "peft"} <= set(version.versions)
    assert version.processor == resume.hardware()
    commit = lineage.commit()
    assert version.commit == commit
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_the_card_tells_it_to_people_and_no_path_of_this_machine(
    bench: Bench, trained: Succeeded, version: ModelVersion, blank: Path
) -> None:
    folder = resolve(f"model:{trained.result['model']}", bench.context(), field="adapter")
    card = (folder / "README.md").read_text()
    assert f"# A LoRA adapter for `{blank.name}`" in card
    assert f"| data | `blob:rows.jsonl` | `{version.data_sha256}` |" in card
    assert f"| base | `{blank.name}` | `{version.base_sha256}` |" in card
    assert "3 steps over 16 rows" in card
    assert "| rank | 8 |" in card
    assert f"| torch | {version.versions['torch']} |" in card
    assert "PeftModel.from_pretrained" in card
    assert str(blank.parent) not in card
    assert "first" not in card.replace("first_loss", ""), "the job's name"
    assert "README.md" in models.verify(folder), "sealed with the rest"


def test_what_was_told_of_the_rows_is_with_the_model(bench: Bench, trained: Succeeded, blank: Path) -> None:
    (version,) = bench.registry.versions("mood")
    assert version.warnings == trained.result["warnings"] == {"leak": len(ROWS)}, "it was validated on what it learnt"
    folder = resolve(f"model:{trained.result['model']}", bench.context(), field="adapter")
    assert (
        f"## What was told of the rows\n| | |\n|---|---|\n| leak | {len(ROWS)} |\n"
        in (folder / "README.md").read_text()
    )
    quiet = bench.train(blank, publish_as="quiet")
    assert "warnings" not in quiet.result
    assert bench.registry.find("quiet").warnings == {}


def test_rows_with_an_error_are_not_trained_on(bench: Bench, blank: Path) -> None:
    bench.store.put("held.jsonl", LINES.splitlines(keepends=True)[3].encode())
    params = Training(base=f"file:{blank}", data="blob:rows.jsonl", validation="blob:held.jsonl", publish_as="never")
    verdict = call(training, bench.context(), params)
    assert isinstance(verdict, Failed)
    assert (verdict.failure.code, verdict.failure.failure) == ("TAPE-1014", "invalid")
    assert verdict.failure.place == {"file": "blob:rows.jsonl", "line": 4, "field": "line", "rule": "leak"}
    assert "never" not in bench.registry.names()


def test_targets_that_are_no_layers_are_told_by_the_name_of_the_field(bench: Bench, blank: Path) -> None:
    params = Training(base=f"file:{blank}", data="blob:rows.jsonl", steps=1, threads=1, lora={"targets": ["nothing"]})
    verdict = call(training, bench.context(), params)
    assert isinstance(verdict, Failed)
    assert (verdict.failure.code, verdict.failure.place["field"]) == ("TAPE-1002", "lora.targets")
    assert "c_attn" in verdict.failure.hint


def test_two_runs_are_the_same_bytes_and_one_version(bench: Bench, trained: Succeeded, blank: Path) -> None:
    again = bench.train(blank, job="second", attempt=2, validation="blob:rows.jsonl")
    assert bytes_of(bench, again) == bytes_of(bench, trained)
    assert again.result["model"] == trained.result["model"]
    (version,) = bench.registry.versions("mood")
    assert version.job == "first", "what is there stays"
    assert version.artifact != again.artifacts[0], "each job keeps an artifact of its own; the files are shared"


def test_another_seed_is_another_version_and_another_name_is_not(bench: Bench, blank: Path, trained: Succeeded) -> None:
    other = bench.train(blank, seed=7, validation="blob:rows.jsonl", publish_as="seeds")
    same = bench.train(blank, validation="blob:rows.jsonl", publish_as="twin")
    was = trained.result["model"].partition("@")[2]
    assert other.result["model"].partition("@")[2] != was
    assert same.result["model"] == f"twin@{was}"


def test_who_does_not_ask_registers_nothing(bench: Bench, blank: Path) -> None:
    names = bench.registry.names()
    verdict = bench.train(blank, publish_as=None)
    assert "model" not in verdict.result
    assert bench.registry.names() == names
    assert "README.md" in bytes_of(bench, verdict), "a card there is all the same"


def test_a_registered_adapter_is_loaded_on_its_base(bench: Bench, trained: Succeeded, blank: Path) -> None:
    ref = f"model:{trained.result['model']}"
    loaded = model_for(bench.context("inference"), "model:mood", None, 1)
    assert (loaded.path, loaded.adapter) == (blank, resolve(ref, bench.context(), field="adapter"))
    beside = model_for(bench.context("inference"), f"file:{blank}", ref, 1)
    assert beside is loaded, "the same two, given apart"
    answer = succeeded(call(inference, bench.context("inference"), Inference(model="model:mood", prompt="Headline:")))
    assert "text" in answer.result


def test_a_registered_model_is_a_base_and_its_alias_is_pinned(bench: Bench, blank: Path) -> None:
    made = bench.train(blank, method="full", publish_as="whole")
    name, _, at = made.result["model"].partition("@")
    bench.registry.move(
        name, Move(alias="prod", before=None, after=at, by="me", time=bench.registry.find(name).created_at)
    )
    tuned = bench.train("model:whole@prod", publish_as="tuned")
    version = bench.registry.find("tuned")
    assert (version.base, version.request["base"]) == (f"model:whole@{at}", "model:whole@prod")
    assert tuned.result["base"] == f"model:whole@{at}", "the result says what it was, whatever the alias is later"
    assert bench.train(version.base, publish_as="tuned").result["model"] == tuned.result["model"], "pinned, the same"
    assert (
        f"`model:whole@{at}`"
        in bench.store.read(
            f"blobs/sha256/{bytes_of(bench, tuned)['README.md'][:2]}/{bytes_of(bench, tuned)['README.md']}"
        ).decode()
    )
    assert model_for(bench.context("inference"), "model:tuned", None, 1).adapter is not None
    whole = resolve("model:whole", bench.context(), field="model")
    assert "AutoModelForCausalLM.from_pretrained" in (whole / "README.md").read_text()


MOVING: dict[str, Any] = {
    "data": "blob:rows.jsonl", "steps": 6, "batch_size": 4, "threads": 1, "max_length": 32,
    "checkpoint_steps": 2, "method": "full",
}  # fmt: skip


def moving(bench: Bench, blank: Path, name: str) -> tuple[str, Context]:
    """A training that was stopped on the way, whose base's name has moved meanwhile; what it was, and the next try."""
    at = bench.train(blank, method="full", publish_as=name, seed=1).result["model"]
    first, kept = bench.context(), list[float]()
    first.report = lambda told: kept.append(told["checkpoint"]) if "checkpoint" in told else None
    first.stopped = lambda: bool(kept)
    assert isinstance(call(training, first, Training(**MOVING, base=f"model:{name}")), Cancelled), (
        "drained, once it had a checkpoint"
    )
    moved = bench.train(blank, method="full", publish_as=name, seed=2).result["model"]
    assert moved != at
    return at, bench.context(job=first.job, attempt=2)


def test_what_has_started_stays_with_its_version(bench: Bench, blank: Path) -> None:
    at, again = moving(bench, blank, "moving")
    calm = succeeded(call(training, bench.context(), Training(**MOVING, base=f"model:{at}")))
    done = succeeded(call(training, again, Training(**MOVING, base="model:moving")))
    assert (done.result["base"], done.result["exact"]) == (f"model:{at}", True)
    assert 0 < done.result["resumed_from"] < 6
    weights = "model.safetensors"
    assert bytes_of(bench, done)[weights] == bytes_of(bench, calm)[weights]
    clear(bench.store, again.job)
    assert [blob.name for blob in bench.store.list(f"runs/{again.job}/checkpoints/")] == [], "gone with the rest"


def test_a_version_that_is_gone_when_it_is_tried_again_is_told(bench: Bench, blank: Path) -> None:
    at, again = moving(bench, blank, "going")
    bench.registry.remove(bench.registry.find(at))
    verdict = call(training, again, Training(**MOVING, base="model:going"))
    assert isinstance(verdict, Failed)
    told = verdict.failure
    assert (told.code, told.place["field"]) == ("TAPE-2008", "base")
    assert told.message == f"model:going was model:{at} when the job was first tried, and that is gone"
    assert "submit the job anew" in told.hint
    patched = Training(**MOVING, base="model:going@" + bench.registry.find("going").version[:6])
    assert isinstance(call(training, bench.context(job=again.job, attempt=3), patched), Succeeded), "a patched redrive"


def test_of_two_first_attempts_one_says_what_a_name_means(
    bench: Bench, trained: Succeeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen worker's child looks a name up beside its successor's: both go by what was written first."""
    context = bench.context("inference", job="twice")
    params = Inference(model="model:mood", prompt="Headline:")
    was = lineage.pinned(params, context)
    assert was.model == f"model:{trained.result['model']}"
    monkeypatch.setattr(lineage, "_version", lambda ref, *_: ref if "@" in ref else f"{ref}@{'0' * 16}")
    real, late = lineage._taken, [None]
    monkeypatch.setattr(lineage, "_taken", lambda *given: late.pop() if late else real(*given))
    assert lineage.pinned(params, context) == was
    other = bench.context("inference", job="another")
    assert lineage.pinned(params, other).model == f"model:mood@{'0' * 16}"


@pytest.mark.parametrize(("base", "field", "code", "told"), [
    ("model:nothing", "base", "TAPE-2008", "no model is called 'nothing'"),
    ("model:mood@prod", "base", "TAPE-2008", "'mood' has no version or alias 'prod'"),
    ("model:../x", "base", "TAPE-1010", "'../x' is no name"),
    ("model:mood", "base", "TAPE-1002", "model:mood is an adapter, and a training needs a whole model"),
    ("model:", "base", "TAPE-1002", "'model:' is not a reference"),
])  # fmt: skip
def test_a_wrong_reference_is_told(
    bench: Bench, trained: Succeeded, base: str, field: str, code: str, told: str
) -> None:
    assert trained
    with pytest.raises(TapeError) as wrong:
        resolve(base, bench.context(), field=field)
    assert (wrong.value.code, wrong.value.message) == (code, told)
    assert wrong.value.hint


def test_a_training_on_an_adapter_says_which_base_to_give(bench: Bench, trained: Succeeded, blank: Path) -> None:
    verdict = call(training, bench.context(), Training(base="model:mood", data="blob:rows.jsonl"))
    assert trained
    assert isinstance(verdict, Failed)
    assert verdict.failure.hint == f"give its base, file:{blank}"


def test_an_adapter_where_a_model_belongs_and_the_other_way_round(
    bench: Bench, trained: Succeeded, blank: Path
) -> None:
    assert trained
    bench.train(blank, method="full", publish_as="big")
    with pytest.raises(InvalidError, match="model:big is a whole model, no adapter"):
        model_for(bench.context("inference"), f"file:{blank}", "model:big", 1)
    with pytest.raises(InvalidError, match="model:mood is an adapter itself") as two:
        model_for(bench.context("inference"), "model:mood", "model:mood", 1)
    assert f"its base file:{blank}" in two.value.hint


def test_a_blob_that_was_pinned_is_what_it_was_or_an_error(bench: Bench, tmp_path: Path) -> None:
    bench.store.put("loose.jsonl", b"one")
    sha256 = bench.store.stat("loose.jsonl").sha256
    ref = f"blob:loose.jsonl@sha256:{sha256}"
    assert resolve(ref, bench.context(), field="data").read_bytes() == b"one"
    bench.store.put("loose.jsonl", b"two")
    assert resolve(ref, bench.context(), field="data").read_bytes() == b"one", "the cache has it"
    assert resolve("blob:loose.jsonl", bench.context(), field="data").read_bytes() == b"two"
    fresh = bench.context()
    fresh.cache = tmp_path
    with pytest.raises(JobError, match=r"loose\.jsonl is not what it was") as changed:
        resolve(ref, fresh, field="data")
    assert changed.value.code == "TAPE-6007"
    with pytest.raises(NotFoundError):
        resolve(f"blob:gone@sha256:{sha256}", fresh, field="data")


@pytest.mark.parametrize(("ref", "wanted"), [
    ("file:/home/me/models/tiny", "tiny"),
    ("blob:a/rows.jsonl@sha256:" + "0" * 64, "blob:a/rows.jsonl"),
    ("model:mood@0123456789abcdef", "model:mood@0123456789abcdef"),
    ("builtin:smollm2", "builtin:smollm2"),
])  # fmt: skip
def test_what_a_card_calls_a_reference(ref: str, wanted: str) -> None:
    assert label(ref) == wanted


def test_an_accelerator_is_named_before_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert resume.hardware() == f"NVIDIA H200, {resume.processor()}"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    lineage.commit.cache_clear()
    monkeypatch.setattr(subprocess, "run", away)
    assert lineage.commit() is None
    lineage.commit.cache_clear()
