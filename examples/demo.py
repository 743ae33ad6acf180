"""The main job, end to end: `make demo` (or `python -m examples.demo` in a set-up clone).

Starts a real Kafka, a store and a worker, and sends jobs through the queue: evaluate a base model, fine-tune an adapter
on financial text, evaluate again, score a small batch. The jobs have idempotency keys, so the same command takes up
where it was, and a second run reuses what is done. Nothing is left running.

    DEMO=quick   a tiny model instead of SmolLM2-135M: under a minute, and far less able
    DATA=path    a JSONL file or folder of yours instead of the bundled headlines
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from producers import Client, JobHandle
from schemas.errors import TapeError
from schemas.event import Event
from schemas.job import Evaluation, Inference, Lora, Training
from schemas.model import Strict
from schemas.outcome import Outcome
from schemas.topics import Names, groups, topics
from wire import process, telemetry
from wire.blobs import Blobs, open_store
from wire.blobs.manifest import publish
from wire.broker import NativeBroker
from wire.settings import Settings
from wire.topics import ensure

HERE = Path(__file__).resolve().parent
OUT = Console(highlight=False)
KINDS = ("training", "evaluation", "inference")
ROUND = 1  # part of the idempotency keys: raise it when the demo's jobs change


@dataclass(frozen=True)
class Sample:
    """Rows in the store, and how their answers are judged: by a closed set of labels, or word for word."""

    title: str
    train: str
    valid: str | None
    test: str
    labels: list[str] | None
    rows: tuple[int, int]
    length: int


@dataclass(frozen=True)
class Model:
    """The base, and how long and fast it is tuned."""

    title: str
    ref: str
    steps: int
    batch: int
    rate: float


def main() -> int:
    """Run the demo and return the exit status."""
    quick = os.environ.get("DEMO", "").lower() == "quick"
    settings = Settings.load()
    began = time.monotonic()
    with services(settings) as settings:
        provider = telemetry.configure(settings.model_copy(update={"log_level": "error"}), "demo")
        store = open_store(settings)
        with Client(settings=settings) as client:
            sample = _sample(client, settings, os.environ.get("DATA"))
            model = _tiny(settings, store, sample) if quick else _smollm2(sample)
            OUT.print(f"model   {model.title}\ndata    {sample.title}: {sample.rows[0]} rows to learn from, "
                      f"{sample.rows[1]} held out\n")  # fmt: skip
            done = _jobs(client, sample, model)
            jobs = {name: handle.id for name, (handle, _) in done.items()}
            outcomes = {name: outcome for name, (_, outcome) in done.items()}
            _show(settings, store, sample, outcomes)
        if provider is not None:
            provider.shutdown()
        _trace(settings, jobs["train the adapter"])
    _onwards(jobs["train the adapter"], time.monotonic() - began)
    return 0


@contextmanager
def services(settings: Settings) -> Iterator[Settings]:
    """Start what does not run yet, and afterwards stop just that."""
    broker = NativeBroker(settings.home, settings.cache)
    ours = not broker.status().running
    began = time.monotonic()
    worker: process.Process | None = None
    try:
        status = broker.start(tie=ours, progress=lambda line: OUT.print(f"[dim]… {line}[/dim]"))
        settings = settings.model_copy(update={"kafka_url": status.url})
        names = Names(settings.prefix)
        ensure(settings, topics(names, KINDS, settings.partitions), groups(names, KINDS, settings.lock_ms))
        OUT.print(f"kafka   {status.version} on {status.url}, ready in {time.monotonic() - began:.1f} s")
        OUT.print(f"store   {settings.store_url}")
        log = settings.home / "demo" / "worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "workers", "--kinds", ",".join(KINDS), "--grace", "1"]
        worker = process.spawn(command, log=log, env=os.environ | settings.environ(), tie=True)
        OUT.print(f"worker  one slot, kinds {', '.join(KINDS)}; its log is {_near(log)}")
        yield settings
    finally:
        if worker is not None:
            process.stop(worker, grace_s=15.0)
        if ours:
            broker.stop()


def _sample(client: Client, settings: Settings, given: str | None) -> Sample:
    """Put the rows into the store: the bundled headlines, or yours split into two."""
    from wire.rows import load, splits

    folder = HERE / "headlines"
    if given is None:
        parts = {name: load(folder / f"{name}.jsonl") for name in ("train", "valid", "test")}
        title = "financial headlines and their sentiment (examples/headlines)"
        files = {name: folder / f"{name}.jsonl" for name in parts}
    else:
        split = splits(Path(given).expanduser(), test=40, valid=0, limit=400)
        parts = {"train": split["train"], "test": split["test"][:40]}
        title = given
        files = {name: _written(settings.home / "demo" / f"{name}.jsonl", rows) for name, rows in parts.items()}
    labels = sorted({row.completion.strip() for row in (*parts["train"], *parts["test"])})
    lengths = [len(str(row.prompt)) + len(row.completion) for row in parts["train"]]
    return Sample(
        title=title,
        train=client.upload(files["train"]),
        valid=client.upload(files["valid"]) if "valid" in files else None,
        test=client.upload(files["test"]),
        labels=labels if len(labels) <= 12 else None,
        rows=(len(parts["train"]), len(parts["test"])),
        length=sum(lengths) // len(lengths) // 4,
    )


def _written(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            asked: dict[str, Any] = (
                {"prompt": row.prompt} if isinstance(row.prompt, str) else {"messages": list(row.prompt)}
            )
            if "messages" in asked:
                asked["messages"].append({"role": "assistant", "content": row.completion})
            else:
                asked["completion"] = row.completion
            file.write(json.dumps({"id": row.id, **asked}, ensure_ascii=False) + "\n")
    return path


def _smollm2(sample: Sample) -> Model:
    """The real model; long rows get fewer and smaller steps, so that two cores are done in minutes."""
    if sample.length <= 64:
        return Model("SmolLM2-135M-Instruct", "builtin:smollm2", steps=60, batch=8, rate=5e-4)
    steps = max(8, min(40, 24_000 // (2 * sample.length)))
    return Model("SmolLM2-135M-Instruct", "builtin:smollm2", steps=steps, batch=2, rate=5e-4)


def _tiny(settings: Settings, store: Blobs, sample: Sample) -> Model:
    """A GPT-2 of one million parameters, made from the sample's own text and registered in the store."""
    from wire.rows import load
    from workers.llm.bases import tiny

    path = settings.home / "demo" / "tiny.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    store.fetch(sample.train.removeprefix("blob:"), path)
    texts = [f"{row.prompt} {row.completion}" for row in load(path)]
    OUT.print("[dim]… making the tiny model (about 10 s the first time)[/dim]")
    folder = tiny(settings.cache, texts, threads=2)
    artifact = publish(store, folder, job="demo", kind="model", name="tiny")
    ref = f"{artifact.uri}@sha256:{artifact.sha256}"
    title = "a GPT-2 of one million parameters, made here: it shows the machinery, and is too small to generalise"
    return Model(title, ref, steps=60, batch=8, rate=3e-3)


def _jobs(client: Client, sample: Sample, model: Model) -> dict[str, tuple[JobHandle, Outcome]]:
    """Submit the jobs one after the other, each fed by what came before, and show their events as they come."""
    metrics: dict[str, Any] = {"metrics": ["perplexity", "exact_match"], "max_new_tokens": 24, "max_length": 768}
    if sample.labels:
        metrics = {"metrics": ["accuracy"], "labels": sample.labels}
    done: dict[str, tuple[JobHandle, Outcome]] = {}

    def run(name: str, params: Strict) -> Outcome:
        done[name] = follow(client, name, params)
        return done[name][1]

    run("evaluate the base", Evaluation(model=model.ref, data=sample.test, threads=2, **metrics))
    trained = run(
        "train the adapter",
        Training(
            base=model.ref, data=sample.train, validation=sample.valid, steps=model.steps,
            batch_size=model.batch, learning_rate=model.rate, warmup=0.1, lora=Lora(rank=16, alpha=32),
            max_length=128 if sample.length <= 64 else 768, threads=2,
        ),
    )  # fmt: skip
    (artifact,) = trained.artifacts
    tuned = f"{artifact.uri}@sha256:{artifact.sha256}"
    run(
        "evaluate it",
        Evaluation(model=model.ref, adapter=tuned, baseline=False, data=sample.test, threads=2, **metrics),
    )
    scoring = Inference(
        model=model.ref, adapter=tuned, data=sample.test, limit=12, max_new_tokens=24, stop=["\n"], threads=2
    )
    run("score a batch", scoring)
    return done


def follow(client: Client, name: str, params: Strict) -> tuple[JobHandle, Outcome]:
    """Submit one job and follow it to its end. Raises `JobError` with its own code when it does not succeed."""
    key = hashlib.sha256(f"{ROUND} {name} {params.model_dump_json()}".encode()).hexdigest()[:24]
    began = time.monotonic()
    job = client.submit(params, key=f"demo-{key}", max_attempts=8)
    if (known := client.outcome(job.id)) is not None:
        OUT.print(f"[bold]{name}[/bold]  {job.id}  [dim]done on an earlier run[/dim]")
    else:
        OUT.print(f"[bold]{name}[/bold]  {job.id}")
        for event in job.watch(timeout=1800):
            _tell(event, time.monotonic() - began)
    return job, known or job.result(timeout=60, raise_on_failure=True)


def _tell(event: Event, at: float) -> None:
    """One line an event; of a training's steps every tenth, of a count every quarter."""
    told = event.progress or {}
    step, count, total = told.get("step"), told.get("done"), told.get("total")
    if isinstance(step, int) and step % 10 and step != told.get("steps"):
        return
    if isinstance(count, int) and isinstance(total, int) and count != total:
        quarter = max(1, total // 4)
        if count // quarter == max(0, count - 16) // quarter:
            return
    shown = "  ".join(f"{name}={value}" for name, value in told.items() if name not in {"adapter", "model"})
    failed = f"  {event.failure.code} {event.failure.message}" if event.failure else ""
    OUT.print(f"  {at:6.1f} s  {event.type:<10} {shown}{failed}", markup=False)


def _show(settings: Settings, store: Blobs, sample: Sample, outcomes: dict[str, Outcome]) -> None:
    """The loss curve, base against adapter with the counts, the artifacts and their hashes."""
    before = _files(settings, store, outcomes["evaluate the base"])
    after = _files(settings, store, outcomes["evaluate it"])
    tuned = _files(settings, store, outcomes["train the adapter"])
    steps = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if isinstance(row.get("loss"), int | float)]
    OUT.print(f"\n[bold]loss[/bold]  {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps")
    for line in curve(losses):
        OUT.print(f"  {line}", markup=False)
    _compare(sample, outcomes, before, after)
    OUT.print("[bold]artifacts[/bold]")
    for outcome in outcomes.values():
        for made in outcome.artifacts:
            OUT.print(f"  {made.name}: {made.files} files, {made.size:,} bytes", markup=False)
            OUT.print(f"    {made.uri}\n    sha256 {made.sha256}", markup=False, soft_wrap=True)
    scored = _files(settings, store, outcomes["score a batch"]) / "predictions.jsonl"
    OUT.print("[bold]the batch, first lines[/bold]")
    for line in scored.read_text().splitlines()[:3]:
        OUT.print(f"  {line}", markup=False)


def _files(settings: Settings, store: Blobs, outcome: Outcome) -> Path:
    from wire.blobs.manifest import materialise

    (artifact,) = outcome.artifacts
    folder = settings.home / "demo" / "artifacts" / artifact.sha256
    materialise(store, artifact, folder)
    return folder


def _compare(sample: Sample, outcomes: dict[str, Outcome], before: Path, after: Path) -> None:
    from workers.llm import score

    items = [_items(folder / "model.jsonl", folder / "adapter.jsonl") for folder in (before, after)]
    paired = score.compare(*items)
    table = Table(
        "", "right", "n", "share", "95 % interval", title="held-out rows, base against tuned", title_justify="left"
    )
    if sample.labels:
        majority = score.report(items[0]).majority
        table.add_row("always the commonest", str(majority.right), str(majority.n), f"{majority.value:.3f}", "")
    for name, rate in (("base", paired.a), ("tuned", paired.b)):
        table.add_row(name, str(rate.right), str(rate.n), f"{rate.value:.3f}", f"{rate.low:.3f} – {rate.high:.3f}")
    OUT.print(table)
    OUT.print(f"  both right {paired.both}, only the base {paired.only_a}, only the tuned {paired.only_b}, "
              f"neither {paired.neither}; McNemar's exact p = {paired.p:.2g}")  # fmt: skip
    for name, key in (("base", "evaluate the base"), ("tuned", "evaluate it")):
        for part in ("model", "adapter"):
            if "perplexity" in outcomes[key].result.get(part, {}):
                told = outcomes[key].result[part]["perplexity"]
                OUT.print(f"  perplexity of the answers, {name}: {told['value']:.2f} over {told['tokens']} tokens")


def _items(*paths: Path) -> list[Any]:
    from workers.llm.score import Item

    path = next(path for path in paths if path.exists())
    return [Item(**json.loads(line)) for line in path.read_text().splitlines()]


def curve(values: list[float], *, width: int = 60, height: int = 6) -> list[str]:
    """Draw numbers as a chart of blocks; columns are means of equally many neighbours."""
    columns = min(width, len(values))
    means = []
    for column in range(columns):
        part = values[column * len(values) // columns : (column + 1) * len(values) // columns]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    levels = [1 + round((mean - low) / span * (height * 8 - 1)) for mean in means]
    lines = []
    for row in range(height - 1, -1, -1):
        blocks = "".join(" ▁▂▃▄▅▆▇█"[max(0, min(8, level - row * 8))] for level in levels)
        label = {height - 1: f"{high:6.3f}", 0: f"{low:6.3f}"}.get(row, " " * 6)
        lines.append(f"{label} │{blocks}")
    return lines


def _trace(settings: Settings, job: str) -> None:
    """The waterfall of the training, drawn by the command line."""
    OUT.print("[bold]where the training's time went[/bold]")
    sys.stdout.flush()
    command = [str(Path(sys.executable).with_name("tape")), "trace", job, "--output", "table"]
    subprocess.run(command, env=os.environ | settings.environ(), check=False)


def _onwards(job: str, seconds: float) -> None:
    OUT.print(f"\n[bold green]done in {seconds:.0f} s[/bold green]; nothing is left running. Where to go next:")
    for line in (
        "make up                                   start broker and store and keep them",
        ". .venv/bin/activate",
        "tape worker --kinds training,evaluation,inference &",
        f"tape result {job}",
        "tape submit inference --set model=builtin:smollm2 --set prompt='Shares fell after' --wait",
    ):
        OUT.print(f"  {line}", markup=False)


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def end(run: Callable[[], int]) -> NoReturn:
    """Run an example and exit; what goes wrong is told in a line."""
    try:
        sys.exit(run())
    except TapeError as error:
        OUT.print(f"{error}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        OUT.print("\ninterrupted; nothing is left running, and the same command takes up where it was")
        sys.exit(130)


if __name__ == "__main__":
    end(main)
