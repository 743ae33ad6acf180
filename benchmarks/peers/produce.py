"""Enqueue jobs with one peer's own client: `python -m benchmarks.peers.produce PEER COUNT SECONDS RATE FIRST`."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Print how many jobs a second were taken by the broker."""
    name, count, seconds, rate, first = sys.argv[1:]
    module = import_module(f"benchmarks.peers.{name}")
    print("RATE", module.produce(int(count), float(seconds), float(rate), int(first)))


if __name__ == "__main__":
    main()
