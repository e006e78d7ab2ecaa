"""Whether a backend gives what the reference gives, on this user's machine, before it is used.

Invariant: what a backend is compared with comes from :mod:`gpart.ops.reference` alone, which calls no backend.

The problems are small and of every kind that a backend takes: group indices from each source, with and without a mask,
each dtype of weights and sums, more entries than one block of the C code holds, and a number of them that the rows of the
sums do not divide. The C code has to give the same bits throughout. A GPU adds in no fixed order, so Triton's sums are
compared on values that need no rounding in float64.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from gpart.ops import cpu, reference
from gpart.ops.block import Block, ComputedIndices, Entries, IndexSource, index_source
from gpart.partition import Partition

_CPU = torch.device("cpu")
_COUNT, _D, _ROWS = 2501, 7, 4
# About half of all k-bit numbers lie outside; the second has large quotients by d, the third needs 64 bits.
_PARTITIONS = (Partition(5200, _D, 3), Partition((1 << 30) + 3, _D, 3), Partition((1 << 40) + 3, _D, 3))
_NARROW, _WIDE = Partition(2100, _D, 3), Partition((1 << 40) + 3, _D, 3)
_STRETCHES = ((0, 1280), (1, 777))  # the second one's addresses and length are odd: Triton compiles it by itself
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def cpu_difference(library: ctypes.CDLL) -> str:
    """What the C code gives that the reference does not; empty if there is nothing.

    Args:
        library: made of ``cpu.c``.
    """
    steps = torch.arange(_COUNT, dtype=torch.float64, device=_CPU)
    # Many of these sums lie half-way between two numbers of a half-width type.
    values = (steps * 37 % 101 - 50) / 8 + (steps % 3) * 1e-4
    scaled = torch.tensor([0.0, 2**-6, -(2**-9), 2**-8, 0.1, -(2**-20), 1e-30], dtype=torch.float32, device=_CPU)
    for kind, block, partition, start in _cpu_problems(steps):
        stretch = slice(0, _COUNT)
        for dtype in cpu.HALF:
            source = values.to(dtype)
            wanted, got = torch.zeros_like(source), torch.zeros_like(source)
            reference.expand_stretch(wanted, scaled, source, block, stretch)
            cpu.expand_stretch(library, got, scaled, source, block, stretch)
            if not _same_bits(wanted, got):
                return f"W0 + P·theta in {dtype} with {kind} has other numbers"
            for sum_dtype in (torch.float32, torch.float64):
                sums, found = (torch.zeros(_ROWS, _D, dtype=sum_dtype, device=_CPU) for _ in range(2))
                reference.reduce_stretch(sums, source, block, stretch)
                cpu.reduce_stretch(library, found, source, block, stretch)
                if not torch.equal(sums, found):
                    return f"Pᵀ·g of {dtype} summed in {sum_dtype} with {kind} has other numbers"
        for width in (torch.int16, torch.int32):
            out = torch.empty(_COUNT, dtype=width, device=_CPU)
            cpu.group_indices(library, out, partition, start)
            if not torch.equal(out, partition.groups(start, start + _COUNT, _CPU, width)):
                return f"group indices of {partition} in {width} are other ones"
    return ""


@torch.no_grad()
def triton_expand_difference(device: torch.device, dtype: torch.dtype, scaled_dtype: torch.dtype, kind: str) -> str:
    """What Triton's expand gives for one kind of block that the reference does not; empty if there is nothing.

    Args:
        device: where it runs.
        dtype: of the weight.
        scaled_dtype: of ``scaled``.
        kind: as :func:`kind_of` calls the source of the group indices.
    """
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, info.max, info.min, info.tiny, info.tiny / 4, -info.tiny / 2]
    scaled = torch.tensor([0.0, 2**-6, -(2**-9), 2**-8, 0.1, -(2**-20), info.tiny], dtype=scaled_dtype, device=device)
    for shift, count in _STRETCHES:
        block, source = _triton_problem(kind, device, shift, count)
        steps = torch.arange(shift + count, dtype=torch.float64, device=device)
        wide = (steps * 37 % 101 - 50) / 8
        wide[: 5 * len(special)] = torch.tensor(special * 5, dtype=torch.float64, device=device)
        base = wide.to(dtype)[shift:]
        wanted = torch.zeros(count, dtype=dtype, device=device)
        got = torch.zeros(shift + count, dtype=dtype, device=device)[shift:]
        reference.expand_block(wanted, scaled, base, block)
        _triton().expand_block(got, scaled, base, source)
        if not _same_bits(wanted, got):
            return "it gives other numbers than the reference"
    return ""


@torch.no_grad()
def triton_reduce_difference(device: torch.device, dtype: torch.dtype, rows: int, kind: str) -> str:
    """What Triton's reduce gives for one kind of block that the reference does not; empty if there is nothing.

    Args:
        device: where it runs.
        dtype: of the gradient.
        rows: of the sums.
        kind: as :func:`kind_of` calls the source of the group indices.
    """
    for shift, count in _STRETCHES:
        block, source = _triton_problem(kind, device, shift, count)
        steps = torch.arange(shift + count, dtype=torch.float64, device=device)
        # Sums in float64 need no rounding, in whatever order; sums in float32 would.
        values = torch.where(steps % 5 == 0, (steps % 7) * 2**12, (steps * 37 % 101 - 50) * 2**-10).to(dtype)[shift:]
        wanted = torch.zeros(1, _D, dtype=torch.float64, device=device)
        got = torch.zeros(rows, _D, dtype=torch.float64, device=device)
        reference.reduce_block(wanted, values, block)
        _triton().reduce_block(got, values, source)
        if not torch.equal(wanted.sum(0), got.sum(0)):
            return "it gives other numbers than the reference"
    return ""


def kind_of(source: IndexSource) -> str:
    """What tells apart the code that Triton compiles for a source of group indices."""
    if source.stored is not None:
        return f"group indices stored in {8 * source.stored.itemsize} bits"
    wide = source.partition is not None and not source.partition.fits_int32
    return f"group indices computed in {64 if wide else 32} bits"


def _cpu_problems(steps: Tensor) -> Iterator[tuple[str, Block, Partition, int]]:
    keep = steps % 5 != 0
    for partition in _PARTITIONS:
        start = partition.size - _COUNT
        sources: dict[str, Entries] = {
            "stored group indices of two bytes": partition.groups(start, None, _CPU, torch.int16),
            "stored group indices of four bytes": partition.groups(start, None, _CPU, torch.int32),
            "computed group indices": ComputedIndices(partition, start, _COUNT, _CPU),
        }
        for kind, indices in sources.items():
            yield f"{kind} of {partition}", Block(indices, 0, 0, _COUNT), partition, start
            yield f"{kind} of {partition} and a mask", Block(indices, 0, 0, _COUNT, keep, 1.25), partition, start


def _triton_problem(kind: str, device: torch.device, shift: int, count: int) -> tuple[Block, IndexSource]:
    """A block with its indices in memory for the reference, and what the kernel is to read them from."""
    partition = _WIDE if "64" in kind else _NARROW
    start = partition.size - count - shift
    width = torch.int16 if "16" in kind else torch.int32
    indices = torch.empty(shift + count, dtype=width, device=device)[shift:]
    indices.copy_(partition.groups(start, start + count, device))
    block = Block(indices, 0, 0, count)
    computed = ComputedIndices(partition, start, count, device)
    source = index_source(Block(computed, 0, 0, count) if "computed" in kind else block, device)
    if source is None:
        raise RuntimeError(f"no source for {kind} on {device}")
    return block, source


def _same_bits(one: Tensor, other: Tensor) -> bool:
    bits = _BITS[one.dtype.itemsize]
    return torch.equal(one.view(bits), other.view(bits))


def _triton() -> ModuleType:
    from gpart.ops import triton_kernels  # noqa: PLC0415  # it imports Triton, which comes with torch for GPUs only

    return triton_kernels
