"""Was it the kernel's out-of-memory killer? It leaves nothing but SIGKILL, and a number that went up in the cgroup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
FIRST_TO_GO = "500"
"""Added to the kernel's score of a job's process, of 1,000: under pressure the job goes, and its worker lives."""


def offer() -> None:
    """Let the kernel take this process before others, where it asks."""
    with suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text(FIRST_TO_GO)


def watch(pid: int, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> Callable[[], bool]:
    """Return a question for when the process was killed: has the kernel killed for memory in its cgroup since now?

    Where the cgroup's count cannot be read the whole machine's is taken.
    """
    for file in (*_files(pid, proc, cgroups), proc / "vmstat"):
        if (before := _count(file)) is not None:
            return lambda file=file, before=before: (_count(file) or 0) > before  # type: ignore[misc]
    return lambda: False


def _files(pid: int, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The files that may count: of cgroup v2 and v1, by the path as the host sees it and as a container does."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield cgroups / "memory" / path.lstrip("/") / "memory.oom_control"
            yield cgroups / "memory" / "memory.oom_control"
        elif not controllers:
            yield cgroups / path.lstrip("/") / "memory.events"
            yield cgroups / "memory.events"


def _count(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None
