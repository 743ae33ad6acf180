"""The training that made a version, once more: the same request on the same base and rows. Pure."""

from __future__ import annotations

from typing import Any

from producers.request import Request
from schemas.errors import JobError
from schemas.lineage import SCRATCH, ModelVersion
from schemas.outcome import Outcome


def request(version: ModelVersion, name: str | None = None, **options: Any) -> Request:
    """Return the request that makes a version again, to be registered under `name`, else under its own.

    All that it was made of is pinned to what was used, as far as a reference can be: `file:` cannot. So are the
    threads, which decide about bytes.
    """
    given = {"teacher": version.teacher, "tokenizer": version.tokenizer}
    params = version.request | {
        "base": None if version.base.startswith(SCRATCH) else version.base,
        "data": version.data,
        "validation": version.validation,
        "threads": version.settings.get("threads", version.request.get("threads")),
        "publish_as": name or version.name,
        **{use: ref for use, ref in given.items() if ref is not None},
    }
    labels = {**(options.pop("labels", None) or {}), "reproduces": f"{version.name}@{version.version}"}
    return Request("training", params, labels=labels, **options)


def compared(version: ModelVersion, outcome: Outcome) -> dict[str, Any]:
    """Return what it was, what it is now, and whether these are the same bytes.

    Raises `JobError` (TAPE-6004) for an outcome that names no version: its worker is older than the registry.
    """
    made = outcome.result.get("model")
    if not isinstance(made, str):
        raise JobError("the training registered nothing", code="TAPE-6004", job=outcome.job, hint="upgrade the workers")
    was = f"{version.name}@{version.version}"
    return {"job": outcome.job, "was": was, "is": made, "identical": made.partition("@")[2] == version.version}
