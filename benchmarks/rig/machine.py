"""The machine and what processes cost on it: CPU seconds and memory of a process with all its children."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


class Meter:
    """CPU seconds and memory of processes with all their children; what children that ended used stays counted."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._roots: list[psutil.Process] = []
        for pid in pids:
            with suppress(psutil.Error):
                self._roots.append(psutil.Process(pid))
        self._seen: dict[int, float] = {}
        self._found: list[psutil.Process] = []
        self._looked = 0.0

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        for process in self._tree():
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._seen[process.pid] = times.user + times.system
        return sum(self._seen.values())

    def rss(self) -> int:
        """Return the resident megabytes now."""
        total = 0
        for process in self._tree():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total >> 20

    def _tree(self) -> list[psutil.Process]:
        # Looking for children reads every process of the machine: once a second is enough, and disturbs nobody.
        if time.monotonic() - self._looked > 1.0:
            self._looked = time.monotonic()
            self._found = list(self._roots)
            for root in self._roots:
                with suppress(psutil.Error):
                    self._found += root.children(recursive=True)
        return self._found


def describe() -> dict[str, Any]:
    """Return what the figures were taken on."""
    return {
        "cpu": _model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "java": _java(),
        "load_before": round(os.getloadavg()[0], 1),
        "packages": {name: version(name) for name in ("kafka-python", "aiokafka", "crc32c", "pydantic")},
    }


def _model() -> str:
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _java() -> str:
    with suppress(OSError):
        told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
        found = re.search(r'version "([^"]+)"', told)
        if found:
            return found[1]
    return "unknown"
