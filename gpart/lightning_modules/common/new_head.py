"""Tells a head that nothing has trained, whose scores and predictions would be random.

Invariant: a head counts as untrained only while each of its new parameters is bit for bit as it was initialised. Training,
a checkpoint and an adapter all change it, whichever way they come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gpart.errors import GPartError

_PEFT = re.compile(r"^base_model\.model\.|\bmodules_to_save\.[^.]+\.")
"""What PEFT puts into the names of a module that it keeps a trained copy of."""


class NewHead:
    """The parameters of a network that have just been initialised at random.

    Args:
        network: it.
        names: of these parameters.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> head = NewHead(network, ["1.weight", "1.bias"])
        >>> head.untrained(network)
        True
        >>> nn.init.ones_(network[1].weight).shape
        torch.Size([1, 2])
        >>> head.untrained(network)
        False
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        new = set(names)
        self._first = {name: _copy(value) for name, value in network.named_parameters() if name in new}

    def untrained(self, network: nn.Module) -> bool:
        """Whether there are such parameters, and all of them are as they were; False where they can't be compared."""
        now = {
            _PEFT.sub("", name): value for name, value in network.named_parameters() if "original_module" not in name
        }
        return bool(self._first) and all(
            name in now and _equal(first, now[name]) for name, first in self._first.items()
        )

    def check(self, network: nn.Module, stage: str, allowed: bool) -> None:
        """Checks that a stage would not use an untrained head.

        Args:
            network: the network as it is now.
            stage: the Trainer's, ``test`` or ``predict``.
            allowed: whether that is meant.

        Raises:
            GPartError: if it would, with what to pass.
        """
        if not allowed and self.untrained(network):
            raise GPartError(
                f"{stage} would use {', '.join(self._first)}, which has just been initialised at random: give what was"
                " trained, a checkpoint (--ckpt_path FILE) or an adapter (--method.adapter FOLDER). Where the untrained"
                " model is meant: --model.allow_untrained_head true"
            )


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)


def _equal(first: Tensor, now: Tensor) -> bool:
    # A sharded parameter, or one without memory, holds no values of its own here.
    if now.is_meta or type(now.detach()) is not torch.Tensor or now.shape != first.shape:
        return False
    return torch.equal(first, now.detach().cpu().to(first.dtype))
