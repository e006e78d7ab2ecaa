"""What a run's log says at its end."""

from __future__ import annotations

from pathlib import Path

_TAIL = 2**16
"""The number of bytes at the end of a log that are searched for its last message."""
_LONGEST_LINE = 620
"""The largest number of characters of that message. What the command says of a mistake is shorter."""


def last_words(log: Path) -> str:
    """Returns the last line of the log that starts with ``gpart: error:``, or else its last line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("gpart: error:")]
    return (errors or said or ["it said nothing"])[-1][:_LONGEST_LINE]
