"""What a training's checkpoint holds beside the Trainer's own files, and whether another run may go on from it.

On a CPU a run that goes on is *exact*: it ends in the very bytes of an undisturbed one, as long as threads, versions,
processor and micro-batch are the same. Threads are pinned by the first attempt, and the others take them over; where
the rest differs, or on a GPU, the run goes on all the same and says that it is not exact.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workers.llm.data import Encoded

if TYPE_CHECKING:
    from workers.llm.settings import TrainParams

STATE, METRICS = "tape.json", "metrics.jsonl"
PICKLED = "training_args.bin"
"""What the Trainer writes there is code to whoever reads it; nobody needs it."""
CODE = 2
"""Counts the changes of our own code after which the same request ends in other bytes.

2: validating takes nothing from dropout's generator."""
ALIKE = ("device", "batch_size", "versions", "processor", "code")
"""What must be the same for a run that goes on to be exact; the threads are taken over."""
EVERY_S = 60.0
"""Seconds between checkpoints, where the request says nothing."""


class Found(Protocol):
    """A checkpoint that was brought here."""

    @property
    def step(self) -> int: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...


class Keeper(Protocol):
    """Where checkpoints are kept; `workers.checkpoint.Checkpoints` is one."""

    @property
    def busy(self) -> bool: ...
    def newest(self, into: Path, fits: Callable[[Mapping[str, Any]], bool]) -> Found | None: ...
    def at(self, step: int, into: Path) -> Found | None: ...
    def keep(self, step: int, folder: Path, **facts: Any) -> None: ...
    def flush(self) -> None: ...


def facts(params: TrainParams, base: str, rows: Iterable[Encoded], *, device: str, threads: int) -> dict[str, Any]:
    """Return what must be the same for a run to go on from a checkpoint, and what must be for it to be exact."""
    free = {"threads", "batch_size", "accumulation", "checkpoint_steps"}
    asked = params.model_dump(mode="json", exclude=free, exclude_defaults=True)  # a new field changes no old request
    asked["together"] = params.batch_size * params.accumulation
    return {
        "request": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest(),
        "base": base,
        "rows": _digest(rows),
        "threads": threads,
        "device": device,
        "batch_size": params.batch_size,
        "versions": versions(params.method),
        "processor": processor(),
        "code": CODE,
        "exact": True,
    }


def fits(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a run may go on from a checkpoint: the same request, base, teacher and rows."""
    return all(theirs.get(name) == mine.get(name) for name in ("request", "base", "rows", "teacher"))


def exact(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a run that goes on from there ends in the bytes of an undisturbed one; its threads are taken over."""
    same = all(theirs.get(name) == mine[name] for name in ALIKE)
    return same and mine["device"] == "cpu" and bool(theirs.get("exact"))


def versions(method: str = "") -> dict[str, str]:
    """Return the versions of the libraries that decide about bytes."""
    more = ("bitsandbytes",) if method == "qlora" else ()
    return {name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate", "numpy", *more)}


def processor() -> str:
    """Return what decides which kernels torch takes."""
    import torch

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def hardware() -> str:
    """Return what a training computes on here: the accelerator where there is one, and the processor."""
    import torch

    return f"{torch.cuda.get_device_name()}, {processor()}" if torch.cuda.is_available() else processor()


def save(folder: Path, metrics: Path, state: Mapping[str, Any]) -> None:
    """Complete a folder that the Trainer saved."""
    (folder / PICKLED).unlink(missing_ok=True)
    (folder / STATE).write_text(json.dumps(state))
    shutil.copyfile(metrics, folder / METRICS)


def load(folder: Path, metrics: Path) -> dict[str, Any]:
    """Return the state that `save` was given, and put the metrics back as they were."""
    shutil.copyfile(folder / METRICS, metrics)
    found: dict[str, Any] = json.loads((folder / STATE).read_text())
    return found


def _digest(rows: Iterable[Encoded]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.input_ids, row.labels]).encode())
    return digest.hexdigest()
