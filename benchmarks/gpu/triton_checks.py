"""Each Triton kernel compiled and checked against the reference, then timed alone: ``python triton_checks.py cuda OUT.json``.

The checks are those that the package makes before it uses a kernel (:mod:`gpart.ops.selfcheck`), for every kind that there
is. The times are of one long block, so that memory is what they wait for and not the launch: 2^26 entries read and
written, beside torch's own operations. On a CPU Triton's interpreter runs the checks of a few kinds, and nothing is timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpart import Partition
from gpart.ops import dispatch, reference, selfcheck, triton_kernels
from gpart.ops.block import Block, ComputedIndices, index_source

KINDS = [
    *(f"group indices stored in {bits} bits" for bits in (16, 32)),
    *(f"group indices computed in {bits} bits" for bits in (32, 64)),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
COUNT = 1 << 26
Check = tuple[dict[str, str], Callable[[], str]]


def checks(device: torch.device) -> Iterator[Check]:
    """What is checked, and the check, which says what differs; the kinds that training uses first."""
    few = device.type == "cpu"
    for dtype in DTYPES[:2] if few else DTYPES:
        for kind in KINDS[1:3] if few else KINDS:
            told = {"dtype": str(dtype).removeprefix("torch."), "indices": kind.removeprefix("group indices ")}
            rows = dispatch.sum_rows(7, device)
            yield (
                {"operation": "reduce", **told},
                partial(selfcheck.triton_reduce_difference, device, dtype, rows, kind),
            )
            for scaled in (torch.float32,) if few or dtype != torch.float64 else (torch.float32, torch.float64):
                check = partial(selfcheck.triton_expand_difference, device, dtype, scaled, kind)
                yield {"operation": "expand", **told, "scaled": str(scaled).removeprefix("torch.")}, check


def run_check(told: dict[str, str], check: Callable[[], str]) -> dict[str, Any]:
    """The outcome of one: seconds, most of them the compiler's, and what differs; empty if nothing does."""
    start = time.perf_counter()
    try:
        found = check()
    except Exception as error:  # noqa: BLE001  # Triton raises whatever its compiler or the driver stumbles over
        found = f"{type(error).__name__}: {error}"[:2000]
    return {**told, "seconds": round(time.perf_counter() - start, 2), "difference": found}


def speeds(device: torch.device) -> Iterator[dict[str, Any]]:
    """Milliseconds of expand and reduce over one block, by the kernel and by torch's operations."""
    from triton.testing import do_bench

    for dtype in DTYPES[:2]:
        base = torch.randn(COUNT, device=device).to(dtype)
        out = torch.empty_like(base)
        for d in (16, 23_040, 131_072, 1 << 22):
            scaled = torch.randn(d, device=device)
            rows = dispatch.sum_rows(d, device)
            sums = torch.zeros(rows, d, dtype=torch.float64, device=device)
            one = torch.zeros(1, d, dtype=torch.float64, device=device)
            computed = Block(ComputedIndices(Partition(COUNT, d), 0, COUNT, device), 0, 0, COUNT)
            width = torch.int16 if d <= 1 << 15 else torch.int32
            stored = Block(computed.indices[:].to(width), 0, 0, COUNT)
            for name, block in (("stored", stored), ("computed", computed)):
                source = index_source(block, device)
                if source is None:
                    raise RuntimeError(f"no source for {name} group indices on {device}")
                bytes_read = {"expand": 2 * base.nbytes, "reduce": base.nbytes}
                runs = {
                    ("expand", "triton"): partial(triton_kernels.expand_block, out, scaled, base, source),
                    ("reduce", "triton"): partial(triton_kernels.reduce_block, sums, base, source),
                }
                if name == "stored":
                    runs["expand", "torch"] = partial(reference.expand_block, out, scaled, base, block)
                    runs["reduce", "torch"] = partial(reference.reduce_block, one, base, block)
                for (operation, by), run in runs.items():
                    took = do_bench(run, warmup=5, rep=25, return_mode="median")
                    least = bytes_read[operation] + (stored.indices.nbytes if name == "stored" else 0)
                    yield {
                        "operation": operation, "by": by, "indices": name, "d": d, "entries": COUNT,
                        "dtype": str(dtype).removeprefix("torch."), "ms": took, "least_bytes_per_s": 1e3 * least / took,
                    }  # fmt: skip


def main(device: torch.device, out: Path) -> int:
    """Writes the file after each; 1 if a kernel differs."""
    found: dict[str, list[dict[str, Any]]] = {"checks": [], "speeds": []}
    for told, check in checks(device):
        found["checks"].append(run_check(told, check))
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    wrong = [each for each in found["checks"] if each["difference"]]
    print(f"{len(found['checks']) - len(wrong)} of {len(found['checks'])} kernels give the reference's numbers")
    for each in wrong:
        print(json.dumps(each))
    if device.type == "cuda":
        for speed in speeds(device):
            found["speeds"].append(speed)
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(json.dumps(speed))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(torch.device(sys.argv[1]), Path(sys.argv[2])))
