"""Both passes over RoBERTa-base's adapted weights with group numbers of two and of four bytes, in turns, as JSON.

python benchmarks/speed/passes.py > benchmarks/speed/passes.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import Tensor

from gpart.functional import add_chunks
from gpart.partition import Partition
from gpart.parts import Part
from gpart.sums import GroupSums

WEIGHTS, WIDTH, D = 24, 768, 23_040


def main() -> None:
    """Times them and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    size, cpu = WIDTH * WIDTH, torch.device("cpu")
    partition = Partition(WEIGHTS * size, D)
    base, grads = (torch.randn(WEIGHTS, size) for _ in range(2))
    out, scaled = torch.empty_like(base), torch.randn(D)

    def expand(groups: list[Tensor]) -> Tensor:
        for number, kept in enumerate(groups):
            add_chunks(out[number], scaled, base[number], Part(kept, 0, 0, size))
        return out

    def reduce(groups: list[Tensor]) -> Tensor:
        sums = GroupSums(D, cpu)
        for number, kept in enumerate(groups):
            sums.add_block(grads[number], Part(kept, 0, 0, size))
        return sums.total(torch.float32)

    stored = {
        8 * dtype.itemsize: [partition.groups(i * size, (i + 1) * size, cpu, dtype) for i in range(WEIGHTS)]
        for dtype in (torch.int16, torch.int32)
    }
    passes: dict[str, Callable[[list[Tensor]], Tensor]] = {"expand": expand, "reduce": reduce}
    for run in passes.values():
        first, second = (run(groups).clone() for groups in stored.values())
        if not torch.equal(first, second):
            raise SystemExit("two and four bytes give different numbers")
    samples: dict[str, list[float]] = {f"{name}, {bits} bits": [] for name in passes for bits in stored}
    for _ in range(given.rounds):
        for name, run in passes.items():
            for bits, groups in stored.items():
                start = time.perf_counter()
                run(groups)
                samples[f"{name}, {bits} bits"].append(1e3 * (time.perf_counter() - start))
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": given.threads,
        "median ms": {name: round(statistics.median(values), 2) for name, values in samples.items()},
        "minimum ms": {name: round(min(values), 2) for name, values in samples.items()},
        "samples ms": {name: [round(value, 2) for value in values] for name, values in samples.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
