"""What being a job costs a training: the same one as a plain script, and through the queue, in one sitting.

    python benchmarks/training.py [--repetitions 3] [--only tiny,smollm2]

LoRA on the bundled headlines, in turns. Steps a second from the end of the first step to the end of the last, so the
loading of libraries and models counts on neither side, and the largest resident memory of the process that trains. The
job keeps checkpoints meanwhile and tells of every step; the script does neither. Kept in `.bench/training.json`.
"""

import sys
from pathlib import Path

# A neighbour of this file has the name of a module of the standard library: its folder must not be searched.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.rig.machine import describe  # noqa: E402
from benchmarks.rig.services import Services  # noqa: E402
from producers import Client  # noqa: E402
from schemas.topics import Names, groups, topics  # noqa: E402
from wire.process import spawn, stop, wait_until  # noqa: E402
from wire.settings import Settings  # noqa: E402
from wire.topics import ensure  # noqa: E402

DATA = ROOT / "examples" / "headlines" / "train.jsonl"
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
"""As the worker sets it: spinning OpenMP threads make any other load on the machine slow, the script's too."""
MODELS = {"tiny": ("GPT-2 shape, 1 M parameters", 600, 200), "smollm2": ("SmolLM2-135M-Instruct", 24, 8)}
"""Title, steps, and steps between checkpoints: one in five to ten seconds, where once a minute is the default."""
TARGETS = {"steps": 0.98, "memory": 1.05}


def main() -> int:
    """Measure, print, keep; exit status 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(MODELS))
    given = parser.parse_args()
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": describe(), "models": {}}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        Services(Path(folder), Settings.load().cache) as services,
    ):
        for name in given.only:
            found["models"][name] = measure(services, name, given.repetitions)
    kept = ROOT / ".bench" / "training.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    print("| model | plain, steps/s | as a job, steps/s | ratio | plain, MB | as a job, MB | ratio | checkpoints |")
    print("|---|---|---|---|---|---|---|---|")
    missed = False
    for name, row in found["models"].items():
        missed |= row["speed"] < TARGETS["steps"] or row["memory"] > TARGETS["memory"]
        print(
            f"| {MODELS[name][0]} | {told(row['plain'], 'rate')} | {told(row['job'], 'rate')} | {row['speed']:.3f} "
            f"| {told(row['plain'], 'mb')} | {told(row['job'], 'mb')} | {row['memory']:.3f} | {row['checkpoints']} |"
        )
    print(f"wanted: steps/s ≥ {TARGETS['steps']}, memory ≤ {TARGETS['memory']}: {'MISSED' if missed else 'met'}")
    return int(missed)


def told(rows: list[dict[str, float]], what: str) -> str:
    """Return the repetitions of one figure."""
    return " · ".join(f"{row[what]:,.2f}" if what == "rate" else f"{row[what]:,.0f}" for row in rows)


def measure(services: Services, name: str, repetitions: int) -> dict[str, Any]:
    """Train in turns, plainly and as a job."""
    title, steps, every = MODELS[name]
    base = model(name, services.folder)
    params = {
        "base": f"file:{base}", "data": f"file:{DATA}", "steps": steps, "batch_size": 4, "max_length": 128,
        "threads": 2, "checkpoint_steps": every,
    }  # fmt: skip
    rows: dict[str, list[dict[str, float]]] = {"plain": [], "job": []}
    checkpoints = 0
    for number in range(repetitions):
        for way in ("plain", "job") if number % 2 == 0 else ("job", "plain"):
            print(f"{title}: {way}", file=sys.stderr, flush=True)
            if way == "plain":
                rows[way].append(plain(params, base))
            else:
                row, checkpoints = job(services, params)
                rows[way].append(row)
    speed = statistics.median(one["rate"] for one in rows["job"]) / statistics.median(
        one["rate"] for one in rows["plain"]
    )
    memory = statistics.median(one["mb"] for one in rows["job"]) / statistics.median(one["mb"] for one in rows["plain"])
    return {**rows, "speed": speed, "memory": memory, "checkpoints": checkpoints}


def model(name: str, folder: Path) -> Path:
    """Return the directory of a base model, in a process of its own: this one needs no torch."""
    code = (
        "import sys; from pathlib import Path; from workers.llm import bases\n"
        "cache, name, texts = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_text().splitlines()\n"
        "print(bases.smollm2(cache) if name == 'smollm2' else bases.tiny(Path(sys.argv[4]), texts, steps=0))"
    )
    command = [sys.executable, "-c", code, str(Settings.load().cache), name, str(DATA), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | QUIET)
    return Path(done.stdout.splitlines()[-1])


def plain(params: dict[str, Any], base: Path) -> dict[str, float]:
    """Train as a script."""
    targets = ["c_attn", "c_fc", "c_proj"] if "tiny" in base.name else [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    given = params | {"base": str(base), "data": str(DATA), "targets": targets}
    command = [sys.executable, "-m", "benchmarks.rig.plain", json.dumps(given)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | QUIET, cwd=ROOT)
    told = json.loads(done.stdout.splitlines()[-1])
    return {"rate": told["steps"] / told["seconds"], "mb": told["peak"] / 1e6}


def job(services: Services, params: dict[str, Any]) -> tuple[dict[str, float], int]:
    """Train through the queue, on a worker of its own: a warm one would have loaded the libraries already."""
    settings = services.settings(f"t{time.monotonic_ns()}.").model_copy(update={"log_level": "info"})
    names = Names(settings.prefix)
    ensure(settings, topics(names, ("training",), 4), groups(names, ("training",)))
    log = services.folder / f"worker-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "workers", "--kinds", "training", "--slots", "1"]
    worker = spawn(command, log=log, env=os.environ | QUIET | settings.environ(), tie=True)
    try:
        if not wait_until(lambda: "worker up" in log.read_text(errors="replace"), deadline_s=60, process=worker):
            raise RuntimeError(f"no worker: {log.read_text()}")
        with Client(settings=settings) as client:
            handle = client.submit("training", params)
            events = list(handle.watch(timeout=600))
    finally:
        stop(worker, grace_s=5)
    outcome = events[-1].outcome
    if outcome is None or outcome.status != "succeeded":
        raise RuntimeError(f"the training failed: {outcome}")
    said = [event.progress or {} for event in events]
    steps = [(told["step"], event.time.timestamp()) for event, told in zip(events, said, strict=True) if "loss" in told]
    (first, began), (last, ended) = steps[0], steps[-1]
    assert (first, last) == (1, params["steps"]), "the first step and the last are told"
    rate = (last - first) / (ended - began)
    return {"rate": rate, "mb": outcome.usage.peak_memory_bytes / 1e6}, sum("checkpoint" in one for one in said)


if __name__ == "__main__":
    sys.exit(main())
