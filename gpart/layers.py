"""The two modules an adapter adds to a model: the one that holds theta, and the one that adds P·theta to a weight.

Invariant: theta exists once, in :class:`Theta`, which is the last child of the adapted module; every layer reaches it
through that child at every use, never by a reference of its own, since ``to_empty``, ``.to("meta")`` and sharding
replace the Parameter object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpart.targets import AdaptedWeight

CONTAINER = "gpart"
"""Name of the child of the adapted module that holds its adapters; theta's key is ``gpart.<adapter name>.theta``."""


def check_name(name: object) -> str:
    """An adapter's name, if it can be one: it stands in keys, and beside the attributes of the module that holds adapters.

    Raises:
        ValueError: if it cannot.
    """
    if not isinstance(name, str) or not name.isidentifier() or hasattr(Adapters, name) or name in vars(nn.Module()):
        raise ValueError(
            f"an adapter's name must be an identifier, and no attribute of torch's ModuleDict; got {name!r}"
        )
    return name


class Evaluator(Protocol):
    """What computes an adapted weight; the adapter is one."""

    def evaluate(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W from W0."""


class Adapters(nn.ModuleDict):
    """The adapted module's last child: its adapters by name.

    It passes its input on, since a Sequential that is adapted calls every child in turn.
    """

    def forward(self, value: Any) -> Any:
        """The input itself."""
        return value


class Theta(nn.Module):
    """Holds theta, shape (d,), float32 or wider whatever the model is cast to.

    ``adapter`` is no submodule: it knows the model, and the model knows this module.
    """

    theta: nn.Parameter

    plain: Callable[[nn.Parameter], Tensor] | None = None
    """What makes a plain tensor of theta, where a sharding strategy has put a DTensor in its place."""

    def __init__(self, d: int, device: torch.device | None, adapter: Any) -> None:
        super().__init__()
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.theta = nn.Parameter(torch.zeros(d, dtype=wide, device=device))
        self.adapter = adapter

    def values(self) -> Tensor:
        """Theta as the layers compute with it: a plain tensor, whose gradient reaches the parameter."""
        return self.theta if self.plain is None else self.plain(self.theta)

    def reset_parameters(self) -> None:
        """Theta = 0; Lightning and FSDP call this after a module was made on the meta device."""
        nn.init.zeros_(self.theta)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Theta:
        # Lightning's bf16-true casts every parameter after setup; casting back later is too late for DDP.
        def kept_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.is_floating_point() and moved.dtype != torch.promote_types(moved.dtype, torch.float32):
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        super()._apply(kept_wide, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        return self

    def extra_repr(self) -> str:
        """Shows d in the model's printed form."""
        return f"d={self.theta.numel()}"


class Update(nn.Module):
    """The parametrization of one adapted weight: W0 -> W0 + P·theta."""

    def __init__(self, evaluator: Evaluator, weight: AdaptedWeight) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.weight = weight

    def forward(self, base: Tensor) -> Tensor:
        """W, in the shape and dtype of ``base``."""
        return self.evaluator.evaluate(self.weight, base, self.training)
