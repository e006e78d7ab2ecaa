"""What a layer reads as its weight: W0 + P·theta, computed as seldom and kept as long as the memory settings say.

Invariant: the settings change time and memory only. Within one forward pass every read of a weight gives the same
numbers, with one dropout mask.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor

from gpart import compiled
from gpart.base import dense, is_packed
from gpart.functional import collected, expand, put_in, scale, write
from gpart.groups import GroupIndices, block_sizes
from gpart.kept import Kept
from gpart.masks import with_dropout
from gpart.memory import Memory
from gpart.partition import Partition
from gpart.parts import Part
from gpart.recompute import Recomputation
from gpart.scope import ForwardScope
from gpart.targets import AdaptedWeight, Plan


class Evaluation:
    """The adapted weights of one adapter.

    Args:
        plan: which weights.
        d: length of theta.
        seed: of the partition.
        dropout: on P·theta.
        isometric: whether theta_j is divided by sqrt(n_j).
        memory: the settings.
    """

    def __init__(self, plan: Plan, d: int, seed: int, dropout: float, isometric: bool, memory: Memory) -> None:
        self.plan, self.dropout, self.isometric, self.memory = plan, dropout, isometric, memory
        self.indices = GroupIndices(Partition(plan.size, d, seed))
        self.scope = ForwardScope(OrderedDict())
        self.kept = Kept()
        self.sharded = False
        """Whether W0 is there only while its layer runs, so that nothing may be kept longer, or computed in advance."""
        self.recomputation = Recomputation(memory.weights in {"auto", "recomputed"})
        self._numel = sum(math.prod(weight.shape) for weight in plan.weights)

    def weight(self, weight: AdaptedWeight, base: Tensor, theta: Tensor, training: bool) -> Tensor:
        """W0 + P·theta of one weight, in W0's shape and dtype."""
        dropped = training and self.dropout > 0
        if torch.compiler.is_compiling():
            return self._compiled(weight, base, theta, dropped)
        if not dropped and not torch.is_grad_enabled():
            known = self.kept.again(weight.name, theta, base)
            if known is not None:
                return known.detach()
        seed = self.scope.mask_seed(weight.name) if dropped else None  # drawn at every read, see mask_seed
        sources = (theta, base)
        known = self.scope.get(weight.name, sources)
        if known is None:
            known = self.recomputation.get(weight.name, sources)
        if known is not None:
            return known
        mode = self.mode(theta, base)
        self.recomputation.wanted = mode == "recomputed"  # from the next layer on
        if mode == "kept" or (self.kept.open and not self.sharded and not dropped and not torch.is_grad_enabled()):
            return self.scope.put(weight.name, sources, self._kept(weight, base, theta, seed, mode))
        parts = self._masked(weight, base, seed, mode)
        scaled = self.scaled(theta, base.device)
        if mode == "recomputed":
            value = self._anchored(weight, base, scaled, parts, sources)
            # theta itself, where it is not scaled, may be written to before the backward pass.
            fixed = scaled.detach() if self.isometric else scaled.detach().clone()
            return self.recomputation.put(
                weight.name, sources, value, lambda: expand(fixed, dense(base), parts), held=(base,)
            )
        return self.scope.put(weight.name, sources, expand(scaled, dense(base), parts))

    def _masked(self, weight: AdaptedWeight, base: Tensor, seed: int | None, mode: str) -> tuple[Part, ...]:
        """The blocks with their dropout masks, if a seed for them was drawn."""
        parts = self.parts(weight, base.device)
        if seed is None:
            return parts
        return with_dropout(parts, self.dropout, seed, block_sizes(weight), base.device, kept=mode != "recomputed")

    def _kept(self, weight: AdaptedWeight, base: Tensor, theta: Tensor, seed: int | None, mode: str) -> Tensor:
        """W0 + P·theta from the memory that is kept; where it is there and has no gradient, nothing else is made."""
        graph = torch.is_grad_enabled()
        parts = self._masked(weight, base, seed, mode) if graph else None
        scaled = self.scaled(theta, base.device) if graph else None

        def compute(out: Tensor, theta: Tensor, base: Tensor) -> None:
            blocks = self._masked(weight, base, seed, mode) if parts is None else parts
            write(out, self.scaled(theta, base.device), dense(base), blocks)

        value = self.kept.value(weight.name, theta, base, seed, self.scope.number, compute)
        if parts is None or scaled is None:
            return value.detach()
        return expand(scaled, value if is_packed(base) else base, parts, value)

    def _anchored(
        self, weight: AdaptedWeight, base: Tensor, scaled: Tensor, parts: tuple[Part, ...], sources: tuple[Tensor, ...]
    ) -> Tensor:
        """W0 + P·theta whose gradient is summed over the layers of a forward pass before it is reduced.

        That is what the other settings do, where these layers read one tensor; here each has a tensor of its own.
        """
        if not torch.is_grad_enabled():
            return expand(scaled, dense(base), parts)
        key = f"anchor of {weight.name}"
        anchor = self.scope.get(key, sources)
        if anchor is None:
            nothing = torch.zeros((), dtype=base.dtype, device=base.device).expand(base.shape)
            anchor = self.scope.put(key, sources, expand(scaled, nothing, parts, nothing))
        return put_in(anchor, expand(scaled.detach(), dense(base).detach(), parts))

    def _compiled(self, weight: AdaptedWeight, base: Tensor, theta: Tensor, dropped: bool) -> Tensor:
        """Within torch.compile, which plans memory itself; nothing is asked here that would break the graph."""
        known = self.scope.get(weight.name, (theta, base))
        if known is not None:
            return known
        parts = self.parts(weight, base.device)
        if dropped:
            p, sizes = self.dropout, block_sizes(weight)
            parts = tuple(
                replace(part, keep=torch.rand(size, device=base.device) >= p, boost=1 / (1 - p))
                for part, size in zip(parts, sizes, strict=True)
            )
        value = compiled.expand(self.scaled(theta, base.device), dense(base), parts)
        return self.scope.put(weight.name, (theta, base), value)

    def parts(self, weight: AdaptedWeight, device: torch.device) -> tuple[Part, ...]:
        """The blocks of a weight with their group numbers."""
        nbytes = self.plan.size * self.indices.partition.dtype.itemsize
        return self.indices.parts(weight, device, self.memory.stores_indices(nbytes, device))

    def scaled(self, theta: Tensor, device: torch.device) -> Tensor:
        """theta_j / sqrt(n_j) on a device, shape (d,), once per forward pass."""
        key = f"theta on {device}"
        known = self.scope.get(key, (theta,))
        if known is not None:
            return known
        scaled = scale(theta, self.plan.size, self.isometric).to(device)
        if not torch.compiler.is_compiling() and scaled.requires_grad and not _transformed(theta):
            scaled = collected(scaled)
        return self.scope.put(key, (theta,), scaled)

    def mode(self, theta: Tensor, base: Tensor) -> str:
        """``"kept"``, ``"forward"`` or ``"recomputed"``, for weights of this one's dtype and device."""
        # A function transform allows no write to memory that it did not see made.
        if base.is_meta or _transformed(theta):
            return "forward"
        if self.sharded:
            return "forward" if self.memory.weights == "forward" else "recomputed"
        return self.memory.weights_on(self._numel * base.dtype.itemsize, base.device)


def _transformed(theta: Tensor) -> bool:
    """Whether a function transform such as torch.func.grad is at work."""
    return torch._C._functorch.is_functorch_wrapped_tensor(theta)
