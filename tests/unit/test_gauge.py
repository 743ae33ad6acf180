"""What a job took: energy by counters or by an estimate, memory at its peak, and money."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.llm import gauge
from workers.llm.gauge import Devices, Gauge, Packages

SPAN = 1_000_000


def zone(root: Path, name: str, label: str, energy: int) -> Path:
    found = root / name
    found.mkdir(parents=True)
    (found / "name").write_text(label + "\n")
    (found / "energy_uj").write_text(f"{energy}\n")
    (found / "max_energy_range_uj").write_text(f"{SPAN}\n")
    return found


def made(*, packages: Packages | None = None, devices: Devices | None = None, **given: Any) -> tuple[Gauge, Any]:
    """A gauge whose clock and CPU seconds stand still until they are set."""
    now = SimpleNamespace(s=100.0, busy=5.0)
    nothing = Packages(Path("/nonexistent"))
    found = Gauge(
        clock=lambda: now.s, busy=lambda: now.busy, packages=packages or nothing,
        devices=devices or Devices(lambda: None), **given,
    )  # fmt: skip
    return found, now


def test_without_counters_energy_is_an_estimate_by_cpu_seconds() -> None:
    found, now = made(watts=12.0)
    now.busy += 600
    told = found.read()
    assert (told["energy_wh"], told["energy_source"]) == (2.0, "estimated")
    assert "cost" not in told and "peak_device_bytes" not in told


def test_the_packages_are_read_and_their_parts_are_not(tmp_path: Path) -> None:
    one, two = zone(tmp_path, "intel-rapl:0", "package-0", 7), zone(tmp_path, "intel-rapl:1", "package-1", 9)
    whole, part = zone(tmp_path, "intel-rapl:2", "psys", 0), zone(tmp_path, "intel-rapl:0:0", "core", 0)
    found, _ = made(packages=Packages(tmp_path))
    for place, more in ((one, 400_000), (two, 320_000), (whole, 900_000), (part, 900_000)):
        (place / "energy_uj").write_text(str(int((place / "energy_uj").read_text()) + more))
    told = found.read()
    assert (told["energy_wh"], told["energy_source"]) == (0.0002, "measured")


@given(st.integers(0, SPAN - 1), st.lists(st.integers(0, SPAN - 1), max_size=30))
def test_a_counter_that_begins_anew_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[int]
) -> None:
    root = tmp_path_factory.mktemp("rapl")
    place = zone(root, "intel-rapl:0", "package-0", start)
    packages, at = Packages(root), start
    for step in steps:
        at += step
        (place / "energy_uj").write_text(str(at % SPAN))
        packages.joules()
    assert packages.joules() == pytest.approx(sum(steps) / 1e6)


@pytest.mark.parametrize("broken", ["gone", "words"])
def test_a_counter_that_cannot_be_read_is_none(tmp_path: Path, broken: str) -> None:
    place = zone(tmp_path, "intel-rapl:0", "package-0", 7)
    packages = Packages(tmp_path)
    (place / "energy_uj").write_text("?") if broken == "words" else (place / "energy_uj").unlink()
    assert packages.joules() is None
    assert Packages(tmp_path).joules() is None


@pytest.mark.parametrize(("rapl", "source", "wh"), [(True, "measured", 0.5), (False, "mixed", 0.75)])
def test_an_accelerator_counts_once_the_job_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rapl: bool, source: str, wh: float
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    counted = [1_000_000, 5_000_000]
    packages = Packages(tmp_path if rapl else Path("/nonexistent"))
    found, now = made(packages=packages, devices=Devices(lambda: list(counted)), watts=10.0)
    counted[:] = [1_600_000, 6_200_000]
    now.busy += 90
    assert found.read()["energy_source"] == ("measured" if rapl else "estimated"), "no CUDA context: it only idles"
    monkeypatch.setattr(gauge, "device_peak", lambda: 4_096)
    told = found.read()
    assert (told["energy_wh"], told["energy_source"], told["peak_device_bytes"]) == (wh, source, 4_096)


def test_an_accelerator_without_a_counter_leaves_the_energy_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "device_peak", lambda: 1)
    assert "energy_wh" not in made()[0].read(), "the processor's alone would be far from the truth"


def test_the_price_of_an_hour() -> None:
    found, now = made(price=2.5)
    now.s += 1800
    assert found.read()["cost"] == 1.25


def test_a_warm_process_forgets_the_peak_of_the_job_before() -> None:
    held = bytearray(200_000_000)
    before = gauge.peak()
    del held
    found, _ = made()
    assert 10_000_000 < found.read()["peak_memory_bytes"] < before - 100_000_000


def test_it_is_quick_enough_for_every_step() -> None:
    found = Gauge(price=1.0)
    began = time.perf_counter()
    for _ in range(200):
        found.read()
    assert (time.perf_counter() - began) / 200 < 0.002
