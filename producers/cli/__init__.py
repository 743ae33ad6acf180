"""The command `tape`. Everything heavy is imported by the command that needs it; `tape --help` stays quick."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from producers.cli.exits import Exit, exit_of
from producers.cli.shell import Shell
from schemas.errors import InvalidError, TapeError

if TYPE_CHECKING:
    from producers.ports import Ports

FLAGS = frozenset({"--no-color", "--debug"})
VALUED = frozenset({"--output", "--home", "--kafka-url", "--store-url"})
"""The options of `tape` itself; they may stand anywhere."""

PASSED_ON = frozenset({"worker"})
"""Commands that hand their arguments to another program untouched."""


def main(argv: Sequence[str] | None = None, *, ports: Ports | None = None) -> int:
    """Run `tape` and return its exit code; no exception leaves it."""
    arguments = hoist(list(sys.argv[1:] if argv is None else argv))
    shell = Shell(ports=ports)
    _on_terminate()
    try:
        code = _run(arguments, shell)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        shell.output.note("interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Who read our output has seen enough. Python's own flush at the end must not complain about it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except TapeError as error:
        return _tell(shell, error, error)
    except Exception as error:
        wrong = TapeError(f"{type(error).__name__}: {error}", code="TAPE-8006")
        return _tell(shell, wrong, error)


def hoist(arguments: list[str]) -> list[str]:
    """Move the options of `tape` itself to the front, so that they may stand anywhere on the line."""
    front: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        name = argument.partition("=")[0]
        if argument == "--" or (argument in PASSED_ON and not rest):
            rest += [argument, *left]
        elif argument in FLAGS or (name in VALUED and name != argument):
            front.append(argument)
        elif argument in VALUED:
            front += [argument, *(value for value in [next(left, None)] if value is not None)]
        else:
            rest.append(argument)
    return front + rest


def _run(arguments: list[str], shell: Shell) -> int:
    import typer

    from producers.cli.app import build

    try:
        found: Any = build()(arguments, prog_name="tape", standalone_mode=False, obj=shell)
    except typer.TyperException as error:
        if error.exit_code == 0:
            return Exit.OK
        return _usage(shell, error)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return found if isinstance(found, int) else Exit.OK


def _usage(shell: Shell, error: Any) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "tape"
    told = InvalidError(error.format_message(), code="TAPE-1010", hint=f"{command} --help")
    return _tell(shell, told, error)


def _tell(shell: Shell, error: TapeError, cause: BaseException) -> int:
    shell.output.error(error)
    if shell.debug:
        import traceback

        from producers.cli.output import safe

        sys.stderr.write(safe("".join(traceback.format_exception(cause)), lines=True))
    return exit_of(error)


def _on_terminate() -> None:
    # A service that is being started must not be left over when we are told to stop, so SIGTERM ends us as Ctrl-C does.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
