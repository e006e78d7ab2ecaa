"""``python -m gpart.studies.experiments.bound FD MODULE WORDS...``: ``python -m MODULE WORDS...``, ended with its parent.

Invariant: the process is killed as soon as the other end of the pipe FD is closed, which a process that is killed does too.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)  # nothing is ever written: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    module = sys.argv[2]
    del sys.argv[:2]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
