"""Dropout's masks on P·theta.

Invariant: a mask is a function of its seed (and the kind of device) alone, drawn chunk by chunk, so that it is the same
whether it is kept or drawn again in the backward pass, and nothing of the weight's size need be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpart.ops.block import Block
from gpart.partition import chunk_size

_LEVELS = 1 << 16


@dataclass(frozen=True)
class Mask:
    """Which entries of a block are kept, computed when a stretch is asked for.

    On a CPU 16 random bits are compared with p, four entries to a draw, which takes a fifth of a ``bernoulli_`` per entry
    (measured); p is rounded to a multiple of 2^-16 there.

    Example:
        >>> mask = Mask(0.25, seed=1, count=100_000, device=torch.device("cpu"))
        >>> round(mask[:].float().mean().item(), 2), mask[:].equal(mask[:])
        (0.75, True)
    """

    p: float
    """Probability of an entry to be dropped."""
    seed: int
    count: int
    """Entries in the block."""
    device: torch.device

    @property
    def boost(self) -> float:
        """What a kept entry is multiplied by, so that its mean is what it was: 1 / (1 - p)."""
        if self.device.type != "cpu":
            return 1 / (1 - self.p)
        return _LEVELS / (_LEVELS - _threshold(self.p))

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """True where kept, bool; the stretch starts at a multiple of the chunk size."""
        first, last, _ = stretch.indices(self.count)
        step = chunk_size(self.device)
        keep = torch.empty(max(0, last - first), dtype=torch.bool, device=self.device)
        for number in range(first // step, -(-last // step)) if not keep.is_meta else ():
            chunk = keep[number * step - first : (number + 1) * step - first]
            self._draw(chunk, torch.Generator(self.device).manual_seed((self.seed + number) % (1 << 63)))
        return keep

    def _draw(self, chunk: Tensor, generator: torch.Generator) -> None:
        if self.device.type != "cpu":
            chunk.bernoulli_(1 - self.p, generator=generator)
            return
        bits = torch.empty(-(-chunk.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
        # As int16 the 2^16 values start at -2^15.
        torch.ge(bits.view(torch.int16)[: chunk.numel()], _threshold(self.p) - _LEVELS // 2, out=chunk)


def _threshold(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def with_dropout(
    blocks: tuple[Block, ...], p: float, seed: int, sizes: tuple[int, ...], device: torch.device, kept: bool
) -> tuple[Block, ...]:
    """The same blocks with one dropout mask.

    Args:
        blocks: a weight's blocks.
        p: probability of an entry to be dropped.
        seed: what the mask is drawn from.
        sizes: number of entries of each block.
        device: where the weight is.
        kept: True draws it now and keeps it, one byte an entry; False draws it in each operation.
    """
    result = []
    for block, count in zip(blocks, sizes, strict=True):
        # A block's chunks are numbered from its seed on: 2^24 chunks of 2^18 entries lie between two blocks' seeds.
        mask = Mask(p, seed + (block.start << 24), count, device)
        result.append(replace(block, keep=mask[:] if kept else mask, boost=mask.boost))
    return tuple(result)
