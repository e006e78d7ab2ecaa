"""Modules of one's own: those in the current folder."""

from __future__ import annotations

import os
import sys


def look_in_current_folder() -> None:
    """Makes modules in the current folder importable, as ``python -m`` does and the installed command does not."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
