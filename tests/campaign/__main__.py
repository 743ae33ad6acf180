"""Run the fault campaign: `python -m tests.campaign [--minutes 10] [--rows 1,5,13]`.

Real Kafka (three brokers but for the rows that say otherwise), real S3 and real worker processes; each row has its own
jobs, and one oracle judges all: what was acknowledged against outcomes and dead letters, artifacts against their
hashes. A row that cannot run here is shown as not run, and why. From 20 minutes on rows are as large as the list asks
for, and are repeated at the smaller size while there is time. `--sabotage` loses, doubles or alters something of every
row behind the workers' back: then every row must fail. What was found is kept in `.bench/faults.json`; `--show`
prints that once more, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from schemas.errors import TapeError
from schemas.event import EVENT_OF, Event, EventType
from schemas.ids import uuid7
from schemas.topics import Names
from tests.campaign.oracle import finals, judge
from tests.campaign.rows import BREAKERS, ROWS, Row
from tests.campaign.stage import ROOT, NotRun, Scene, Stage
from wire.blobs import open_store
from wire.publish import KafkaPublisher
from wire.settings import Settings

NIGHTLY_M, ROW_S = 20.0, 15.0


@dataclass
class Result:
    """One row, once."""

    number: int
    fault: str
    inject: str
    verdict: str
    jobs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    doubled: int = 0
    lost: int = 0
    recovery_s: float | None = None
    seconds: float = 0.0
    told: str = ""
    size: str = ""
    weaker: str = ""
    load: float = 0.0
    """The machine's load average at the end of the row: what else it had to do."""


def play(row: Row, stage: Stage, sabotage: str | None) -> Result:
    """Run one row and judge it."""
    result, began = made(row, "passed", stage), time.monotonic()
    try:
        with row.scene(stage) as scene:
            told: list[str] = []
            try:
                facts = row.run(stage, scene)
                result.recovery_s = None if facts.recovery_s is None else round(facts.recovery_s, 2)
                result.told = facts.note
            except AssertionError as error:
                told.append(str(error).partition("\n")[0] or "an assertion of the row")
            scene.finish(20.0 if told else 90.0)
            if sabotage:
                SABOTAGE[sabotage](scene)
            tally = judge(scene.settings, scene.sent, lives=scene.lives)
            result.jobs, result.outcomes = tally.jobs, dict(tally.outcomes)
            result.doubled, result.lost = len(tally.doubled), len(tally.lost)
            if told or not tally.clean or not tally.jobs:
                result.verdict = "FAILED"
                result.told = "; ".join([*told, tally.told() or "", result.told]).strip("; ")
                keep(scene, row)
    except NotRun as why:
        result.verdict, result.told = "not run", str(why)
    except Exception as error:  # a row that breaks is a row that failed; the others go on
        logging.getLogger("campaign").exception("row %d", row.number)
        result.verdict, result.told = "FAILED", f"{type(error).__name__}: {error}"
    result.seconds, result.load = round(time.monotonic() - began, 1), round(os.getloadavg()[0], 1)
    return result


def made(row: Row, verdict: str, stage: Stage) -> Result:
    """Return a result before anything was found."""
    size = "" if row.sizes is None else f"{row.sizes[stage.nightly]}"
    if size and not stage.nightly:
        size += f" for {row.sizes[1]}"  # type: ignore[index]
    return Result(row.number, row.fault, row.inject, verdict, size=size, weaker=row.weaker)


def keep(scene: Scene, row: Row) -> None:
    """Keep the workers' logs of a row that failed."""
    target = ROOT / ".bench" / "faults"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"row-{row.number}.log").write_text(scene.logs())


def _lose(scene: Scene) -> None:
    scene.sent[f"never-{uuid7()[-6:]}"] = "heavy"


def _double(scene: Scene) -> None:
    """End a job that has ended once more, as a worker would that does not look first."""
    event: Event = next(one for one in finals(scene.settings) if one.job in scene.sent)
    assert event.outcome is not None
    again = event.model_copy(update={"id": uuid7(), "type": EVENT_OF[event.outcome.status]})
    publisher = KafkaPublisher(scene.settings)
    publisher.publish(
        Names(scene.settings.prefix).events, key=event.job.encode(), value=again.model_dump_json().encode()
    )
    publisher.close(10)


def _alter(scene: Scene) -> None:
    """Write another outcome over that of one job."""
    store, heavy = open_store(scene.settings), {job for job, kind in scene.sent.items() if kind == "heavy"}
    ended = [one.job for one in finals(scene.settings) if one.job in heavy and one.type is EventType.SUCCEEDED]
    if not ended:
        raise NotRun("no job of this row left anything in the store to alter")
    store.put(f"runs/{ended[0]}/outcome.json", b"{}")


SABOTAGE: dict[str, Callable[[Scene], None]] = {"lose": _lose, "double": _double, "alter": _alter}

HEAD = (
    f"{'row':>3} {'fault':38}{'jobs':>6}{'ended':>7}{'twice':>6}{'lost':>5}{'back s':>8}{'took':>7}{'load':>6}  verdict"
)


def line(result: Result) -> str:
    """Return a row of the table."""
    back = "—" if result.recovery_s is None else f"{result.recovery_s:.2f}"
    ended = sum(result.outcomes.values())
    head = f"{result.number:>3} {result.fault[:37]:38}{result.jobs:>6}{ended:>7}{result.doubled:>6}{result.lost:>5}"
    size = f" [{result.size}]" if result.size else ""
    told = f"{size}: {result.told}" if result.told else size
    return f"{head}{back:>8}{result.seconds:>7.1f}{result.load:>6.1f}  {result.verdict}{told}"


def show(path: Path) -> None:
    """Print what was found last as Markdown."""
    found = json.loads(path.read_text())
    print(f"{found['date']}, `make faults MINUTES={found['minutes']:g}`: {found['took_s'] / 60:.1f} minutes.\n")
    print("| row | fault | injection | size | jobs | ended | twice | lost | back s | load | verdict | found |")
    print(f"|{'---|' * 12}")
    for one in found["rows"]:
        back = "–" if one["recovery_s"] is None else f"{one['recovery_s']:.2f}"
        cells = [
            one["number"], one["fault"], one["inject"], one["size"] or "as listed", one["jobs"],
            sum(one["outcomes"].values()), one["doubled"], one["lost"], back, one["load"], one["verdict"], one["told"],
        ]  # fmt: skip
        print(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    weaker = {one["number"]: one["weaker"] for one in found["rows"] if one["weaker"]}
    print("\nOtherwise than listed: " + "; ".join(f"{number}: {told}" for number, told in sorted(weaker.items())) + ".")


@dataclass
class Campaign:
    """Rows, until when there is time, and what was found."""

    rows: list[Row]
    until: float
    nightly: bool
    sabotage: str | None
    results: list[Result] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        """Run every row; at night the smaller sizes again and again while there is time."""
        turn = 0
        while turn == 0 or (self.nightly and time.monotonic() + ROW_S * len(self.rows) < self.until):
            with Stage(folder / str(turn), Settings.load().cache, nightly=self.nightly and turn == 0) as stage:
                self._turn(stage, again=turn > 0)
            turn += 1

    def _turn(self, stage: Stage, *, again: bool) -> None:
        self._play([row for row in self.rows if row.number in BREAKERS], stage, again)
        if others := [row for row in self.rows if row.number not in BREAKERS]:
            with suppress(TapeError):  # a row that needs it asks again, on other ports
                stage.broker("three")
            quiet = [row for row in others if row.quiet]
            beside = threading.Thread(target=self._play, args=(quiet, stage, again), daemon=True)
            beside.start()
            self._play([row for row in others if not row.quiet], stage, again)
            beside.join()

    def _play(self, rows: list[Row], stage: Stage, again: bool) -> None:
        for row in rows:
            if time.monotonic() + ROW_S <= self.until:
                result = play(row, stage, self.sabotage)
            elif again:
                return
            else:
                result = replace(made(row, "not run", stage), told="no time was left")
            self.results.append(result)
            print(line(result), flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], help="numbers, by commas")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGE), help="prove that every row can fail")
    parser.add_argument("--show", action="store_true", help="print what was found last, as Markdown")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "faults.json")
    given = parser.parse_args()
    if unknown := set(given.rows or ()) - {row.number for row in ROWS}:
        parser.error(f"there is no row {min(unknown)}")
    return given


def main() -> int:
    """Run the rows, print a table, keep it; exit status 1 when one failed."""
    given = arguments()
    if given.show:
        show(given.json)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.filterwarnings("ignore", message="Do not use the `random` module")  # rows that run beside the corpus do
    logging.disable(logging.ERROR - 1)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    rows = [row for row in ROWS if given.rows is None or row.number in given.rows]
    began = time.monotonic()
    campaign = Campaign(rows, began + given.minutes * 60, given.minutes >= NIGHTLY_M, given.sabotage)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        campaign.run(Path(folder))
    results = sorted(campaign.results, key=lambda one: one.number)
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "minutes": given.minutes, "took_s": round(time.monotonic() - began, 1),
        "rows": [asdict(one) for one in results],
    }  # fmt: skip
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    counts = {verdict: sum(one.verdict == verdict for one in results) for verdict in ("passed", "FAILED", "not run")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"→ {given.json}")
    return int(counts["FAILED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
