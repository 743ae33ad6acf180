"""One training in two processes, by torchrun and gloo: what it learns, and what it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.architecture import Architecture
from schemas.errors import InvalidError, JobError
from schemas.row import Row
from tests.unit.train_rig import ROWS, files
from wire.blobs.memory import Memory
from workers.checkpoint import Checkpoints
from workers.llm import bases, launch, pretrain
from workers.llm import model as models
from workers.llm.score import perplexity
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.train import _halved, train

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
STEPS = 60
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 4, "accumulation": 2, "lr": 3e-3, "dropout": 0.1, "threads": 1, "device": "cpu",
    "checkpoint_steps": 2, "validation_steps": 20, "devices": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bases.tiny(tmp_path_factory.mktemp("base") / "tiny", [str(row.prompt) for row in ROWS], steps=0, threads=1)


class Bench:
    """Attempts at one training with the checkpoints of one store."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder, self.store = base, folder, Memory()
        self.folder.mkdir(exist_ok=True)
        self.attempts, self.kept = 0, list[float]()

    def run(
        self,
        *,
        stop: bool = False,
        hook: Callable[[], None] | None = None,
        valid: Sequence[Row] = ROWS[:5],
        **given: Any,
    ) -> TrainResult:
        """Train; `hook` is called after each checkpoint, `stop` stops it after the first."""
        self.attempts += 1

        def advanced(step: float) -> None:
            self.kept.append(step)
            if hook is not None:
                hook()

        with Checkpoints(
            lambda: self.store, job="j", kind="training", attempt=self.attempts, advanced=advanced
        ) as checkpoints:
            return train(
                TrainParams(**SETTINGS | given), base=self.base, rows=ROWS, valid=valid,
                out=self.folder / f"out-{self.attempts}", checkpoints=checkpoints,
                should_stop=lambda: stop and bool(self.kept),
            )  # fmt: skip


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What two processes leave of `METHODS["lora"]` that nobody disturbed."""
    return Bench(base, tmp_path_factory.mktemp("whole")).run()


def losses(result: TrainResult, name: str = "loss") -> list[float]:
    """What was told by this name of each step; of lists, one number after another."""
    lines = (result.out / "metrics.jsonl").read_text().splitlines()
    found = [told[name] for line in lines if name in (told := json.loads(line))]
    return [number for one in found for number in (one if isinstance(one, list) else [one])]


def ranks(of: int) -> list[psutil.Process]:
    """The processes that share a training which a process launched."""
    below = psutil.Process(of).children(recursive=True)
    return [
        one for one in below if "workers.llm.rank" in one.cmdline() and "torch.distributed.run" not in one.cmdline()
    ]


def survived(bench: Bench, **asked: Any) -> TrainResult:
    """Kill the second process after the first checkpoint, which ends all; return what the next attempt leaves."""
    killed = list[int]()

    def kill() -> None:
        if not killed:
            _, second = ranks(os.getpid())
            killed.append(second.pid)
            second.send_signal(signal.SIGKILL)

    with pytest.raises(JobError) as caught:
        bench.run(hook=kill, **asked)
    assert (caught.value.code, len(killed)) == ("TAPE-6002", 1)
    assert not ranks(os.getpid())
    return bench.run(**asked)


Built = Callable[[str], tuple[Path, dict[str, Any]]]
SHAPE = {"layers": 1, "heads": 2, "width": 32, "context": 64, "vocabulary": 300}
BLOCK = 28  # tokens: of such the rows make eight, the last one shorter
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "packed": {"packing": True, "max_length": 64, "batch_size": 2, "accumulation": 1},
    "gpt2": {"method": "pretrain", "architecture": Architecture(**SHAPE), "max_length": BLOCK},
    "moe": {
        "method": "pretrain",
        "architecture": Architecture(**SHAPE, family="moe", experts=4, balance=0.5),
        "max_length": BLOCK,
    },
    "distill": {"method": "distill", "temperature": 2.0, "teacher_share": 0.5},
}
ROUTING = {"expert_load", "load_max", "load_entropy", "router_entropy", "dropped_tokens", "balance_loss"}
TOLD = {"moe": ROUTING, "distill": {"divergence"}}


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What a method begins with, and how it is asked for."""

    def made(method: str) -> tuple[Path, dict[str, Any]]:
        asked = dict(METHODS[method])
        if method in {"lora", "packed"}:
            return base, asked
        path = tmp_path_factory.mktemp("built") / method
        pretrain.blank(path, asked.get("architecture", Architecture(**SHAPE)), pretrain.borrow(base)[0], seed=0)
        return path, asked | ({"teacher": base} if method == "distill" else {})

    return made


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_what_one_does(built: Built, tmp_path: Path, method: str) -> None:
    begun, asked = built(method)
    asked = {"dropout": 0.0, "steps": 10, "validation_steps": 5} | asked
    one = Bench(begun, tmp_path / "one").run(devices=1, **asked)
    two = Bench(begun, tmp_path / "two").run(**asked)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert losses(two, "valid_loss") == pytest.approx(losses(one, "valid_loss"), rel=1e-4)
    assert len(losses(two, "valid_loss")) == 2
    for name in TOLD.get(method, ()):
        assert len(losses(one, name)) in {10, 40}
        assert losses(two, name) == pytest.approx(losses(one, name), rel=1e-3, abs=2e-4)
    assert (two.tokens, two.steps, two.epochs) == (one.tokens, one.steps, one.epochs)
    assert one.loss < 0.9 * one.first_loss


@pytest.mark.parametrize(("valid", "size"), [(1, 2), (3, 8)])
def test_rows_that_do_not_divide_by_the_processes_are_validated_on_once(
    base: Path, tmp_path: Path, valid: int, size: int
) -> None:
    """By hand from the model that was left, one row after another."""
    done = Bench(base, tmp_path).run(valid=ROWS[:valid], batch_size=size, steps=2, accumulation=1, method="full")
    assert done.valid_loss == pytest.approx(perplexity(models.load(done.out), ROWS[:valid]).nats_per_token, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "moe", "distill"])
def test_when_one_dies_all_end_and_the_next_attempt_makes_the_same_bytes(
    built: Built, tmp_path: Path, method: str, whole: TrainResult
) -> None:
    begun, asked = built(method)
    calm = whole if method == "lora" else Bench(begun, tmp_path / "calm").run(**asked)
    again = survived(Bench(begun, tmp_path / "stormy"), **asked)
    assert 2 <= again.resumed < STEPS
    assert (again.exact, again.steps) == (True, STEPS)
    assert files(again.out) == files(calm.out)


def test_a_stop_ends_all_after_one_step_with_a_checkpoint_of_it(base: Path, whole: TrainResult, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    stopped = bench.run(stop=True)
    assert stopped.stopped and 2 < stopped.steps == bench.kept[-1] < STEPS
    again = bench.run()
    assert again.resumed == stopped.steps and losses(again) == losses(whole)


def test_the_processes_run_the_code_of_who_launched_them(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python looks into the folder that it is started in first, and there may be another version, or no such thing."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    assert Bench(base, tmp_path / "out").run(steps=2).steps == 2


def test_what_is_wrong_in_a_process_is_told_as_it_is(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="LoRA fits none of the layers") as caught:
        Bench(base, tmp_path).run(targets=("nothing",))
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1002", "targets")


def test_no_process_outlives_who_launched_it(base: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.train_rig import ROWS\n"
        "from workers.llm.settings import TrainParams; from workers.llm.train import train\n"
        "base, out = map(Path, sys.argv[1:])\n"
        "params = TrainParams(steps=100000, batch_size=4, devices=2, threads=1, device='cpu')\n"
        "train(params, base=base, rows=ROWS, out=out, progress=lambda told: print(told['step'], flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(base), str(tmp_path / "out")], stdout=subprocess.PIPE, cwd=ROOT
    ) as launcher:
        assert launcher.stdout is not None
        assert int(launcher.stdout.readline()) >= 1
        found = ranks(launcher.pid)
        assert len(found) == 2
        launcher.kill()
        assert not psutil.wait_procs(found, timeout=30)[1]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InvalidError, match="batch_size 3 cannot be shared by 2 devices"):
        launch.check(TrainParams(batch_size=3, devices=2, device="cpu"))


@pytest.mark.parametrize(("size", "smaller"), [(8, (4, 2)), (6, (2, 3)), (4, (2, 2)), (2, None)])
def test_half_a_batch_can_still_be_shared(size: int, smaller: tuple[int, int] | None) -> None:
    found = _halved(TrainParams(batch_size=size, devices=2, device="cpu"))
    assert (found and (found.batch_size, found.accumulation)) == smaller
