"""Tables and targets from the figures of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

LISTED = ("dramatiq", "celery", "celery-result", "taskiq", "faststream")
"""The peers that the targets name."""
RECORDING = ("celery-result",)
BEYOND = ("dramatiq-result", "taskiq-result")
Found = dict[str, Any]


def targets(measures: Found) -> list[Found]:
    """Return every target with what was measured; one whose figures were not taken is left out."""
    rows: list[Found] = []

    def add(name: str, value: float | None, beside: float | None, least: float, unit: str, told: str = "") -> None:
        if value is not None and beside:
            rows.append(_target(name, value, beside, least, unit, told))

    noop = measures.get("noop", {})
    ours = noop.get("tickertape", {}).get("rate")
    for name, keys, least in (
        ("no-op jobs, the best peer", LISTED, 2.0),
        ("no-op jobs, Celery with results, which the target names", RECORDING, 5.0),
        ("no-op jobs, the best of all that keep outcomes", (*RECORDING, *BEYOND), 5.0),
        ("no-op jobs, the bare loop in plain kafka-python, as the target has it", ("bare-pure",), 0.8),
        ("no-op jobs, the bare loop with kafka-python's producer", ("bare-plain",), 0.8),
        ("no-op jobs, the bare loop with our publisher", ("bare-publisher",), 0.8),
    ):
        best = _best(noop, keys)
        if best:
            add(name, ours, best["rate"], least, "jobs/s", best["title"])
    add("10 ms jobs on 16 slots, the ideal", _figure(measures, "sleep", "tickertape", "rate"), 1600, 0.95, "jobs/s")
    for name in ("no-op", "1 ms of CPU"):
        kind = {"no-op": "noop", "1 ms of CPU": "burn"}[name]
        one, two = (_figure(measures, "scale", f"{kind}-{count}", "rate") for count in (1, 2))
        add(f"two workers on one partition, {name}, beside one", two, one, 1.3, "jobs/s")
    for title, row in measures.get("latency", {}).items():
        if title.startswith("Tickertape"):
            rows.append(_limit(f"{title}: start after, p50", row["p50_ms"], 4.0, "ms"))
            rows.append(_limit(f"{title}: start after, p99", row["p99_ms"], 20.0, "ms"))
    for row in measures.get("memory", {}).values():
        children = " + ".join(map(str, row["children_mb"])) or "none"
        rows.append(
            _limit(f"worker's memory before a model is loaded (warm child: {children})", row["rss_mb"], 80, "MB")
        )
        rows.append({"name": "torch in the worker's process", "told": "yes" if row["torch"] else "no", "target": "no",
                     "met": not row["torch"]})  # fmt: skip
    return rows


def _target(name: str, value: float, beside: float, least: float, unit: str, told: str) -> Found:
    ratio = value / beside
    text = f"{value:,.0f} of {beside:,.0f} {unit}{f' ({told})' if told else ''} = {ratio:.2f}×"
    return {"name": name, "told": text, "target": f"≥ {least:g}×", "ratio": round(ratio, 3), "met": ratio >= least}


def _limit(name: str, value: float, limit: float, unit: str) -> Found:
    return {"name": name, "told": f"{value:,.1f} {unit}", "target": f"< {limit:g} {unit}", "met": value < limit}


def _best(rows: Found, keys: Sequence[str]) -> Found | None:
    taken = [rows[key] for key in keys if rows.get(key, {}).get("rate")]
    return max(taken, key=lambda row: float(row["rate"])) if taken else None


def _figure(measures: Found, measure: str, key: str, name: str) -> float | None:
    found: float | None = measures.get(measure, {}).get(key, {}).get(name)
    return found


Cells = list[list[str]]


def sections(found: Found) -> Iterable[tuple[str, list[str], Cells]]:
    """Yield every table: its title, its header, its rows."""
    measures = found["measures"]
    for name, title in (
        ("noop", "No-op jobs, one worker process, 16 slots"),
        ("sleep", "10 ms jobs on 16 slots (ideal 1,600/s)"),
    ):
        if measures.get(name):
            header = ["system", "jobs/s", "repetitions", "first to last", "worker CPU µs/job", "broker CPU µs/job",
                      "RSS MB", "enqueue/s", "outcome kept"]  # fmt: skip
            yield title, header, [_drained(key, row) for key, row in measures[name].items()]
    if measures.get("scale"):
        header = ["jobs on one partition", "jobs/s", "repetitions", "workers' CPU µs/job", "broker CPU µs/job",
                  "smaller share"]  # fmt: skip
        yield "One and two worker processes", header, [_scaled(row) for row in measures["scale"].values()]
    if measures.get("latency"):
        header = ["submitted by", "p50 ms", "p99 ms", "worst ms", "jobs"]
        rows = [
            [row["title"], _n(row["p50_ms"], 1), _n(row["p99_ms"], 1), _n(row["max_ms"], 1),
             f"{row['repetitions']} × {row['jobs']}"] for row in measures["latency"].values()
        ]  # fmt: skip
        yield "From submission to the handler's start, 50 jobs/s", header, rows
    if measures.get("enqueue"):
        rows = [
            [row["title"], _n(row["rate"]), _list(row["rates"]), _n(row["client_us"])]
            for row in measures["enqueue"].values()
        ]
        yield "Jobs submitted by one process", ["way", "jobs/s", "repetitions", "client CPU µs/job"], rows
    header = ["target", "measured", "wanted", ""]
    rows = [[row["name"], row["told"], row["target"], "met" if row["met"] else "MISSED"] for row in found["targets"]]
    yield "Targets", header, rows


_KEPT = ("tickertape", "celery-result", *BEYOND)


def _drained(key: str, row: Found) -> list[str]:
    kept = "yes" if key in _KEPT else ("–" if key.startswith("bare") else "no")
    figures = (_n(row[name]) for name in ("whole", "worker_us", "broker_us", "rss_mb", "enqueue"))
    return [row["title"], _n(row["rate"]), _list(row["rates"]), *figures, kept]


def _scaled(row: Found) -> list[str]:
    share = _list([f"{share:.0%}" for share in row["smaller_share"]])
    return [row["title"], _n(row["rate"]), _list(row["rates"]), _n(row["worker_us"]), _n(row["broker_us"]), share]


def _n(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _list(values: Sequence[Any]) -> str:
    return " · ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)


def about(found: Found) -> str:
    """Return one paragraph on the machine, the versions and the day."""
    machine = found["machine"]
    services = ", ".join(f"{name} {number}" for name, number in found["services"].items())
    packages = ", ".join(f"{name} {number}" for name, number in (machine["packages"] | machine["peers"]).items())
    quick = ", a quick run" if found["quick"] else ""
    return (
        f"{found['date']}{quick}, {found['seconds']} s. {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}, Java {machine['java']}; "
        f"{services}; {packages}. Load average before the start: {machine['load_before']} (0 is a quiet machine)."
    )


def notes(found: Found) -> list[str]:
    """Return what went wrong, a line each."""
    lines = [f"skipped {key}: {why}" for key, why in found["skipped"].items()]
    for rows in found["measures"].values():
        lines += [f"{row['title']}: {note}" for row in rows.values() for note in row.get("notes", ())]
    return lines


def table(found: Found) -> str:
    """Return everything as plain text in columns."""
    return _render(found, _columns, "{}\n")


def markdown(found: Found) -> str:
    """Return everything as Markdown, as docs/performance.md holds it."""
    return _render(found, _pipes, "### {}\n")


def _render(found: Found, draw: Callable[[list[str], Cells], str], heading: str) -> str:
    parts = [about(found)]
    parts += [heading.format(title) + "\n" + draw(header, rows) for title, header, rows in sections(found) if rows]
    parts += [f"- {line}" for line in notes(found)]
    return "\n\n".join(parts) + "\n"


def _columns(header: list[str], rows: Cells) -> str:
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def _pipes(header: list[str], rows: Cells) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
