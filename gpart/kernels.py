"""Which of the two passes run as Triton kernels: on CUDA and ROCm, where they give what the reference gives.

Invariant: a kernel is used for a kind of block only after it has given, on a small problem of that kind, the numbers of
:mod:`gpart.functional`: those of expand bit for bit, and sums that need no rounding exactly. Where it has not, or could
not be compiled, one warning says so and the reference is used from then on.

A kind of block is a device, the dtypes, whether group numbers are stored or computed, and whether they need 64 bits; the
same compiled code serves all blocks of a kind, whatever D, d and seed. The reference also serves blocks with dropout or
in other dtypes, and all that torch.compile traces. Atomic additions come in no fixed order, so reduce goes by the
reference under ``torch.use_deterministic_algorithms``: torch names ``Tensor.scatter_add_`` on CUDA among the operations
that this flag makes deterministic, where its input has one dimension, as ours has.

Triton comes with torch's builds for CUDA and ROCm and is imported at first use. With ``TRITON_INTERPRET=1`` set before
that, its interpreter runs the kernels on the processor, slowly: that is how they are tested here. They have not been run
on a GPU yet, which is one more reason for the check.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gpart.native import has_memory
from gpart.partition import Partition

if TYPE_CHECKING:
    from gpart.parts import Part

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NARROW, _WIDE = Partition(2100, 7, 3), Partition((1 << 40) + 3, 7, 3)  # about half of all k-bit numbers lie outside
_SUMS = 1 << 16  # float64 sums in all rows together; half a megabyte stays in any GPU's second-level cache
_STRETCHES = ((0, 1280), (1, 777))  # the second one's addresses and length are odd: Triton compiles it by itself


class _Numbers(NamedTuple):
    """Where a block's group numbers come from."""

    stored: Tensor | None
    partition: Partition | None
    start: int

    @property
    def kind(self) -> str:
        """What tells apart the code that is compiled for it."""
        if self.stored is not None:
            return f"group numbers stored in {8 * self.stored.itemsize} bits"
        wide = self.partition is not None and not self.partition.fits_int32
        return f"group numbers computed in {64 if wide else 32} bits"


def available(device: torch.device) -> bool:
    """Whether Triton is there for this device; ROCm calls its devices ``cuda`` too.

    Example:
        >>> available(torch.device("meta"))
        False
    """
    return (device.type == "cuda" or (_INTERPRETED and device.type == "cpu")) and _installed()


def add(target: Tensor, scaled: Tensor, source: Tensor, part: Part) -> bool:
    """Writes W0[i] + scaled[group(i)] for one block into ``target``, if a kernel may.

    Args:
        target: flat and contiguous.
        scaled: theta_j / sqrt(n_j), shape (d,).
        source: W0, of the shape and dtype of ``target``, contiguous.
        part: the block's group numbers.

    Returns:
        False if nothing was written, and the reference has to.
    """
    if not _fit(target, scaled, source) or scaled.dtype not in _DTYPES[2:] or target.dtype != source.dtype:
        return False
    numbers = _numbers(part, target.device)
    if numbers is None or not _add_agrees(target.device, source.dtype, scaled.dtype, numbers.kind):
        return False
    _launch_add(target, scaled, source, numbers)
    return True


def lanes(width: int, device: torch.device) -> int:
    """How many rows of this many sums :func:`add_to_sums` wants, a power of two; 1 where there is no kernel.

    Neighbouring entries are added in different rows, so that few additions of a moment fall on one address.

    Example:
        >>> lanes(4608, torch.device("meta"))
        1
    """
    return 1 << (-(-_SUMS // width) - 1).bit_length() if available(device) else 1


def add_to_sums(sums: Tensor, grad: Tensor, parts: tuple[Part, ...]) -> bool:
    """Adds a weight's gradient to the sums over groups, if a kernel may.

    Args:
        sums: float64, shape (a power of two, d or more), contiguous; what is added up over its rows.
        grad: in the shape of the weight.
        parts: the weight's blocks.

    Returns:
        False if nothing was added, and the reference has to.
    """
    if not _fit(sums, grad) or torch.are_deterministic_algorithms_enabled():
        return False
    found = []
    for part in parts:
        numbers = _numbers(part, grad.device)
        if numbers is None or not _sums_agree(grad.device, grad.dtype, numbers.kind):
            return False
        found.append((part.of(grad).reshape(-1).contiguous(), numbers))
    for values, numbers in found:
        _launch_sums(sums, values, numbers)
    return True


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _fit(*tensors: Tensor) -> bool:
    device = tensors[0].device
    if torch.compiler.is_compiling() or not available(device):
        return False
    return all(has_memory(tensor) and tensor.device == device and tensor.dtype in _DTYPES for tensor in tensors)


def _numbers(part: Part, device: torch.device) -> _Numbers | None:
    from gpart.groups import ComputedGroups  # it builds on functional, which builds on this module

    groups = part.groups
    if part.keep is not None:
        return None
    if isinstance(groups, ComputedGroups):
        return _Numbers(None, groups.partition, groups.offset)
    if (
        isinstance(groups, Tensor)
        and has_memory(groups)
        and groups.dtype in (torch.int16, torch.int32)
        and groups.is_contiguous()
        and groups.device == device
    ):
        return _Numbers(groups, None, 0)
    return None


@lru_cache(maxsize=64)
def _constants(partition: Partition, device: torch.device) -> Tensor:
    from gpart import triton_kernels

    return triton_kernels.constants(partition, device)


def _made(numbers: _Numbers, device: torch.device) -> tuple[Tensor | None, Tensor | None, int, bool]:
    if numbers.partition is None:
        return numbers.stored, None, 0, False
    return None, _constants(numbers.partition, device), numbers.start, not numbers.partition.fits_int32


def _launch_add(target: Tensor, scaled: Tensor, source: Tensor, numbers: _Numbers) -> None:
    from gpart import triton_kernels

    if target.numel():
        triton_kernels.add(target, scaled.contiguous(), source, *_made(numbers, target.device))


def _launch_sums(sums: Tensor, values: Tensor, numbers: _Numbers) -> None:
    from gpart import triton_kernels

    if values.numel():
        triton_kernels.add_to_sums(sums, values, *_made(numbers, values.device))


@cache
def _add_agrees(device: torch.device, dtype: torch.dtype, scaled_dtype: torch.dtype, kind: str) -> bool:
    what = f"W0 + P·theta in {dtype} with theta in {scaled_dtype} and {kind}"
    return _agrees(what, device, lambda: all(_same_add(device, dtype, scaled_dtype, kind, *s) for s in _STRETCHES))


@cache
def _sums_agree(device: torch.device, dtype: torch.dtype, kind: str) -> bool:
    what = f"Pᵀ·g in {dtype} with {kind}"
    return _agrees(what, device, lambda: all(_same_sums(device, dtype, kind, *s) for s in _STRETCHES))


def _agrees(what: str, device: torch.device, same: Callable[[], bool]) -> bool:
    try:
        with torch.no_grad():
            found = "" if same() else "it gives other numbers than the reference"
    except Exception as error:  # noqa: BLE001  # Triton raises whatever its compiler, the system's or the driver stumbles over
        found = f"{type(error).__name__}: {error}"
    if found:
        warnings.warn(
            f"the Triton kernel for {what} on {device} is not used, the slower reference is: {found}", stacklevel=2
        )
    return not found


def _problem(kind: str, device: torch.device, shift: int, count: int) -> tuple[Part, _Numbers]:
    """A block of which about half the positions are walked, with its numbers in memory for the reference."""
    from gpart.parts import Part

    partition = _WIDE if "64" in kind else _NARROW
    start = partition.size - count - shift
    groups = torch.empty(shift + count, dtype=torch.int16 if "16" in kind else torch.int32, device=device)[shift:]
    groups.copy_(partition.groups(start, start + count, device))
    computed = "computed" in kind
    numbers = _Numbers(None, partition, start) if computed else _Numbers(groups, None, 0)
    return Part(groups, 0, 0, count), numbers


def _same_add(
    device: torch.device, dtype: torch.dtype, scaled_dtype: torch.dtype, kind: str, shift: int, count: int
) -> bool:
    from gpart.functional import add_chunks

    part, numbers = _problem(kind, device, shift, count)
    steps = torch.arange(shift + count, dtype=torch.float64, device=device)
    # Many of these sums lie half-way between two numbers of a half-width type.
    wide = (steps * 37 % 101 - 50) / 8
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, info.max, info.min, info.tiny, info.tiny / 4, -info.tiny / 2]
    wide[: 5 * len(special)] = torch.tensor(special * 5, dtype=torch.float64, device=device)
    source = wide.to(dtype)[shift:]
    scaled = torch.tensor([0.0, 2**-6, -(2**-9), 2**-8, 0.1, -(2**-20), info.tiny], dtype=scaled_dtype, device=device)
    wanted = torch.zeros(count, dtype=dtype, device=device)
    got = torch.zeros(shift + count, dtype=dtype, device=device)[shift:]
    add_chunks(wanted, scaled, source, part)
    _launch_add(got, scaled, source, numbers)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return torch.equal(wanted.view(bits), got.view(bits))


def _same_sums(device: torch.device, dtype: torch.dtype, kind: str, shift: int, count: int) -> bool:
    from gpart.sums import GroupSums  # which builds on this module

    part, numbers = _problem(kind, device, shift, count)
    steps = torch.arange(shift + count, dtype=torch.float64, device=device)
    # Sums in float64 need no rounding, in whatever order; sums in float32 would.
    values = torch.where(steps % 5 == 0, (steps % 7) * 2**12, (steps * 37 % 101 - 50) * 2**-10).to(dtype)[shift:]
    d = _NARROW.d
    wanted = GroupSums(d, device)
    wanted.add_block(values, part)
    got = torch.zeros(lanes(d, device), d, dtype=torch.float64, device=device)
    _launch_sums(got, values, numbers)
    return torch.equal(wanted.total(torch.float64), got.sum(0))
