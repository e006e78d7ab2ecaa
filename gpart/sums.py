"""The sums of reduce, dL/dscaled_j = sum of g[i] over group j, of as many weights as there are, in one buffer.

Sums are float64 where the device has it: sequential float32 sums of 8,000 terms are off by more than 1e-6. On a CPU up to
64 terms, on the average, are summed in float32 first where that saves time.

Invariant: the sums are a function of the gradients, their order and d. How many threads there are changes nothing: the
buffer has lanes, rows that a stretch's parts are added to and that are added up at the end, and their number comes from
d alone. Each lane is one thread's work, which is what makes the additions, in themselves sequential, use several.

Source: paper, section 3.3 (the gradient of theta).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpart import kernels, native
from gpart.partition import stretch_size
from gpart.parts import Part
from gpart.room import room

_LANES = ((1 << 16, 4), (1 << 18, 2))  # d at most, and how many: all of them have to stay in a processor's cache
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
        self._d, self._device, on_cpu = d, device, device.type == "cpu"
        width = -(-d // _LINE) * _LINE
        lanes = next((count for most, count in _LANES if d <= most), 1) if on_cpu else kernels.lanes(width, device)
        self._shape = (lanes, width)
        self._wide: Tensor | None = None
        # What is summed in float32 before it is added to those; how many terms there may be, and how many there are.
        self._narrow: Tensor | None = None
        self._most = _TERMS * lanes * d if on_cpu and _TERMS * lanes * d >= stretch_size(device) else 0
        self._terms = 0

    def add(self, grad: Tensor, parts: tuple[Part, ...]) -> None:
        """Adds one weight's gradient.

        Args:
            grad: dL/dW, in the shape of the weight.
            parts: the weight's adapted blocks.
        """
        if kernels.available(self._device) and kernels.add_to_sums(self._sums(), grad, parts):
            return
        for part in parts:
            self.add_block(part.of(grad).reshape(-1), part)

    def add_block(self, values: Tensor, part: Part) -> None:
        """Adds one block's gradient, flat: what every kernel must give but for rounding."""
        step = stretch_size(values.device)
        for first in range(0, values.numel(), step):
            stretch = slice(first, min(first + step, values.numel()))
            chunk = values[stretch]
            sums = self._sums_for(chunk)
            if not native.add_to_sums(sums, chunk, part, stretch):
                add_stretch(sums, chunk, part, stretch)

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
        summed = sums[0] if sums.shape[0] == 1 else sums.sum(0, dtype=_wide_dtype(self._device))
        return summed[: self._d].to(dtype)

    def _sums(self) -> Tensor:
        if self._wide is None:
            self._wide = torch.zeros(self._shape, dtype=_wide_dtype(self._device), device=self._device)
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


def add_stretch(sums: Tensor, values: Tensor, part: Part, stretch: slice) -> None:
    """Adds one stretch of a block's gradient, flat, to the sums' rows by torch's own operations."""
    if values.dtype != sums.dtype or part.keep is not None:
        values = room(values.numel(), sums.dtype, values).copy_(values)
    # scatter_add_ took int64 only before torch 2.10; converting is cheaper than index_add_ (measured).
    numbers = room(values.numel(), torch.int64, values).copy_(part.groups[stretch])
    _scatter(sums, numbers, part.drop(values, stretch))


def _wide_dtype(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type != "mps" else torch.float32


def _scatter(sums: Tensor, numbers: Tensor, values: Tensor) -> None:
    # An accelerator adds in parallel anyway, and torch has a deterministic way for one dimension only.
    lanes = sums.shape[0] if values.device.type == "cpu" else 1
    each = values.numel() // lanes
    split = lanes * each if lanes > 1 else 0
    if split:
        sums.scatter_add_(1, numbers[:split].view(lanes, each), values[:split].view(lanes, each))
    if split < values.numel():
        sums[0].scatter_add_(0, numbers[split:], values[split:])
