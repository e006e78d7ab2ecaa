"""From theta to the numbers that the adapted weights look up: theta_j / sqrt(n_j), or all of P·theta.

Invariant: how the sizes n_j are known changes the last bit only. A partition's come in closed form, and theta is divided;
other groups are counted once for an adapter, and theta is multiplied by 1/sqrt(n_j), rounded to theta's dtype, with 1 for
an empty group: the order of operations of the paper's code. A dense map's product P·theta is what is looked up there, by
position.

What is counted or drawn is a constant: it is made apart from whatever torch follows, and is no buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpart.config import GPartConfig, MemoryPolicy
from gpart.errors import GPartError
from gpart.materialize.plain import is_hollow
from gpart.materialize.policy import constant_when_compiled, stores_indices
from gpart.ops.apart import apart
from gpart.ops.autograd import scale
from gpart.partition import Groups, Partition
from gpart.projections.fastfood import Constants, Fastfood
from gpart.projections.registry import groups_of, make_projection


class Scaling:
    """The first half of P·theta, once for all weights; the second is looking up, see :mod:`gpart.ops.autograd`.

    Args:
        config: the adapter's settings.
        size: D, the number of adapted weights.
        memory: whether a dense map's constants are kept, as group indices are.

    Raises:
        GPartError: if the projection cannot be had in this way.

    Example:
        >>> scaling = Scaling(GPartConfig(2, ["q"], projection="hash", seed=3), 5, MemoryPolicy())
        >>> scaling.groups.sizes().tolist(), scaling(torch.tensor([2.0, 2.0]))
        ([4, 1], tensor([1., 2.]))
    """

    def __init__(self, config: GPartConfig, size: int, memory: MemoryPolicy) -> None:
        self.config, self.size, self.memory = config, size, memory
        self.projection = make_projection(config.projection, size, config.d, config.seed)
        if memory.indices == "computed" and getattr(self.projection, "indices", None) == "stored":
            raise GPartError(
                f"indices='computed' and projection={config.projection!r} exclude each other: its groups come from a"
                " generator that goes through all positions before one, so they are stored"
            )
        self.groups: Groups = groups_of(self.projection)
        """What finds a weight's numbers in what this gives."""
        self._kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Scaling:
        copy = memo[id(self)] = type(self)(self.config, self.size, self.memory)
        copy.projection, copy.groups, copy._kept = self.projection, self.groups, dict(self._kept)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config, self.size, self.memory)  # a pickled one counts and draws again

    def forget(self) -> None:
        """Drops the constants, where the model leaves a device; they are made again at their next use."""
        self._kept.clear()

    def __call__(self, theta: Tensor, followed: bool = False) -> Tensor:
        """theta_j / sqrt(n_j), shape (d,), or a dense map's P·theta, shape (D,); differentiable, on theta's device.

        Args:
            theta: shape (d,), float32 or wider.
            followed: whether torch follows operations here, see :mod:`gpart.materialize.plain`.
        """
        if isinstance(self.projection, Partition):
            return scale(theta, self.size, self.config.isometric, self.config.d if followed else None)
        if isinstance(self.projection, Fastfood):
            return self.projection.apply(theta, Constants(*self._constants(theta, followed)))
        if not self.config.isometric:
            return theta
        (factor,) = self._constants(theta, followed)
        return theta * factor

    def _constants(self, theta: Tensor, followed: bool) -> tuple[Tensor, ...]:
        """The constants on theta's device, in its dtype where they are floating-point numbers."""
        device, dtype = theta.device, theta.dtype
        if torch.compiler.is_compiling():
            # Read as any tensor that an object holds: the compiler takes one returned constant of a function, not three.
            self._keep(device, dtype)
            return self._kept[device, dtype]
        if followed and is_hollow(theta):
            return tuple(theta.new_empty(shape, dtype=kind) for shape, kind in self._described(dtype))
        made = self._made(device, dtype)
        return tuple(map(torch.ops.aten.lift_fresh.default, made)) if followed else made

    @constant_when_compiled  # else counting breaks the graph
    def _keep(self, device: torch.device, dtype: torch.dtype) -> bool:
        self._kept[device, dtype] = self._made(device, dtype)
        return True

    def _made(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        known = self._kept.get((device, dtype))
        if known is None:
            known = apart(lambda: self._make(device, dtype))
            if not isinstance(self.projection, Fastfood) or stores_indices(self.memory, self.projection.nbytes, device):
                self._kept[device, dtype] = known
        return known

    def _make(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if device.type == "meta":
            return tuple(torch.empty(shape, dtype=kind, device=device) for shape, kind in self._described(dtype))
        if isinstance(self.projection, Fastfood):
            return self.projection.constants(device, dtype)
        counts = self.groups.sizes().clamp_(min=1).to(dtype)
        return ((1 / counts.sqrt()).to(device),)  # on the CPU, whose root and quotient are rounded correctly

    def _described(self, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of the constants."""
        if not isinstance(self.projection, Fastfood):
            return [((self.config.d,), dtype)]
        shape = (self.projection.blocks, self.projection.width)
        return [(shape, torch.int8), (shape, torch.int32), (shape, dtype)]
