"""The blocks of every adapted weight with their group indices: a stored tensor, or the integer arithmetic itself.

Invariant: both give the same indices, so the setting changes memory and time, never a result. A weight's blocks are
built once for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from gpart.config import MemoryPolicy
from gpart.injection.targets import AdaptedWeight
from gpart.materialize.plain import is_hollow
from gpart.materialize.policy import constant_when_compiled, stores_indices
from gpart.ops import dispatch
from gpart.ops.apart import apart
from gpart.ops.block import Block, ComputedIndices, Entries
from gpart.partition import Groups


class GroupIndex:
    """The group indices of every adapted block; stored ones are int16 where they fit, else int32.

    Stored ones are computed at first use on the device of use. They are no buffers: DDP broadcasts every registered
    buffer at every forward pass. Copies of a model share them.
    """

    def __init__(self, partition: Groups, memory: MemoryPolicy) -> None:
        self.partition, self.memory = partition, memory
        # By offset and count: a block without entries has the offset of the next one.
        self._stored: dict[tuple[int, int], torch.Tensor] = {}
        self.built: dict[str, tuple[torch.device, tuple[Block, ...]]] = {}
        """The blocks of each weight, on the device where they were asked for last."""

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupIndex:
        copy = memo[id(self)] = type(self)(self.partition, self.memory)
        copy._stored, copy.built = dict(self._stored), dict(self.built)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.partition, self.memory)  # a pickled one computes them again

    def forget(self) -> None:
        """Drops what is stored, where the model leaves a device; it is computed again at its next use."""
        self._stored.clear()
        self.built.clear()

    @property
    def nbytes(self) -> int:
        """What is stored, in bytes."""
        return sum(stored.nbytes for stored in self._stored.values())

    def build(self, weight: AdaptedWeight, device: torch.device) -> tuple[Block, ...]:
        """The blocks of a weight with their group indices on ``device``, remembered in :attr:`built`."""
        make = self._maker(device)
        made = tuple(
            Block(make(offset, count, device), weight.dim, start, stop)
            for (start, stop, offset), count in zip(weight.blocks, block_sizes(weight), strict=True)
        )
        if not torch.compiler.is_compiling() and device.type != "meta":
            self.built[weight.name] = (device, made)
        return made

    def build_plainly(self, weight: AdaptedWeight, base: torch.Tensor) -> tuple[Block, ...]:
        """The same where torch follows operations: with indices that are tensors, and none kept that stands for another.

        Args:
            weight: the blocks' own.
            base: W0, for its device.
        """
        hollow = is_hollow(base)
        made = []
        for (start, stop, offset), count in zip(weight.blocks, block_sizes(weight), strict=True):
            if hollow:
                indices = base.new_empty(count, dtype=self.partition.dtype)
            else:
                indices = self._constant(offset, count, base.device)
                if not torch.compiler.is_compiling():
                    indices = torch.ops.aten.lift_fresh.default(indices)
            made.append(Block(indices, weight.dim, start, stop))
        return tuple(made)

    @constant_when_compiled  # export does as torch.compile
    def _constant(self, offset: int, count: int, device: torch.device) -> torch.Tensor:
        known = self._stored.get((offset, count))
        if known is not None and known.device == device:
            return known
        return apart(lambda: self._maker(device)(offset, count, device)[:count])

    def _maker(self, device: torch.device) -> Callable[[int, int, torch.device], Entries]:
        if self.partition.indices != "auto":  # there is one way only
            return self._store if self.partition.indices == "stored" else self._compute
        nbytes = self.partition.size * self.partition.dtype.itemsize
        return self._store if stores_indices(self.memory, nbytes, device) else self._compute

    def _compute(self, offset: int, count: int, device: torch.device) -> Entries:
        return ComputedIndices(self.partition, offset, count, device)

    @constant_when_compiled  # else a first use breaks the graph
    def _store(self, offset: int, count: int, device: torch.device) -> Entries:
        dtype = self.partition.dtype
        if device.type == "meta":
            return torch.empty(count, dtype=dtype, device=device)
        stored = self._stored.get((offset, count))
        if stored is None:
            stored = dispatch.group_indices(self.partition, offset, offset + count, device, dtype)
        # One copy only: it follows the weight to another device.
        self._stored[offset, count] = stored = stored.to(device)
        return stored


def block_sizes(weight: AdaptedWeight) -> tuple[int, ...]:
    """How many entries each block of a weight has."""
    stride = math.prod(weight.shape[: weight.dim] + weight.shape[weight.dim + 1 :])
    return tuple((stop - start) * stride for start, stop, _ in weight.blocks)
