"""Exit codes of `tape`: one table, derived from the error tree, documented in `docs/cli.md`."""

from __future__ import annotations

from enum import IntEnum

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


class Exit(IntEnum):
    """What the exit code of a command means."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTH = 4
    INVALID = 5
    JOB = 6
    TIMEOUT = 7
    PARTLY = 8
    UNAVAILABLE = 69
    INTERRUPTED = 130


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILURE: "it failed for another reason; a check found something wrong",
    Exit.USAGE: "a command-line argument or a setting is wrong",
    Exit.NOT_FOUND: "what was named does not exist",
    Exit.AUTH: "credentials were refused or are missing",
    Exit.INVALID: "the input is invalid, or conflicts with what is there",
    Exit.JOB: "the job ended, but did not succeed",
    Exit.TIMEOUT: "it took longer than asked; the job goes on",
    Exit.PARTLY: "some of it was done, some failed",
    Exit.UNAVAILABLE: "the broker or the store does not answer, or a program this needs is missing",
    Exit.INTERRUPTED: "interrupted with Ctrl-C or SIGTERM",
}

EXITS: dict[type[TapeError], Exit] = {
    InvalidError: Exit.INVALID,
    NotFoundError: Exit.NOT_FOUND,
    ConflictError: Exit.INVALID,
    AuthError: Exit.AUTH,
    UnavailableError: Exit.UNAVAILABLE,
    JobError: Exit.JOB,
    TimeoutExceeded: Exit.TIMEOUT,
    SetupError: Exit.UNAVAILABLE,
    TapeError: Exit.FAILURE,
}
"""The exit of each branch of the error tree."""

EXCEPTIONS: dict[str, Exit] = {"TAPE-1007": Exit.USAGE, "TAPE-1010": Exit.USAGE}
"""Codes that leave their branch: a wrong setting or argument is a matter of usage."""


def exit_of(error: TapeError) -> Exit:
    """Return the exit code that tells of an error."""
    special = EXCEPTIONS.get(error.code)
    return special if special is not None else next(EXITS[kind] for kind in type(error).__mro__ if kind in EXITS)
