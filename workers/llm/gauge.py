"""What a job takes while it runs: memory at its peak, energy, and what its share of the worker costs.

Energy is read where the machine has a counter, else estimated:

    processor    RAPL, /sys/class/powercap/intel-rapl:N/energy_uj in µJ (kernel: Documentation/power/powercap), of the
                 whole package, so of all that runs there meanwhile; else the CPU seconds of this process and of its
                 children that ended, times the watts of a busy core
    accelerator  NVML, nvmlDeviceGetTotalEnergyConsumption in mJ (Volta and later), of each visible device, once this
                 process has a CUDA context; without that counter nothing is said of energy at all

Reading takes some ten microseconds, and imports nothing: torch is looked at where the job has loaded it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_WH = 3600.0
WATTS = 10.0
"""Of a busy core, where nobody says otherwise: a server's processor at full load, by its cores."""


class Packages:
    """The counters of the processor's packages; `joules` is None where they are not there or may not be read."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._last: dict[Path, int] = {}
        self._spans: dict[Path, int] = {}
        self._total = 0
        with suppress(OSError):
            for zone in sorted(root.glob("intel-rapl:*")):
                with suppress(OSError, ValueError):  # read by root alone since CVE-2020-8694
                    if (zone / "name").read_text().startswith("package"):  # the others are parts of it, or hold it
                        self._last[zone] = _number(zone / "energy_uj")
                        self._spans[zone] = _number(zone / "max_energy_range_uj")

    def joules(self) -> float | None:
        """Return what they counted since the beginning."""
        try:
            for zone, before in self._last.items():
                now = _number(zone / "energy_uj")
                self._total += now - before if now >= before else now - before + self._spans[zone]
                self._last[zone] = now
        except (OSError, ValueError):
            return None
        return self._total / 1e6 if self._last else None


class Devices:
    """The counters of the accelerators that this process may use; `joules` is None where there is none."""

    def __init__(self, counters: Callable[[], list[int] | None] | None = None) -> None:
        self._counters = counters or millijoules
        self._first = self._counters()

    def joules(self) -> float | None:
        """Return what they counted since the beginning."""
        now = self._counters() if self._first else None
        return sum(now) / 1e3 - sum(self._first or ()) / 1e3 if now else None


class Gauge:
    """Measures one job, from when it is made."""

    def __init__(
        self,
        *,
        watts: float = WATTS,
        price: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] | None = None,
        packages: Packages | None = None,
        devices: Devices | None = None,
    ) -> None:
        """`watts` of a busy core, `price` of an hour."""
        self._watts, self._price = watts, price
        self._clock, self._busy = clock, busy or cpu_seconds
        self._packages, self._devices = packages or Packages(), devices or Devices()
        _forget_peaks()
        self._began, self._spent = self._clock(), self._busy()

    def read(self) -> dict[str, Any]:
        """Return what was taken so far.

        `peak_memory_bytes`, `peak_device_bytes` with CUDA, `energy_wh` with `energy_source`, `cost` with a price.
        """
        found: dict[str, Any] = {"peak_memory_bytes": peak()}
        if (device := device_peak()) is not None:
            found["peak_device_bytes"] = device
        joules, source = self._energy(device is not None)
        if joules is not None:
            found |= {"energy_wh": round(joules / JOULES_PER_WH, 6), "energy_source": source}
        if self._price is not None:
            found["cost"] = round(self._price * (self._clock() - self._began) / 3600, 6)
        return found

    def _energy(self, accelerated: bool) -> tuple[float | None, str]:
        measured = self._packages.joules()
        joules = measured if measured is not None else (self._busy() - self._spent) * self._watts
        if not accelerated:
            return joules, "estimated" if measured is None else "measured"
        more = self._devices.joules()
        return (None if more is None else joules + more), "mixed" if measured is None else "measured"


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def peak() -> int:
    """Return the most resident memory of this process, in bytes, since the job began where the kernel can tell."""
    # not `ru_maxrss`: it begins with what the process had that started this one
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_peak() -> int | None:
    """Return the most memory that torch held on its devices, in bytes; None without a CUDA context."""
    with suppress(RuntimeError):  # of a context that broke: the job's end must be told all the same
        if torch := _torch():
            return int(sum(torch.cuda.max_memory_allocated(at) for at in range(torch.cuda.device_count())))
    return None


def _forget_peaks() -> None:
    """Begin anew: a warm process had other jobs before."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    with suppress(RuntimeError):
        if torch := _torch():
            for at in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(at)


def _torch() -> Any:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # while another thread imports it, it has not got all its parts
    return torch if cuda is not None and cuda.is_initialized() else None


def _number(path: Path) -> int:
    return int(path.read_text())


@cache
def _nvml() -> Any:
    """The driver's own library, by its C interface: no package is needed for two numbers."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def millijoules() -> list[int] | None:
    """Return what each accelerator counted since its driver was loaded; None if one cannot tell, or there is none."""
    library = _nvml()
    handles = _handles(library) if library is not None else []
    found = []
    for handle in handles:
        value = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)) != 0:
            return None
        found.append(value.value)
    return found or None


def _handles(library: Any) -> list[ctypes.c_void_p]:
    """The devices that CUDA_VISIBLE_DEVICES leaves: indices or UUIDs; all of them without it."""
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(at) for at in range(count.value)] if shown is None else [name.strip() for name in shown.split(",")]
    handles = []
    for name in names:
        handle = ctypes.c_void_p()
        if name.isdecimal():
            told = library.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(handle))
        else:
            told = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        if told == 0:
            handles.append(handle)
    return handles
