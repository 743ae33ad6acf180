"""The simulation can fail: each of these defects, put into the product, is found by a few hundred schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from schemas.outcome import Cancelled
from schemas.past import Past
from tests.simulation.fate import Violation
from tests.simulation.world import schedule
from wire.blobs.memory import Memory
from wire.share import AckType
from wire.transact import MemoryTransactor
from workers import claim, outcomes
from workers.admit import Admission
from workers.again import Again
from workers.claim import Claims
from workers.control import Controls
from workers.delay.heads import Heads
from workers.delay.mover import Mover
from workers.execute import Executor
from workers.settle import Settler

SCHEDULES = 1_000
Patch = pytest.MonkeyPatch


def acknowledges_before_the_outcome(patch: Patch) -> None:
    end = Settler._end

    def early(self: Settler, attempt: Any, outcome: Any, ack: AckType) -> None:
        self._done(attempt.record, ack, None)
        end(self, attempt, outcome, ack)

    patch.setattr(Settler, "_end", early)


def acknowledges_before_the_dead_letter(patch: Patch) -> None:
    bury = Settler.bury

    def early(self: Settler, attempt: Any, failure: Any, **options: Any) -> None:
        self._done(attempt.record, AckType.REJECT, None)
        bury(self, attempt, failure, **options)

    patch.setattr(Settler, "bury", early)


def skips_the_claim(patch: Patch) -> None:
    patch.setattr(Admission, "_claim", lambda self, attempt, above: attempt)
    patch.setattr(Claims, "sure", lambda self, job: True)
    patch.setattr(Claims, "free", lambda self, job, end=None: True)


def lets_a_zombie_settle(patch: Patch) -> None:
    patch.setattr(Claims, "sure", lambda self, job: True)
    patch.setattr(Claims, "free", lambda self, job, end=None: True)


def skips_the_line_check(patch: Patch) -> None:
    patch.setattr(claim, "_over", lambda found, copy: None)


def overwrites_the_outcome(patch: Patch) -> None:
    patch.setattr(Memory, "create", lambda self, name, data, **options: self.put(name, data, **options))


def forgets_an_outcome_that_is_not_stored_yet(patch: Patch) -> None:
    patch.setattr(Again, "later", lambda self, record, call: None)


class Split:
    """A transactor whose offsets are committed apart from the records."""

    def __init__(self, inner: MemoryTransactor, offsets_first: bool) -> None:
        self._inner, self._offsets_first = inner, offsets_first

    def commit(self, records: Sequence[Any], offsets: Mapping[Any, int] = {}, *, group: Any = None) -> None:
        steps: list[Callable[[], None]] = [
            lambda: self._inner.commit(records),
            lambda: self._inner.commit([], offsets, group=group),
        ]
        for step in reversed(steps) if self._offsets_first else steps:
            step()

    def close(self) -> None:
        self._inner.close()


def _splits(patch: Patch, offsets_first: bool) -> None:
    begin = Mover.open

    def split(self: Mover) -> None:
        begin(self)
        self._transactor = Split(self._transactor, offsets_first)  # type: ignore[arg-type]

    patch.setattr(Mover, "open", split)


def commits_offsets_after_the_records(patch: Patch) -> None:
    _splits(patch, offsets_first=False)


def commits_offsets_before_the_records(patch: Patch) -> None:
    _splits(patch, offsets_first=True)


def moves_on_what_was_another_movers(patch: Patch) -> None:
    patch.setattr(Heads, "clear", lambda self: None)


def ignores_a_cancel(patch: Patch) -> None:
    patch.setattr(Controls, "reason", lambda self, job: None)


def ignores_a_pause(patch: Patch) -> None:
    patch.setattr(Admission, "_barred", lambda self, attempt: self._gate.enter(attempt))
    patch.setattr(Executor, "_run", lambda self, attempt, runner, _: runner.run(attempt, lambda _: None, lambda: False))


def ends_what_was_paused_while_it_ran(patch: Patch) -> None:
    patch.setattr(Executor, "_rest", lambda self, attempt, pause: self._finish(attempt, Cancelled()))


def lets_go_of_what_was_paused(patch: Patch) -> None:
    patch.setattr(Admission, "rest", lambda self, attempt, past, pause: self._settler.drop(attempt))


def forgets_a_resume(patch: Patch) -> None:
    apply = Controls.apply

    def deaf(self: Controls, record: Any) -> None:
        if record.value is None or b'"resume"' not in record.value:
            apply(self, record)

    patch.setattr(Controls, "apply", deaf)


def counts_an_attempt_twice(patch: Patch) -> None:
    after = Past.after
    patch.setattr(Past, "after", lambda self, last: after(after(self, last), last))


def changes_what_it_buries(patch: Patch) -> None:
    dead = Settler._dead
    patch.setattr(Settler, "_dead", lambda self, record, letter: dead(self, record._replace(value=b"{}"), letter))


def takes_a_second_letter_for_a_left_over(patch: Patch) -> None:
    patch.setattr(claim.Copy, "lives", lambda self, held: True)


def lets_any_end_replace_a_death(patch: Patch) -> None:
    patch.setattr(outcomes, "_gives_way", lambda first, later: True)


MUTANTS: list[tuple[Callable[[Patch], None], str]] = [
    (acknowledges_before_the_outcome, "before its end was durable"),
    (acknowledges_before_the_dead_letter, "before its end was durable"),
    (skips_the_claim, ""),
    (lets_a_zombie_settle, ""),
    (skips_the_line_check, ""),
    (overwrites_the_outcome, ""),
    (forgets_an_outcome_that_is_not_stored_yet, ""),
    (commits_offsets_after_the_records, ""),
    (commits_offsets_before_the_records, ""),
    (moves_on_what_was_another_movers, ""),
    (ignores_a_cancel, "knew that it was cancelled"),
    (ignores_a_pause, "knew that it was paused"),
    (ends_what_was_paused_while_it_ran, "ended ['cancelled']"),
    (lets_go_of_what_was_paused, ""),
    (forgets_a_resume, "not done after"),
    (counts_an_attempt_twice, "attempts"),
    (changes_what_it_buries, "was changed"),
    (takes_a_second_letter_for_a_left_over, ""),
    (lets_any_end_replace_a_death, ""),
]
"""Each with what the oracle says of it, where that is always the same."""


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "says"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
def test_a_defect_is_found(mutant: Callable[[Patch], None], says: str, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    for seed in range(SCHEDULES):
        try:
            schedule(seed)
        except Violation as found:
            print(f"seed {seed}: {found}")
            assert says in str(found)
            return
    pytest.fail(f"not found by {SCHEDULES} schedules")
