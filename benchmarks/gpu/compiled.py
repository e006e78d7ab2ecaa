"""Both Triton kernels compiled for a GPU that need not be there: ``python benchmarks/gpu/compiled.py OUT.json``.

Triton's wheel has all that it takes to make machine code. The interpreter, which runs the kernels elsewhere, takes more
than the compiler does, so that this is a check of its own: every kind of weight and of group index, for compute capability
9.0 (H100 and H200), with the registers and the spilled bytes that ptxas reports.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from gpart.ops import triton_kernels

CAPABILITY = 90
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*i16", torch.float16: "*fp16", torch.float64: "*fp64"}
"""How a kernel is given each dtype."""

INDICES = {
    "stored in 16 bits": "*i16",
    "stored in 32 bits": "*i32",
    "computed in 32 bits": None,
    "computed in 64 bits": None,
}


def compile_kernel(operation: str, dtype: torch.dtype, indices: str) -> dict[str, Any]:
    """Compiles one kernel, all pointers aligned as torch's memory is.

    Returns:
        Seconds, the machine code's size, registers of a thread, and bytes of its own that a thread spills.
    """
    start = time.perf_counter()
    groups, double = INDICES[indices], dtype == torch.float64
    fixed: dict[str, Any] = {
        "stored": groups is not None,
        "uint": tl.uint64 if "64" in indices else tl.uint32,
        "bfloat16": dtype == torch.bfloat16,
        "block": triton_kernels._BLOCK,  # the kernels' own
        "constants" if groups else "groups": None,
    }
    given = {"groups": groups, "constants": "*i64", "start": "i64", "count": "i64"}
    if operation == "expand":
        kernel = triton_kernels._expand_kernel  # what the package launches
        fixed["total_type"] = tl.float64 if double else tl.float32
        given |= {"out": TYPES[dtype], "base": TYPES[dtype], "scaled": "*fp64" if double else "*fp32"}
    else:
        kernel = triton_kernels._reduce_kernel  # the same
        given |= {"sums": "*fp64", "grad": TYPES[dtype], "d": "i64", "last_copy": "i64"}
    signature = {name: "constexpr" if name in fixed else given[name] for name in kernel.arg_names}
    pointers = [at for at, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(kernel, signature, fixed, {(at,): [["tt.divisibility", 16]] for at in pointers})
    made = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32))
    found = {"operation": operation, "dtype": str(dtype).removeprefix("torch."), "indices": indices}
    took = round(time.perf_counter() - start, 2)
    return {**found, "seconds": took, "bytes": len(made.asm["cubin"]), **_report(made.asm["ptx"])}


def _report(ptx: str) -> dict[str, int]:
    """What ptxas says of the code that it makes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx, encoding="utf-8")
        words = [get_ptxas(CAPABILITY).path, "-v", f"-arch=sm_{CAPABILITY}a", str(file), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    if used is None or spilled is None:
        raise RuntimeError(f"ptxas reports no registers: {said}")
    return {"registers": int(used[1]), "spilled": int(spilled[1])}


def main(out: Path) -> int:
    """Writes the file; 1 if a kernel does not compile."""
    rows: list[dict[str, Any]] = []
    for operation, dtype, indices in product(("expand", "reduce"), TYPES, INDICES):
        try:
            rows.append(compile_kernel(operation, dtype, indices))
        except Exception as error:  # noqa: BLE001  # Triton raises whatever its compiler stumbles over
            rows.append({"operation": operation, "dtype": str(dtype), "indices": indices, "error": f"{error}"[:2000]})
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    versions = {"triton": triton.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    found = {"capability": CAPABILITY, "date": date, "versions": versions, "kernels": rows}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wrong = [row for row in rows if "error" in row]
    print(f"{len(rows) - len(wrong)} of {len(rows)} kernels compile for sm_{CAPABILITY}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
