"""The rows of P that belong to one block of one weight: which entries they are, and the group index of each.

Invariant: a block is a description. It holds no weight and no theta, so it can be built once and used in every forward
and backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gpart.partition import Groups, Partition


class Entries(Protocol):
    """One value for each entry of a block in row-major order: a tensor, or what computes a stretch of it when asked."""

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """The values of a stretch that starts at a multiple of :func:`gpart.partition.stretch_size`."""


@dataclass(frozen=True)
class ComputedIndices:
    """The group indices of a block, computed when a stretch of them is asked for; nothing is kept.

    Example:
        >>> ComputedIndices(Partition(size=10, d=3), offset=6, count=4, device=torch.device("cpu"))[1:3]
        tensor([2, 0], dtype=torch.int32)
    """

    partition: Groups
    offset: int
    """The block's first position in the flat vector."""
    count: int
    device: torch.device

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """Group indices, int32."""
        first, last, _ = stretch.indices(self.count)
        return self.partition.groups(self.offset + first, self.offset + last, self.device)


@dataclass(frozen=True, eq=False)
class Block:
    """One block of one weight.

    Attributes:
        indices: the group index of each of the block's entries, int16 or int32, shape (block size,).
        dim: the dimension along which the block is cut.
        start: first index along ``dim``.
        stop: one past the last index along ``dim``.
        keep: with dropout, True where P·theta is kept, shape as ``indices``; None without.
        boost: what kept entries are multiplied by, 1 / (1 - p).
    """

    indices: Entries
    dim: int
    start: int
    stop: int
    keep: Entries | None = None
    boost: float = 1.0

    def of(self, weight: Tensor) -> Tensor:
        """The block of ``weight`` as a view."""
        if self.start == 0 and self.stop == weight.shape[self.dim]:
            return weight
        return weight.narrow(self.dim, self.start, self.stop - self.start)

    def drop(self, values: Tensor, stretch: slice) -> Tensor:
        """Applies the dropout mask, if there is one, to a stretch's values, flat, in place; returns them."""
        return values if self.keep is None else values.mul_(self.keep[stretch]).mul_(self.boost)


class IndexSource(NamedTuple):
    """Where compiled code finds a stretch's group indices: in memory, or by the partition's arithmetic."""

    stored: Tensor | None
    partition: Partition | None
    start: int
    """Position of the stretch's first entry in the flat vector, where the indices are computed."""


def index_source(block: Block, device: torch.device, stretch: slice | None = None) -> IndexSource | None:
    """Where a block's group indices, or a stretch of them, come from; None where compiled code cannot read them."""
    indices = block.indices
    if isinstance(indices, ComputedIndices):
        if not isinstance(indices.partition, Partition):
            return None  # the arithmetic of gpart-v1 is all that it knows
        return IndexSource(None, indices.partition, indices.offset + (stretch.start if stretch else 0))
    if not isinstance(indices, Tensor) or not has_memory(indices) or indices.device != device:
        return None
    if indices.dtype not in (torch.int16, torch.int32) or not indices.is_contiguous():
        return None
    return IndexSource(indices[stretch] if stretch else indices, None, 0)


def has_memory(tensor: Tensor) -> bool:
    """Whether compiled code may read and write where the tensor says that its numbers are.

    A subclass may stand for a tensor without memory of its own, as torch's fake ones do, and so do the tensors of
    ``torch.func``'s transforms.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or torch._C._functorch.is_legacy_batchedtensor(tensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_transformed(tensor: Tensor) -> bool:
    """Whether ``torch.func`` transforms what is done here, or ``is_grads_batched`` has made one of many gradients."""
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(tensor)
