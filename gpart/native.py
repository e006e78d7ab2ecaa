"""The two passes on a processor in C (``native.c``), where a compiler is at hand: read and write each entry once.

Invariant: the numbers are those of torch's own operations (:mod:`gpart.functional`, :mod:`gpart.sums`) bit for bit, so
whether this is used changes time and memory, never a result. It is used only after it has given, on small problems of
every kind, the same bits; where it has not, or could not be compiled, one warning says so.

``gcc`` compiles the file at first use in each process, in half a second, for the very processor that runs it; nothing is
installed and no file stays. Without ``gcc``, or on other systems than Linux, torch's operations do it, silently. Triton and
``torch.compile`` ask for a compiler in the same way.

The threads are torch's own: the library names the OpenMP runtime by which torch has been loaded already.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gpart.partition import Partition
    from gpart.parts import Part

_LEAST = 1 << 16  # entries: a model of smaller weights alone is not worth the compiler's time
_FLAGS = (
    "-std=gnu11 -O3 -march=native -fopenmp -fPIC -shared"
    " -ffp-contract=off"  # a fused multiply-add rounds once where torch rounds twice
)
_SOURCE = Path(__file__).with_name("native.c")
_MACHINES = ("x86_64", "aarch64")  # where gcc takes -march=native; it has been run on the first only
HALF = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes of weights and gradients, and how the library calls them."""


def add(target: Tensor, scaled: Tensor, source: Tensor, part: Part, stretch: slice) -> bool:
    """Writes W0[i] + scaled[group(i)] for one stretch of a block into ``target``, if it may.

    Args:
        target: flat and contiguous.
        scaled: theta_j / sqrt(n_j), shape (d,).
        source: W0, of the shape and dtype of ``target``.
        part: the block's group numbers and dropout mask.
        stretch: where in the block the target begins and ends.

    Returns:
        False if nothing was written, and torch has to.
    """
    if target.numel() < _LEAST or scaled.dtype != torch.float32 or target.dtype != source.dtype:
        return False
    if source.dtype not in HALF or not _fit(target, scaled, source) or not _fits(part):
        return False
    if (library := _ready()) is None:
        return False
    launch_add(library, target, scaled, source, part, stretch)
    return True


def add_to_sums(sums: Tensor, values: Tensor, part: Part, stretch: slice) -> bool:
    """Adds one stretch of a block's gradient to the sums over groups, if it may.

    Args:
        sums: float32 or float64, shape (rows, d or more), contiguous: each row takes its share of the stretch.
        values: flat and contiguous.
        part: the block's group numbers and dropout mask.
        stretch: where in the block the values begin and end.

    Returns:
        False if nothing was added, and torch has to.
    """
    if values.numel() < _LEAST or sums.dtype not in (torch.float32, torch.float64) or values.dtype not in HALF:
        return False
    if not _fit(sums, values) or not _fits(part) or (library := _ready()) is None:
        return False
    launch_sums(library, sums, values, part, stretch)
    return True


def write_groups(out: Tensor, partition: Partition, start: int) -> bool:
    """Writes the group numbers of the positions from ``start`` on into ``out``, int16 or int32, if it may.

    Returns:
        False if nothing was written, and torch has to.
    """
    if out.numel() < _LEAST or out.dtype not in (torch.int16, torch.int32) or not _fit(out):
        return False
    if (library := _ready()) is None:
        return False
    launch_groups(library, out, partition, start)
    return True


def launch_add(
    library: ctypes.CDLL, target: Tensor, scaled: Tensor, source: Tensor, part: Part, stretch: slice
) -> None:
    """:func:`add` without its checks."""
    half = HALF[source.dtype]
    _call(library.gpart_add, part, stretch, target.data_ptr(), source.data_ptr(), half, scaled.data_ptr())


def launch_sums(library: ctypes.CDLL, sums: Tensor, values: Tensor, part: Part, stretch: slice) -> None:
    """:func:`add_to_sums` without its checks."""
    wide, half = sums.dtype == torch.float64, HALF[values.dtype]
    _call(library.gpart_add_to_sums, part, stretch, sums.data_ptr(), wide, *sums.shape, values.data_ptr(), half)


def launch_groups(library: ctypes.CDLL, out: Tensor, partition: Partition, start: int) -> None:
    """:func:`write_groups` without its checks."""
    made = _constants(partition)
    library.gpart_groups(out.data_ptr(), out.itemsize, made, start, out.numel(), torch.get_num_threads())


def _call(function: Any, part: Part, stretch: slice, *own: int) -> None:
    """Calls one pass with its own arguments and, behind them, what both are told of a stretch."""
    keep = (
        None if part.keep is None else part.keep[stretch]
    )  # held until the call is over: it may have been drawn for it
    mask = None if keep is None else keep.data_ptr()
    count = stretch.stop - stretch.start
    function(*own, *_numbers(part, stretch), count, mask, part.boost, torch.get_num_threads())


def _fit(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    return all(has_memory(tensor) and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def has_memory(tensor: Tensor) -> bool:
    """Whether compiled code may read and write where the tensor says that its numbers are.

    A subclass may stand for a tensor without memory of its own, as torch's fake ones do, and so do the tensors of
    ``torch.func``'s transforms.
    """
    return type(tensor) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _fits(part: Part) -> bool:
    from gpart.groups import ComputedGroups  # it builds on partition, which builds on this module

    groups = part.groups
    if isinstance(part.keep, Tensor) and not _fit(part.keep):
        return False
    if isinstance(groups, ComputedGroups):
        return True
    return isinstance(groups, Tensor) and groups.dtype in (torch.int16, torch.int32) and _fit(groups)


def _numbers(part: Part, stretch: slice) -> tuple[int | None, int, Any, int]:
    """Where a stretch's group numbers come from, as the library takes it: stored, bytes of each, constants, start."""
    from gpart.groups import ComputedGroups

    groups = part.groups
    if isinstance(groups, ComputedGroups):
        return None, 4, _constants(groups.partition), groups.offset + stretch.start
    stored = groups[stretch]
    return stored.data_ptr(), stored.itemsize, None, 0


@lru_cache(maxsize=64)
def _constants(partition: Partition) -> Any:
    numbers = partition.constants()
    return (ctypes.c_uint64 * len(numbers))(*numbers)


@cache
def _ready() -> ctypes.CDLL | None:
    """The library, if there is a compiler and it gives what torch gives."""
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        return None
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    from gpart.native_check import difference  # it builds on what builds on this module

    try:
        library = build(compiler, _SOURCE)
        found = difference(library)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        found = f"{type(error).__name__}: {error} {said.strip()[-1000:]}".strip()
    if found:
        warnings.warn(
            f"gpart/native.c is not used on this processor, torch's slower operations are: {found}", stacklevel=2
        )
        return None
    return library


def build(compiler: str, source: Path) -> ctypes.CDLL:
    """Compiles the library and loads it; no file stays.

    Args:
        compiler: gcc's path.
        source: the C file.

    Raises:
        OSError: if the temporary folder cannot be written to, or what lies there may not be run.
        subprocess.SubprocessError: if the compiler fails.
    """
    with tempfile.TemporaryDirectory(prefix="gpart-") as folder:
        made = os.path.join(folder, "native.so")
        command = [compiler, *_FLAGS.split(), str(source), "-o", made]
        # Torch's own runtime before the system's, which is then not needed; two of them would fight for the cores.
        command += ["-Wl,--as-needed", *map(str, sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        library = ctypes.CDLL(made)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    groups = (pointer, ctypes.c_int, pointer, number)
    rest = (number, pointer, ctypes.c_double, ctypes.c_int)
    library.gpart_add.argtypes = [pointer, pointer, ctypes.c_int, pointer, *groups, *rest]
    library.gpart_add_to_sums.argtypes = [pointer, ctypes.c_int, number, number, pointer, ctypes.c_int, *groups, *rest]
    library.gpart_groups.argtypes = [pointer, ctypes.c_int, pointer, number, number, ctypes.c_int]
    for function in (library.gpart_add, library.gpart_add_to_sums, library.gpart_groups):
        function.restype = None
    return library
