"""Who was killed for memory: what the kernel's counters say, wherever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.oom import watch

V1, V2 = "4:memory:/pods/x\n0::/\n", "0::/pods/x\n"


def kernel(folder: Path, cgroup: str | None, counters: dict[str, str]) -> tuple[Path, Path]:
    """Lay out what the kernel would show of process 7."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "7").mkdir(parents=True)
    if cgroup is not None:
        (proc / "7" / "cgroup").write_text(cgroup)
    for name, text in counters.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, cgroups


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        (V1, "cgroup/memory/pods/x/memory.oom_control"),
        (V1, "cgroup/memory/memory.oom_control"),
        (V2, "cgroup/pods/x/memory.events"),
        (V2, "cgroup/memory.events"),
        (V2, "proc/vmstat"),
        (None, "proc/vmstat"),
    ],
)
def test_a_count_that_went_up_is_a_kill_for_memory(tmp_path: Path, cgroup: str | None, file: str) -> None:
    proc, cgroups = kernel(tmp_path, cgroup, {"proc/vmstat": "oom_kill 0\n", file: "under_oom 0\noom_kill 3\n"})
    killed = watch(7, proc=proc, cgroups=cgroups)
    assert not killed()
    (tmp_path / file).write_text("under_oom 0\noom_kill 4\n")
    assert killed()


def test_the_cgroup_is_believed_before_the_machine(tmp_path: Path) -> None:
    proc, cgroups = kernel(tmp_path, V2, {"cgroup/pods/x/memory.events": "oom_kill 0\n", "proc/vmstat": "oom_kill 0\n"})
    killed = watch(7, proc=proc, cgroups=cgroups)
    (proc / "vmstat").write_text("oom_kill 1\n")
    assert not killed(), "somebody else's container"


@pytest.mark.parametrize("text", [None, "", "oom 1\n", "oom_kill many\n"])
def test_where_nothing_counts_nothing_is_claimed(tmp_path: Path, text: str | None) -> None:
    proc, cgroups = kernel(tmp_path, V2, {} if text is None else {"cgroup/memory.events": text})
    assert not watch(7, proc=proc, cgroups=cgroups)()


def test_a_counter_that_goes_away_proves_nothing(tmp_path: Path) -> None:
    proc, cgroups = kernel(tmp_path, V2, {"cgroup/memory.events": "oom_kill 5\n"})
    killed = watch(7, proc=proc, cgroups=cgroups)
    (cgroups / "memory.events").unlink()
    assert not killed()
