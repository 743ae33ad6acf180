"""Run many schedules, or one again.

    python -m tests.simulation 0:10000 --processes 2
    SEED=17 python -m tests.simulation

Prints each seed that contradicts the oracle; with SEED, everything that went wrong in that schedule, step by step.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import structlog

from tests.simulation.fate import Violation
from tests.simulation.world import replay, schedule

ROOT = Path(__file__).parents[2]
SWEEP = 50
"""Schedules between two collections of garbage: a world is full of cycles, and collecting it early costs a third."""


def run(first: int, last: int) -> dict[int, str]:
    """Run the schedules of these seeds; return what each bad one came to."""
    bad: dict[int, str] = {}
    gc.freeze()
    gc.disable()
    for seed in range(first, last):
        try:
            schedule(seed)
        except Exception as error:  # a defect that raises is found, too
            bad[seed] = f"{type(error).__name__}: {error}" if not isinstance(error, Violation) else str(error)
        if seed % SWEEP == 0:
            gc.collect()
    gc.enable()
    gc.unfreeze()
    return bad


def spread(first: int, last: int, processes: int) -> dict[int, str]:
    """Run them in several processes, none of them measured for coverage: that would cost thrice the time."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "COV_", "SEED"))}
    edges = [first + (last - first) * part // processes for part in range(processes + 1)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation", f"{low}:{high}", "--json"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
        )
        for low, high in itertools.pairwise(edges)
    ]
    found: dict[int, str] = {}
    try:
        for child in children:
            told, _ = child.communicate()
            found |= {int(seed): text for seed, text in json.loads(told).items()}
    finally:
        for child in children:
            child.kill()
            child.wait()
    return found


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.split("\n")[0])
    parser.add_argument("seeds", nargs="?", default="0:300", help="FIRST:LAST, the last not among them")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the bad seeds as one object")
    options = parser.parse_args()
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=True)
    if "SEED" in os.environ:
        error, trace = replay(int(os.environ["SEED"]))
        print(*trace, error or "all is well", sep="\n")
        return int(error is not None)
    first, last = map(int, options.seeds.split(":"))
    found = run(first, last) if options.processes == 1 else spread(first, last, options.processes)
    if options.json:
        print(json.dumps(found))
        return 0
    for seed, text in sorted(found.items()):
        print(f"SEED={seed}: {text}")
    print(f"{last - first} schedules, {len(found)} bad")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
