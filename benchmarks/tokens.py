"""What is saved before and within the steps: tokens from the store beside tokens made, packed rows beside padded ones.

    python benchmarks/tokens.py [--rows 100000] [--data FILE --recipe NAME] [--only tiny,smollm2]

Rows are repeated, each a little changed, until there are enough. Both are run in turns; prints two tables, with the
ratio of the medians. Kept in `.bench/tokens.json`.
"""

import sys
from pathlib import Path

# A neighbour of this file has the name of a module of the standard library: its folder must not be searched.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.rig.machine import describe  # noqa: E402
from schemas.row import Row  # noqa: E402
from wire.blobs.directory import Directory  # noqa: E402
from wire.rows import load  # noqa: E402
from wire.settings import Settings  # noqa: E402
from workers.llm import bases, tokens  # noqa: E402
from workers.llm import model as models  # noqa: E402
from workers.llm.pack import Packs  # noqa: E402
from workers.llm.settings import TrainParams  # noqa: E402
from workers.llm.train import train  # noqa: E402
from workers.tokens import Tokens  # noqa: E402

DATA = ROOT / "examples" / "headlines" / "train.jsonl"
STEPS = {"tiny": 60, "smollm2": 4}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(STEPS))
    given = parser.parse_args()
    rows = load(given.data, recipe=given.recipe)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": describe(), "models": {}}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in given.only:
            texts = [f"{row.prompt} {row.completion}" for row in rows]
            cache = Settings.load().cache
            base = bases.smollm2(cache) if name == "smollm2" else bases.tiny(Path(folder), texts, steps=0)
            found["models"][name] = {
                "cache": [cached(base, rows, given, Path(folder) / f"{name}-{n}") for n in range(given.repetitions)],
                "packing": packed(base, rows, given, Path(folder), STEPS[name]),
            }
    kept = ROOT / ".bench" / "tokens.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    show(found, given.rows)


def cached(base: Path, rows: list[Row], given: Any, folder: Path) -> dict[str, float]:
    """Return the seconds of a core for making tokens, finding them on another worker, and on that one once more."""
    many = [
        replace(rows[number % len(rows)], prompt=f"{number}. {rows[number % len(rows)].prompt}")
        for number in range(given.rows)
    ]
    model, store, took = models.load(base, device="cpu"), Directory(folder / "store"), {}
    for what, worker in (("made", "one"), ("fetched", "two"), ("cached", "two")):
        shelf, began = Tokens(lambda: store, folder / worker), time.process_time()
        done = tokens.encoded(tokens.Shelved(many, shelf), model, given.length)
        took[what] = time.process_time() - began
        assert done.found == (what != "made")
    began = time.process_time()
    packs = Packs(done, done.sizes, given.length)
    took |= {"packing": time.process_time() - began, "packs": len(packs), "tokens": sum(done.sizes)}
    return took


def packed(base: Path, rows: list[Row], given: Any, folder: Path, steps: int) -> dict[str, list[float]]:
    """Return the tokens a second of LoRA, padded and packed, four packs or as many examples as these hold at a time.

    Seconds are the core's, of one thread from the end of the first step to that of the last: what else runs here does
    not count.
    """
    model = models.load(base, device="cpu")
    done = tokens.encoded(rows, model, given.length)
    each = max(1, round(len(rows) / len(Packs(done, done.sizes, given.length))))
    found: dict[str, list[float]] = {"padded": [], "packed": [], "examples": [float(each)]}
    for number in range(given.repetitions):
        for packing in (False, True) if number % 2 == 0 else (True, False):
            at: list[float] = []
            size = 4 if packing else 4 * each
            params = TrainParams(
                steps=steps, batch_size=size, max_length=given.length, packing=packing, device="cpu", threads=1
            )
            out = Path(tempfile.mkdtemp(dir=folder))
            told = train(
                params, base=base, rows=rows, out=out, progress=lambda _, at=at: at.append(time.process_time())
            )
            rate = told.tokens * (steps - 1) / steps / (at[-1] - at[0])
            found["packed" if packing else "padded"].append(rate)
    return found


def show(found: dict[str, Any], rows: int) -> None:
    """Print both tables."""
    print(f"\n| {rows:,} rows, s of a core | made | fetched | found here | ratio | packing | rows to packs |")
    print("|---|---|---|---|---|---|---|")
    for name, row in found["models"].items():
        middle = {what: statistics.median(one[what] for one in row["cache"]) for what in row["cache"][0]}
        print(
            f"| {name} | {middle['made']:.1f} | {middle['fetched']:.2f} | {middle['cached']:.2f} "
            f"| {middle['made'] / middle['cached']:.1f}x | {middle['packing']:.2f} | {rows / middle['packs']:.1f} |"
        )
    print("\n| LoRA | examples a pack | padded, tokens a second of a core | packed | ratio |")
    print("|---|---|---|---|---|")
    for name, row in found["models"].items():
        one, other = row["packing"]["padded"], row["packing"]["packed"]
        print(
            f"| {name} | {row['packing']['examples'][0]:.0f} | {' · '.join(f'{rate:,.0f}' for rate in one)} "
            f"| {' · '.join(f'{rate:,.0f}' for rate in other)} "
            f"| {statistics.median(other) / statistics.median(one):.2f}x |"
        )


if __name__ == "__main__":
    main()
