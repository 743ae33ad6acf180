"""The arithmetic of the fair share's benchmark: seconds used within a window, and what each tenant's part was to be."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A tenant's job had a slot from one moment to another, in seconds of the epoch."""

    tenant: str
    began: float
    ended: float


def used(spans: Iterable[Span], since: float, until: float) -> dict[str, float]:
    """Return the slot-seconds of each tenant between two moments; what runs across an edge counts in part."""
    found: dict[str, float] = {}
    for span in spans:
        inside = min(span.ended, until) - max(span.began, since)
        if inside > 0:
            found[span.tenant] = found.get(span.tenant, 0.0) + inside
    return found


def parts(seconds: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Return what each tenant had of all that was used, as a ratio to its part by weight; 1 is ideal."""
    total, whole = sum(seconds.values()), sum(weights.values())
    return {
        tenant: seconds.get(tenant, 0.0) / (total * weight / whole) if total else 0.0
        for tenant, weight in weights.items()
    }


def spread(seconds: Mapping[str, float], jobs: Mapping[str, int], room: float) -> dict[str, float]:
    """Return the slot-seconds of each tenant when what is left of so many is divided among the jobs, each alike."""
    count = sum(jobs.values())
    left = max(0.0, room - sum(seconds.values()))
    return {tenant: seconds.get(tenant, 0.0) + (left * each / count if count else 0.0) for tenant, each in jobs.items()}


def cuts(took: Sequence[float]) -> dict[str, Any]:
    """Return the median, the 95th percentile (nearest rank) and the worst of some seconds; nothing of none."""
    if not took:
        return {}
    ranks = sorted(took)
    p95 = ranks[-(-len(ranks) * 95 // 100) - 1]
    return {"p50_s": round(statistics.median(ranks), 3), "p95_s": round(p95, 3), "worst_s": round(ranks[-1], 3)}
