"""A training that was killed goes on from its last checkpoint, and on a CPU ends in the very same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resume_rig import SETTINGS, STEPS, Bench, Killed
from train_rig import ROWS, files

from schemas.errors import JobError
from schemas.row import Row
from workers.llm import model as models
from workers.llm import resume
from workers.llm.score import perplexity
from workers.llm.settings import TrainParams
from workers.llm.train import train
from workers.llm.watch import Trend

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]


@pytest.fixture(scope="module")
def whole(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that nobody disturbed, and that kept no checkpoint."""
    out = tmp_path_factory.mktemp("whole")
    train(TrainParams(**SETTINGS), base=blank, rows=ROWS, valid=ROWS[:3], out=out)
    return out


@pytest.mark.parametrize("deaths", [(5,), (1, 4, 4, 9), (2, 3, 11)])
def test_whoever_dies_and_goes_on_ends_in_the_same_bytes(
    blank: Path, whole: Path, tmp_path: Path, deaths: tuple[int, ...]
) -> None:
    bench = Bench(blank, tmp_path)
    for step in deaths:
        with pytest.raises(Killed):
            bench.run(die_at=step)
    last = bench.run()
    assert last.resumed == (deaths[-1] - 1) // 2 * 2
    assert (last.exact, last.steps) == (True, STEPS)
    assert files(last.out) == files(whole), "weights, metrics, settings: all of it"


def test_checkpoints_come_when_they_are_due_and_hold_no_pickled_code(blank: Path, tmp_path: Path) -> None:
    bench = Bench(blank, tmp_path)
    bench.run(checkpoint_steps=4)
    assert bench.kept == [4, 8], "not after the last step: the model itself comes then"
    names = {blob.name.rsplit("/", 1)[-1] for blob in bench.store.list("runs/j/checkpoints/")}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", resume.STATE} < names
    assert resume.PICKLED not in names
    assert bench.run(checkpoint_steps=None).resumed == 8, "where nothing is said they come by the minute"
    assert bench.kept == [4, 8]


def test_by_the_minute(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    bench = Bench(blank, tmp_path)
    bench.run(checkpoint_steps=None)
    assert bench.kept, "whenever the one before is through"
    assert bench.kept == sorted(set(bench.kept))


def test_who_is_told_to_stop_leaves_a_checkpoint_of_that_step(blank: Path, whole: Path, tmp_path: Path) -> None:
    bench = Bench(blank, tmp_path)
    stopped = bench.run(stop_at=4)  # asked between the fourth step and the fifth
    assert stopped.stopped
    assert bench.steps()[0] == 5
    last = bench.run()
    assert last.resumed == 5
    assert files(last.out) == files(whole)


def test_nobody_stops_a_training_that_is_done(blank: Path, whole: Path, tmp_path: Path) -> None:
    """The word comes during the last step: there is nothing left to save."""
    done = Bench(blank, tmp_path).run(stop_at=STEPS - 1, checkpoint_steps=100)
    assert not done.stopped
    assert files(done.out)["adapter_model.safetensors"] == files(whole)["adapter_model.safetensors"]


def test_a_killed_training_leaves_nothing_outside_its_scratch(blank: Path, tmp_path: Path) -> None:
    bench = Bench(blank, tmp_path / "scratch")
    made: list[str] = []
    bench.run(
        hook=lambda step: made.extend(str(path) for path in bench.folder.glob("tape-train-*")) if step == 3 else None
    )
    assert made, "checkpoints in the making lie beside the output, which goes with the scratch folder"


def test_threads_are_taken_over_from_who_began(blank: Path, whole: Path, tmp_path: Path) -> None:
    import torch

    bench = Bench(blank, tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5)
    last = bench.run(threads=2)
    assert last.exact
    assert torch.get_num_threads() == 1
    assert files(last.out) == files(whole)


def test_threads_are_taken_over_from_a_larger_machine(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    bench = Bench(blank, tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5, threads=2)
    monkeypatch.setattr(models, "MOST", 1)
    monkeypatch.setattr(models, "cores", lambda: 0)
    last = bench.run(threads=2)
    assert (last.exact, last.resumed > 0, torch.get_num_threads()) == (True, True, 2)
    assert bench.run(threads=2, steps=1).exact
    assert torch.get_num_threads() == 1, "what begins here begins with what is borne here"


@pytest.mark.parametrize(
    ("name", "other"),
    [("versions", lambda *_: {"torch": "1.0"}), ("CODE", 1), ("processor", lambda: "another, AVX9")],
)
def test_other_versions_go_on_and_say_so(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: Any
) -> None:
    bench = Bench(blank, tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5)
    monkeypatch.setattr(resume, name, other)
    with pytest.raises(Killed):
        bench.run(die_at=7)
    assert {"resumed": 4, "exact": False} in bench.told
    monkeypatch.undo()
    assert not bench.run().exact, "what was not exact once is not again"


@pytest.mark.parametrize("other", [{"lr": 1e-3}, {"rank": 4}, {"seed": 3}])
def test_a_checkpoint_of_another_request_is_no_use(blank: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    bench = Bench(blank, tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5)
    assert bench.run(**other).resumed == 0


@pytest.mark.parametrize("other", [{"rows": [*ROWS[1:], ROWS[0]]}, {"valid": ROWS[3:6]}])
def test_a_checkpoint_of_other_rows_is_no_use(blank: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    bench = Bench(blank, tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=5)
    assert bench.run(**other).resumed == 0


def test_what_must_be_the_same_to_go_on_and_to_be_exact() -> None:
    decides = ("request", "base", "rows", "teacher")
    mine = dict.fromkeys((*decides, *resume.ALIKE, "threads"), "a") | {"device": "cpu", "exact": True}
    assert resume.fits(mine, mine)
    assert resume.exact(mine, mine)
    assert [name for name in mine if not resume.fits(mine, mine | {name: "b"})] == list(decides)
    assert {name for name in mine if not resume.exact(mine, mine | {name: ""})} == {
        "device", "batch_size", "versions", "processor", "code", "exact",
    }  # fmt: skip
    assert not resume.exact(mine | {"device": "cuda"}, mine | {"device": "cuda"}), "a GPU promises nothing"


def test_where_memory_runs_out_fewer_rows_are_taken_at_a_time(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    real = GPT2LMHeadModel.forward

    def greedy(self: Any, input_ids: Any = None, **more: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids=input_ids, **more)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", greedy)
    bench = Bench(blank, tmp_path)
    done = bench.run(batch_size=6, accumulation=1)
    assert done.steps == STEPS
    assert not done.exact, "other batches, other bytes"
    halvings = [record for record in bench.told if record.get("reason") == "out of memory"]
    assert halvings == [
        {"reason": "out of memory", "batch_size": 3, "accumulation": 2},
        {"reason": "out of memory", "batch_size": 1, "accumulation": 6},
    ]
    with pytest.raises(JobError) as caught:
        monkeypatch.setattr(GPT2LMHeadModel, "forward", lambda *_, **__: greedy(None, input_ids=[1, 2, 3]))
        Bench(blank, tmp_path / "one").run(batch_size=1)
    assert caught.value.code == "TAPE-6003"


def test_memory_that_runs_out_late_goes_on_from_the_checkpoint(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    real, at = GPT2LMHeadModel.forward, [0]

    def late(self: Any, input_ids: Any = None, **more: Any) -> Any:
        if len(input_ids) > 1 and at[0] >= 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids=input_ids, **more)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", late)
    bench = Bench(blank, tmp_path)
    done = bench.run(hook=lambda step: at.__setitem__(0, step))
    assert (done.resumed, done.exact, done.steps) == (6, False, STEPS)
    trained = [record["step"] for record in bench.told if "loss" in record]
    assert trained == [1, 2, 3, 4, 5, 6, 7, *range(7, STEPS + 1)]
    lines = (done.out / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == STEPS + 1, "no step is in the record twice"


HELD = [Row(row.prompt, "bad" if row.completion == "good" else "good", row.id) for row in ROWS[:4]]
"""Rows on which the training gets worse the more it learns: they say the opposite."""


@pytest.mark.parametrize(("method", "lr", "patience"), [("full", 2e-3, 3), ("lora", 5e-2, 1)])
def test_it_ends_early_with_the_weights_of_the_best_validation(
    blank: Path, tmp_path: Path, method: str, lr: float, patience: int
) -> None:
    bench = Bench(blank, tmp_path)
    done = bench.run(
        valid=HELD, method=method, lr=lr, patience=patience, steps=60, validation_steps=2, dropout=0.0,
        checkpoint_steps=None,
    )  # fmt: skip
    validations = [(one["step"], one["valid_loss"]) for one in bench.told if "valid_loss" in one]
    best = min(validations, key=lambda one: one[1])
    assert done.best_step == best[0]
    assert done.steps == best[0] + 2 * patience < 60, "so many validations without a better one"
    assert done.valid_loss == pytest.approx(best[1], abs=1e-5)
    lora = {"adapter": done.out} if method == "lora" else {}
    model = models.load(blank if lora else done.out, **lora)  # type: ignore[arg-type]
    assert perplexity(model, HELD).nats_per_token == pytest.approx(best[1], abs=1e-3), "they are of that step"
    assert validations[-1][1] > best[1] + 0.01, "and not of the last"


def test_validations_in_between_survive_a_death(blank: Path, tmp_path: Path) -> None:
    calm = Bench(blank, tmp_path / "calm").run(validation_steps=3)
    bench = Bench(blank, tmp_path)
    with pytest.raises(Killed):
        bench.run(die_at=8, validation_steps=3)
    last = bench.run(validation_steps=3)
    assert last.resumed == 6
    assert files(last.out) == files(calm.out)
    lines = [json.loads(line) for line in (last.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_loss" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))


def test_tokens_of_validations_are_not_those_trained_on(blank: Path, whole: Path, tmp_path: Path) -> None:
    undisturbed = json.loads((whole / "train.json").read_text())["result"]["tokens"]
    assert Bench(blank, tmp_path).run(validation_steps=1).tokens == undisturbed


def test_a_training_that_falls_apart_ends_with_a_reason(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        Bench(blank, tmp_path).run(steps=200, lr=0.9, method="full", dropout=0.0, schedule="constant", warmup=0.2)
    assert caught.value.code == "TAPE-6009"
    assert "went up from" in caught.value.message or "loss is" in caught.value.message


@given(st.lists(st.floats(0.01, 8.0), min_size=1, max_size=200), st.floats(0, 0.4))
def test_a_loss_that_only_wavers_does_not_fall_apart(levels: list[float], waver: float) -> None:
    trend = Trend()
    falling = sorted(levels, reverse=True)
    assert not any(trend.add(level * (1 + waver * (-1) ** number)) for number, level in enumerate(falling))


def test_a_loss_that_goes_up_for_good_falls_apart() -> None:
    trend = Trend()
    assert not any(trend.add(2.0) for _ in range(30))
    assert not trend.add(9.0), "one bad batch"
    assert any(trend.add(5.0) for _ in range(30))
