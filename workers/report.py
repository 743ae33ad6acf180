"""Reports of a training for MLflow and Weights & Biases: an artifact of their own beside the model's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from schemas.artifact import Artifact
from schemas.errors import JobError
from schemas.job import Training
from workers.context import Context

_LOG = structlog.get_logger("tickertape.report")
NAME = "reports"
TOLD = ("first_loss", "loss", "validation_loss", "seconds", "rows", "trainable", "parameters")
"""What of a result is a number worth comparing."""


class Reports:
    """What a training is to be reported to, and when its steps were."""

    def __init__(self, context: Context, params: Training) -> None:
        """Raises `SetupError` (TAPE-8003) where a library is not installed: before anything is trained."""
        from workers.llm import report

        report.check(params.report_to)
        self._context, self._params = context, params
        self._times: list[tuple[int, int]] = []

    def seen(self, told: Mapping[str, Any]) -> None:
        """Take note of when a step was told."""
        if self._params.report_to and type(told.get("step")) is int:
            self._times.append((told["step"], time.time_ns() // 1_000_000))

    def write(self, metrics: Path, result: dict[str, Any]) -> list[Artifact]:
        """Write what was asked for, say in the result where it is, and return the artifact, if there is one.

        A report that fails is no failure of the training; the result says so, and why.
        """
        from workers.llm import report

        if not self._params.report_to:
            return []
        self._context.progress(phase="report")
        folder = self._context.scratch / NAME
        run = report.Run(
            id=self._context.job, name=self._params.run_name or self._context.job, metrics=str(metrics),
            params=dict(_flat(self._params.model_dump(mode="json", exclude={"report_to", "run_name"}))),
            summary={name: result[name] for name in TOLD if type(result.get(name)) in (int, float)},
            times=self._times,
        )  # fmt: skip
        result["reports"] = {to: self._one(to, run, folder / to) for to in self._params.report_to}
        return [self._context.keep(NAME, folder)] if any(path.is_file() for path in folder.rglob("*")) else []

    def _one(self, to: str, run: Any, folder: Path) -> dict[str, str]:
        from workers.llm import report

        trouble = {}
        if to == "mlflow" and os.environ.get(report.SERVER):
            try:
                report.send(run)
            except JobError as error:
                _LOG.warning("tracking server not told", job=run.id, error=error.message)
                trouble = {"server": error.message}
            else:
                return {"where": "server"}
        try:
            report.write(to, run, folder)
        except JobError as error:
            _LOG.warning("report not written", job=run.id, to=to, error=error.message)
            return {"where": "nowhere", "error": error.message, **trouble}
        return {"where": f"artifact {NAME}/{to}", **trouble}


def _flat(held: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in held.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None:
            yield before + name, json.dumps(value) if isinstance(value, list) else value
