"""Distillation: the formula against numpy, a student that comes nearer to its teacher, the same bytes after a death."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_llm_resume import STEPS, Bench, Killed
from train_rig import ROWS, files

from schemas.architecture import Architecture
from schemas.errors import InvalidError
from schemas.row import Row
from workers.llm import distill, pretrain
from workers.llm import model as models
from workers.llm.data import IGNORED, encode
from workers.llm.settings import TrainParams
from workers.llm.train import train

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]
SMALL = {"layers": 1, "heads": 2, "width": 16, "context": 64}
Student = Callable[..., Path]


@pytest.fixture(scope="module")
def teacher(blank: Path, texts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has read all the texts."""
    out = tmp_path_factory.mktemp("teacher")
    train(
        TrainParams(method="full", steps=60, batch_size=8, lr=3e-3, threads=1, device="cpu", max_length=64),
        base=blank, rows=read(texts), out=out,
    )  # fmt: skip
    return out


def read(texts: Sequence[str]) -> list[Row]:
    return [Row("", text, str(number)) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Builds a smaller model with the teacher's tokenizer."""

    def made(dropout: float = 0.0, **more: Any) -> Path:
        path = tmp_path_factory.mktemp("student") / "small"
        tokenizer, _ = pretrain.borrow(teacher)
        pretrain.blank(path, Architecture(**SMALL | more, dropout=dropout), tokenizer, seed=3)
        return path

    return made


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_divergence_is_that_of_its_definition(blank: Path, temperature: float) -> None:
    import torch

    assert blank
    dice = np.random.default_rng(0)
    one, other = dice.normal(size=(5, 11)), dice.normal(size=(5, 11))
    p, q = softmax(one / temperature), softmax(other / temperature)
    wanted = (p * (np.log(p) - np.log(q))).sum(axis=-1)
    found = distill.divergence(torch.tensor(one), torch.tensor(other), temperature)
    assert found.numpy() == pytest.approx(wanted, rel=1e-9)
    assert distill.divergence(torch.tensor(one), torch.tensor(one), temperature).abs().max() < 1e-12


def test_what_is_learnt_is_the_formula_over_the_answers_alone(teacher: Path, student: Student) -> None:
    """(1 - a) CE + a T² KL, by hand from the logits of both; its value is told as the cross entropy."""
    import torch

    master, pupil = models.load(teacher, threads=1), models.load(student(), threads=1)
    part, heat, together = 0.3, 3.0, 10
    lesson = distill.Lesson(master, heat, part)
    rows = [encode(row, pupil.tokenizer, 64) for row in ROWS[:2]]
    width = min(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids[-width:] for row in rows])
    labels = torch.tensor([row.labels[-width:] for row in rows])
    assert (labels == IGNORED).any(), "prompts are among them"
    pupil.module.train()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    loss, _ = lesson(pupil.module, {**batch, "labels": labels}, together)
    loss.backward()
    learnt = pupil.module.lm_head.weight.grad.clone()
    pupil.module.zero_grad()

    with torch.no_grad():
        said = master.module(**batch).logits[:, :-1][labels[:, 1:] != IGNORED]
    heard = pupil.module(**batch).logits[:, :-1][labels[:, 1:] != IGNORED]
    targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    entropy = -heard.log_softmax(-1)[torch.arange(len(targets)), targets].sum() / together
    p, q = (said / heat).softmax(-1), (heard / heat).softmax(-1)
    apart = (p * (p.log() - q.log())).sum() / together
    ((1 - part) * entropy + part * heat**2 * apart).backward()
    assert torch.allclose(learnt, pupil.module.lm_head.weight.grad, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(float(entropy.detach()), rel=1e-5)
    assert lesson.take()["divergence"] == pytest.approx(float(apart.detach()), abs=1e-5)
    assert lesson.take()["divergence"] == 0, "of the next step"
    assert all(tensor.grad is None for tensor in master.module.parameters())


def apart(teacher: Path, path: Path, rows: list[Row]) -> float:
    """KL(teacher ‖ student) of the answers, nats per token, at temperature one."""
    import torch

    master, pupil = models.load(teacher, threads=1), models.load(path, threads=1)
    found = []
    for row in rows:
        made = encode(row, pupil.tokenizer, 64)
        ids = torch.tensor([made.input_ids])
        kept = torch.tensor(made.labels[1:]) != IGNORED
        with torch.no_grad():
            said, heard = (one.module(input_ids=ids).logits[0, :-1][kept] for one in (master, pupil))
        found += distill.divergence(said, heard, 1.0).tolist()
    return float(np.mean(found))


def test_a_student_comes_nearer_to_its_teacher_than_by_the_rows_alone(
    teacher: Path, student: Student, texts: tuple[str, ...], tmp_path: Path
) -> None:
    """It reads two texts; of the thirty others it knows only what its teacher thinks of those two."""
    base, rows = student(width=32), read(texts)
    found = {}
    for share in (0.0, 0.9):
        params = TrainParams(
            method="distill", teacher=teacher, temperature=1.0, teacher_share=share, steps=60, batch_size=8, lr=5e-3,
            threads=1, device="cpu", max_length=64,
        )  # fmt: skip
        done = train(params, base=base, rows=rows[:2], out=tmp_path / str(share))
        assert done.teacher == models.fingerprint(teacher)
        found[share] = apart(teacher, done.out, rows[2:])
    before = apart(teacher, base, rows[2:])
    assert found[0.9] < 0.5 * found[0.0] < 0.5 * before


def test_without_a_share_of_the_teacher_it_is_a_full_training(teacher: Path, student: Student, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = student(dropout=0.1)
    given = {"steps": 6, "batch_size": 3, "accumulation": 2, "lr": 3e-3, "threads": 1, "device": "cpu"}
    train(TrainParams(method="full", **given), base=base, rows=ROWS, out=tmp_path / "full")
    train(
        TrainParams(method="distill", teacher=teacher, temperature=2.0, teacher_share=0.0, max_length=64, **given),
        base=base, rows=ROWS, out=tmp_path / "distilled",
    )  # fmt: skip
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "distilled"))
    assert all(np.allclose(one[name], two[name], atol=2e-5) for name in one)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_whoever_dies_and_goes_on_ends_in_the_same_bytes(
    teacher: Path, student: Student, tmp_path: Path, dropout: float
) -> None:
    settings = {
        "method": "distill", "teacher": teacher, "temperature": 2.0, "teacher_share": 0.5, "max_length": 64
    }  # fmt: skip
    base = student(dropout)
    calm = Bench(base, tmp_path / "calm").run(**settings)
    bench = Bench(base, tmp_path / "stormy")
    for step in (5, 9):
        with pytest.raises(Killed):
            bench.run(die_at=step, **settings)
    last = bench.run(**settings)
    assert (last.resumed, last.exact, last.steps) == (8, True, STEPS)
    assert files(last.out) == files(calm.out)
    assert str(teacher) not in (last.out / "train.json").read_text(), "no path of this machine"


def test_with_another_teacher_it_begins_anew(teacher: Path, student: Student, tmp_path: Path, blank: Path) -> None:
    settings = {
        "method": "distill", "teacher": teacher, "temperature": 2.0, "teacher_share": 0.5, "max_length": 64
    }  # fmt: skip
    bench = Bench(student(), tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5, **settings)
    assert bench.run(**settings | {"teacher": blank}).resumed == 0


def test_a_teacher_that_speaks_otherwise_is_refused(
    teacher: Path, student: Student, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "model"
    pretrain.blank(other, Architecture(**SMALL), pretrain.bpe(["other words"], size=280, context=64), seed=0)
    settings = {"method": "distill", "temperature": 2.0, "teacher_share": 0.5, "device": "cpu", "threads": 1}
    with pytest.raises(InvalidError) as caught:
        train(TrainParams(**settings, teacher=teacher), base=other, rows=ROWS, out=other.parent / "out")
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1002", "teacher")
    assert caught.value.message.startswith("the teacher's tokenizer is not the student's: ")
    assert "`method: pretrain` with the teacher as `tokenizer`" in caught.value.hint
    far = student(context=1024)
    with pytest.raises(InvalidError) as short:
        train(TrainParams(**settings, teacher=teacher, max_length=900), base=far, rows=ROWS, out=other.parent / "out")
    assert (short.value.place["field"], short.value.hint) == ("max_length", "set max_length to 512")
    assert short.value.message == "the teacher takes 512 tokens, and a row may have 900"
