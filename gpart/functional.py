"""The two passes: expand, W = W0 + P·theta, and reduce, Pᵀ·g.

P is D x d with P[i, j] = 1/sqrt(n_j) if position i is in group j, else 0, so PᵀP = I. It is never built. Both passes
work on one weight, that is on the rows of P that belong to it, and on ``scaled``, theta_j / sqrt(n_j), shape (d,):

    expand:  W[i] = W0[i] + scaled[group(i)]              summed in float32 or wider, rounded once to W0's dtype
    reduce:  dL/dscaled_j = sum of g[i] over group j      summed in float64 where the device has it, else float32

The scaling itself is a differentiable product (:func:`scale`), done once for all weights. Expand and reduce are each
other's derivative, so the pair can be differentiated any number of times.

Source: paper, section 3.3 and proposition 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

# Index and value copies of the reduction stay in the cache: measured fastest on two cores (48 weights of 590 k).
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of P for a block of one weight: which entries of the weight, and the group of each.

    Attributes:
        groups: group numbers of the block's entries in row-major order, int32, shape (block size,).
        dim: the dimension along which the block is cut.
        start: first index along ``dim``.
        stop: one past the last index along ``dim``.
        keep: with dropout, True where P·theta is kept, shape as ``groups``; None without.
        boost: what kept entries are multiplied by, 1 / (1 - p).
    """

    groups: Tensor
    dim: int
    start: int
    stop: int
    keep: Tensor | None = None
    boost: float = 1.0

    def of(self, weight: Tensor) -> Tensor:
        """The block of ``weight`` as a view."""
        if self.start == 0 and self.stop == weight.shape[self.dim]:
            return weight
        return weight.narrow(self.dim, self.start, self.stop - self.start)


def scale(theta: Tensor, size: int, isometric: bool = True) -> Tensor:
    """theta_j / sqrt(n_j), shape (d,), dtype of ``theta``; the group sizes n_j come in closed form from D and d.

    Args:
        theta: the trainable vector, shape (d,).
        size: D, the number of adapted weights.
        isometric: False leaves out 1/sqrt(n_j) (the ablation of the paper's appendix B) and returns ``theta``.

    Example:
        >>> scale(torch.tensor([2.0, 3.0]), size=5)  # n = 3, 2
        tensor([1.1547, 2.1213])
    """
    if not isometric:
        return theta
    small, larger = divmod(size, theta.numel())
    if larger == 0:
        return theta / math.sqrt(small)
    return torch.cat([theta[:larger] / math.sqrt(small + 1), theta[larger:] / math.sqrt(small)])


def expand(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """W = W0 + P·theta for one weight.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0, any shape and floating dtype, on the device of ``scaled``.
        parts: its adapted blocks; entries outside them stay as they are.

    Returns:
        A fresh tensor with the shape and dtype of ``weight``, rounded once. Differentiable in ``scaled`` and ``weight``.

    Example:
        >>> part = Part(torch.tensor([1, 0], dtype=torch.int32), dim=0, start=0, stop=2)
        >>> expand(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 1.0]), (part,))
        tensor([1.2500, 1.5000])
    """
    return _Expand.apply(scaled, weight, parts)  # type: ignore[no-any-return]  # torch has no types here


def reduce(grad: Tensor, parts: tuple[Part, ...], d: int, dtype: torch.dtype) -> Tensor:
    """Sums over groups, sum_i g[i] for i in group j, of one weight's gradient (Pᵀ·g without the scaling).

    Args:
        grad: dL/dW, in the shape of the weight.
        parts: the weight's adapted blocks.
        d: number of groups.
        dtype: dtype of the result, float32 or wider.

    Returns:
        Shape (d,). The sums are taken in float64 where the device has it, and rounded once.
    """
    return _Reduce.apply(grad, parts, d, dtype)  # type: ignore[no-any-return]  # torch has no types here


def update(scaled: Tensor, part: Part, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """P·theta for one block, in the dtype of ``scaled`` and the given shape."""
    delta = scaled.index_select(0, part.groups)
    if part.keep is not None:
        delta.mul_(part.keep).mul_(part.boost)
    return delta.view(shape)


def _sum(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
    wide = torch.promote_types(scaled.dtype, weight.dtype)
    if len(parts) == 1 and parts[0].of(weight) is weight:
        # The update's own memory takes the sum: one fresh tensor, the addition in place.
        return update(scaled, parts[0], weight.shape).to(wide).add_(weight).to(weight.dtype)
    out = weight.clone(memory_format=torch.contiguous_format)
    for part in parts:
        block = part.of(out)
        block.copy_(update(scaled, part, block.shape).to(wide).add_(block))
    return out


def _group_sums(grad: Tensor, parts: tuple[Part, ...], d: int, dtype: torch.dtype) -> Tensor:
    # Sequential float32 sums of 8,000 terms are off by more than 1e-6; float64 costs no time (measured).
    precise = torch.float64 if grad.device.type != "mps" else torch.float32
    sums = torch.zeros(d, dtype=precise, device=grad.device)
    for part in parts:
        values = part.of(grad).reshape(-1)
        step = _CHUNK if grad.device.type == "cpu" else values.numel() or 1
        for first in range(0, values.numel(), step):
            chunk = values[first : first + step].to(precise)
            if part.keep is not None:
                chunk = chunk * part.keep[first : first + step] * part.boost
            # scatter_add_ takes int64 only; converting a chunk is cheaper than index_add_ with int32 (measured).
            sums.scatter_add_(0, part.groups[first : first + step].long(), chunk)
    return sums.to(dtype)


class _Expand(Function):
    # Nothing goes through save_for_backward: a checkpointed region that reads a cached weight in the forward pass and
    # computes it in the recomputation must save the same number of tensors both times.
    @staticmethod
    def forward(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
        return _sum(scaled, weight, parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scaled, _weight, parts = inputs
        ctx.parts, ctx.d, ctx.dtype = parts, scaled.numel(), scaled.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        scaled_grad = reduce(grad, ctx.parts, ctx.d, ctx.dtype) if ctx.needs_input_grad[0] else None
        return scaled_grad, grad if ctx.needs_input_grad[1] else None, None


class _Reduce(Function):
    @staticmethod
    def forward(grad: Tensor, parts: tuple[Part, ...], d: int, dtype: torch.dtype) -> Tensor:
        return _group_sums(grad, parts, d, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, parts, _, _ = inputs
        ctx.parts, ctx.like = parts, (grad.shape, grad.dtype, grad.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        shape, dtype, device = ctx.like
        return expand(grads[0], torch.zeros(shape, dtype=dtype, device=device), ctx.parts), None, None, None
