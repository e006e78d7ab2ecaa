"""How a mistake is told: in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Leaves telling a mistake to :func:`gpart.cli.main`, which does it in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises it.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.prog}: {message}")


def one_line(message: str, most: int = 600) -> str:
    """A message with its line breaks taken out, cut where it is very long."""
    line = " ".join(message.split())
    return line if len(line) <= most else line[: most - 4] + " ..."
