"""Trainings from nothing and distillations as jobs: what is registered of them, and that they can be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_worker_models import Bench, bytes_of, succeeded

from producers.models import Shelf, differences, plan, request, shown
from schemas.codec import parse
from schemas.job import Training
from schemas.lineage import ModelVersion
from schemas.outcome import Failed, Succeeded
from workers.handlers.training import training
from workers.llm import model as models
from workers.refs import resolve
from workers.runner import call

pytestmark = pytest.mark.model
SMALL = {"layers": 1, "heads": 2, "width": 16, "context": 64, "vocabulary": 300}
SPARSE = SMALL | {"family": "moe", "experts": 2, "experts_per_token": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, blank: Path) -> Bench:
    assert blank, "torch is here"
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.store.put(
        "text.jsonl", "".join(json.dumps({"text": f"Line {one} of many."}) + "\n" for one in range(40)).encode()
    )
    return bench


def ask(bench: Bench, **given: Any) -> Succeeded:
    asked = {"data": "blob:text.jsonl", "steps": 3, "batch_size": 4, "threads": 1, "max_length": 32, **given}
    return succeeded(call(training, bench.context(), parse(Training, asked)))


@pytest.fixture(scope="module")
def sparse(bench: Bench) -> Succeeded:
    return ask(bench, method="pretrain", architecture=SPARSE, validation="blob:text.jsonl", publish_as="sparse")


@pytest.fixture(scope="module")
def pupil(bench: Bench, sparse: Succeeded) -> Succeeded:
    """A dense student with the tokenizer of the mixture."""
    assert sparse
    return ask(bench, method="pretrain", architecture=SMALL, tokenizer="model:sparse", publish_as="pupil", seed=2)


@pytest.fixture(scope="module")
def taught(bench: Bench, pupil: Succeeded) -> Succeeded:
    assert pupil
    return ask(bench, method="distill", base="model:pupil", teacher="model:sparse", publish_as="taught")


def version(bench: Bench, done: Succeeded) -> ModelVersion:
    return bench.registry.find(done.result["model"])


def again(bench: Bench, made: ModelVersion) -> str:
    """The version that the same request makes once more."""
    job = request(made)
    assert job.kind == "training"
    params = parse(Training, dict(job.params))
    return str(succeeded(call(training, bench.context(), params)).result["model"])


def test_a_model_from_nothing_says_what_it_was_built_as(bench: Bench, sparse: Succeeded) -> None:
    made = version(bench, sparse)
    assert (made.method, made.request["method"], made.base) == ("full", "pretrain", "scratch:moe")
    assert made.base_sha256 == sparse.result["base_sha256"], "of the weights that the seed gave"
    assert made.request["architecture"]["experts"] == made.settings["architecture"]["experts"] == 2
    assert (made.teacher, made.tokenizer) == (None, None)
    assert sparse.result["rows"] == 40
    assert sparse.result["blocks"] < 40, "the short texts share blocks"
    assert sparse.artifacts[0].name == "model"
    row = shown(Shelf(bench.store), "sparse")
    assert row["request"]["architecture"]["balance"] == 0.01
    folder = resolve("model:sparse", bench.context(), field="model")
    card = (folder / "README.md").read_text()
    assert "# A causal language model, trained from `scratch:moe`" in card
    assert f"| base | `scratch:moe` | `{made.base_sha256}` |" in card
    assert "| architecture.experts | 2 |" in card
    assert str(bench.folder) not in card
    assert json.loads((folder / "manifest.json").read_text())["base_name"] == "moe-from-scratch"
    assert models.load(folder).module.config.model_type == "mixtral"


def test_a_borrowed_tokenizer_is_named_for_ever(bench: Bench, pupil: Succeeded, sparse: Succeeded) -> None:
    made = version(bench, pupil)
    assert made.tokenizer == f"model:{sparse.result['model']}"
    assert made.request["tokenizer"] == "model:sparse"
    of = {name: files["tokenizer.json"] for name, files in (("sparse", bytes_of(bench, sparse)),)}
    assert made.tokenizer_sha256 == pupil.result["tokenizer_sha256"] == of["sparse"]
    card = (resolve("model:pupil", bench.context(), field="model") / "README.md").read_text()
    assert f"| tokenizer | `{made.tokenizer}` | `{made.tokenizer_sha256}` |" in card


def test_a_distilled_model_names_its_teacher(bench: Bench, taught: Succeeded, sparse: Succeeded) -> None:
    made = version(bench, taught)
    assert (made.method, made.teacher) == ("full", f"model:{sparse.result['model']}")
    teacher = resolve("model:sparse", bench.context(), field="model")
    assert made.teacher_sha256 == taught.result["teacher_sha256"] == models.fingerprint(teacher)
    assert (made.settings["temperature"], made.settings["teacher_share"]) == (2.0, 0.5)
    card = (resolve("model:taught", bench.context(), field="model") / "README.md").read_text()
    assert f"distilled from `{made.teacher}` into `{made.base}`" in card
    assert f"| teacher | `{made.teacher}` | `{made.teacher_sha256}` |" in card


@pytest.mark.parametrize("name", ["sparse", "pupil", "taught"])
def test_it_is_made_again_byte_for_byte(bench: Bench, taught: Succeeded, name: str) -> None:
    assert taught
    made = bench.registry.find(name)
    assert again(bench, made) == f"{name}@{made.version}"


def test_what_is_made_again_is_made_of_the_same(bench: Bench, taught: Succeeded, pupil: Succeeded) -> None:
    """The request named the newest, which may be another by then."""
    for done, use in ((taught, "teacher"), (pupil, "tokenizer")):
        made = version(bench, done)
        assert made.request[use] == "model:sparse"
        asked = dict(request(made).params)
        assert asked[use] == getattr(made, use) == f"model:sparse@{bench.registry.find('sparse').version}"
    assert dict(request(version(bench, pupil)).params)["base"] is None


def test_what_differs_between_two_is_told(bench: Bench, taught: Succeeded, pupil: Succeeded) -> None:
    rows = {row["field"]: (row["a"], row["b"]) for row in differences(version(bench, pupil), version(bench, taught))}
    assert rows["teacher"] == (None, version(bench, taught).teacher)
    assert rows["request.method"] == ("pretrain", "distill")


def test_a_teacher_and_a_tokenizer_stay_while_what_was_made_of_them_does(bench: Bench, taught: Succeeded) -> None:
    assert taught
    swept = plan(Shelf(bench.store), keep=0)
    assert {one.name for one in swept.versions} >= {"taught", "pupil", "sparse"}, "nothing holds any of them"
    kept = plan(Shelf(bench.store), name="sparse", keep=0)
    assert "sparse" not in {one.name for one in kept.versions}


def test_an_adapter_is_no_teacher(bench: Bench, blank: Path, pupil: Succeeded) -> None:
    assert pupil
    bench.train(blank, publish_as="adapter")
    params = parse(Training, {
        "method": "distill", "base": "model:pupil", "teacher": "model:adapter", "data": "blob:text.jsonl"
    })  # fmt: skip
    verdict = call(training, bench.context(), params)
    assert isinstance(verdict, Failed)
    name = bench.registry.find("adapter").version
    assert verdict.failure.message == f"model:adapter@{name} is an adapter, and a training needs a whole model"
    assert verdict.failure.place["field"] == "teacher"
