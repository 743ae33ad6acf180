"""Run a worker: `python -m workers --kinds training,evaluation --slots 2`.

Three hops to the main loop: here → `workers.worker.Worker.run` → `workers.lease.LeaseLoop.step`.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from schemas.errors import (
    AuthError,
    ConflictError,
    InvalidError,
    JobError,
    NotFoundError,
    SetupError,
    TapeError,
    TimeoutExceeded,
    UnavailableError,
)
from schemas.job import Lane
from wire import telemetry
from wire.settings import Settings

EXITS: dict[type[TapeError], int] = {
    InvalidError: 5,
    NotFoundError: 3,
    ConflictError: 5,
    AuthError: 4,
    UnavailableError: 69,
    JobError: 6,
    TimeoutExceeded: 7,
    SetupError: 69,
    TapeError: 1,
}
"""The exit status of each branch of the error tree; those of `tape`, which a worker cannot import (a test compares)."""
USAGE = 2
USAGE_CODES = frozenset({"TAPE-1003", "TAPE-1007", "TAPE-1010"})
"""Here an unknown kind is a wrong argument; for `tape submit` it is a wrong request."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to stop; return the exit status (docs/cli.md)."""
    given = _parser().parse_args(arguments)
    try:
        settings = Settings.load(home=given.home)
        provider = telemetry.configure(settings, "worker")
        from workers.worker import Options, Worker

        worker = Worker(
            settings,
            Options(
                kinds=_names(given.kinds, "--kinds"),
                slots=given.slots,
                lanes=_lanes(given.lanes),
                grace_s=given.grace,
                health_port=given.health_port,
                limit=1 if given.once else None,
                idle_s=given.idle_exit,
                housekeep_s=given.housekeep or None,
            ),
        )
    except TapeError as error:
        sys.stderr.write(f"{error}\n")
        return status(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.drain)
    if worker.health is not None:
        sys.stderr.write(f"health on http://127.0.0.1:{worker.health.port}/live\n")
    try:
        _spare()
        # In a thread of its own: a signal's handler runs in this one, and must never meet a lock that the loop holds.
        with ThreadPoolExecutor(1, thread_name_prefix="lease") as lease:
            lease.submit(worker.run).result()
    except TapeError as error:
        sys.stderr.write(f"{error}\n")
        return status(error)
    finally:
        if provider is not None:
            provider.shutdown()
    return 0


def _spare() -> None:
    """Keep the collector from walking through libraries and buffered jobs: a quarter of a no-op job's time.

    What is loaded by now lives as long as the process. Hundreds of buffered records are no garbage either; cycles are
    found all the same, a little later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(25_000, 10, 10)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers", description="Take jobs from Kafka and run them.", allow_abbrev=False
    )
    parser.add_argument("--kinds", default="training,evaluation,inference", help="kinds of work, by commas")
    parser.add_argument("--slots", type=_positive, default=1, help="jobs that run at once (default 1)")
    parser.add_argument("--lanes", default=",".join(Lane), help="lanes to read (default interactive,bulk)")
    parser.add_argument("--grace", type=float, default=20.0, help="seconds running jobs get after SIGTERM (default 20)")
    parser.add_argument(
        "--health-port", type=int, default=None, help="serve /live, /ready, /busy and /metrics; 0 takes a free port"
    )
    parser.add_argument("--once", action="store_true", help="take one job, settle it, and end")
    parser.add_argument("--idle-exit", type=float, metavar="S", help="end after S seconds without a job")
    parser.add_argument(
        "--housekeep", type=float, default=60.0, metavar="S",
        help="delete finished records every S seconds, 0 never (default 60)",
    )  # fmt: skip
    parser.add_argument("--home", default=None, help="home folder (default .tape, or TAPE_HOME)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _names(text: str, field: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise InvalidError("names nothing", code="TAPE-1010", field=field)
    return names


def _lanes(text: str) -> tuple[str, ...]:
    lanes = _names(text, "--lanes")
    for lane in lanes:
        if lane not in set(Lane):
            raise InvalidError(f"no lane {lane!r}", code="TAPE-1010", field="--lanes", hint=f"one of {', '.join(Lane)}")
    return lanes


def status(error: TapeError) -> int:
    """Return the exit status that tells of an error (docs/cli.md)."""
    if error.code in USAGE_CODES:
        return USAGE
    return next(EXITS[kind] for kind in type(error).__mro__ if kind in EXITS)


if __name__ == "__main__":
    sys.exit(main())
