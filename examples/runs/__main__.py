"""Three trainings through the queue, each a command, each with its numbers: docs/runs.md tells what they came to.

    python -m examples.runs base        a GPT-2 from nothing on financial prose, beside a plain script
    python -m examples.runs sentiment   that base, tuned by LoRA and in full, tells the sentiment towards a company
    python -m examples.runs questions   SmolLM2-135M, tuned by LoRA, answers questions on formulas and XBRL terms

    --data FOLDER   the published data sets (finqa, convfinqa, tatqa, finentity, finlora); else the bundled sample
    --seeds 0,1,2   one training for each
    --out FOLDER    where the table, the numbers and the plot go

A real broker, a store and a worker are started where none run, and stopped again. Every job has an idempotency key, so
the same command takes up where it was, and a second run shows what is done.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from examples.demo import OUT, end, follow, services
from examples.runs import data
from producers import Client
from schemas.architecture import Architecture
from schemas.job import Evaluation, Lora, Training
from schemas.outcome import Outcome
from wire import datasets
from wire.blobs import Blobs, open_store
from wire.blobs.manifest import materialise
from wire.rows.check import Check
from wire.settings import Settings

LENGTH, BATCH, RATE = 128, 16, 3e-3
LABELS = ["negative", "neutral", "positive"]


@dataclass(frozen=True)
class Run:
    """What a run works with."""

    client: Client
    settings: Settings
    store: Blobs
    folder: Path | None
    seeds: tuple[int, ...]
    steps: int | None
    out: Path

    @property
    def sort(self) -> str:
        """Which data: part of the names under which it is registered."""
        return "sample" if self.folder is None else "real"

    def register(self, name: str, parts: dict[str, list[dict[str, Any]]]) -> str:
        """Check rows and register them, mended where something is wrong; return their reference."""
        with (
            tempfile.TemporaryDirectory() as given,
            tempfile.TemporaryDirectory() as checked,
            Check(Path(checked), recipe="auto") as found,
        ):
            for part, rows in parts.items():
                path = Path(given) / f"{part}.jsonl"
                path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                found.take(part, path)
            report = found.finish()
            version = datasets.register(
                self.store, f"{name}-{self.sort}", report, recipe="auto", by="examples", now=datetime.now(UTC),
                fixed=found.fix(),
            )  # fmt: skip
        counts = ", ".join(f"{part} {held.rows}" for part, held in version.parts.items())
        OUT.print(f"[bold]{version.name}[/bold]@{version.version}  {counts}")
        return f"dataset:{version.name}@{version.version}"

    def job(self, title: str, params: Training | Evaluation) -> tuple[str, Outcome]:
        """Run a job and return its id and outcome."""
        handle, outcome = follow(self.client, f"{title}", params)
        return handle.id, outcome

    def files(self, outcome: Outcome) -> Path:
        """Bring an outcome's artifact here."""
        (artifact,) = outcome.artifacts
        folder = self.settings.home / "runs" / artifact.sha256
        materialise(self.store, artifact, folder)
        return folder

    def fetch(self, reference: str, part: str) -> Path:
        """Bring a part of a registered data set here."""
        version, _ = datasets.find(self.store, f"{reference}#{part}", part=part)
        return datasets.fetch(self.store, version.parts[part], self.settings.cache)

    def keep(self, name: str, jobs: list[str], metric: str, lines: list[str], found: dict[str, Any]) -> None:
        """Print the table, and keep it with the numbers and the plot of the trainings."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{name}-{self.sort}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        (self.out / f"{name}-{self.sort}.md").write_text("\n".join(lines) + "\n")
        plot = self.out / f"{name}-{self.sort}.svg"
        command = [str(Path(sys.executable).with_name("tape")), "plot", *jobs, "--metric", metric, "--out", str(plot)]
        subprocess.run(command, env=os.environ | self.settings.environ(), check=True)
        OUT.print("\n".join(["", *lines, "", f"kept in {self.out}"]), markup=False)


def base(run: Run) -> None:
    """Held-out perplexity of a model made by the queue, and of one made by a plain script, for each seed."""
    prose = run.register("prose", data.texts(run.folder))
    held, learnt = run.fetch(prose, "test"), run.fetch(prose, "train")
    shape, steps = Architecture(), run.steps or (400 if run.folder else 120)
    rows, jobs = [], []
    for seed in run.seeds:
        params = Training(
            method="pretrain", architecture=shape, data=prose, validation=f"{prose}#validation", steps=steps,
            batch_size=BATCH, learning_rate=RATE, max_length=LENGTH, seed=seed, threads=2,
            validation_steps=max(1, steps // 8), publish_as=f"base-{run.sort}",
        )  # fmt: skip
        job, outcome = run.job(f"pretrain, seed {seed}", params)
        jobs.append(job)
        made = run.files(outcome)
        plain = run.settings.home / "runs" / f"plain-{run.sort}-{seed}-{steps}"
        if not (plain / "model.safetensors").exists():
            OUT.print(f"[bold]the plain script, seed {seed}[/bold]")
            _plain("train", made, learnt, plain, "--seed", seed, "--steps", steps, "--batch", BATCH, "--rate", RATE,
                   "--length", LENGTH, "--context", shape.context, "--width", shape.width, "--layers", shape.layers,
                   "--heads", shape.heads)  # fmt: skip
        ours, theirs = (_plain("measure", folder, held, "--length", LENGTH) for folder in (made, plain))
        rows.append({"seed": seed, "job": ours, "plain": theirs, "ratio": ours["perplexity"] / theirs["perplexity"]})
    mean = {name: statistics.mean(row[name]["perplexity"] for row in rows) for name in ("job", "plain")}
    lines = [
        "| seed | through the queue | plain script | ratio |", "|---|---|---|---|",
        *(f"| {row['seed']} | {row['job']['perplexity']:.2f} | {row['plain']['perplexity']:.2f} | {row['ratio']:.4f} |"
          for row in rows),
        f"| mean | {mean['job']:.2f} | {mean['plain']:.2f} | {mean['job'] / mean['plain']:.4f} |",
    ]  # fmt: skip
    run.keep("base", jobs, "valid_loss", lines, {"rows": rows, "steps": steps, "data": prose})


def sentiment(run: Run) -> None:
    """Accuracy on held-out sentences, of LoRA and of a full fine-tune of the base, beside the commonest answer."""
    rows_ref = run.register("sentiment", data.sentiments(run.folder))
    model, steps = f"model:base-{run.sort}", run.steps or (400 if run.folder else 150)
    rows, jobs = [], []
    for method, rate in (("lora", 1e-2), ("full", 1e-3)):
        for seed in run.seeds:
            params = Training(
                method=method, base=model, data=rows_ref, validation=f"{rows_ref}#validation", steps=steps,
                batch_size=BATCH, learning_rate=rate, max_length=LENGTH * 2, seed=seed, threads=2,
                lora=Lora(rank=16, alpha=32) if method == "lora" else Lora(),
                validation_steps=max(1, steps // 8), patience=3,
                publish_as=f"sentiment-{method}-{run.sort}",
            )  # fmt: skip
            job, trained = run.job(f"{method}, seed {seed}", params)
            jobs.append(job)
            tuned = f"model:{trained.result['model']}"
            _, judged = run.job(
                f"judge {method}, seed {seed}",
                Evaluation(
                    model=tuned,
                    baseline=False,
                    data=f"{rows_ref}#test",
                    metrics=["accuracy"],
                    labels=LABELS,
                    max_length=LENGTH * 2,
                    threads=2,
                ),
            )
            rows.append({"method": method, "seed": seed, **_judged(run, judged)})
    lines = [
        "| method | seed | right | n | accuracy | 95 % interval | the commonest answer | better than it, p |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {row['method']} | {row['seed']} | {row['right']} | {row['n']} | {row['accuracy']:.3f} "
          f"| {row['low']:.3f} – {row['high']:.3f} | {row['majority']:.3f} | {row['p']:.2g} |" for row in rows),
    ]  # fmt: skip
    run.keep("sentiment", jobs, "valid_loss", lines, {"rows": rows, "steps": steps, "data": rows_ref})


def questions(run: Run) -> None:
    """Exact match of SmolLM2-135M on held-out questions, before and after LoRA."""
    rows, jobs = [], []
    for name, tokens, limit in (("formula", 12, 200), ("xbrl_term", 64, 60)) if run.folder else (("short", 16, None),):
        known = run.register(name.replace("_", "-"), data.questions(run.folder, name))
        for seed in run.seeds:
            params = Training(
                base="builtin:smollm2", data=known, steps=run.steps or 60, batch_size=4, learning_rate=5e-4, warmup=0.1,
                max_length=LENGTH * 2, seed=seed, threads=2, lora=Lora(rank=16, alpha=32),
                publish_as=f"{name.replace('_', '-')}-{run.sort}",
            )  # fmt: skip
            job, trained = run.job(f"LoRA on {name}, seed {seed}", params)
            jobs.append(job)
            _, judged = run.job(
                f"judge {name}, seed {seed}",
                Evaluation(
                    model="builtin:smollm2",
                    adapter=trained.artifacts[0].uri,
                    data=f"{known}#test",
                    limit=limit,
                    max_new_tokens=tokens,
                    max_length=LENGTH * 3,
                    threads=2,
                ),
            )
            rows.append({"questions": name, "seed": seed, **_compared(run, judged)})
    lines = [
        "| questions | seed | n | right before | right after | McNemar's p | perplexity before | after |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {row['questions']} | {row['seed']} | {row['n']} | {row['before']} ({row['before'] / row['n']:.3f}) "
          f"| {row['after']} ({row['after'] / row['n']:.3f}) | {row['p']:.2g} | {row['perplexity'][0]:.2f} "
          f"| {row['perplexity'][1]:.2f} |" for row in rows),
    ]  # fmt: skip
    run.keep("questions", jobs, "loss", lines, {"rows": rows})


def _plain(command: str, *given: object) -> dict[str, float]:
    line = [sys.executable, "-m", "examples.runs.plain", command, *map(str, given)]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | quiet, check=False)
    if done.returncode:
        raise SystemExit(f"the plain script failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout) if done.stdout.strip() else {}
    return found


def _items(run: Run, judged: Outcome, name: str) -> list[Any]:
    from workers.llm.score import Item

    lines = (run.files(judged) / f"{name}.jsonl").read_text().splitlines()
    return [Item(**json.loads(line)) for line in lines]


def _judged(run: Run, judged: Outcome) -> dict[str, Any]:
    from workers.llm import score

    folder = run.files(judged)
    name = "adapter" if (folder / "adapter.jsonl").exists() else "model"
    items = _items(run, judged, name)
    found = score.report(items)
    always = [
        score.Item(one.id, one.expected, found.majority_label, one.expected == found.majority_label) for one in items
    ]
    paired = score.compare(always, items)
    rate = found.accuracy
    return {
        "right": rate.right, "n": rate.n, "accuracy": rate.value, "low": rate.low, "high": rate.high,
        "majority": found.majority.value, "macro_f1": found.macro_f1, "p": paired.p,
    }  # fmt: skip


def _compared(run: Run, judged: Outcome) -> dict[str, Any]:
    from workers.llm import score

    paired = score.compare(_items(run, judged, "base"), _items(run, judged, "adapter"))
    perplexity = [judged.result[part]["perplexity"]["value"] for part in ("base", "adapter")]
    return {"n": paired.n, "before": paired.a.right, "after": paired.b.right, "p": paired.p, "perplexity": perplexity}


RUNS: dict[str, Callable[[Run], None]] = {"base": base, "sentiment": sentiment, "questions": questions}


def main() -> int:
    """Do one run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m examples.runs"
    )
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2))
    parser.add_argument("--steps", type=int, help="optimizer steps of each training, instead of the run's own")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    if given.data is not None and not given.data.is_dir():
        parser.error(f"--data: there is no folder {given.data}")
    began = time.monotonic()
    with services(Settings.load()) as settings, Client(settings=settings) as client:
        run = Run(client, settings, open_store(settings), given.data, given.seeds, given.steps, given.out)
        RUNS[given.run](run)
    OUT.print(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    end(main)
