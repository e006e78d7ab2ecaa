"""All that ``gpart fit`` needs, imported: a study forks its runs from a process that has imported this module.

Invariant: it imports and does nothing else, so that nothing but modules is inherited.
"""

from __future__ import annotations

import gc
import signal
from importlib import import_module

from gpart.cli.quiet import silence_imports

# Ctrl-C reaches this process too. The study says that it was stopped, and this process ends with it.
_before = signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    silence_imports()
    import_module("gpart.cli.training")
finally:
    signal.signal(signal.SIGINT, _before)
gc.freeze()  # else the collector writes to every object, and each run would have memory pages of its own for them
