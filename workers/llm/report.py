"""Writes the metrics of a training as MLflow and Weights & Biases keep them, without a network.

    write("wandb", Run(name="a", metrics=Path("metrics.jsonl"), ...), Path("wandb"))

    mlflow   mlflow.db, a SQLite store: `mlflow ui --backend-store-uri sqlite:///mlflow.db`
    wandb    offline-run-…/run-ID.wandb: `wandb sync offline-run-…`

Written from the metrics when they are whole, by a process of its own (`python -m workers.llm.report`): the training
imports neither library, waits for neither, and each step is in the report once, however often it was taken up.
Where the operator named a tracking server (MLFLOW_TRACKING_URI), the run goes there instead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas.errors import JobError, SetupError

SERVER = "MLFLOW_TRACKING_URI"
LIMIT_S, SERVER_S = 120.0, 20.0
"""What writing files and what telling a server may take at most."""
BATCH = 1_000
"""Metrics that a server of MLflow takes at once (its REST API, `runs/log-batch`)."""
PROJECT = "tickertape"
SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_ERROR_REPORTING": "false"}
"""Both libraries call home otherwise: MLflow with what is used of it, wandb with its crashes, even offline."""
HARMLESS = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")
"""What of the environment a report may see that is for files: no key, no address, no proxy."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is told of a training: `metrics` is its metrics.jsonl, `times` are (step, milliseconds since 1970).

    The time of a step that has none is that of the next which has one.
    """

    id: str
    name: str
    metrics: str
    params: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    times: Sequence[tuple[int, int]] = ()

    def steps(self) -> dict[int, dict[str, float]]:
        """Return the metrics by step, what was validated after a step with it."""
        found: dict[int, dict[str, float]] = {}
        for line in Path(self.metrics).read_text("utf-8").splitlines():
            record = json.loads(line)
            values = {name: value for name, value in record.items() if name not in {"step", "steps"}}
            found.setdefault(record["step"], {}).update(values)
        return found

    def when(self, steps: Sequence[int]) -> dict[int, int]:
        """Return the milliseconds of each step."""
        left = sorted(self.times)
        found = {}
        for step in sorted(steps):
            while len(left) > 1 and left[0][0] < step:
                left.pop(0)
            found[step] = left[0][1] if left else 0
        return found


def check(to: Sequence[str]) -> None:
    """Raise `SetupError` (TAPE-8003) for a library that is not installed here: before anything is trained."""
    for name in to:
        missing = [module for module in _MODULES[name] if find_spec(module) is None]
        if missing:
            raise SetupError(
                f"{missing[0]} is not installed, which `report_to` asks for", code="TAPE-8003", field="report_to",
                hint=f"on the worker: pip install 'tickertape[{name}]'",
            )  # fmt: skip


_MODULES = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def write(to: str, run: Run, folder: Path) -> None:
    """Write a report to a folder. Raises `JobError` (TAPE-6001) where that fails, or takes longer than `LIMIT_S`."""
    kept = {name: os.environ[name] for name in HARMLESS if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="tape-report-") as own:
        _run(to, run, folder, env={**kept, **SILENT, "HOME": own}, limit_s=LIMIT_S)


def send(run: Run) -> None:
    """Tell the tracking server that the operator named of a run; else as `write`. A run that it knows is left alone."""
    with tempfile.TemporaryDirectory(prefix="tape-report-") as own:
        patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        _run("server", run, Path(own), env={**patience, **os.environ, **SILENT}, limit_s=SERVER_S)


def _run(to: str, run: Run, folder: Path, *, env: Mapping[str, str], limit_s: float) -> None:
    told = json.dumps({"to": to, "run": asdict(run) | {"metrics": str(Path(run.metrics).absolute())}})
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), env.get("PYTHONPATH"))))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.llm.report"], cwd=folder, env={**env, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except OSError as error:
        raise JobError(f"the report cannot be written: {error}", code="TAPE-6001", report=to) from error
    try:
        said, _ = process.communicate(told, timeout=limit_s)
        wrong = f"ended with exit code {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        said, wrong = "", f"took longer than {limit_s:g} s"
    finally:
        _end(process)
    if wrong:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
        last = re.sub(r"//[^/@\s]*@", "//…@", last)  # an address may have a password in it
        raise JobError(f"the report {wrong}: {last}"[:300], code="TAPE-6001", report=to)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process; the service that wandb starts watches it and ends then. Our own end is theirs: one group."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _mlflow(run: Run, uri: str) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    # a server has its own place for files; a database that is carried about has none
    place: dict[str, Any] = {"artifact_location": f"mlflow-artifacts:/{PROJECT}"} if uri.startswith("sqlite:") else {}
    experiment = known.experiment_id if known is not None else client.create_experiment(name, **place)
    earlier = client.search_runs([experiment], filter_string=f"tags.`tape.job` = '{run.id}'", max_results=1)
    if earlier and earlier[0].info.status == "FINISHED":
        return
    steps = run.steps()
    when = run.when(list(steps))
    if earlier:
        made = earlier[0].info.run_id
    else:
        began = min(when.values(), default=None)
        made = client.create_run(experiment, start_time=began, tags={"tape.job": run.id}, run_name=run.name).info.run_id
    params = [Param(key, str(value)[:500]) for key, value in run.params.items() if value is not None]
    client.log_batch(made, params=params[:100])
    metrics = [Metric(key, value, when[step], step) for step, told in steps.items() for key, value in told.items()]
    last = max(when.values(), default=0)
    metrics += [Metric(f"final.{key}", value, last, max(steps, default=0)) for key, value in run.summary.items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(made, metrics=metrics[start : start + BATCH])
    client.set_terminated(made, end_time=last or None)


def _database(run: Run) -> None:
    _mlflow(run, f"sqlite:///{Path('mlflow.db').absolute()}")
    with closing(sqlite3.connect("mlflow.db")) as database:
        # the experiment that MLflow makes by itself names a folder of this machine
        database.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0' WHERE experiment_id = 0")
        database.commit()
        database.execute("VACUUM")


def _wandb(run: Run) -> None:
    import wandb

    settings = wandb.Settings(
        mode="offline", root_dir=str(Path.cwd()), console="off", silent=True, disable_git=True, disable_code=True,
        save_code=False, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        x_save_requirements=False, host="",
    )  # fmt: skip
    steps = run.steps()
    when = run.when(list(steps))
    made = wandb.init(project=PROJECT, name=run.name, config=dict(run.params) | {"job": run.id}, settings=settings)
    for step, told in steps.items():
        made.log({**told, "_timestamp": when[step] / 1000}, step=step)
    made.summary.update({f"final.{key}": value for key, value in run.summary.items()})
    made.finish()
    for folder in Path("wandb").glob("offline-run-*"):
        for name in ("logs", "tmp"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.move(folder, Path.cwd())
    shutil.rmtree("wandb")


def main() -> None:
    """Write the report that stdin tells of into this folder."""
    told = json.load(sys.stdin)
    run = Run(**told["run"])
    if told["to"] == "server":
        _mlflow(run, os.environ[SERVER])
    else:
        {"mlflow": _database, "wandb": _wandb}[told["to"]](run)


if __name__ == "__main__":
    main()
