"""Answers a second: the engine beside one prompt at a time, static batches sorted by length, and `generate_batch`.

    python benchmarks/inference.py [--data FILE --recipe finqa] [--prompts 100] [--only small,smollm2]

Greedy, the same prompts and lengths of answers for all, in turns; what differs from the answers of one at a time is
counted. In `equal` every answer has the same number of tokens, in `mixed` between a few and many, in `prefix` all
prompts begin with the same 400 tokens and the answer is one token long. Kept in `.bench/inference.json`.
"""

import sys
from pathlib import Path

# A neighbour of this file has the name of a module of the standard library: its folder must not be searched.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from benchmarks.rig.machine import describe  # noqa: E402
from schemas.architecture import Architecture  # noqa: E402
from wire.rows import load  # noqa: E402
from wire.settings import Settings  # noqa: E402
from workers.llm import bases, pretrain  # noqa: E402
from workers.llm import model as models  # noqa: E402
from workers.llm.data import render  # noqa: E402
from workers.llm.draw import Sampling  # noqa: E402
from workers.llm.engine import Asked, Engine, order  # noqa: E402
from workers.llm.model import Model  # noqa: E402

DATA = ROOT / "examples" / "headlines" / "train.jsonl"
SMALL = Architecture(layers=4, width=256, heads=4, context=1024, vocabulary=4096)
BATCH, PREFIX = 16, 400
Answers = list[list[int]]


@dataclass(frozen=True)
class Work:
    """Prompts as tokens, and how many tokens are answered to each."""

    prompts: list[list[int]]
    counts: list[int]


def alone(model: Model, work: Work) -> Answers:
    """One prompt after another."""
    return [_generate(model, [ids], count)[0] for ids, count in zip(work.prompts, work.counts, strict=True)]


def static(model: Model, work: Work) -> Answers:
    """Batches of prompts of about the same length; each lasts as long as its longest answer."""
    found: Answers = [[] for _ in work.prompts]
    by_length = sorted(range(len(work.prompts)), key=lambda at: -len(work.prompts[at]))
    for start in range(0, len(by_length), BATCH):
        batch = by_length[start : start + BATCH]
        count = max(work.counts[at] for at in batch)
        for at, answer in zip(batch, _generate(model, [work.prompts[at] for at in batch], count), strict=True):
            found[at] = answer[: work.counts[at]]
    return found


def theirs(model: Model, work: Work) -> Answers:
    """The continuous batching of transformers; all answers as long as the longest where it takes one length for all."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=max(work.counts), do_sample=False, eos_token_id=-1, pad_token_id=0)
    before = model.module.config._attn_implementation
    try:
        done = model.module.generate_batch(work.prompts, generation_config=config, progress_bar=False)
    finally:
        model.module.set_attn_implementation(before)
    found = [done[name].generated_tokens for name in sorted(done, key=lambda name: int(name.rpartition("_")[2]))]
    return [answer[:count] for answer, count in zip(found, work.counts, strict=True)]


def engine(model: Model, work: Work) -> Answers:
    """Ours."""
    made = Engine(model, rows=BATCH)
    made._ends = set()
    for at in order(work.prompts):
        made.add(Asked(at, work.prompts[at], Sampling(work.counts[at])))
    found: Answers = [[] for _ in work.prompts]
    while made.busy:
        for done in made.step():
            found[done.at] = done.answer
    return found


SYSTEMS: dict[str, Callable[[Model, Work], Answers]] = {
    "one at a time": alone, "static batches": static, "generate_batch": theirs, "engine": engine
}  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt at most")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["small", "smollm2"])
    parser.add_argument("--without", type=lambda text: text.split(","), default=[])
    given = parser.parse_args()
    rows = load(given.data, recipe=given.recipe, limit=given.prompts)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": describe(), "models": {}}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in given.only:
            path = bases.smollm2(Settings.load().cache) if name == "smollm2" else _small(Path(folder), rows)
            model = models.load(path, device="cpu", threads=given.threads)
            prompts = [
                model.tokenizer.encode(render(row.prompt, model.tokenizer), add_special_tokens=False)[-given.length :]
                for row in rows
            ]
            found["models"][name] = {what: measured(model, work, given) for what, work in works(prompts).items()}
    kept = ROOT / ".bench" / "inference.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


def works(prompts: list[list[int]]) -> dict[str, Work]:
    """What is measured."""
    draw = random.Random(0)
    begin = [token for ids in prompts for token in ids][:PREFIX]
    return {
        "equal": Work(prompts, [32] * len(prompts)),
        "mixed": Work(prompts, [min(128, 4 + int(draw.expovariate(1 / 28))) for _ in prompts]),
        "prefix": Work([[*begin, *ids[-24:]] for ids in prompts], [1] * len(prompts)),
    }


def measured(model: Model, work: Work, given: Any) -> dict[str, Any]:
    """Run every system in turns; the first round is not counted."""
    systems = {name: run for name, run in SYSTEMS.items() if name not in given.without}
    took: dict[str, list[float]] = {name: [] for name in systems}
    differ: dict[str, int] = {}
    for turn in range(given.repetitions + 1):
        wanted: Answers = []
        for name, run in systems.items():
            part = work if turn else Work(work.prompts[:BATCH], work.counts[:BATCH])
            began = time.perf_counter()
            answers = run(model, part)
            seconds = time.perf_counter() - began
            wanted = wanted or answers
            if turn:
                took[name].append(seconds)
                differ[name] = sum(one != other for one, other in zip(answers, wanted, strict=True))
    tokens = sum(work.counts)
    return {
        "prompts": len(work.prompts), "prompt_tokens": sum(map(len, work.prompts)), "tokens": tokens,
        "seconds": took, "tokens_per_s": {name: tokens / statistics.median(times) for name, times in took.items()},
        "differ": differ,
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    sys.stdout.write("| model | answers | system | s | tokens/s | engine is faster by | other answers |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for model, cases in found["models"].items():
        for case, told in cases.items():
            ours = told["tokens_per_s"]["engine"]
            for name, rate in told["tokens_per_s"].items():
                seconds = statistics.median(told["seconds"][name])
                sys.stdout.write(
                    f"| {model} | {case} | {name} | {seconds:.1f} | {rate:.0f} | {ours / rate:.2f} "
                    f"| {told['differ'][name]} of {told['prompts']} |\n"
                )


def _small(folder: Path, rows: list[Any]) -> Path:
    """A GPT-2 of 4 M parameters with random weights."""
    texts = [f"{row.prompt} {row.completion}" for row in rows]
    path = folder / "small"
    pretrain.blank(path, SMALL, pretrain.bpe(texts, size=SMALL.vocabulary, context=SMALL.context), seed=0)
    return path


def _generate(model: Model, prompts: Answers, count: int) -> Answers:
    from transformers import GenerationConfig

    widest = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (widest - len(one)), *one] for one in prompts])
    mask = torch.tensor([[*[0] * (widest - len(one)), *[1] * len(one)] for one in prompts])
    config = GenerationConfig(max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0)
    with torch.inference_mode():
        output = model.module.generate(input_ids=ids, attention_mask=mask, generation_config=config, eos_token_id=None)
    answers: Answers = output[:, widest:].tolist()
    return answers


if __name__ == "__main__":
    main()
