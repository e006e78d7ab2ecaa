"""Expand and reduce by torch's own operations: the code that defines the numbers.

Invariant: nothing here calls a backend, so that a backend can be compared with it. Every backend gives these numbers bit
for bit, but for the order in which a GPU adds.

    expand:  W[i] = W0[i] + scaled[group(i)]              summed in float32 or wider, rounded once to W0's dtype
    reduce:  sums[group(i)] += g[i]                       row by row, each row in the order of its share of the entries

with ``scaled`` = theta_j / sqrt(n_j), shape (d,). A weight is gone through stretch by stretch, so that nothing of its
size is made beside the result.

Source: paper, section 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpart.ops.block import Block
from gpart.ops.scratch import scratch
from gpart.partition import stretch_size


def delta_block(scaled: Tensor, block: Block, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """P·theta alone for one block, in the dtype of ``scaled`` and the given shape."""
    whole = slice(0, math.prod(shape))
    indices = block.indices if isinstance(block.indices, Tensor) else block.indices[whole]
    values = scaled.index_select(0, indices.to(torch.int32))  # it takes int32 and int64 only
    return (values if block.keep is None else block.drop(values, whole)).view(shape)


def expand_small(scaled: Tensor, weight: Tensor, block: Block, out: Tensor | None = None) -> Tensor:
    """W = W0 + P·theta of a weight that is one block, by as few operations as there are.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0.
        block: the group indices and dropout mask of the whole weight.
        out: of the shape and dtype of ``weight``; None for new memory.
    """
    update = delta_block(scaled, block, weight.shape)
    if update.dtype == weight.dtype:
        return update.add_(weight) if out is None else torch.add(update, weight, out=out)
    total = update.to(torch.promote_types(update.dtype, weight.dtype)).add_(weight)
    return total.to(weight.dtype) if out is None else out.copy_(total)


def expand_block(target: Tensor, scaled: Tensor, source: Tensor, block: Block) -> None:
    """Writes W0[i] + scaled[group(i)] for one block into ``target``.

    Args:
        target: flat and contiguous.
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        source: W0, of the shape and dtype of ``target``.
        block: the block's group indices and dropout mask.
    """
    step = stretch_size(target.device)
    for first in range(0, target.numel(), step):
        stretch = slice(first, min(first + step, target.numel()))
        expand_stretch(target[stretch], scaled, source[stretch], block, stretch)


def expand_stretch(target: Tensor, scaled: Tensor, source: Tensor, block: Block, stretch: slice) -> None:
    """One stretch of :func:`expand_block`; ``target`` and ``source`` are the stretch's own."""
    if target.dtype == scaled.dtype:
        # The target's own memory takes the update.
        block.drop(_take(target, scaled, block.indices[stretch]), stretch).add_(source)
    else:
        values = _take(scratch(target.numel(), scaled.dtype, target), scaled, block.indices[stretch])
        wide = torch.promote_types(scaled.dtype, source.dtype)
        target.copy_(block.drop(values, stretch).to(wide).add_(source))


def reduce_block(sums: Tensor, values: Tensor, block: Block) -> None:
    """Adds one block's gradient to the sums over groups.

    Args:
        sums: shape (rows, d or more); the sums are what its rows add up to.
        values: flat.
        block: the block's group indices and dropout mask.
    """
    step = stretch_size(values.device)
    for first in range(0, values.numel(), step):
        stretch = slice(first, min(first + step, values.numel()))
        reduce_stretch(sums, values[stretch], block, stretch)


def reduce_stretch(sums: Tensor, values: Tensor, block: Block, stretch: slice) -> None:
    """One stretch of :func:`reduce_block`: each row of ``sums`` takes its share of the values."""
    if values.dtype != sums.dtype or block.keep is not None:
        values = scratch(values.numel(), sums.dtype, values).copy_(values)
    # scatter_add_ took int64 only before torch 2.10; converting is cheaper than index_add_ (measured).
    indices = scratch(values.numel(), torch.int64, values).copy_(block.indices[stretch])
    if block.keep is not None:
        block.drop(values, stretch)
    # A GPU adds in parallel anyway, and torch has a deterministic way for one dimension only.
    rows = sums.shape[0] if values.device.type == "cpu" else 1
    each = values.numel() // rows
    split = rows * each if rows > 1 else 0
    if split:
        sums.scatter_add_(1, indices[:split].view(rows, each), values[:split].view(rows, each))
    if split < values.numel():
        sums[0].scatter_add_(0, indices[split:], values[split:])


def _take(out: Tensor, scaled: Tensor, indices: Tensor) -> Tensor:
    """Writes scaled[index] into ``out``."""
    # On a CPU torch reads along one dimension in one thread; of several rows each thread reads its own.
    rows = torch.get_num_threads() if out.device.type == "cpu" else 1
    each = out.numel() // rows
    split = rows * each if rows > 1 else 0
    if split:
        taken = scratch(split, torch.int64, out).copy_(indices[:split])  # gather took int64 only before torch 2.10
        torch.gather(scaled.expand(rows, -1), 1, taken.view(rows, each), out=out[:split].view(rows, each))
    if split < out.numel():
        rest = indices[split:]
        if rest.dtype == torch.int16:  # which index_select does not take
            rest = scratch(rest.numel(), torch.int32, out).copy_(rest)
        torch.index_select(scaled, 0, rest, out=out[split:])
    return out
