"""What both passes work on: the rows of P that belong to a block of one weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Entries(Protocol):
    """One value for each entry of a block in row-major order: a tensor, or what computes a stretch of it when asked."""

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """The values of a stretch that starts at a multiple of :func:`gpart.partition.stretch_size`."""


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of P for a block of one weight: which entries of the weight, and the group of each.

    Attributes:
        groups: group numbers of the block's entries, int16 or int32, shape (block size,).
        dim: the dimension along which the block is cut.
        start: first index along ``dim``.
        stop: one past the last index along ``dim``.
        keep: with dropout, True where P·theta is kept, shape as ``groups``; None without.
        boost: what kept entries are multiplied by, 1 / (1 - p).
    """

    groups: Entries
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
