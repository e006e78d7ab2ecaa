"""Expand and reduce on a CPU in C (``cpu.c``), where a compiler is at hand: each entry is read and written once.

Invariant: this module compiles and calls; it decides nothing. :mod:`gpart.ops.dispatch` uses a library only after
:mod:`gpart.ops.selfcheck` has found the reference's bits in what it gives.

``$CC``, or ``gcc``, compiles the file at first use in each process, in half a second, for the very CPU that runs it;
nothing is installed and no file stays. Triton and ``torch.compile`` ask for a compiler in the same way. The threads are
torch's own: the library names the OpenMP runtime by which torch has been loaded already.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpart.ops.block import Block, has_memory, index_source
from gpart.partition import Partition

SOURCE = Path(__file__).with_name("cpu.c")
HALF = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes of weights and gradients, and how the library calls them."""

_FLAGS = (
    "-std=gnu11 -O3 -march=native -fopenmp -fPIC -shared"
    " -ffp-contract=off"  # a fused multiply-add rounds once where torch rounds twice
)
_CPU = torch.device("cpu")
_MACHINES = ("x86_64", "aarch64")  # where gcc takes -march=native; it has been run on the first only


def find_compiler() -> tuple[list[str], str]:
    """The compiler's command, by ``$CC`` or ``gcc``; an empty one, and why, where there is none."""
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        return [], f"it is written for Linux on {' or '.join(_MACHINES)}, this is {sys.platform}, {platform.machine()}"
    command = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if shutil.which(command[0]) is None:
        return [], f"there is no compiler {command[0]!r} here, by $CC={os.environ.get('CC', '')!r} and $PATH"
    return command, ""


def build(compiler: list[str], source: Path) -> ctypes.CDLL:
    """Compiles the library and loads it; no file stays.

    Args:
        compiler: the compiler's command.
        source: the C file.

    Raises:
        OSError: if the temporary folder cannot be written to, or what lies there may not be run.
        subprocess.SubprocessError: if the compiler fails.
        AttributeError: if what it made lacks a function.
    """
    with tempfile.TemporaryDirectory(prefix="gpart-") as folder:
        made = os.path.join(folder, "cpu.so")
        command = [*compiler, *_FLAGS.split(), str(source), "-o", made]
        # Torch's own runtime before the system's, which is then not needed; two of them would fight for the cores.
        command += ["-Wl,--as-needed", *map(str, sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=120)
        library = ctypes.CDLL(made)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    indices = (pointer, ctypes.c_int, pointer, number)
    rest = (number, pointer, ctypes.c_double, ctypes.c_int)
    library.gpart_expand.argtypes = [pointer, pointer, ctypes.c_int, pointer, *indices, *rest]
    library.gpart_reduce.argtypes = [pointer, ctypes.c_int, number, number, pointer, ctypes.c_int, *indices, *rest]
    library.gpart_indices.argtypes = [pointer, ctypes.c_int, pointer, number, number, ctypes.c_int]
    for function in (library.gpart_expand, library.gpart_reduce, library.gpart_indices):
        function.restype = None
    return library


def takes_expand(target: Tensor, scaled: Tensor, source: Tensor, block: Block) -> bool:
    """Whether :func:`expand_stretch` can do this."""
    if scaled.dtype != torch.float32 or target.dtype != source.dtype or source.dtype not in HALF:
        return False
    return _readable(target, scaled, source) and _block_readable(block)


def takes_reduce(sums: Tensor, values: Tensor, block: Block) -> bool:
    """Whether :func:`reduce_stretch` can do this."""
    if sums.dtype not in (torch.float32, torch.float64) or values.dtype not in HALF:
        return False
    return _readable(sums, values) and _block_readable(block)


def takes_indices(out: Tensor) -> bool:
    """Whether :func:`group_indices` can do this."""
    return out.dtype in (torch.int16, torch.int32) and _readable(out)


def expand_stretch(
    library: ctypes.CDLL, target: Tensor, scaled: Tensor, source: Tensor, block: Block, stretch: slice
) -> None:
    """As :func:`gpart.ops.reference.expand_stretch`, for what :func:`takes_expand` takes."""
    half = HALF[source.dtype]
    _call(library.gpart_expand, block, stretch, target.data_ptr(), source.data_ptr(), half, scaled.data_ptr())


def reduce_stretch(library: ctypes.CDLL, sums: Tensor, values: Tensor, block: Block, stretch: slice) -> None:
    """As :func:`gpart.ops.reference.reduce_stretch`, for what :func:`takes_reduce` takes."""
    wide = int(sums.dtype == torch.float64)
    own = (sums.data_ptr(), wide, *sums.shape, values.data_ptr(), HALF[values.dtype])
    _call(library.gpart_reduce, block, stretch, *own)


def group_indices(library: ctypes.CDLL, out: Tensor, partition: Partition, start: int) -> None:
    """Writes the group indices of the positions from ``start`` on into ``out``, int16 or int32."""
    library.gpart_indices(
        out.data_ptr(), out.itemsize, _constants(partition), start, out.numel(), torch.get_num_threads()
    )


def _call(function: Any, block: Block, stretch: slice, *own: Any) -> None:
    # Both are held until the call is over: they may have been made for it.
    keep = None if block.keep is None else block.keep[stretch]
    source = index_source(block, _CPU, stretch)
    if source is None:
        raise RuntimeError("a block whose group indices C cannot read was handed to it")
    indices: tuple[Any, ...]
    if source.partition is not None:
        indices = (None, 4, _constants(source.partition), source.start)
    elif source.stored is not None:
        indices = (source.stored.data_ptr(), source.stored.itemsize, None, 0)
    mask = None if keep is None else keep.data_ptr()
    function(*own, *indices, stretch.stop - stretch.start, mask, block.boost, torch.get_num_threads())


def _readable(*tensors: Tensor) -> bool:
    return all(has_memory(tensor) and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def _block_readable(block: Block) -> bool:
    if isinstance(block.keep, Tensor) and not _readable(block.keep):
        return False
    return index_source(block, _CPU) is not None


@lru_cache(maxsize=64)
def _constants(partition: Partition) -> Any:
    numbers = partition.constants()
    return (ctypes.c_uint64 * len(numbers))(*numbers)
