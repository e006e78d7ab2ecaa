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

from gpart.cli.message import one_line

PACKAGE = Path(__file__).resolve().parent.parent

COMMANDS = {
    "bench": ("gpart.cli.bench", "bench_command"),
    "configs": ("gpart.cli.configs", "configs_command"),
    "params": ("gpart.cli.params", "params_command"),
    "study": ("gpart.cli.study", "study_command"),
}
"""What is not LightningCLI's: module and function, imported when asked for, since each pulls in libraries of its own."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``gpart``.

    Args:
        args: the words after ``gpart``; default those of the process.

    Returns:
        0; a user's error is printed and gives 2.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words and words[0] in COMMANDS:
            module, name = COMMANDS[words[0]]
            return int(getattr(import_module(module), name)(words[1:]))
        from gpart.cli.training import run

        run(words)
    except (ValueError, OSError) as error:
        meant = _meant_for_users(error)
        if os.environ.get("GPART_TRACEBACK") or meant is None:
            raise
        print(f"gpart: error: {one_line(str(meant))}", file=sys.stderr)
        return 2
    return 0


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
