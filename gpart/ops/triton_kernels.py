"""Expand and reduce as Triton kernels: they read and write each entry once, and compute its group index in registers.

Invariant: the numbers are those of :mod:`gpart.ops.reference`, expand's bit for bit, reduce's but for the order in which
float64 sums are rounded. :mod:`gpart.ops.dispatch` uses a kernel only after :mod:`gpart.ops.selfcheck` has found so.

They were tested by Triton's interpreter (``TRITON_INTERPRET=1``, Triton 3.6 and 3.8) and compiled for compute capability 9.0
(``benchmarks/gpu/compiled.json``); no GPU was at hand to run them on.

**Integers.** The scheme's arithmetic is mod 2^k (:mod:`gpart.partition`), so unsigned numbers that wrap around and are
then masked give it: 32 bits where D < 2^31, else 64. Entries beyond the block's end take position 0: a number that lies on
a cycle of ``mix`` without any position on it would be walked for ever.

**bfloat16** is read and rounded by integer arithmetic on its bits: the interpreter's own conversion does not round to
nearest even. A float64 sum goes to the half-width types by way of float32, as torch's does.

**Sums** are float64 atomic additions in device memory. Sums private to a program would have to fit into its shared
memory, which d = 23,040 doubles do not. Group indices are as good as random, so the additions of a moment fall on
different addresses where there are many; where d is small, neighbouring entries go to different copies of the sums,
about 2^16 sums in all, and the copies are added at the end.

Importing this module imports Triton, which comes with torch's builds for CUDA and ROCm.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpart.ops.block import IndexSource
from gpart.partition import Partition

_BLOCK = 1024  # entries a program works on: few enough that the longest walk among them is short


@triton.jit
def _round(x, factor, addend, shift, mask):
    x = tl.add(tl.mul(x, factor, sanitize_overflow=False), addend, sanitize_overflow=False) & mask
    return x ^ (x >> shift)


@triton.jit
def _mix(x, mask, half, third, f0, a0, f1, a1, f2, a2, f3, a3, f4, a4, f5, a5):
    x = _round(x, f0, a0, half, mask)
    x = _round(x, f1, a1, third, mask)
    x = _round(x, f2, a2, half, mask)
    x = _round(x, f3, a3, third, mask)
    x = _round(x, f4, a4, half, mask)
    return _round(x, f5, a5, third, mask)


@triton.jit
def _group(constants, position, uint: tl.constexpr):
    size = tl.load(constants).to(uint)
    d = tl.load(constants + 1).to(uint)
    mask = tl.load(constants + 2).to(uint)
    half = tl.load(constants + 3).to(uint)
    third = tl.load(constants + 4).to(uint)
    f0 = tl.load(constants + 5).to(uint)
    a0 = tl.load(constants + 6).to(uint)
    f1 = tl.load(constants + 7).to(uint)
    a1 = tl.load(constants + 8).to(uint)
    f2 = tl.load(constants + 9).to(uint)
    a2 = tl.load(constants + 10).to(uint)
    f3 = tl.load(constants + 11).to(uint)
    a3 = tl.load(constants + 12).to(uint)
    f4 = tl.load(constants + 13).to(uint)
    a4 = tl.load(constants + 14).to(uint)
    f5 = tl.load(constants + 15).to(uint)
    a5 = tl.load(constants + 16).to(uint)
    x = _mix(position.to(uint), mask, half, third, f0, a0, f1, a1, f2, a2, f3, a3, f4, a4, f5, a5)
    while tl.max((x >= size).to(tl.int32), 0) > 0:
        walked = _mix(x, mask, half, third, f0, a0, f1, a1, f2, a2, f3, a3, f4, a4, f5, a5)
        x = tl.where(x >= size, walked, x)
    return (x % d).to(tl.int32)


@triton.jit
def _indices(stored_indices, constants, start, offsets, inside, stored: tl.constexpr, uint: tl.constexpr):
    if stored:
        number = tl.load(stored_indices + offsets, mask=inside, other=0).to(tl.int32)
    else:
        number = _group(constants, tl.where(inside, start.to(tl.int64) + offsets, 0), uint)
    return number


@triton.jit
def _read(pointers, inside, bfloat16: tl.constexpr):
    value = tl.load(pointers, mask=inside, other=0)
    if bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _bfloat16(value):
    bits = value.to(tl.uint32, bitcast=True)
    # Half of the last place that is kept, less one where that place is even already: nearest, ties to even.
    rounded = tl.add(bits, 0x7FFF + ((bits >> 16) & 1), sanitize_overflow=False) >> 16
    return tl.where(value != value, 0x7FC0, rounded).to(tl.uint16).to(tl.int16, bitcast=True)  # noqa: PLR0124  # NaN


@triton.jit(do_not_specialize=["start", "count"])
def _expand_kernel(
    out,
    base,
    scaled,
    groups,
    constants,
    start: tl.int64,
    count: tl.int64,
    stored: tl.constexpr,
    uint: tl.constexpr,
    total_type: tl.constexpr,
    bfloat16: tl.constexpr,
    block: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < count
    number = _indices(groups, constants, start, offsets, inside, stored, uint)
    update = tl.load(scaled + number, mask=inside, other=0.0)
    total = _read(base + offsets, inside, bfloat16).to(total_type) + update.to(total_type)
    if bfloat16:
        tl.store(out + offsets, _bfloat16(total.to(tl.float32)), mask=inside)
    elif out.dtype.element_ty == tl.float16:
        tl.store(out + offsets, total.to(tl.float32).to(tl.float16), mask=inside)
    else:
        tl.store(out + offsets, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["start", "count", "d", "last_copy"])
def _reduce_kernel(
    sums,
    grad,
    groups,
    constants,
    start: tl.int64,
    count: tl.int64,
    d: tl.int64,
    last_copy: tl.int64,
    stored: tl.constexpr,
    uint: tl.constexpr,
    bfloat16: tl.constexpr,
    block: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < count
    number = _indices(groups, constants, start, offsets, inside, stored, uint)
    value = _read(grad + offsets, inside, bfloat16).to(tl.float64)
    tl.atomic_add(sums + (offsets & last_copy) * d + number, value, mask=inside, sem="relaxed")


def expand_block(target: Tensor, scaled: Tensor, base: Tensor, source: IndexSource) -> None:
    """Writes base[i] + scaled[group(i)] into ``target``.

    Args:
        target: flat and contiguous, of the dtype of ``base``.
        scaled: float32 or float64, shape (d,).
        base: W0, of the shape of ``target``, contiguous; float16, bfloat16, float32 or float64.
        source: where the group indices come from.
    """
    total = tl.float64 if torch.promote_types(scaled.dtype, base.dtype) == torch.float64 else tl.float32
    count, half = target.numel(), base.dtype == torch.bfloat16
    out, weight = (target.view(torch.int16), base.view(torch.int16)) if half else (target, base)
    stored, made, start, wide = _described(source, target.device)
    if not count:
        return
    with torch.cuda.device_of(target):
        _expand_kernel[(triton.cdiv(count, _BLOCK),)](
            out,
            weight,
            scaled.contiguous(),
            stored,
            made,
            start,
            count,
            stored=stored is not None,
            uint=tl.uint64 if wide else tl.uint32,
            total_type=total,
            bfloat16=half,
            block=_BLOCK,
        )


def reduce_block(sums: Tensor, grad: Tensor, source: IndexSource) -> None:
    """Adds every grad[i] to one of the copies of the sum of its group.

    Args:
        sums: float64, shape (a power of two, d), contiguous.
        grad: flat and contiguous; float16, bfloat16, float32 or float64.
        source: where the group indices come from.
    """
    half = grad.dtype == torch.bfloat16
    stored, made, start, wide = _described(source, grad.device)
    if not grad.numel():
        return
    with torch.cuda.device_of(grad):
        _reduce_kernel[(triton.cdiv(grad.numel(), _BLOCK),)](
            sums,
            grad.view(torch.int16) if half else grad,
            stored,
            made,
            start,
            grad.numel(),
            sums.shape[1],
            sums.shape[0] - 1,
            stored=stored is not None,
            uint=tl.uint64 if wide else tl.uint32,
            bfloat16=half,
            block=_BLOCK,
        )


def _described(source: IndexSource, device: torch.device) -> tuple[Tensor | None, Tensor | None, int, bool]:
    """Stored indices, or the partition's constants with the first position, and whether these need 64 bits."""
    if source.partition is None:
        return source.stored, None, 0, False
    return None, _constants(source.partition, device), source.start, not source.partition.fits_int32


@lru_cache(maxsize=64)
def _constants(partition: Partition, device: torch.device) -> Tensor:
    """:meth:`gpart.partition.Partition.constants`, int64, shape (17,), as the signed numbers with the same bits."""
    signed = [number - (1 << 64) if number >> 63 else number for number in partition.constants()]
    return torch.tensor(signed, dtype=torch.int64, device=device)
