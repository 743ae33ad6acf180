"""Probe this machine's device as the kinds that use it ask for: `python -m workers.probe KIND ...`.

It ends with 0 when all is well; else the last line on stderr says what is wrong. A process of its own, because a broken
device may kill or hang whoever touches it, and because only a new one has a device context that nobody broke.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence

from wire.process import die_with_parent
from workers.kinds import Kind, load
from workers.quarantine import Probe

PROBE_S = 60.0
"""A probe that takes longer found a device that hangs; importing torch alone may take many seconds."""


def apart(kinds: Iterable[Kind], *, limit_s: float = PROBE_S) -> Probe | None:
    """Return how to probe the device for these kinds in a fresh process; None where no kind can tell."""
    names = sorted(kind.name for kind in kinds if kind.probe is not None)
    return (lambda: run(names, limit_s=limit_s)) if names else None


def run(names: Sequence[str], *, limit_s: float = PROBE_S) -> str | None:
    """Probe in a fresh process, for at most so many seconds; return None when all is well, else what is wrong."""
    command = [sys.executable, "-m", "workers.probe", *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the device did not answer a probe within {limit_s:g} s"
    except OSError as error:
        return f"no process could be started to probe the device: {error}"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().rpartition("\n")[2]
    return said or f"the process that probed the device ended with {done.returncode}"


def main() -> int:
    """Probe for the kinds named on the command line."""
    die_with_parent()  # the device may hang
    for probe in dict.fromkeys(kind.probe for kind in load(sys.argv[1:]).values()):
        if probe is not None:
            try:
                probe()
            except Exception as error:
                sys.stderr.write(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
