"""The two operations as autograd sees them: expand, W = W0 + P·theta, and reduce, Pᵀ·g.

P is D x d with P[i, j] = 1/sqrt(n_j) if position i is in group j, else 0, so PᵀP = I. It is never built. Both operations
work on one weight, that is on the rows of P that belong to it, and on ``scaled``, theta_j / sqrt(n_j), shape (d,):

    expand:  W[i] = W0[i] + scaled[group(i)]              summed in float32 or wider, rounded once to W0's dtype
    reduce:  dL/dscaled_j = sum of g[i] over group j      see :mod:`gpart.ops.sums`

The scaling itself is a differentiable product (:func:`scale`), done once for all weights. Expand and reduce are each
other's derivative, so the pair can be differentiated any number of times.

Where torch follows operations (function transforms, tracing, export, fake tensors) :func:`expand_plainly` gives the same
numbers by operations of its own.

Source: paper, section 3.3 and proposition 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gpart.ops import dispatch
from gpart.ops.apart import apart
from gpart.ops.block import Block, Entries, is_transformed
from gpart.ops.sums import GroupSums, wide_dtype


def scale(theta: Tensor, size: int, isometric: bool = True, d: int | None = None) -> Tensor:
    """theta_j / sqrt(n_j), shape (d,), dtype of ``theta``; the group sizes n_j come in closed form from D and d.

    Args:
        theta: the trainable vector, shape (d,).
        size: D, the number of adapted weights.
        isometric: False leaves out 1/sqrt(n_j) (the ablation of the paper's appendix B) and returns ``theta``.
        d: the length of ``theta``, where it is known: while torch traces, a tensor's own is no number.

    Example:
        >>> scale(torch.tensor([2.0, 3.0]), size=5)  # n = 3, 2
        tensor([1.1547, 2.1213])
    """
    if not isometric:
        return theta
    small, larger = divmod(size, theta.numel() if d is None else d)
    if larger == 0:
        return theta / math.sqrt(small)
    return torch.cat([theta[:larger] / math.sqrt(small + 1), theta[larger:] / math.sqrt(small)])


def expand(scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...], known: Tensor | None = None) -> Tensor:
    """W = W0 + P·theta for one weight.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0, any shape and floating dtype, on the device of ``scaled``.
        blocks: its adapted blocks; entries outside them stay as they are.
        known: the sum, where :func:`gpart.ops.dispatch.expand_into` has computed it already: the result is then a view
            of it.

    Returns:
        A tensor with the shape and dtype of ``weight``, rounded once. Differentiable in ``scaled`` and ``weight``.

    Example:
        >>> block = Block(torch.tensor([1, 0], dtype=torch.int32), dim=0, start=0, stop=2)
        >>> expand(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 1.0]), (block,))
        tensor([1.2500, 1.5000])
    """
    if torch._C._are_functorch_transforms_active():
        return expand_plainly(scaled, weight, blocks, tuple(weight.shape))
    return _Expand.apply(scaled, weight, blocks, known)  # type: ignore[no-any-return]  # torch has no types here


def expand_plainly(scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...], shape: tuple[int, ...]) -> Tensor:
    """As :func:`expand`, by differentiable operations of torch, without a write to memory that exists.

    Whatever goes through a model by way of tensors that are no tensors can follow them: ``torch.func``'s transforms,
    forward-mode differentiation, tracing, export, fake tensors. The index of each entry is converted, and the gradient of
    a whole weight is summed by itself, so this takes more time and memory.

    Args:
        scaled: as for :func:`expand`, like what follows.
        weight: see there.
        blocks: see there.
        shape: of ``weight``, in numbers: while torch traces, a tensor's own are none.
    """
    # torch.promote_types would become part of an exported program.
    wide = max(scaled.dtype, weight.dtype, key=lambda dtype: dtype.itemsize)
    dim = blocks[0].dim
    pieces, end = [], 0

    def add_piece(start: int, stop: int, block: Block | None = None) -> None:
        if start == stop:
            return
        size = (*shape[:dim], stop - start, *shape[dim + 1 :])
        source = weight if size == shape else weight.narrow(dim, start, stop - start)
        if block is not None:
            count = math.prod(size)
            update = scaled.index_select(0, _constant(block.indices, count).to(torch.int32))
            if block.keep is not None:
                update = update * _constant(block.keep, count) * block.boost
            source = (update.view(size).to(wide) + source).to(weight.dtype)
        pieces.append(source)

    for block in sorted(blocks, key=lambda block: block.start):
        add_piece(end, block.start)
        add_piece(block.start, block.stop, block)
        end = block.stop
    add_piece(end, shape[dim])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _constant(entries: Entries, count: int) -> Tensor:
    """All entries, which no transform is to follow."""
    return entries if isinstance(entries, Tensor) else apart(lambda: entries[:count])


def collected(scaled: Tensor) -> Tensor:
    """``scaled`` itself, as what many :func:`expand` start from: their gradients are summed in one buffer.

    Without it each of them makes a vector of d numbers for autograd to add up, which costs (weights x d), and rounds it.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,).
    """
    return _Collected.apply(scaled)  # type: ignore[no-any-return]  # torch has no types here


def reduce(grad: Tensor, blocks: tuple[Block, ...], d: int, dtype: torch.dtype) -> Tensor:
    """Sums over groups, sum_i g[i] for i in group j, of one weight's gradient (Pᵀ·g without the scaling).

    Args:
        grad: dL/dW, in the shape of the weight.
        blocks: the weight's adapted blocks.
        d: number of groups.
        dtype: dtype of the result, float32 or wider.

    Returns:
        Shape (d,). How the sums are taken: :mod:`gpart.ops.sums`.
    """
    if is_transformed(grad):
        return _reduce_plainly(grad, blocks, d, dtype)
    return _Reduce.apply(grad, blocks, d, dtype)  # type: ignore[no-any-return]  # torch has no types here


def _reduce_plainly(grad: Tensor, blocks: tuple[Block, ...], d: int, dtype: torch.dtype) -> Tensor:
    wide = wide_dtype(grad.device)
    sums = torch.zeros(d, dtype=wide, device=grad.device)
    for block in blocks:
        values = block.of(grad).reshape(-1).to(wide)
        if block.keep is not None:
            values = values * _constant(block.keep, values.numel()) * block.boost
        sums = sums.index_add(0, _constant(block.indices, values.numel()).to(torch.int32), values)
    return sums.to(dtype)


def put_in(anchor: Tensor, value: Tensor) -> Tensor:
    """``value`` in the place of ``anchor``: the numbers of the one, without a copy, in the graph of the other.

    Args:
        anchor: of the shape of ``value``; its own numbers do not matter.
        value: without gradient.
    """
    return _PutIn.apply(anchor, value)  # type: ignore[no-any-return]  # torch has no types here


# None of these has a setup_context: with one, torch looks up a signature at every call, which takes four times as long as
# all else here. Functions without it are not for torch.func's transforms, which expand_plainly serves.


class _Expand(Function):
    # Nothing goes through save_for_backward: a checkpointed region that reads a cached weight in the forward pass and
    # computes it in the recomputation must save the same number of tensors both times.
    @staticmethod
    def forward(ctx: Any, scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...], known: Tensor | None) -> Tensor:
        ctx.blocks, ctx.d, ctx.dtype = blocks, scaled.numel(), scaled.dtype
        if known is not None:
            return known.detach()  # shares the version counter: autograd sees a write to ``known`` before the backward
        return dispatch.expand(scaled, weight, blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        scaled_grad = None
        if ctx.needs_input_grad[0]:
            # The gradient's own graph (create_graph) has no place for a buffer, and a batch of gradients does not fit in.
            sums = None if torch.is_grad_enabled() or is_transformed(grad) else _collection(ctx, grad.device)
            if sums is None:
                scaled_grad = reduce(grad, ctx.blocks, ctx.d, ctx.dtype)
            else:
                sums.add(grad, ctx.blocks)
        return scaled_grad, grad if ctx.needs_input_grad[1] else None, None, None


class _Collected(Function):
    # autograd runs this node's backward after that of every expand that leads to it, in each backward pass by itself.
    @staticmethod
    def forward(ctx: Any, scaled: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sums, ctx.d, ctx.dtype = {}, scaled.numel(), scaled.dtype
        return scaled.detach()

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
    found: GroupSums | None = node.sums.get(task)
    if found is None:
        found = node.sums[task] = GroupSums(node.d, device)
    return found


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, blocks: tuple[Block, ...], d: int, dtype: torch.dtype) -> Tensor:
        ctx.blocks, ctx.like = blocks, (grad.shape, grad.dtype, grad.device)
        sums = GroupSums(d, grad.device)
        sums.add(grad, blocks)
        return sums.total(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        shape, dtype, device = ctx.like
        return expand(grads[0], torch.zeros(shape, dtype=dtype, device=device), ctx.blocks), None, None, None


class _PutIn(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
