"""The two passes within ``torch.compile``: one graph, whatever the memory settings.

Invariant: the numbers are those of :mod:`gpart.functional`. Expand is written in plain operations on a whole block, which
the compiler fuses; what it cannot follow or does badly, the group numbers' arithmetic with its cycle walking and the sums
over groups (a scatter that it compiles to atomic additions), are operators that it calls as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gpart.functional import reduce, update
from gpart.groups import ComputedGroups
from gpart.partition import Partition
from gpart.parts import Part

_WRAP = 1 << 64


def expand(scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """W = W0 + P·theta, as :func:`gpart.functional.expand`, differentiable once.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0.
        parts: its adapted blocks.
    """
    return _Expand.apply(scaled, weight, parts)  # type: ignore[no-any-return]  # torch has no types here


@torch.library.custom_op("gpart::groups", mutates_args=())
def groups(size: int, d: int, seed: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Group numbers of positions ``start`` to ``stop - 1``, int32; ``seed`` as a signed 64-bit integer."""
    return Partition(size, d, seed % _WRAP).groups(start, stop, device)


@groups.register_fake
def _(*described: Any) -> Tensor:
    *_, start, stop, device = described
    return torch.empty(stop - start, dtype=torch.int32, device=device)


@torch.library.custom_op("gpart::group_sums", mutates_args=())
def group_sums(grad: Tensor, groups: Tensor, keep: Tensor | None, boost: float, d: int, dtype: torch.dtype) -> Tensor:
    """Sums over groups of one block's gradient, shape (d,), see :func:`gpart.functional.reduce`."""
    return reduce(grad, (Part(groups, 0, 0, grad.shape[0], keep, boost),), d, dtype)


@group_sums.register_fake
def _(grad: Tensor, *described: Any) -> Tensor:
    *_, d, dtype = described
    return torch.empty(d, dtype=dtype, device=grad.device)


def _numbers(part: Part) -> Tensor:
    entries = part.groups
    if not isinstance(entries, ComputedGroups):
        return entries[:]  # kept already
    made = entries.partition
    seed = made.seed - _WRAP if made.seed >= _WRAP // 2 else made.seed
    numbers: Tensor = groups(made.size, made.d, seed, entries.offset, entries.offset + entries.count, entries.device)
    return numbers


class _Expand(Function):
    @staticmethod
    def forward(ctx: Any, scaled: Tensor, weight: Tensor, parts: tuple[Part, ...]) -> Tensor:
        ctx.parts, ctx.d, ctx.dtype = parts, scaled.numel(), scaled.dtype
        wide = torch.promote_types(scaled.dtype, weight.dtype)
        out = weight.clone()
        for part in parts:
            block = part.of(weight)
            known = Part(_numbers(part), part.dim, part.start, part.stop, part.keep, part.boost)
            part.of(out).copy_(update(scaled, known, block.shape).to(wide) + block)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grads
        sums = torch.zeros(ctx.d, dtype=ctx.dtype, device=grad.device)
        for part in ctx.parts:
            keep = None if part.keep is None else part.keep[:]
            sums = sums + group_sums(part.of(grad).contiguous(), _numbers(part), keep, part.boost, ctx.d, ctx.dtype)
        return sums, grad if ctx.needs_input_grad[1] else None, None
