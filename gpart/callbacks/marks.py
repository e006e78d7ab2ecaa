"""What a network itself remembers of the callbacks that were applied to it.

Invariant: a callback object is made anew at any time (``configure_callbacks``, a new trainer, a copy), and what was trained
outlives it. So what a later one has to know stands on the network, in tuples and sets, of which torch makes neither children nor
state, and travels with ``deepcopy`` and ``pickle``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from gpart.serialization.locations import located

_STARTED, _TRAINED, _FROZEN = "_gpart_started", "_gpart_trained", "_gpart_frozen"

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
    return bool(found == (method, place_of(folder)))


def mark_started(network: nn.Module, method: str, folder: str) -> None:
    """Remembers on the network that its numbers began with this folder's."""
    setattr(network, _STARTED, (method, place_of(folder)))


def mark_loaded(network: nn.Module, method: str) -> None:
    """Remembers on the network that a file of the method is read into it, where no folder is known that it began with."""
    if not hasattr(network, _STARTED):
        setattr(network, _STARTED, (method, _FILE))


def mark_trained(network: nn.Module, method: str, names: Iterable[str]) -> None:
    """Remembers on the network what a run of the method trains, or a file of it holds."""
    setattr(network, _TRAINED, (method, tuple(names)))


def trained_before(network: nn.Module, method: str) -> frozenset[str]:
    """What the method's last run on this network trained; none where another method's came since."""
    found, names = getattr(network, _TRAINED, (method, ()))
    return frozenset(names if found == method else ())


def mark_frozen(network: nn.Module, frozen: Iterable[str], trained: Iterable[str] = ()) -> None:
    """Remembers on the network which parameters a callback froze that were trained before: nobody else wanted them frozen.

    Args:
        network: that a method is applied to.
        frozen: names of what it has just frozen.
        trained: names of what it trains, which are not frozen any more.
    """
    setattr(network, _FROZEN, (frozen_by_methods(network) | set(frozen)) - set(trained))


def frozen_by_methods(network: nn.Module) -> frozenset[str]:
    """Names of what only a callback has frozen; some may be gone, where PEFT has renamed its layers."""
    return frozenset(getattr(network, _FROZEN, ()))


def place_of(folder: str) -> str:
    """A path or a URL as it is compared: the same place, however it is written."""
    at = located(folder)
    return os.path.abspath(at) if isinstance(at, Path) else at
