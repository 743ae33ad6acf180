"""Reports of a training: what MLflow and wandb read back is what was measured, and nothing needs a network."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from train_rig import ROWS

from schemas.errors import JobError, SetupError
from schemas.job import Training
from schemas.outcome import Succeeded
from wire.blobs.manifest import materialise, read_manifest
from wire.blobs.memory import Memory
from workers.context import Context
from workers.handlers.training import training
from workers.llm import report
from workers.llm.report import Run
from workers.report import Reports
from workers.runner import call

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]
STEPS = 6
BLOCK = 32_768


def run(tmp_path: Path, **given: Any) -> Run:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "steps": STEPS, "epoch": step / 4, "loss": 3.0 / step} for step in range(1, STEPS + 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": STEPS, "valid_loss": 0.25}]))
    base = {"id": "job-1", "name": "nice", "params": {"lora.rank": 8}, "summary": {"loss": 0.5}}
    return Run(**{**base, "metrics": str(path), "times": [(1, 1_000), (4, 5_000), (STEPS, 9_000)], **given})


READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
(experiment,) = [one for one in client.search_experiments() if one.name == "tickertape"]
runs = []
for found in client.search_runs([experiment.experiment_id]):
    history = {
        name: [(one.step, one.value, one.timestamp) for one in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    runs.append({"name": found.info.run_name, "status": found.info.status, "params": found.data.params,
                 "tags": found.data.tags, "history": history})
print(json.dumps(runs))
"""


def read_mlflow(database: Path) -> list[dict[str, Any]]:
    """The runs of a store, by the library itself; in a process of its own, for it is no guest that cleans up."""
    environ = os.environ | report.SILENT | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", READ_MLFLOW, f"sqlite:///{database}"], env=environ,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def frames(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind seven bytes, in blocks of 32 KiB."""
    data, at, held = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


READ_WANDB = """
import json, sys
from wandb.proto import wandb_internal_pb2 as proto
told = {"history": [], "config": {}, "summary": {}}
for line in sys.stdin:
    record = proto.Record.FromString(bytes.fromhex(line))
    kind = record.WhichOneof("record_type")
    if kind == "history":
        items = record.history.item
        told["history"].append({(one.key or one.nested_key[0]): json.loads(one.value_json) for one in items})
    elif kind == "run":
        told |= {"name": record.run.display_name, "project": record.run.project, "host": record.run.host}
        told["config"] |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
    elif kind == "summary":
        told["summary"] |= {(one.key or one.nested_key[0]): json.loads(one.value_json) for one in record.summary.update}
    elif kind == "exit":
        told["exit"] = record.exit.exit_code
print(json.dumps(told))
"""


def read_wandb(folder: Path) -> dict[str, Any]:
    """What a run directory tells, by the library's own messages."""
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    lines = "".join(frame.hex() + "\n" for frame in frames(path))
    done = subprocess.run([sys.executable, "-c", READ_WANDB], input=lines, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def listening() -> Iterator[SimpleNamespace]:
    """Somebody who counts who comes by, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = SimpleNamespace(url=f"http://127.0.0.1:{server.getsockname()[1]}", count=0, held=[])

        def accept() -> None:
            while True:
                try:
                    seen.held.append(server.accept()[0])
                except OSError:
                    return
                seen.count += 1

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield seen
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for each in seen.held:
            each.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Both reports, written where every address and proxy leads to somebody who counts."""
    folder = tmp_path_factory.mktemp("written")
    with listening() as seen, pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            patch.setenv(name, seen.url)
        patch.setenv("WANDB_API_KEY", "k" * 40)
        patch.setenv("WANDB_MODE", "online")
        patch.setenv(report.SERVER, seen.url)
        for to in ("mlflow", "wandb"):
            report.write(to, run(folder), folder / to)
    return SimpleNamespace(folder=folder, seen=seen)


def test_mlflow_reads_back_what_was_measured(written: SimpleNamespace) -> None:
    database = written.folder / "mlflow" / "mlflow.db"
    assert list(database.parent.iterdir()) == [database]
    (found,) = read_mlflow(database)
    assert (found["name"], found["status"], found["params"]) == ("nice", "FINISHED", {"lora.rank": "8"})
    assert found["tags"]["tape.job"] == "job-1"
    times = [1_000, 5_000, 5_000, 5_000, 9_000, 9_000]
    assert found["history"]["loss"] == [[at, 3.0 / at, times[at - 1]] for at in range(1, STEPS + 1)]
    assert found["history"]["valid_loss"] == [[STEPS, 0.25, 9_000]]
    assert found["history"]["final.loss"] == [[STEPS, 0.5, 9_000]]


def test_wandb_reads_back_what_was_measured(written: SimpleNamespace) -> None:
    found = read_wandb(written.folder / "wandb")
    assert (found["name"], found["project"], found["exit"]) == ("nice", "tickertape", 0)
    assert (found["config"]["lora.rank"], found["config"]["job"]) == (8, "job-1")
    assert [one["_step"] for one in found["history"]] == list(range(1, STEPS + 1)), "each step once"
    assert [one["loss"] for one in found["history"]] == [3.0 / step for step in range(1, STEPS + 1)]
    assert found["history"][-1]["valid_loss"] == 0.25
    assert [one["_timestamp"] for one in found["history"]] == [1, 5, 5, 5, 9, 9]


def test_nobody_is_told_and_nothing_tells_of_this_machine(written: SimpleNamespace) -> None:
    assert written.seen.count == 0
    assert read_wandb(written.folder / "wandb")["host"] == ""
    files = [path for to in ("mlflow", "wandb") for path in (written.folder / to).rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".db", ".wandb"], "no log, no list of packages"
    for path in files:
        data = path.read_bytes()
        assert str(written.folder).encode() not in data and sys.executable.encode() not in data
        assert b"k" * 40 not in data


def test_a_report_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the report ended with exit code 1: FileNotFoundError.*nowhere"):
        report.write("wandb", run(tmp_path, metrics="/nowhere"), tmp_path / "wandb")
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot be written"):
        report.write("wandb", run(tmp_path), tmp_path / "file" / "wandb")


def test_a_library_that_is_missing_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(report._MODULES, "wandb", ("nowhere_to_be_found",))
    report.check(["mlflow"])
    with pytest.raises(SetupError) as caught:
        report.check(["mlflow", "wandb"])
    assert caught.value.code == "TAPE-8003" and "tickertape[wandb]" in caught.value.hint


class Tracking(BaseHTTPRequestHandler):
    """As much of a tracking server's REST API as a run needs."""

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        sent = json.loads(self.rfile.read(size) or b"{}")
        path = self.path.partition("?")[0].rpartition("/mlflow/")[2]
        kept: dict[str, Any] = self.server.kept  # type: ignore[attr-defined]
        kept.setdefault("paths", []).append(path)
        status, told = 200, dict[str, Any]()
        if path == "experiments/get-by-name":
            status, told = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
        elif path == "experiments/create":
            told = {"experiment_id": "7"}
        elif path == "runs/search":
            told = {"runs": kept.get("runs", [])}
        elif path in ("runs/create", "runs/update"):
            info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING", "artifact_uri": "x:/"}
            told = {"run": {"info": info, "data": {}}, "run_info": info}
            kept.setdefault(path, []).append(sent)
        elif path == "runs/log-batch":
            kept.setdefault("metrics", []).extend(sent.get("metrics", []))
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@contextmanager
def tracking() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Tracking) as server:
        server.kept = {}  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_tracking_server_is_told_of_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking() as server:
        monkeypatch.setenv(report.SERVER, f"http://127.0.0.1:{server.server_port}")
        report.send(run(tmp_path))
        losses = [(one["step"], one["value"]) for one in server.kept["metrics"] if one["key"] == "loss"]
        assert losses == [(step, 3.0 / step) for step in range(1, STEPS + 1)]
        assert server.kept["runs/update"][-1]["status"] == "FINISHED"
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "FINISHED", "artifact_uri": "x:/"}
        server.kept["runs"] = [{"info": info, "data": {}}]
        before = len(server.kept["metrics"])
        report.send(run(tmp_path))
        assert len(server.kept["metrics"]) == before, "another attempt said it all"


def context(tmp_path: Path, store: Memory, told: list[dict[str, Any]] | None = None) -> Context:
    return Context(
        job="job-9", kind="training", attempt=1, worker="w", tenant="t", cache=tmp_path / "cache",
        scratch=tmp_path, open_store=lambda: store, report=(told if told is not None else []).append,
        stopped=lambda: False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "refuses"])
def test_a_server_that_fails_costs_a_bounded_time_and_the_report_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(report, "SERVER_S", 8.0)
    params = Training(base="file:b", data="blob:d", report_to=["mlflow"])
    result: dict[str, Any] = {"loss": 1.0}
    with listening() as seen:
        url = seen.url if how == "hangs" else "http://me:secret@127.0.0.1:1"
        monkeypatch.setenv(report.SERVER, url)
        began = time.monotonic()
        artifacts = Reports(context(tmp_path, Memory()), params).write(Path(run(tmp_path).metrics), result)
        assert time.monotonic() - began < 60
        assert (seen.count > 0) == (how == "hangs")
    assert [artifact.name for artifact in artifacts] == ["reports"]
    assert result["reports"]["mlflow"]["where"] == "artifact reports/mlflow"
    assert result["reports"]["mlflow"]["server"].startswith("the report ")
    assert "secret" not in json.dumps(result)
    assert len(read_mlflow(tmp_path / "reports" / "mlflow" / "mlflow.db")) == 1


@pytest.mark.slow
def test_a_training_with_reports_makes_the_same_model(blank: Path, tmp_path: Path) -> None:
    store = Memory()
    store.put("rows.jsonl", "".join(
        json.dumps({"prompt": row.prompt, "completion": row.completion}) + "\n" for row in ROWS
    ).encode())  # fmt: skip
    files, result = {}, dict[str, Any]()
    for name, asked in (("bare", {}), ("told", {"report_to": ["mlflow", "wandb"], "run_name": "first"})):
        (tmp_path / name).mkdir()
        params = Training(
            base=f"file:{blank}", data="blob:rows.jsonl", validation="blob:rows.jsonl", steps=4, batch_size=4,
            threads=1, max_length=32, **asked,
        )  # fmt: skip
        verdict = call(training, context(tmp_path / name, store), params)
        assert isinstance(verdict, Succeeded), verdict
        model, *more = verdict.artifacts
        result = verdict.result
        files[name] = {file.path: file.sha256 for file in read_manifest(store, model).files}
        assert [artifact.name for artifact in more] == (["reports"] if asked else [])
    assert files["bare"] == files["told"], "weights, settings, metrics: every file"
    assert result["reports"] == {to: {"where": f"artifact reports/{to}"} for to in ("mlflow", "wandb")}
    materialise(store, more[0], tmp_path / "got")
    (found,) = read_mlflow(tmp_path / "got" / "mlflow" / "mlflow.db")
    assert [step for step, _, _ in found["history"]["loss"]] == [1, 2, 3, 4]
    assert found["history"]["valid_loss"][0][1] == pytest.approx(result["validation_loss"])
    assert found["params"]["lora.rank"] == "8" and found["name"] == "first"
    assert len(read_wandb(tmp_path / "got" / "wandb")["history"]) == 4
