"""Where the group numbers come from: a stored tensor, or the integer arithmetic itself, chunk by chunk.

Invariant: both give the same numbers, so the setting changes memory and time, never a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpart.memory import constant_when_compiled
from gpart.partition import Partition
from gpart.parts import Entries, Part
from gpart.targets import AdaptedWeight


@dataclass(frozen=True)
class ComputedGroups:
    """The group numbers of a block, computed when a stretch of them is asked for; nothing is kept.

    Example:
        >>> ComputedGroups(Partition(size=10, d=3), offset=6, count=4, device=torch.device("cpu"))[1:3]
        tensor([2, 0], dtype=torch.int32)
    """

    partition: Partition
    offset: int
    """The block's first position in the flat vector."""
    count: int
    device: torch.device

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """Group numbers, int32."""
        first, last, _ = stretch.indices(self.count)
        return self.partition.groups(self.offset + first, self.offset + last, self.device)


class GroupIndices:
    """The group numbers of every adapted block; stored ones are int16 where they fit, else int32.

    Stored ones are computed at first use on the device of use. They are no buffers: DDP broadcasts every registered
    buffer at every forward pass. Copies of a model share them.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self._stored: dict[int, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupIndices:
        copy = memo[id(self)] = type(self)(self.partition)
        copy._stored = dict(self._stored)
        return copy

    @property
    def nbytes(self) -> int:
        """What is stored, in bytes."""
        return sum(stored.nbytes for stored in self._stored.values())

    def parts(self, weight: AdaptedWeight, device: torch.device, stored: bool) -> tuple[Part, ...]:
        """The blocks of a weight with their group numbers on ``device``."""
        make = self._keep if stored else self._compute
        return tuple(
            Part(make(offset, count, device), weight.dim, start, stop)
            for (start, stop, offset), count in zip(weight.blocks, block_sizes(weight), strict=True)
        )

    def _compute(self, offset: int, count: int, device: torch.device) -> Entries:
        return ComputedGroups(self.partition, offset, count, device)

    @constant_when_compiled  # else a first use breaks the graph
    def _keep(self, offset: int, count: int, device: torch.device) -> Entries:
        if device.type == "meta":
            return torch.empty(count, dtype=self.partition.dtype, device=device)
        stored = self._stored.get(offset)
        if stored is None:
            stored = self.partition.groups(offset, offset + count, device, self.partition.dtype)
        # One copy only: it follows the weight to another device.
        self._stored[offset] = stored = stored.to(device)
        return stored


def block_sizes(weight: AdaptedWeight) -> tuple[int, ...]:
    """How many entries each block of a weight has."""
    stride = math.prod(weight.shape) // weight.shape[weight.dim]
    return tuple((stop - start) * stride for start, stop, _ in weight.blocks)
