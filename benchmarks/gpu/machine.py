"""The machine, and its two ceilings: how fast it copies, and how fast it multiplies. ``python machine.py OUT.json``.

Written in two goes: what is installed first, so that it is there where measuring fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = [
    "torch",
    "triton",
    "lightning",
    "transformers",
    "peft",
    "torchmetrics",
    "jsonargparse",
    "datasets",
    "pytest",
]


def main(out: Path) -> None:
    """Writes the file."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "packages": {name: _version(name) for name in PACKAGES}}
    if smi := shutil.which("nvidia-smi"):
        asked = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["nvidia-smi"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    import torch

    found["cuda"] = torch.cuda.is_available()
    _write(out, found)
    from gpart.studies.bench.machine import describe_machine

    device = torch.device("cuda" if found["cuda"] else "cpu")
    found |= describe_machine(device)
    _write(out, found)
    if found["cuda"]:
        at = torch.cuda.get_device_properties(device)
        found |= {"capability": f"{at.major}.{at.minor}", "multiprocessors": at.multi_processor_count}
        found |= {"memory": at.total_memory, "cache": at.L2_cache_size}
        found |= _ceilings(device)
        _write(out, found)
    print(json.dumps(found, indent=1))


def _ceilings(device: Any) -> dict[str, float]:
    """Bytes read and written a second, and floating-point operations a second in bfloat16."""
    import torch
    from triton.testing import do_bench

    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    copied = do_bench(lambda: target.copy_(source), return_mode="median")
    one, other = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = do_bench(lambda: one @ other, return_mode="median")
    return {"copy_bytes_per_s": 2e3 * source.nbytes / copied, "bf16_flops_per_s": 2e3 * 8192**3 / product}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _write(out: Path, found: dict[str, Any]) -> None:
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
