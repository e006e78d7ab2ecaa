"""Both Triton kernels timed alone on a GPU, beside torch's own operations: ``python triton_speeds.py OUT.json``.

One block of 2^26 entries is read and written, so that memory is what they wait for and not the launch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench

from gpart import Partition
from gpart.ops import dispatch, reference, triton_kernels
from gpart.ops.block import Block, ComputedIndices, index_source

COUNT = 1 << 26
D = (16, 23_040, 131_072, 1 << 22)


def speeds(device: torch.device) -> Iterator[dict[str, Any]]:
    """Milliseconds of expand and reduce over one block, by the kernel and by torch's operations."""
    for dtype in (torch.float32, torch.bfloat16):
        base = torch.randn(COUNT, device=device).to(dtype)
        out = torch.empty_like(base)
        for d in D:
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


def main(out: Path) -> None:
    """Writes the file after each."""
    found = []
    for speed in speeds(torch.device("cuda", 0)):
        found.append(speed)
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(json.dumps(speed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
