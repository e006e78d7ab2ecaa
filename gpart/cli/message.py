"""How a mistake is told: in one line."""

from __future__ import annotations


def one_line(message: str, most: int = 600) -> str:
    """A message with its line breaks taken out, cut where it is very long."""
    line = " ".join(message.split())
    return line if len(line) <= most else line[: most - 4] + " ..."
