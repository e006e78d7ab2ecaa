"""The sums of reduce, dL/dscaled_j = sum of g[i] over group j, of as many weights as there are, in one buffer.

Sums are float64 where the device has it: sequential float32 sums of 8,000 terms are off by more than 1e-6. On a CPU up to
64 terms are summed in float32 first where that saves time, which leaves the sum of many groups' worth of gradients right to
the last places of float32.

Invariant: the sums are a function of the gradients, their order and d. How many threads there are changes nothing: the
buffer has lanes, rows that a stretch's parts are added to and that are added up at the end, and their number comes from
d alone. Each lane is one thread's work, which is what makes the additions, in themselves sequential, use several.

Source: paper, section 3.3 (the gradient of theta).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpart import kernels
from gpart.partition import stretch_size
from gpart.parts import Part
from gpart.room import room

_LANES = 4
_SUMS = 1 << 18  # all lanes together, so that they stay in a processor's cache
_LINE = 16  # numbers in a cache line at most, which no two lanes share
_TERMS = 64  # summed in float32, on the average of a lane's groups
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


class GroupSums:
    """Sums over groups, 0 at first.

    Args:
        d: number of groups.
        device: where the gradients are.

    Example:
        >>> sums = GroupSums(2, torch.device("cpu"))
        >>> sums.add(torch.tensor([1.0, 2.0, 4.0]), (Part(torch.tensor([1, 0, 1], dtype=torch.int32), 0, 0, 3),))
        >>> sums.total(torch.float32)
        tensor([2., 5.])
    """

    def __init__(self, d: int, device: torch.device) -> None:
        self._d, on_cpu = d, device.type == "cpu"
        width = -(-d // _LINE) * _LINE
        lanes = kernels.lanes(width, device)
        if on_cpu:
            lanes = next(count for count in (_LANES, 2, 1) if count == 1 or count * d <= _SUMS)
        precise = torch.float64 if device.type != "mps" else torch.float32
        self._sums = torch.zeros(lanes, width, dtype=precise, device=device)
        # What is summed in float32 before it is added to the sums; how many terms there may be, and how many there are.
        self._narrow: Tensor | None = None
        self._most = _TERMS * lanes * d if on_cpu and _TERMS * lanes * d >= stretch_size(device) else 0
        self._terms = 0

    def add(self, grad: Tensor, parts: tuple[Part, ...]) -> None:
        """Adds one weight's gradient.

        Args:
            grad: dL/dW, in the shape of the weight.
            parts: the weight's adapted blocks.
        """
        if kernels.add_to_sums(self._sums, grad, parts):
            return
        for part in parts:
            self.add_block(part.of(grad).reshape(-1), part)

    def add_block(self, values: Tensor, part: Part) -> None:
        """Adds one block's gradient, flat, by torch's own operations: what every kernel must give but for rounding."""
        step = stretch_size(values.device)
        for first in range(0, values.numel(), step):
            stretch = slice(first, min(first + step, values.numel()))
            chunk = values[stretch]
            sums = self._sums_for(chunk)
            if chunk.dtype != sums.dtype or part.keep is not None:
                chunk = room(chunk.numel(), sums.dtype, values).copy_(chunk)
            if part.keep is not None:
                chunk.mul_(part.keep[stretch]).mul_(part.boost)
            # scatter_add_ takes int64 only before torch 2.10; converting is cheaper than index_add_ with int32 (measured).
            _scatter(sums, room(chunk.numel(), torch.int64, values).copy_(part.groups[stretch]), chunk)

    def total(self, dtype: torch.dtype) -> Tensor:
        """The sums, shape (d,), rounded once."""
        self._settle()
        return self._sums.sum(0)[: self._d].to(dtype)

    def _sums_for(self, chunk: Tensor) -> Tensor:
        if not self._most or chunk.dtype not in _NARROW:
            return self._sums
        if self._narrow is None:
            self._narrow = torch.zeros_like(self._sums, dtype=torch.float32)
        if self._terms + chunk.numel() > self._most:
            self._settle()
        self._terms += chunk.numel()
        return self._narrow

    def _settle(self) -> None:
        if self._narrow is not None and self._terms:
            self._sums.add_(self._narrow)
            self._narrow.zero_()
            self._terms = 0


def _scatter(sums: Tensor, numbers: Tensor, values: Tensor) -> None:
    # An accelerator adds in parallel anyway, and torch has a deterministic way for one dimension only.
    lanes = sums.shape[0] if values.device.type == "cpu" else 1
    each = values.numel() // lanes
    split = lanes * each if lanes > 1 else 0
    if split:
        sums.scatter_add_(1, numbers[:split].view(lanes, each), values[:split].view(lanes, each))
    if split < values.numel():
        sums[0].scatter_add_(0, numbers[split:], values[split:])
