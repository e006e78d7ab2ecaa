"""How a mistake is found and told: in one line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from gpart.errors import GPartError

PACKAGE = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """Leaves telling a mistake to :func:`gpart.cli.main`, which does it in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises it.

        Raises:
            GPartError: always.
        """
        raise GPartError(f"{self.prog}: {message}")

    def given(self, words: Sequence[str], names: Collection[str]) -> list[str]:
        """Those of some settings that a command line names, as its options, whatever their values.

        Example:
            >>> parser = Parser()
            >>> _ = parser.add_argument("--batch-size", type=int, default=1)
            >>> parser.given(["--batch-size", "1"], ["batch_size"]), parser.given([], ["batch_size"])
            (['--batch-size'], [])
        """
        nothing = object()
        asked = self.parse_args(words, argparse.Namespace(**dict.fromkeys(names, nothing)))
        return [f"--{name.replace('_', '-')}" for name in names if getattr(asked, name) is not nothing]


@contextmanager
def warnings_told() -> Iterator[None]:
    """Tells users' warnings that come within it as the command's own, a line each, unless it ends in an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for each in caught:
        if issubclass(each.category, UserWarning):
            print(f"gpart: warning: {' '.join(str(each.message).split())}", file=sys.stderr)


@contextmanager
def own_warnings_in_a_line() -> Iterator[None]:
    """Within it, a warning of this package is shown as the command's own, without the line of code that gave it."""
    before = warnings.formatwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(PACKAGE):
            return f"gpart: warning: {' '.join(str(message).split())}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = before


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: libraries wrap what they call, as jsonargparse does."""
    while error is not None:
        yield error
        error = error.__cause__


def told(error: BaseException, most: int = 600) -> str:
    """An error's message in one line, cut where it is very long.

    Example:
        >>> told(GPartError("d=5 is more than   the 4 weights"))
        'd=5 is more than the 4 weights'
    """
    message = str(error)
    # A DataLoader raises a worker's error again with the worker's traceback for a message; that ends in the one meant.
    if message.startswith("Caught "):
        kind = type(error)
        message = message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]
    line = " ".join(message.split())
    return line if len(line) <= most else line[: most - 4] + " ..."
