"""Each Triton kernel compiled and compared with the reference: ``python triton_checks.py cuda OUT.json``.

The checks are those that the package makes before it uses a kernel (:mod:`gpart.ops.selfcheck`), for every kind that there
is. On a CPU Triton's interpreter runs those of a few kinds.
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

from gpart.ops import dispatch, selfcheck

KINDS = [
    *(f"group indices stored in {bits} bits" for bits in (16, 32)),
    *(f"group indices computed in {bits} bits" for bits in (32, 64)),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
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


def main(device: torch.device, out: Path) -> int:
    """Writes the file after each; 1 if a kernel differs."""
    found: list[dict[str, Any]] = []
    for told, check in checks(device):
        found.append(run_check(told, check))
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    wrong = [each for each in found if each["difference"]]
    print(f"{len(found) - len(wrong)} of {len(found)} kernels give the reference's numbers")
    for each in wrong:
        print(json.dumps(each))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(torch.empty(0, device=sys.argv[1]).device, Path(sys.argv[2])))  # cuda is cuda:0, as its tensors say
