"""Chooses what computes expand and reduce: the reference, the C code, or the Triton kernels.

Invariant: the choice changes time, never a result. A backend is used only after :mod:`gpart.ops.selfcheck` has found the
reference's numbers in what it gives here; where it fails, one warning says so and the reference is used from then on.

- ``torch``: the reference. It takes everything, and it is what ``torch.compile`` and function transforms get.
- ``cpu``: the C code, for float32 and bfloat16 weights on a CPU from 2^16 entries on: fewer are not worth the compiler's
  half second.
- ``triton``: the kernels, on CUDA and ROCm, which have not been run on a GPU yet. Blocks with dropout go by the reference,
  and so does reduce under ``torch.use_deterministic_algorithms``, since atomic additions come in no fixed order. With
  ``TRITON_INTERPRET=1`` set before the first use, Triton's interpreter runs them on the CPU, slowly: that is how they are
  tested.

The environment variable ``GPART_BACKENDS`` allows some of them: ``auto`` (the default), ``torch``, or a list such as
``cpu,triton``. :func:`backends` says what is used and why; the logger ``gpart.ops.dispatch`` says it when it is decided.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gpart.errors import GPartError
from gpart.ops import cpu, reference, selfcheck
from gpart.ops.block import Block, IndexSource, has_memory, index_source
from gpart.partition import Groups, Partition, stretch_size

BACKENDS = ("torch", "cpu", "triton")
LEAST = 1 << 16
"""Entries from which on the C code is used."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_SMALL = 1 << 15  # entries: of fewer, a temporary costs less than the calls that save it
_SUMS = 1 << 16  # float64 sums in all rows together; half a megabyte stays in any GPU's second-level cache
_log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """What computes expand and reduce on a device, and why."""

    name: str
    """``"torch"``, ``"cpu"`` or ``"triton"``."""
    reason: str


def backends() -> dict[str, Backend]:
    """What is used on each kind of device that is here, and why; the C code is compiled and checked for it.

    Example:
        >>> backends()["cpu"].name in ("cpu", "torch")
        True
    """
    library, reason = cpu_library()
    found = {"cpu": Backend("torch" if library is None else "cpu", reason)}
    if triton_available(torch.device("cpu")):
        found["cpu"] = Backend("triton", "TRITON_INTERPRET=1: each kernel is checked at its first use")
    if torch.cuda.is_available():
        device = torch.device("cuda")
        reason = "each kernel is checked at its first use" if triton_available(device) else _why_no_triton()
        found["cuda"] = Backend("triton" if triton_available(device) else "torch", reason)
    return found


def expand(scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """W = W0 + P·theta in memory of its own, row-major; without gradient.

    Args:
        scaled: theta_j / sqrt(n_j), shape (d,), float32 or wider.
        weight: W0.
        blocks: its adapted blocks; entries outside them stay as they are.
    """
    if weight.numel() < _SMALL and _is_one_block(weight, blocks):
        return reference.expand_small(scaled, weight, blocks[0])
    return expand_into(torch.empty_like(weight, memory_format=torch.contiguous_format), scaled, weight, blocks)


def expand_into(out: Tensor, scaled: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Writes W = W0 + P·theta into ``out``, of the shape and dtype of ``weight``; returns ``out``. Without gradient.

    Args:
        out: contiguous; what stands in it is lost.
        scaled: as for :func:`expand`, like what follows.
        weight: see there.
        blocks: see there.
    """
    if weight.numel() < _SMALL and _is_one_block(weight, blocks):
        return reference.expand_small(scaled, weight, blocks[0], out)
    if len(blocks) != 1 or blocks[0].of(weight) is not weight:
        out.copy_(weight)
    for block in blocks:
        target, source = block.of(out), block.of(weight)
        if target.is_contiguous() and source.is_contiguous():
            expand_block(target.view(-1), scaled, source.view(-1), block)
        else:
            wide = torch.promote_types(scaled.dtype, weight.dtype)
            target.copy_(reference.delta_block(scaled, block, target.shape).to(wide).add_(source))
    if not out.is_inference():
        increment_version(out)  # autograd does not see what compiled code writes
    return out


def expand_block(target: Tensor, scaled: Tensor, source: Tensor, block: Block) -> None:
    """As :func:`gpart.ops.reference.expand_block`, by the fastest backend that may."""
    device, count = target.device, target.numel()
    if (index := _triton_expands(target, scaled, source, block)) is not None:
        _triton().expand_block(target, scaled, source, index)
        return
    step = stretch_size(device)
    for first in range(0, count, step):
        stretch = slice(first, min(first + step, count))
        out, base = target[stretch], source[stretch]
        library = _library() if out.numel() >= LEAST and cpu.takes_expand(out, scaled, base, block) else None
        if library is None:
            reference.expand_stretch(out, scaled, base, block, stretch)
        else:
            cpu.expand_stretch(library, out, scaled, base, block, stretch)


def reduce_stretch(sums: Tensor, values: Tensor, block: Block, stretch: slice) -> None:
    """As :func:`gpart.ops.reference.reduce_stretch`, by the fastest backend that may; the order of additions is its."""
    library = _library() if values.numel() >= LEAST and cpu.takes_reduce(sums, values, block) else None
    if library is None:
        reference.reduce_stretch(sums, values, block, stretch)
    else:
        cpu.reduce_stretch(library, sums, values, block, stretch)


def reduce_blocks(sums: Tensor, grad: Tensor, blocks: tuple[Block, ...]) -> bool:
    """Adds a weight's gradient to the sums over groups in whatever order, where a GPU's kernels may.

    Args:
        sums: float64, shape (:func:`sum_rows`, d or more), contiguous; the sums are what its rows add up to.
        grad: in the shape of the weight.
        blocks: the weight's blocks.

    Returns:
        False if nothing was added: then :func:`reduce_stretch` has to.
    """
    if not _triton_may(sums, grad) or torch.are_deterministic_algorithms_enabled():
        return False
    found = []
    for block in blocks:
        source = None if block.keep is not None else index_source(block, grad.device)
        if source is None or not _triton_reduces(grad.device, grad.dtype, selfcheck.kind_of(source)):
            return False
        found.append((block.of(grad).reshape(-1).contiguous(), source))
    for values, source in found:
        _triton().reduce_block(sums, values, source)
    return True


def sum_rows(width: int, device: torch.device) -> int:
    """How many rows of this many sums :func:`reduce_blocks` wants, a power of two; 1 where there is no kernel.

    Neighbouring entries are added in different rows, so that few additions of a moment fall on one address.

    Example:
        >>> sum_rows(4608, torch.device("meta"))
        1
    """
    return 1 << (-(-_SUMS // width) - 1).bit_length() if triton_available(device) else 1


def group_indices(
    partition: Groups, start: int, stop: int, device: torch.device, dtype: torch.dtype = torch.int32
) -> Tensor:
    """As :meth:`gpart.partition.Groups.groups`, by the C code where it may."""
    if isinstance(partition, Partition) and device.type == "cpu" and stop - start >= LEAST:
        out = torch.empty(stop - start, dtype=dtype, device=device)
        library = _library() if cpu.takes_indices(out) else None
        if library is not None:
            cpu.group_indices(library, out, partition, start)
            return out
    return partition.groups(start, stop, device, dtype)


@cache
def allowed() -> frozenset[str]:
    """The backends that ``GPART_BACKENDS`` allows; the reference always is.

    Raises:
        GPartError: if it names one that there is not.
    """
    text = os.environ.get("GPART_BACKENDS", "auto")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in (*BACKENDS, "auto")]:
        raise GPartError(f"GPART_BACKENDS={text!r}: {unknown[0]!r} is none of auto, {', '.join(BACKENDS)}")
    return frozenset(BACKENDS if "auto" in names or not names else names)


@cache
def cpu_library() -> tuple[ctypes.CDLL | None, str]:
    """The C code, compiled and checked, or None; and the reason."""
    compiler, missing = cpu.find_compiler() if "cpu" in allowed() else ([], "GPART_BACKENDS does not allow it")
    if not compiler:
        _log.info("cpu: torch's operations compute expand and reduce, not C: %s", missing)
        return None, missing
    try:
        library = cpu.build(compiler, cpu.SOURCE)
        found = selfcheck.cpu_difference(library)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        said = getattr(error, "stderr", None) or ""
        found = f"{type(error).__name__}: {error} {said.strip()[-1000:]}".strip()
    if found:
        warnings.warn(
            f"gpart/ops/cpu.c is not used on this CPU, torch's slower operations are: {found}",
            stacklevel=2,
        )
        return None, found
    reason = f"cpu.c, compiled by {' '.join(compiler)}, gives the reference's bits here"
    _log.info("cpu: C computes expand and reduce: %s", reason)
    return library, reason


def triton_available(device: torch.device) -> bool:
    """Whether the Triton kernels may be used on this device; ROCm calls its devices ``cuda`` too.

    Example:
        >>> triton_available(torch.device("meta"))
        False
    """
    return (device.type == "cuda" or (_INTERPRETED and device.type == "cpu")) and _triton_installed()


def _is_one_block(weight: Tensor, blocks: tuple[Block, ...]) -> bool:
    """Whether a weight is one whole block on a CPU: where it is small, too, launching costs more than arithmetic."""
    (block, *others) = blocks
    whole = block.start == 0 and block.stop == weight.shape[block.dim]
    return whole and not others and weight.device.type == "cpu" and not _INTERPRETED


def _library() -> ctypes.CDLL | None:
    return None if torch.compiler.is_compiling() else cpu_library()[0]


@cache
def _triton_installed() -> bool:
    return not _why_no_triton()


def _why_no_triton() -> str:
    if "triton" not in allowed():
        return "GPART_BACKENDS does not allow it"
    return "" if find_spec("triton") is not None else "Triton is not installed"


def _triton_may(*tensors: Tensor) -> bool:
    device = tensors[0].device
    if not triton_available(device) or torch.compiler.is_compiling():
        return False
    return all(has_memory(tensor) and tensor.device == device and tensor.dtype in _DTYPES for tensor in tensors)


def _triton_expands(target: Tensor, scaled: Tensor, source: Tensor, block: Block) -> IndexSource | None:
    """Where Triton's expand finds the block's group indices; None where it may not be used."""
    if not _triton_may(target, scaled, source) or scaled.dtype not in _DTYPES[2:] or target.dtype != source.dtype:
        return None
    index = None if block.keep is not None else index_source(block, target.device)
    if index is None or not _triton_agrees(target.device, source.dtype, scaled.dtype, selfcheck.kind_of(index)):
        return None
    return index


@cache
def _triton_agrees(device: torch.device, dtype: torch.dtype, scaled_dtype: torch.dtype, kind: str) -> bool:
    what = f"W0 + P·theta in {dtype} with theta in {scaled_dtype} and {kind}"
    return _passes(what, device, lambda: selfcheck.triton_expand_difference(device, dtype, scaled_dtype, kind))


@cache
def _triton_reduces(device: torch.device, dtype: torch.dtype, kind: str) -> bool:
    what = f"Pᵀ·g in {dtype} with {kind}"
    return _passes(what, device, lambda: selfcheck.triton_reduce_difference(device, dtype, sum_rows(7, device), kind))


def _passes(what: str, device: torch.device, difference: Callable[[], str]) -> bool:
    """Whether a kernel's check finds no difference; says what it found."""
    try:
        found = difference()
    except Exception as error:  # noqa: BLE001  # Triton raises whatever its compiler, the system's or the driver stumbles over
        found = f"{type(error).__name__}: {error}"
    if found:
        warnings.warn(
            f"the Triton kernel for {what} on {device} is not used, the slower reference is: {found}", stacklevel=3
        )
    else:
        _log.info("%s: Triton computes %s: it gives the reference's numbers here", device, what)
    return not found


def _triton() -> ModuleType:
    from gpart.ops import triton_kernels  # noqa: PLC0415  # it imports Triton, which comes with torch for GPUs only

    return triton_kernels
