"""Callbacks that copy the model and average it: their copies, in memory and in checkpoints.

Invariant: a copy has the parameters of the module that is trained, and its frozen ones keep their bits. Lightning's
averages go over ``parameters()`` in order and stop at the shorter list, so a copy that was made too early would be
averaged wrongly, or not at all, without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from gpart.callbacks.packages import is_a, is_overridden
from gpart.errors import GPartError

COPYING = (WeightAveraging, StochasticWeightAveraging)
"""Lightning's callbacks whose setup copies the model."""


def copies(callbacks: Iterable[Callback]) -> Iterator[tuple[str, nn.Module]]:
    """The averaged copies of the LightningModule that there are, each with its callback's name."""
    for callback in callbacks:
        average = getattr(callback, "_average_model", None) if is_a(callback, *COPYING) else None
        if average is not None:
            yield type(callback).__name__, average.module if is_a(callback, WeightAveraging) else average


@torch.no_grad()
def keep_frozen(callbacks: Iterable[Callback], pl_module: LightningModule, network: nn.Module) -> None:
    """Puts the network's frozen weights into the copies: an average of equal numbers is rounded, and not the same."""
    frozen = {id(value) for value in network.parameters() if not value.requires_grad}
    for _, copy in copies(callbacks):
        averaged = dict(copy.named_parameters())
        for name, value in pl_module.named_parameters():
            # By name: outside of fit a copy may have been made before the network was built, and have none of it.
            if id(value) in frozen and name in averaged:
                averaged[name].copy_(value)


def refuse_empty_copies(callbacks: Iterable[Callback], pl_module: LightningModule) -> None:
    """For a module whose network is not there when the callbacks are set up: refuses those that copy it there.

    WeightAveraging calls a ``configure_model`` before it copies, and so has what is built there.

    Raises:
        GPartError: if one would copy a module without its network.
    """
    configures = is_overridden("configure_model", pl_module)
    for callback in callbacks:
        if is_a(callback, *COPYING) and not (configures and is_a(callback, WeightAveraging)):
            raise GPartError(_too_early(type(callback).__name__, pl_module, "has no network to adapt yet"))


def check_copies(callbacks: Iterable[Callback], pl_module: LightningModule) -> None:
    """Checks that every copy has the module's parameters.

    Raises:
        GPartError: if one was made before they were there, with their names.
    """
    names = [name for name, _ in pl_module.named_parameters()]
    for callback, copy in copies(callbacks):
        found = {name for name, _ in copy.named_parameters()}
        if lacks := [name for name in names if name not in found]:
            raise GPartError(_too_early(callback, pl_module, f"had no {lacks[:3]} yet"))


def _too_early(callback: str, pl_module: LightningModule, what: str) -> str:
    return (
        f"{callback} copies the module in its setup, when {type(pl_module).__name__} {what}, and would average nothing of"
        " it: build the network in __init__"
    )
