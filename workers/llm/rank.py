"""One process of a training on several devices, as torchrun starts it; see `workers.llm.launch`.

    torchrun --nproc-per-node 2 -m workers.llm.rank FOLDER

Whatever the process needs of the world it asks of who launched it, and it does not outlive that one.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from schemas.outcome import Failure
from workers.failures import classify
from workers.llm.team import Brought, Shared, Together

ADDRESS, KEY = "TAPE_RANKS_ADDRESS", "TAPE_RANKS_KEY"
PLAN = "plan"


class Line:
    """The line to who launched us: one question at a time. The checkpoints there are used over it too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ask(self, call: str, **given: Any) -> Any:
        """Ask, and return the answer."""
        self._connection.send_bytes(json.dumps({"call": call, **given}).encode())
        return json.loads(self._connection.recv_bytes())

    def progress(self, told: dict[str, Any]) -> None:
        self.ask("progress", told=told)

    def should_stop(self) -> bool:
        return bool(self.ask("should_stop"))

    @property
    def busy(self) -> bool:
        return bool(self.ask("busy"))

    def newest(self, into: Path, fits: Callable[[Mapping[str, Any]], bool]) -> Brought | None:
        assert isinstance(fits, partial), "`workers.llm.resume.fits` with the facts of this run"
        return _brought(self.ask("newest", into=str(into), facts=fits.args[0]))

    def at(self, step: int, into: Path) -> Brought | None:
        return _brought(self.ask("at", step=step, into=str(into)))

    def keep(self, step: int, folder: Path, **facts: Any) -> None:
        self.ask("keep", step=step, folder=str(folder), facts=facts)

    def flush(self) -> None:
        self.ask("flush")


def _brought(answer: list[Any] | None) -> Brought | None:
    return None if answer is None else Brought(*answer)


def connect() -> Connection:
    """Connect to who launched us."""
    return Client(os.environ[ADDRESS], authkey=bytes.fromhex(os.environ[KEY]))


def _outlive_nobody(connection: Connection) -> None:
    """End this process, whatever it waits for, when who launched it is gone."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def main() -> None:
    """Do this process's share of the training."""
    threading.Thread(target=_outlive_nobody, args=(connect(),), daemon=True).start()
    line, team = Line(connect()), Together(int(os.environ["RANK"]))
    try:
        _serve(Path(sys.argv[1]), line, team)
    except Exception as error:
        failure = Failure.of(classify(error))
        line.ask("failed", rank=team.rank, failure=failure.model_dump(mode="json"))
        raise


def _serve(folder: Path, line: Line, team: Together) -> None:
    import torch
    from torch import distributed

    from workers.llm import model as models
    from workers.llm import train
    from workers.llm.watch import Work

    models.quiet()
    params, given, keeps = pickle.loads((folder / PLAN).read_bytes())  # noqa: S301  # whoever launched us wrote it
    if cuda := models.place(params.device) == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    keeper = Shared(team, line if team.first else None) if keeps else None
    work = Work(
        **given,
        progress=line.progress if team.first else lambda _: None,
        should_stop=line.should_stop if team.first else lambda: False,
        checkpoints=keeper,
        team=team,
        scratch=folder / "scratch",
    )
    if not team.first:
        work.out = folder / f"rank-{team.rank}"
    result = train.once(params, work)
    if team.first:
        line.ask("done", result=asdict(result) | {"out": str(result.out)})
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
