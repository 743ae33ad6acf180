"""A training on several devices: torchrun starts a process for each, and this one stands between them and the queue.

A step means the same as on one device: each process takes `batch_size / devices` rows of every batch, and the loss is
the mean over all their tokens (DistributedDataParallel, Li et al. 2020, arXiv:2006.15704, or `workers.llm.shard`).
On a CPU they talk by gloo, on GPUs by NCCL. When one dies all end, and the training goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from schemas.errors import InvalidError, JobError, SetupError, TapeError
from schemas.outcome import Failure
from workers.failures import FAMILIES, classify
from workers.llm import model as models
from workers.llm import resume
from workers.llm.rank import ADDRESS, KEY, PLAN
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.watch import Work

HOME = str(Path(__file__).parents[2])
GRACE_S = 5.0
LINES = 40
TWO = 2
"""Processes that a CPU takes however few cores it has: sharing can be tried out anywhere."""
PEER = "TAPE-6001"
"""What a process tells whose neighbour is gone: the neighbour, or how it ended, says more."""


def check(params: TrainParams) -> None:
    """Raise `InvalidError` or `SetupError` where a training cannot be shared by so many devices."""
    if params.batch_size % params.devices:
        raise InvalidError(
            f"batch_size {params.batch_size} cannot be shared by {params.devices} devices",
            code="TAPE-1002", field="batch_size", hint="take a multiple of `devices`",
        )  # fmt: skip
    if models.place(params.device) == "cuda":
        import torch

        if (here := torch.cuda.device_count()) < params.devices:
            raise SetupError(f"{params.devices} devices are asked for, and {here} are here", code="TAPE-8003")
    elif params.devices > (here := max(TWO, models.cores())):
        raise SetupError(
            f"{params.devices} processes are asked for, and this machine takes {here} at most", code="TAPE-8003",
            field="devices", hint="ask for fewer `devices`, or run it where there are as many cores",
        )  # fmt: skip


def launch(params: TrainParams, work: Work) -> TrainResult:
    """Train on `params.devices` devices of this machine; return what the first process made of it.

    Raises what `workers.llm.train.train` raises in any of the processes, and `JobError` (TAPE-6002) when one died.
    """
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="tape-ranks-", dir=work.out.parent) as place, Listener(authkey=key) as ear:
        folder = Path(place)
        given: dict[str, Any] = {name: getattr(work, name) for name in ("base", "out", "halved")}
        given |= {"rows": list(work.rows), "valid": list(work.valid)}  # not the shelf they lie on: that needs the store
        (folder / PLAN).write_bytes(pickle.dumps((params, given, work.checkpoints is not None)))
        (folder / "scratch").mkdir()
        desk = Desk(work)
        threading.Thread(target=_listen, args=(ear, desk), name="ranks", daemon=True).start()
        process = _start(params, folder, {ADDRESS: str(ear.address), KEY: key.hex()})
        tail: deque[str] = deque(maxlen=LINES)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail.append(line)
                with suppress(OSError, ValueError):
                    sys.stderr.write(line)
            code = process.wait()
        finally:
            _end(process)
            process.stdout.close()
    return desk.result(code, "".join(tail))


class Desk:
    """Answers what the processes ask; each has a thread here."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._found: dict[str, Any] | None = None
        self._errors: list[TapeError] = []
        self._calls: dict[str, Callable[..., Any]] = {
            "progress": lambda told: self._work.progress(told),
            "should_stop": lambda: self._work.should_stop(),
            "busy": lambda: self._keeper.busy,
            "newest": self._newest,
            "at": lambda step, into: _told(self._keeper.at(step, Path(into))),
            "keep": lambda step, folder, facts: self._keeper.keep(step, Path(folder), **facts),
            "flush": lambda: self._keeper.flush(),
            "done": self._done,
            "failed": self._failed,
        }

    def serve(self, connection: Connection) -> None:
        """Answer one process until it is gone; what cannot be answered ends it."""
        with connection, suppress(EOFError, OSError):
            while True:
                asked = json.loads(connection.recv_bytes())
                try:
                    answer = self._calls[asked.pop("call")](**asked)
                except Exception as error:
                    self._errors.append(classify(error))
                    return
                connection.send_bytes(json.dumps(answer).encode())

    def result(self, code: int, tail: str) -> TrainResult:
        """Return what came of it, or raise."""
        errors = sorted(self._errors, key=lambda error: error.code == PEER)
        if errors and errors[0].code != PEER:
            raise errors[0]
        if code or self._found is None:
            told = errors[0].message if errors else f"torchrun ended with exit code {code}"
            raise JobError(f"a process of the training died: {told}", code="TAPE-6002", last=tail[-500:])
        return TrainResult(**self._found | {"out": Path(self._found["out"])})

    @property
    def _keeper(self) -> resume.Keeper:
        assert self._work.checkpoints is not None
        return self._work.checkpoints

    def _newest(self, into: str, facts: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        return _told(self._keeper.newest(Path(into), partial(resume.fits, facts)))

    def _done(self, result: dict[str, Any]) -> None:
        self._found = result

    def _failed(self, rank: int, failure: dict[str, Any]) -> None:
        found = Failure.model_validate(failure)
        place = found.place | {"rank": rank}
        error = FAMILIES[found.code[5]](found.message, code=found.code, hint=found.hint, failure=found.failure, **place)
        self._errors.append(error)


def _told(found: resume.Found | None) -> tuple[int, dict[str, Any]] | None:
    return None if found is None else (found.step, dict(found.facts))


def _listen(ear: Listener, desk: Desk) -> None:
    with suppress(OSError):  # closed: it is over
        while True:
            connection = ear.accept()
            threading.Thread(target=desk.serve, args=(connection,), name="rank", daemon=True).start()


def _start(params: TrainParams, folder: Path, told: dict[str, str]) -> subprocess.Popen[str]:
    threads = max(1, models.pin(params.threads) // (1 if params.threads else params.devices))
    # they run this very code, whatever lies in the folder that we are in or is installed beside it
    ours = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([HOME, *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", str(params.devices), "-m", "workers.llm.rank", str(folder),
        ],
        env=os.environ | told | ours | {"OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> None:
    """End what still runs: torchrun takes its processes along when it is asked to end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
