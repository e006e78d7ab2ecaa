"""From the words of a command line to the command.

Invariant: a mistake that a user can mend ends in one line on standard error and exit status 2, and anything else keeps
its traceback. Which it is, the error's type says: :class:`gpart.errors.GPartError`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gpart.cli.commands import COMMANDS, OVERVIEW, TRAINING, unknown
from gpart.cli.message import causes, told
from gpart.cli.pipes import READER_GONE, leave_broken_outputs
from gpart.cli.quiet import silence_imports
from gpart.errors import GPartError
from gpart.version import __version__


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``gpart``.

    Args:
        args: the words after ``gpart``; default those of the process.

    Returns:
        The exit status: 0; 2 after a mistake, which is printed; 141 if the reader of the output has gone.
    """
    try:
        return _tell_mistakes(list(sys.argv[1:] if args is None else args))
    except BrokenPipeError:
        if not leave_broken_outputs():
            raise
        return READER_GONE


def _tell_mistakes(words: list[str]) -> int:
    try:
        status = _run(words)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return READER_GONE  # Rich has pointed the output nowhere, and would exit with 1 as after a failed run
        _flush()  # argparse ends like this after a help text
        raise
    except Exception as error:
        meant = _meant_for_users(error)
        if meant is None or os.environ.get("GPART_TRACEBACK"):
            raise
        print(f"gpart: error: {told(meant)}", file=sys.stderr)
        return 2
    _flush()
    return status


def _flush() -> None:
    """Writes what is printed while main can still see that its reader has gone; at the interpreter's exit it cannot."""
    print(end="", flush=True)


def _run(words: list[str]) -> int:
    first = words[0] if words else "--help"
    if first in ("--help", "-h"):
        print(OVERVIEW, end="")
        return 0
    if first == "--version":
        print(f"gpart {__version__}")
        return 0
    # LightningCLI takes its --config before the command too.
    asks_lightning = first in TRAINING or (first.startswith("-") and not TRAINING.keys().isdisjoint(words))
    if not asks_lightning and first not in COMMANDS:
        raise GPartError(unknown(first))
    silence_imports()
    if asks_lightning:
        from gpart.cli.training import run  # noqa: PLC0415  # it imports Lightning, which no other command needs

        run(words)
        return 0
    command = COMMANDS[first]
    return int(getattr(import_module(command.module), command.function)(words[1:]))


def _meant_for_users(error: BaseException) -> BaseException | None:
    """The first of an error and its causes that says what a user can mend; None if it is a fault.

    An error of the file system is one: it names the file.
    """
    kinds = (GPartError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
    return next((each for each in causes(error) if isinstance(each, kinds) or _is_full(each)), None)


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
