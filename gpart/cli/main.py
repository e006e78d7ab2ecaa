"""From the words of a command line to the command.

Invariant: what a user can get wrong ends in one line on stderr and exit status 2; anything else keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gpart.cli.commands import COMMANDS, OVERVIEW, TRAINING, unknown
from gpart.cli.message import one_line
from gpart.cli.quiet import silence_imports
from gpart.errors import GPartError
from gpart.version import __version__

PACKAGE = Path(__file__).resolve().parent.parent


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``gpart``.

    Args:
        args: the words after ``gpart``; default those of the process.

    Returns:
        0; a user's error is printed and gives 2.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        return _run(words)
    except (ValueError, OSError) as error:
        meant = _meant_for_users(error)
        if os.environ.get("GPART_TRACEBACK") or meant is None:
            raise
        print(f"gpart: error: {one_line(str(meant))}", file=sys.stderr)
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
    """The first of an error and its causes that this package raised itself; None if it is a fault somewhere below.

    One of its own classes counts wherever it was raised: a DataLoader raises again what a worker process raised.
    """
    current: BaseException | None = error
    while current is not None:
        frames = traceback.extract_tb(current.__traceback__)
        own_class = type(current).__module__.partition(".")[0] == PACKAGE.name
        if own_class or (frames and PACKAGE in Path(frames[-1].filename).resolve().parents):
            return current
        current = current.__cause__  # jsonargparse wraps what a class's __init__ raises
    return None
