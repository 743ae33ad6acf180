"""Run a mover: `python -m workers.delay`. It moves delayed jobs to their topics and submits recurring ones.

Three hops to the main loop: here → `workers.delay.mover.Mover.run` → `_turn`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from schemas.errors import TapeError
from wire import telemetry
from wire.settings import Settings
from workers.__main__ import status
from workers.delay.mover import Mover


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a mover until SIGTERM or SIGINT; return the exit status (docs/cli.md)."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.delay", description="Move delayed jobs and fire recurring ones.", allow_abbrev=False
    )
    parser.add_argument("--name", default=None, help="a name that no other mover has (default: made up)")
    parser.add_argument("--home", default=None, help="home folder (default .tape, or TAPE_HOME)")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.load(home=given.home)
        provider = telemetry.configure(settings, "mover")
        mover = Mover(settings, name=given.name)
    except TapeError as error:
        sys.stderr.write(f"{error}\n")
        return status(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: mover.stop(0))
    mover.start()  # in a thread of its own: a signal's handler must never meet a lock that the loop holds
    try:
        mover.join()
    finally:
        if provider is not None:
            provider.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
