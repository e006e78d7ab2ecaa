"""The two operations within ``torch.compile``: one graph, whatever the memory settings.

Invariant: the numbers are those of :mod:`gpart.ops.reference`. Expand is written in plain operations on a whole block,
which the compiler fuses. Two things it cannot follow, or does badly: the arithmetic of group indices with its cycle
walking, and the sums over groups (a scatter that it compiles to atomic additions). They are operators of ours, which it
calls as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gpart.ops import dispatch
from gpart.ops.autograd import reduce
from gpart.ops.block import Block, ComputedIndices
from gpart.ops.reference import delta_block
from gpart.partition import Partition

_WRAP = 1 << 64


def expand(scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """W = W0 + P·theta, as :func:`gpart.ops.autograd.expand`, differentiable once.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0.
        blocks: its adapted blocks.
    """
    return _Expand.apply(scaled, weight, blocks)  # type: ignore[no-any-return]  # torch has no types here


# It asks the device how many positions are left, which a CUDA graph cannot hold.
@torch.library.custom_op("gpart::groups", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def groups(size: int, d: int, seed: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Group indices of positions ``start`` to ``stop - 1``, int32; ``seed`` as a signed 64-bit integer."""
    return dispatch.group_indices(Partition(size, d, seed % _WRAP), start, stop, device)


@groups.register_fake
def _(*described: Any) -> Tensor:
    *_, start, stop, device = described
    return torch.empty(stop - start, dtype=torch.int32, device=device)


@torch.library.custom_op("gpart::group_sums", mutates_args=())
def group_sums(grad: Tensor, groups: Tensor, keep: Tensor | None, boost: float, d: int, dtype: torch.dtype) -> Tensor:
    """Sums over groups of one block's gradient, shape (d,), see :func:`gpart.ops.autograd.reduce`."""
    return reduce(grad, (Block(groups, 0, 0, grad.shape[0], keep, boost),), d, dtype)


@group_sums.register_fake
def _(grad: Tensor, *described: Any) -> Tensor:
    *_, d, dtype = described
    return torch.empty(d, dtype=dtype, device=grad.device)


def _indices(block: Block) -> Tensor:
    entries = block.indices
    if not isinstance(entries, ComputedIndices):
        return entries[:]  # kept already
    made = entries.partition
    if not isinstance(made, Partition):
        return entries[:]
    seed = made.seed - _WRAP if made.seed >= _WRAP // 2 else made.seed
    computed: Tensor = groups(made.size, made.d, seed, entries.offset, entries.offset + entries.count, entries.device)
    return computed


class _Expand(Function):
    @staticmethod
    def forward(ctx: Any, scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
        ctx.blocks, ctx.d, ctx.dtype = blocks, scaled.numel(), scaled.dtype
        wide = torch.promote_types(scaled.dtype, weight.dtype)
        out = weight.clone()
        for block in blocks:
            base = block.of(weight)
            known = Block(_indices(block), block.dim, block.start, block.stop, block.keep, block.boost)
            block.of(out).copy_(delta_block(scaled, known, base.shape).to(wide) + base)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grads
        sums = torch.zeros(ctx.d, dtype=ctx.dtype, device=grad.device)
        for block in ctx.blocks:
            keep = None if block.keep is None else block.keep[:]
            sums = sums + group_sums(block.of(grad).contiguous(), _indices(block), keep, block.boost, ctx.d, ctx.dtype)
        return sums, grad if ctx.needs_input_grad[1] else None, None
