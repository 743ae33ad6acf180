"""The pen: the right to say what becomes of one topic's letters, which only one process has at a time.

Its transactional id is the topic's, so whoever takes the pen fences who had it: from then on nothing of theirs can be
committed. What they had committed must be known, though, before anything is decided. So the first thing written is a
mark, and the topic of fates is read until the mark comes: a reader of committed records gets it after all that was
committed before it, and every fate of this topic that will ever count is either before the mark or written by us.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence

from producers.dead.desk import PEN, Desk, decided, note
from schemas.dead import Became, Fate
from schemas.errors import TapeError, TimeoutExceeded
from schemas.ids import uuid7
from wire.transact import Outgoing, Transactor

PATIENCE_S = 60.0
"""Longer than a transaction may stay open: somebody who died in the middle of one holds up the topic of fates."""

AGAIN = frozenset({"TAPE-3006", "TAPE-5001", "TAPE-5003"})
"""Errors after which the pen is taken again: somebody else took it, or it is not known what was written."""
TRIES = 10
"""How often in a row that is tried."""
PAUSE_S = 1.0


class Pen:
    """The right to decide about the letters of `topic`; `fates` is what is known of them, by place and by origin."""

    def __init__(self, desk: Desk, topic: str) -> None:
        """Take the pen from whoever has it. Raises `NotFoundError` (TAPE-2004), `UnavailableError`, `AuthError`."""
        self._desk, self.topic = desk, topic
        self._transactor: Transactor | None = None
        self.fates: dict[str, Fate] = {}
        try:
            self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> None:
        """Take the pen (again), and learn what was decided so far."""
        self.close()
        self._transactor = self._desk.transactor(f"{self._desk.names.prefix}redrive.{self.topic}")
        letters, token = self._desk.names.letters, uuid7()
        told = {"pen": self.topic, "token": token, "by": self._desk.who, "time": self._desk.now().isoformat()}
        mark = Outgoing(letters, None, PEN + self.topic.encode(), json.dumps(told).encode(), ())
        fates: dict[str, Fate] = {}
        with self._desk.follower.follow(letters, since="start") as feed:
            self._transactor.commit([mark])
            while True:
                batch = feed.poll(PATIENCE_S)
                if not batch:
                    raise TimeoutExceeded(
                        f"the topic of fates stood still for {PATIENCE_S:g} s", code="TAPE-7002", topic=letters,
                        hint="a transaction is stuck there; look with kafka-transactions.sh, then try again",
                    )  # fmt: skip
                for record in batch:
                    note(fates, record)
                if any(record.key == mark.key and record.value == mark.value for record in batch):
                    break
        self.fates = fates

    def decided(self, place: str, origin: str | None) -> Fate | None:
        """Return what was decided about a letter, or about another one of the same dead record; None if it waits."""
        fate = decided(self.fates, place, origin)
        return None if fate is None or fate.became is Became.RESTORED else fate

    def write(self, fates: Sequence[Fate], records: Sequence[Outgoing] = ()) -> None:
        """Write fates and records, all or nothing. Raises as `Transactor.commit`; TAPE-3006 when the pen was taken.

        After TAPE-5003 (not known whether it was written) the pen must be taken again.
        """
        if self._transactor is None:
            raise TapeError("the pen was put down", code="TAPE-8006")
        told = [
            Outgoing(
                self._desk.names.letters,
                None,
                fate.letter.encode(),
                fate.model_dump_json(exclude_none=True).encode(),
                (),
            )
            for fate in fates
        ]
        self._transactor.commit([*records, *told])
        for fate in fates:
            self.fates[fate.letter] = fate
            if fate.origin is not None:
                self.fates[f"of {fate.origin}"] = fate

    def close(self) -> None:
        """Put the pen down."""
        if self._transactor is not None:
            self._transactor.close()
            self._transactor = None


class Pens:
    """The pens of several topics, each taken when first needed, and again when somebody else took it.

    `heed` is called before a pen is taken again, and may raise: then it stays with whoever has it.
    """

    def __init__(
        self, desk: Desk, *, heed: Callable[[], None] = lambda: None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._desk, self._heed, self._sleep = desk, heed, sleep
        self._pens: dict[str, Pen] = {}

    def use(self, topic: str, work: Callable[[Pen], None]) -> None:
        """Do work that needs the pen of a topic; it is done again from its start when the pen was lost in the middle.

        So work must look at what is `decided` first. Raises what it raises, and TAPE-3006 when that happens too often.
        """
        for tries in range(TRIES + 1):
            try:
                if topic not in self._pens:
                    self._pens[topic] = Pen(self._desk, topic)
                work(self._pens[topic])
                return
            except TapeError as error:
                if error.code not in AGAIN or tries == TRIES:
                    raise
            self.drop(topic)
            self._heed()
            self._sleep(random.uniform(0, PAUSE_S))  # noqa: S311 - two that take it in turn must fall out of step

    def drop(self, topic: str) -> None:
        """Put the pen of a topic down; its next use takes it anew."""
        old = self._pens.pop(topic, None)
        if old is not None:
            old.close()

    def close(self) -> None:
        """Put them all down."""
        for pen in self._pens.values():
            pen.close()
        self._pens.clear()
