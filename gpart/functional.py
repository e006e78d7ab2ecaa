"""The two passes: expand, W = W0 + P·theta, and reduce, Pᵀ·g.

P is D x d with P[i, j] = 1/sqrt(n_j) if position i is in group j, else 0, so PᵀP = I. It is never built. Both passes
work on one weight, that is on the rows of P that belong to it, and on ``scaled``, theta_j / sqrt(n_j), shape (d,):

    expand:  W[i] = W0[i] + scaled[group(i)]              summed in float32 or wider, rounded once to W0's dtype
    reduce:  dL/dscaled_j = sum of g[i] over group j      see :mod:`gpart.sums`

The scaling itself is a differentiable product (:func:`scale`), done once for all weights. Expand and reduce are each
other's derivative, so the pair can be differentiated any number of times.

Both go through a weight stretch by stretch, so that nothing of its size is made beside the result; where the group numbers
come from, a tensor or the arithmetic itself, makes no difference.

Source: paper, section 3.3 and proposition 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from gpart import kernels, native
from gpart.partition import stretch_size
from gpart.parts import Part
from gpart.room import room
from gpart.sums import GroupSums


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
    if known is not None:
        return _Known.apply(scaled, weight, parts, known)  # type: ignore[no-any-return]  # torch has no types here
    return _Expand.apply(scaled, weight, parts)  # type: ignore[no-any-return]  # torch has no types here


def collected(scaled: Tensor) -> Tensor:
    """``scaled`` itself, as what many :func:`expand` start from: their gradients are summed in one buffer.

    Without it each of them makes a vector of d numbers for autograd to add up, which costs (weights x d), and rounds it.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,).
    """
    return _Collected.apply(scaled)  # type: ignore[no-any-return]  # torch has no types here


def reduce(grad: Tensor, parts: tuple[Part, ...], d: int, dtype: torch.dtype) -> Tensor:
    """Sums over groups, sum_i g[i] for i in group j, of one weight's gradient (Pᵀ·g without the scaling).

    Args:
        grad: dL/dW, in the shape of the weight.
        parts: the weight's adapted blocks.
        d: number of groups.
        dtype: dtype of the result, float32 or wider.

    Returns:
        Shape (d,). How the sums are taken: :mod:`gpart.sums`.
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
    if not out.is_inference():
        increment_version(out)  # a kernel's writing is not seen by autograd
    return out


def update(scaled: Tensor, part: Part, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """P·theta for one block, in the dtype of ``scaled`` and the given shape."""
    whole = slice(0, math.prod(shape))
    # index_select takes int32 and int64 only.
    return part.drop(scaled.index_select(0, part.groups[whole].to(torch.int32)), whole).view(shape)


def add_chunks(target: Tensor, scaled: Tensor, source: Tensor, part: Part) -> None:
    """A block's sum, W0[i] + scaled[group(i)], all flat: what every kernel must give bit for bit."""
    step = stretch_size(target.device)
    for first in range(0, target.numel(), step):
        stretch = slice(first, min(first + step, target.numel()))
        out, base = target[stretch], source[stretch]
        if not native.add(out, scaled, base, part, stretch):
            add_stretch(out, scaled, base, part, stretch)


def add_stretch(target: Tensor, scaled: Tensor, source: Tensor, part: Part, stretch: slice) -> None:
    """One stretch of a block's sum, all flat, by torch's own operations."""
    if target.dtype == scaled.dtype:
        # The target's own memory takes the update.
        part.drop(_take(target, scaled, part.groups[stretch]), stretch).add_(source)
    else:
        values = _take(room(target.numel(), scaled.dtype, target), scaled, part.groups[stretch])
        wide = torch.promote_types(scaled.dtype, source.dtype)
        target.copy_(part.drop(values, stretch).to(wide).add_(source))


def _take(out: Tensor, scaled: Tensor, groups: Tensor) -> Tensor:
    """Writes scaled[group] into ``out``."""
    # On a CPU torch reads along one dimension in one thread; of several rows each thread reads its own.
    rows = torch.get_num_threads() if out.device.type == "cpu" else 1
    each = out.numel() // rows
    split = rows * each if rows > 1 else 0
    if split:
        numbers = room(split, torch.int64, out).copy_(groups[:split])  # gather took int64 only before torch 2.10
        torch.gather(scaled.expand(rows, -1), 1, numbers.view(rows, each), out=out[:split].view(rows, each))
    if split < out.numel():
        rest = groups[split:]
        if rest.dtype == torch.int16:  # which index_select does not take
            rest = room(rest.numel(), torch.int32, out).copy_(rest)
        torch.index_select(scaled, 0, rest, out=out[split:])
    return out


class _Expand(Function):
    # Nothing goes through save_for_backward: a checkpointed region that reads a cached weight in the forward pass and
    # computes it in the recomputation must save the same number of tensors both times.
    @staticmethod
    def forward(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
        out = torch.empty_like(weight, memory_format=torch.contiguous_format)
        return write(out, scaled, weight, parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scaled, _weight, parts = inputs
        ctx.parts, ctx.d, ctx.dtype = parts, scaled.numel(), scaled.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _expand_backward(ctx, grads[0])


class _Known(Function):
    # Without setup_context, whose call takes longer than all else here (torch looks up the signature each time), so not
    # for function transforms.
    @staticmethod
    def forward(ctx: Any, scaled: Tensor, weight: Tensor, parts: tuple[Part, ...], known: Tensor) -> Tensor:
        ctx.parts, ctx.d, ctx.dtype = parts, scaled.numel(), scaled.dtype
        return known.detach()  # shares the version counter: autograd sees a write to ``known`` before the backward

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        return *_expand_backward(ctx, grads[0]), None


def _expand_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    scaled_grad = None
    if ctx.needs_input_grad[0]:
        # The gradient's own graph (create_graph) has no place for a buffer.
        sums = None if torch.is_grad_enabled() else _collection(ctx, grad.device)
        if sums is None:
            scaled_grad = reduce(grad, ctx.parts, ctx.d, ctx.dtype)
        else:
            sums.add(grad, ctx.parts)
    return scaled_grad, grad if ctx.needs_input_grad[1] else None, None


class _Collected(Function):
    # autograd runs this node's backward after that of every expand that leads to it, in each backward pass by itself.
    @staticmethod
    def forward(scaled: Tensor) -> Tensor:
        return scaled.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.sums, ctx.d, ctx.dtype = {}, output.numel(), output.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        (grad,) = grads
        sums = ctx.sums.pop(torch._C._current_graph_task_id(), None)
        if sums is None:
            return grad
        total: Tensor = sums.total(ctx.dtype)
        return total if grad is None else total + grad


def _collection(ctx: Any, device: torch.device) -> GroupSums | None:
    """The sums of the backward pass under way, where the expand that ``ctx`` belongs to has a node to collect them."""
    node: Any = ctx.next_functions[0][0]
    function: Any = _Collected
    if not isinstance(node, function._backward_cls):
        return None
    # By backward pass: one that was broken off leaves its sums behind, and the same graph may be gone through again.
    task = torch._C._current_graph_task_id()
    if task not in node.sums:
        node.sums[task] = GroupSums(node.d, device)
    found: GroupSums = node.sums[task]
    return found


class _Reduce(Function):
    @staticmethod
    def forward(grad: Tensor, parts: tuple[Part, ...], d: int, dtype: torch.dtype) -> Tensor:
        sums = GroupSums(d, grad.device)
        sums.add(grad, parts)
        return sums.total(dtype)

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
