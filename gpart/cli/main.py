"""From the words of a command line to the command.

Invariant: a mistake that a user can mend ends in one line on standard error and exit status 2, and anything else keeps
its traceback. Which it is, the error's type says: :class:`gpart.errors.GPartError`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gpart.cli.commands import COMMANDS, OVERVIEW, TRAINING, unknown
from gpart.cli.message import causes, told
from gpart.cli.quiet import silence_imports
from gpart.errors import GPartError
from gpart.version import __version__


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``gpart``.

    Args:
        args: the words after ``gpart``; default those of the process.

    Returns:
        The exit status: 0; 2 after a mistake, which is printed.
    """
    try:
        return _run(list(sys.argv[1:] if args is None else args))
    except Exception as error:
        meant = _meant_for_users(error)
        if meant is None or os.environ.get("GPART_TRACEBACK"):
            raise
        print(f"gpart: error: {told(meant)}", file=sys.stderr)
        return 2


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
        from gpart.cli.training import run

        run(words)
        return 0
    command = COMMANDS[first]
    return int(getattr(import_module(command.module), command.function)(words[1:]))


def _meant_for_users(error: BaseException) -> BaseException | None:
    """The first of an error and its causes that says what a user can mend; None if it is a fault."""
    return next((each for each in causes(error) if isinstance(each, GPartError)), None)
