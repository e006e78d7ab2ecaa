"""The sums of reduce, dL/dscaled_j = sum of g[i] over group j, of as many weights as there are, in one buffer.

Sums are float64 where the device has it: sequential float32 sums of 8,000 terms are off by more than 1e-6. On a CPU up to
64 terms, on the average, are summed in float32 first where that saves time.

Invariant: the sums are a function of the gradients, their order and d. How many threads there are changes nothing: the
buffer has rows, each of which takes its share of a stretch and all of which are added up at the end, and their number
comes from d alone. Each row is one thread's work, which is what makes the additions, in themselves sequential, use several.

Source: paper, section 3.3 (the gradient of theta).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpart.ops import dispatch
from gpart.ops.block import Block
from gpart.partition import stretch_size

_ROWS = ((1 << 16, 4), (1 << 18, 2))  # d at most, and how many: all of them have to stay in a CPU's cache
_LINE = 16  # numbers in a cache line at most, which no two rows share
_TERMS = 64  # summed in float32, on the average of a row's groups
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


class GroupSums:
    """Sums over groups, 0 at first.

    Args:
        d: number of groups.
        device: where the gradients are.

    Example:
        >>> sums = GroupSums(2, torch.device("cpu"))
        >>> sums.add(torch.tensor([1.0, 2.0, 4.0]), (Block(torch.tensor([1, 0, 1], dtype=torch.int32), 0, 0, 3),))
        >>> sums.total(torch.float32)
        tensor([2., 5.])
    """

    def __init__(self, d: int, device: torch.device) -> None:
        self._d, self._device, on_cpu = d, device, device.type == "cpu"
        self._kernels = dispatch.triton_available(device)
        width = -(-d // _LINE) * _LINE
        rows = next((count for most, count in _ROWS if d <= most), 1) if on_cpu else dispatch.sum_rows(width, device)
        self._shape = (rows, width)
        self._wide: Tensor | None = None
        # What is summed in float32 before it is added to those; how many terms there may be, and how many there are.
        self._narrow: Tensor | None = None
        self._step = stretch_size(device)
        self._most = _TERMS * rows * d if on_cpu and _TERMS * rows * d >= self._step else 0
        self._terms = 0

    def add(self, grad: Tensor, blocks: tuple[Block, ...]) -> None:
        """Adds one weight's gradient.

        Args:
            grad: dL/dW, in the shape of the weight.
            blocks: the weight's adapted blocks.
        """
        if self._kernels and dispatch.reduce_blocks(self._sums(), grad, blocks):
            return
        for block in blocks:
            self.add_block(block.of(grad).reshape(-1), block)

    def add_block(self, values: Tensor, block: Block) -> None:
        """Adds one block's gradient, flat."""
        count = values.numel()
        for first in range(0, count, self._step):
            stretch = slice(first, min(first + self._step, count))
            chunk = values if count <= self._step else values[stretch]
            dispatch.reduce_stretch(self._sums_for(chunk), chunk, block, stretch)

    def total(self, dtype: torch.dtype) -> Tensor:
        """The sums, shape (d,), rounded once.

        It may be the memory that was summed in, so that nothing is to be added afterwards.
        """
        if self._narrow is not None and self._wide is None:
            # So few terms that float64 was not needed; with a long theta it would take most of the time.
            sums = self._narrow
        else:
            self._settle()
            sums = self._sums()
        summed = sums[0] if sums.shape[0] == 1 else sums.sum(0, dtype=wide_dtype(self._device))
        return summed[: self._d].to(dtype)

    def _sums(self) -> Tensor:
        if self._wide is None:
            self._wide = torch.zeros(self._shape, dtype=wide_dtype(self._device), device=self._device)
        return self._wide

    def _sums_for(self, chunk: Tensor) -> Tensor:
        if not self._most or chunk.dtype not in _NARROW:
            return self._sums()
        if self._narrow is None:
            self._narrow = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
        if self._terms + chunk.numel() > self._most:
            self._settle()
        self._terms += chunk.numel()
        return self._narrow

    def _settle(self) -> None:
        if self._narrow is not None and self._terms:
            self._sums().add_(self._narrow)
            self._narrow.zero_()
            self._terms = 0


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the sums."""
    return torch.float64 if device.type != "mps" else torch.float32
