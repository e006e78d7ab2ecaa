"""A job for worker processes, which import this file by its name: test files have none there."""

from __future__ import annotations

import os
import signal
import time

from gpart.errors import GPartError


def job(number: int) -> int:
    """Runs in a worker, which imports this file: fails at 3, kills its process at 4, takes long at 5."""
    if number == 3:
        raise GPartError("three is no number here")
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        time.sleep(200)
    return os.getpid()
