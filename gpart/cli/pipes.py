"""The end of a command whose reader has gone, as in ``gpart configs | head -1``: quiet.

Invariant: a broken pipe between the processes of a run is a fault like any other. Only standard output and standard
error are looked at.
"""

from __future__ import annotations

import os
import select

READER_GONE = 141
"""128 + SIGPIPE: what a shell reports of a program that SIGPIPE has ended. Python ignores the signal, and a run must be
able to end its workers, so that it is not given back its usual meaning."""

OUTPUTS = (1, 2)
"""The file descriptors of standard output and standard error."""


def leave_broken_outputs() -> bool:
    """Points outputs without a reader nowhere, so that what is still in their buffers does not fail at the exit.

    Returns:
        Whether there was one.
    """
    broken = [output for output in OUTPUTS if _has_no_reader(output)]
    if broken:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in broken:
            os.dup2(nowhere, output)
        os.close(nowhere)
    return bool(broken)


def _has_no_reader(output: int) -> bool:
    # Another write would not tell: with PYTHONUNBUFFERED nothing is left to be written.
    poll = select.poll()
    poll.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
