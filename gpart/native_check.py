"""Whether ``native.c``, as it was compiled here, gives what torch's operations give, bit for bit.

Every kind of problem that :mod:`gpart.native` takes, small: group numbers from each source, with and without a mask, each
dtype of weights and sums, more entries than one block of the library's holds, and a number of them that its rows do not
divide.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from gpart import native
from gpart.functional import add_stretch
from gpart.groups import ComputedGroups
from gpart.partition import Partition
from gpart.parts import Entries, Part
from gpart.sums import add_stretch as add_stretch_to_sums

_CPU = torch.device("cpu")
_COUNT, _D, _ROWS = 2501, 7, 4
# About half of all k-bit numbers lie outside; the second has large quotients by d, the third needs 64 bits.
_PARTITIONS = (Partition(5200, _D, 3), Partition((1 << 30) + 3, _D, 3), Partition((1 << 40) + 3, _D, 3))


@torch.no_grad()
def difference(library: ctypes.CDLL) -> str:
    """What it gives that torch does not; empty if there is nothing.

    Args:
        library: made of ``native.c``.
    """
    steps = torch.arange(_COUNT, dtype=torch.float64, device=_CPU)
    # Many of these sums lie half-way between two numbers of a half-width type.
    values = (steps * 37 % 101 - 50) / 8 + (steps % 3) * 1e-4
    scaled = torch.tensor([0.0, 2**-6, -(2**-9), 2**-8, 0.1, -(2**-20), 1e-30], dtype=torch.float32, device=_CPU)
    for kind, part, partition, start in _problems(steps):
        stretch = slice(0, _COUNT)
        for dtype in native.HALF:
            source = values.to(dtype)
            wanted, got = torch.zeros_like(source), torch.zeros_like(source)
            add_stretch(wanted, scaled, source, part, stretch)
            native.launch_add(library, got, scaled, source, part, stretch)
            bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
            if not torch.equal(wanted.view(bits), got.view(bits)):
                return f"W0 + P·theta in {dtype} with {kind} has other numbers"
            for sum_dtype in (torch.float32, torch.float64):
                sums, found = (torch.zeros(_ROWS, _D, dtype=sum_dtype, device=_CPU) for _ in range(2))
                add_stretch_to_sums(sums, source, part, stretch)
                native.launch_sums(library, found, source, part, stretch)
                if not torch.equal(sums, found):
                    return f"Pᵀ·g of {dtype} summed in {sum_dtype} with {kind} has other numbers"
        for width in (torch.int16, torch.int32):
            out = torch.empty(_COUNT, dtype=width, device=_CPU)
            native.launch_groups(library, out, partition, start)
            if not torch.equal(out, partition.groups(start, start + _COUNT, _CPU, width)):
                return f"group numbers of {partition} in {width} are other ones"
    return ""


def _problems(steps: Tensor) -> Iterator[tuple[str, Part, Partition, int]]:
    keep = steps % 5 != 0
    for partition in _PARTITIONS:
        start = partition.size - _COUNT
        sources: dict[str, Entries] = {
            "stored group numbers of two bytes": partition.groups(start, None, _CPU, torch.int16),
            "stored group numbers of four bytes": partition.groups(start, None, _CPU, torch.int32),
            "computed group numbers": ComputedGroups(partition, start, _COUNT, _CPU),
        }
        for kind, groups in sources.items():
            yield f"{kind} of {partition}", Part(groups, 0, 0, _COUNT), partition, start
            yield f"{kind} of {partition} and a mask", Part(groups, 0, 0, _COUNT, keep, 1.25), partition, start
