"""How fast the queue is, beside Dramatiq, Celery, Taskiq and FastStream in the same sitting.

    python benchmarks/queue.py [--only tickertape,dramatiq,…] [--measures noop,latency,…] [--quick] [--markdown]

Starts its own Kafka, RabbitMQ and Redis on free ports of loopback, ends them, and keeps what it measured in
`.bench/queue.json`. A server that is not installed costs the systems that need it, with a line that says so. Other
benchmarks' figures of other days and machines mean nothing here: every target is a ratio within one run.
"""

import sys
from pathlib import Path

# This file has the name of a module of the standard library: its folder must not be searched for modules.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import argparse  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.rig.machine import describe  # noqa: E402
from benchmarks.rig.measures import BARE, MEASURES, PEERS, TAPE, Bench, say  # noqa: E402
from benchmarks.rig.report import markdown, table, targets  # noqa: E402
from benchmarks.rig.services import PINS, Services  # noqa: E402
from wire.settings import Settings  # noqa: E402

KEYS = [system.key for system in (TAPE, *BARE, *PEERS)]
FULL_S, QUICK_S = 660.0, 150.0
"""After this, no repetition is begun that would not end in time; what runs is ended."""


def main() -> int:
    """Measure, print, keep; exit status 1 when a target was missed."""
    given = _arguments()
    if given.show:
        found = json.loads(given.json.read_text())
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        found = _measure(given)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found) if given.markdown else table(found))
    return 0 if all(target["met"] for target in found["targets"]) else 1


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "quick": given.quick, "machine": describe()}
    found["machine"]["peers"] = dict(
        line.split("==") for line in PINS.read_text().splitlines() if line.startswith(_SHOWN) and "==" in line
    )
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder,
        Services(Path(folder), Settings.load().cache) as services,
    ):
        total = QUICK_S if given.quick else FULL_S
        repetitions = given.repetitions or (1 if given.quick else 3)
        bench = Bench(services, frozenset(given.only), given.quick, repetitions, began + total)
        found["measures"] = {}
        whole, so_far = sum(_SHARES[name] for name in given.measures), 0.0
        for name in given.measures:
            say(f"{name} ({time.monotonic() - began:.0f} s)")
            so_far += _SHARES[name]
            bench.until = began + total * so_far / whole
            found["measures"][name] = MEASURES[name](bench)
        found["skipped"], found["services"] = bench.skipped, services.versions
    found["targets"] = targets(found["measures"])
    found["seconds"] = round(time.monotonic() - began)
    return found


_SHARES = {"noop": 0.46, "sleep": 0.1, "latency": 0.19, "memory": 0.01, "scale": 0.17, "enqueue": 0.07}
"""Of the time there is; what one measure does not need is the next one's."""
_SHOWN = ("dramatiq", "celery", "taskiq", "faststream", "pika", "redis", "aiokafka")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_among(KEYS), default=(), help=f"systems, by commas: {', '.join(KEYS)}")
    parser.add_argument("--measures", type=_among(list(MEASURES)), default=tuple(MEASURES), help=", ".join(MEASURES))
    parser.add_argument("--quick", action="store_true", help="fewer jobs, one repetition: less than three minutes")
    parser.add_argument("--repetitions", type=int, help="of every figure (default 3, quick 1)")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/performance.md")
    parser.add_argument("--show", action="store_true", help="measure nothing, print what the last run kept")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "queue.json", help="where figures are kept")
    return parser.parse_args()


def _among(known: list[str]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
