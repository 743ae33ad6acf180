"""Check a data file of gigabytes: how much memory that takes, and how fast it is beside a loop that only parses it.

    python benchmarks/datasets.py --gb 2

Prints a table. Rows have five hundred characters, one in a hundred is nearly empty. `parse` reads the same file with
`json.loads`, line by line, and does nothing else: whatever looks at every row in Python is slower.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["revenue", "margin", "quarter", "guidance", "shares", "dividend", "debt", "cash", "growth", "outlook", "cost"]
PARSE = "import json, sys\nfor line in open(sys.argv[1], 'rb'): json.loads(line)\n"
CHECK = (
    "import sys, tempfile; from pathlib import Path; from wire.rows.check import Check\n"
    "with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder, Check(Path(folder)) as check:\n"
    "    check.take('train', Path(sys.argv[1])); report = check.finish()\n"
    "print(report.parts[0].count, dict(report.counts))\n"
)


def write(path: Path, size: int) -> int:
    """Write rows until the file has so many bytes; return how many."""
    chance, count = random.Random(7), 0
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < size:
            block = []
            for _ in range(1_000):
                number = count if chance.random() > 0.01 else count // 2
                text = " ".join(chance.choices(WORDS, k=60)) if number == count else "again"
                row = {"prompt": f"Question {number}: {text}\nAnswer:", "completion": f"{number * 7 % 1_000_003}"}
                block.append(json.dumps(row))
                count += 1
            out.write("\n".join(block) + "\n")
    return count


def run(code: str, *arguments: str) -> tuple[float, float, float]:
    """Run code in a process of its own; return its seconds, those of a core, and its peak memory in MB."""
    began = time.monotonic()
    told = "import resource; used = resource.getrusage(resource.RUSAGE_SELF)\n"
    script = f"{code}\n{told}print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    core, peak = done.stdout.splitlines()[-1].split()
    return time.monotonic() - began, float(core), int(peak) * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Write the file, parse it, check it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gb", type=float, default=2.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tape-bench-") as folder:
        path = Path(folder) / "rows.jsonl"
        count = write(path, int(given.gb * 1e9))
        megabytes = path.stat().st_size / 1e6
        print(f"{megabytes:,.0f} MB, {count:,} rows")
        print("| what | s | MB/s | rows/s | s of a core | to parsing | peak memory, MB |")
        print("|---|---|---|---|---|---|---|")
        first = run(PARSE, str(path))
        for name, (seconds, core, peak) in (("parse", first), ("check", run(CHECK, str(path), folder))):
            print(
                f"| {name} | {seconds:.0f} | {megabytes / seconds:.0f} | {count / seconds:,.0f} | {core:.0f} "
                f"| {core / first[1]:.1f}x | {peak:.0f} |"
            )


if __name__ == "__main__":
    main()
