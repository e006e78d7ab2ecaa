"""What a network itself remembers of the callbacks that were applied to it.

Invariant: a callback object is made anew at any time (``configure_callbacks``, a new trainer, a copy), and what was trained
outlives it. So what a later one has to know stands on the network, in tuples, of which torch makes neither children nor
state, and travels with ``deepcopy`` and ``pickle``.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from gpart.serialization.locations import located

_STARTED = "_gpart_started"

_FILE = ""
"""In a folder's place: the network holds the numbers of a file that was read, as of a checkpoint."""


def stands(network: nn.Module, method: str, folder: str) -> bool:
    """Whether the network was started from this folder before, or holds what a checkpoint of the method gave it.

    In the second case it counts as started from the folder from then on: what the checkpoint's run had trained, which may
    have begun with that folder, is not replaced by where it began. Another folder is another start.

    Args:
        network: that the method was applied to.
        method: the callback's class name.
        folder: a path or a URL.
    """
    found = getattr(network, _STARTED, None)
    if found == (method, _FILE):
        rank_zero_info(f"{method}: adapter={folder!r} is not read, the network holds what was trained in a checkpoint")
        mark_started(network, method, folder)
        return True
    return bool(found == (method, _place(folder)))


def mark_started(network: nn.Module, method: str, folder: str) -> None:
    """Remembers on the network that its numbers began with this folder's."""
    setattr(network, _STARTED, (method, _place(folder)))


def mark_loaded(network: nn.Module, method: str) -> None:
    """Remembers on the network that a file of the method is read into it, where no folder is known that it began with."""
    if not hasattr(network, _STARTED):
        setattr(network, _STARTED, (method, _FILE))


def _place(folder: str) -> str:
    at = located(folder)
    return os.path.abspath(at) if isinstance(at, Path) else at
