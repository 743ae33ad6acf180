"""How a redrive stands, asked from outside: what was moved, and what became of those jobs."""

from __future__ import annotations

from dataclasses import dataclass

from producers.dead.desk import SLACK, Desk
from producers.redrive.watch import Tally, Watch, ours
from schemas.dead import Fate
from schemas.errors import NotFoundError
from schemas.redrive import Redrive


@dataclass(frozen=True)
class Survey:
    """The letters that were moved, how their jobs fare, and which of those failed again."""

    moved: int
    tally: Tally
    failures: list[str]


def survey(desk: Desk, redrive: Redrive) -> Survey:
    """Look at the fates and the events: the truth, where the state in the store is as old as its runner's last word."""
    fates: list[Fate] = [
        fate for name, fate in desk.fates().items() if name == fate.letter and fate.redrive == redrive.plan.id
    ]
    watch = Watch()
    told = [fate for fate in fates if ours(desk.names, fate.target)]
    for fate in told:
        watch.expect(fate)
    if told and redrive.started_at is not None:
        try:
            with desk.follower.read(desk.names.events, since=redrive.started_at - SLACK) as feed:
                for batch in feed:
                    watch.take(batch)
        except NotFoundError:
            pass
    return Survey(len(fates), watch.tally(fate.letter for fate in told), watch.failures())
