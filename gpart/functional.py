"""The two passes: expand, W = W0 + P·theta, and reduce, Pᵀ·g.

P is D x d with P[i, j] = 1/sqrt(n_j) if position i is in group j, else 0, so PᵀP = I. It is never built. Both passes
work on one weight, that is on the rows of P that belong to it, and on ``scaled``, theta_j / sqrt(n_j), shape (d,):

    expand:  W[i] = W0[i] + scaled[group(i)]              summed in float32 or wider, rounded once to W0's dtype
    reduce:  dL/dscaled_j = sum of g[i] over group j      summed in float64 where the device has it, else float32

The scaling itself is a differentiable product (:func:`scale`), done once for all weights. Expand and reduce are each
other's derivative, so the pair can be differentiated any number of times.

Both go through a weight chunk by chunk, so that a chunk's temporaries stay in the cache and nothing of the weight's size
is made beside the result; where the group numbers come from, a tensor or the arithmetic itself, makes no difference.

Source: paper, section 3.3 and proposition 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from gpart import kernels
from gpart.partition import chunk_size


class Entries(Protocol):
    """One value for each entry of a block in row-major order: a tensor, or what computes a stretch of it when asked."""

    def __getitem__(self, stretch: slice, /) -> Tensor:
        """The values of a stretch that starts at a multiple of :func:`gpart.partition.chunk_size`."""


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of P for a block of one weight: which entries of the weight, and the group of each.

    Attributes:
        groups: group numbers of the block's entries, int32, shape (block size,).
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


def expand(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...], known: Tensor | None = None) -> Tensor:
    """W = W0 + P·theta for one weight.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0, any shape and floating dtype, on the device of ``scaled``.
        parts: its adapted blocks; entries outside them stay as they are.
        known: the sum, where :func:`write` has computed it already: the result is then a view of it.

    Returns:
        A tensor with the shape and dtype of ``weight``, rounded once. Differentiable in ``scaled`` and ``weight``.

    Example:
        >>> part = Part(torch.tensor([1, 0], dtype=torch.int32), dim=0, start=0, stop=2)
        >>> expand(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 1.0]), (part,))
        tensor([1.2500, 1.5000])
    """
    return _Expand.apply(scaled, weight, parts, known)  # type: ignore[no-any-return]  # torch has no types here


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


def put_in(anchor: Tensor, value: Tensor) -> Tensor:
    """``value`` in the place of ``anchor``: the numbers of the one, without a copy, in the graph of the other.

    Args:
        anchor: of the shape of ``value``; its own numbers do not matter.
        value: without gradient.
    """
    return _PutIn.apply(anchor, value)  # type: ignore[no-any-return]  # torch has no types here


@torch.no_grad()
def write(out: Tensor, scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """Writes W = W0 + P·theta into ``out``, of the shape and dtype of ``weight``; returns ``out``.

    Args:
        out: contiguous; what stands in it is lost.
        scaled: as for :func:`expand`.
        weight: W0.
        parts: its adapted blocks.
    """
    if not all(part.of(weight) is weight for part in parts):
        out.copy_(weight)
    for part in parts:
        block, source = part.of(out), part.of(weight)
        if block.is_contiguous() and source.is_contiguous():
            target, source = block.view(-1), source.view(-1)
            if not kernels.add(target, scaled, source, part):
                add_chunks(target, scaled, source, part)
        else:
            wide = torch.promote_types(scaled.dtype, weight.dtype)
            block.copy_(update(scaled, part, block.shape).to(wide).add_(source))
    return out


def update(scaled: Tensor, part: Part, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """P·theta for one block, in the dtype of ``scaled`` and the given shape."""
    whole = slice(0, math.prod(shape))
    return _dropped(scaled.index_select(0, part.groups[whole]), part, whole).view(shape)


def _chunks(flat: Tensor) -> Iterator[tuple[int, int]]:
    step = chunk_size(flat.device)
    for first in range(0, flat.numel(), step):
        yield first, min(first + step, flat.numel())


def _dropped(values: Tensor, part: Part, stretch: slice) -> Tensor:
    return values if part.keep is None else values.mul_(part.keep[stretch]).mul_(part.boost)


def add_chunks(target: Tensor, scaled: Tensor, source: Tensor, part: Part) -> None:
    """A block's sum, W0[i] + scaled[group(i)], all flat: what every kernel must give bit for bit."""
    for first, last in _chunks(target):
        _add(target[first:last], scaled, source[first:last], part, slice(first, last))


def _add(target: Tensor, scaled: Tensor, source: Tensor, part: Part, stretch: slice) -> None:
    """One chunk's sum, all flat."""
    groups = part.groups[stretch]
    if target.dtype == scaled.dtype:
        # The target's own memory takes the update: nothing is allocated, and no fresh page is touched.
        torch.index_select(scaled, 0, groups, out=target)
        _dropped(target, part, stretch).add_(source)
    else:
        wide = torch.promote_types(scaled.dtype, source.dtype)
        target.copy_(_dropped(scaled.index_select(0, groups), part, stretch).to(wide).add_(source))


def sum_chunks(sums: Tensor, values: Tensor, part: Part) -> None:
    """Adds a block's entries, flat, to the sums of their groups: what every kernel must give but for rounding."""
    for first, last in _chunks(values):
        stretch = slice(first, last)
        chunk = values[stretch].to(sums.dtype)
        if part.keep is not None:
            chunk = chunk * part.keep[stretch] * part.boost
        # scatter_add_ takes int64 only; converting a chunk is cheaper than index_add_ with int32 (measured).
        sums.scatter_add_(0, part.groups[stretch].long(), chunk)


def _group_sums(grad: Tensor, parts: tuple[Part, ...], d: int, dtype: torch.dtype) -> Tensor:
    sums = kernels.group_sums(grad, parts, d)
    if sums is None:
        # Sequential float32 sums of 8,000 terms are off by more than 1e-6; float64 costs no time (measured).
        precise = torch.float64 if grad.device.type != "mps" else torch.float32
        sums = torch.zeros(d, dtype=precise, device=grad.device)
        for part in parts:
            sum_chunks(sums, part.of(grad).reshape(-1), part)
    return sums.to(dtype)


class _Expand(Function):
    # Nothing goes through save_for_backward: a checkpointed region that reads a cached weight in the forward pass and
    # computes it in the recomputation must save the same number of tensors both times.
    @staticmethod
    def forward(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...], known: Tensor | None) -> Tensor:
        if known is not None:
            return known.detach()  # shares the version counter: autograd sees a write to ``known`` before the backward
        out = torch.empty_like(weight, memory_format=torch.contiguous_format)
        return write(out, scaled, weight, parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scaled, _weight, parts, _known = inputs
        ctx.parts, ctx.d, ctx.dtype = parts, scaled.numel(), scaled.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        scaled_grad = reduce(grad, ctx.parts, ctx.d, ctx.dtype) if ctx.needs_input_grad[0] else None
        return scaled_grad, grad if ctx.needs_input_grad[1] else None, None, None


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


class _PutIn(Function):
    @staticmethod
    def forward(anchor: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
