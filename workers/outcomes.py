"""How a job ended, in the store: one object for an end and for a death, so that of two workers only one decides.

A final outcome is created once and stands for ever. A death gives way to what comes later: the outcome of a redrive, or
another death. Later is whose claim has the higher epoch; a worker that was taken for dead has a lower one, so what it
brings after the job was buried is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from schemas.codec import dump, parse
from schemas.errors import ConflictError, NotFoundError
from schemas.outcome import Outcome, outcome_name
from wire.blobs import Blobs


class Outcomes:
    """The outcomes that the store keeps; thread-safe. Methods raise `UnavailableError` when it does not answer."""

    def __init__(self, store: Callable[[], Blobs]) -> None:
        self._store = store

    def read(self, job: str) -> Outcome | None:
        """Return how a job ended, or that it was buried; None when neither is known.

        Raises `InvalidError` or `JobError` when nobody can read it.
        """
        return self._read(job)[0]

    def settle(self, outcome: Outcome) -> Outcome:
        """Keep an outcome, or a death; return the one that stands: this one, an earlier end, or a later death.

        Raises `InvalidError` or `JobError` when it cannot be written, or when nobody can read what is there. That is
        left alone: it may be the outcome of a newer version.
        """
        name, data = outcome_name(outcome.job), dump(outcome)
        while True:
            try:
                self._store().create(name, data)
                return outcome
            except ConflictError:
                pass
            first, etag = self._read(outcome.job)
            if first is not None and not _gives_way(first, outcome):
                return first
            if etag is None:  # it was there a moment ago
                raise ConflictError("the outcome comes and goes", job=outcome.job)
            try:
                self._store().replace(name, data, etag)
                return outcome
            except ConflictError:
                continue

    def _read(self, job: str) -> tuple[Outcome | None, str | None]:
        try:
            with self._store().get(outcome_name(job)) as reader:
                return parse(Outcome, reader.read()), reader.blob.etag
        except NotFoundError:
            return None, None


def _gives_way(first: Outcome, later: Outcome) -> bool:
    """Whether what is kept is a death from before; of one claim's two deaths either may stand."""
    if first.final:
        return False
    return later.epoch > first.epoch or (later.epoch == first.epoch and not later.final)
