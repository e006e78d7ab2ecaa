"""Both operations over RoBERTa-base's adapted weights, by the reference and in C, in turns, as JSON.

Group indices are stored in two bytes, in four, or computed; all six ways give the same bits, which is checked first.

python benchmarks/speed/operations.py > benchmarks/speed/operations.json
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

from gpart.ops import dispatch
from gpart.ops.block import Block, ComputedIndices, Entries
from gpart.ops.sums import GroupSums
from gpart.partition import Partition

WEIGHTS, WIDTH, D = 24, 768, 23_040


def main() -> None:
    """Times them and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    size, cpu = WIDTH * WIDTH, torch.device("cpu")
    partition = Partition(WEIGHTS * size, D)
    base, grads = (torch.randn(WEIGHTS, size) for _ in range(2))
    out, scaled = torch.empty_like(base), torch.randn(D)

    def expand(indices: list[Entries]) -> Tensor:
        for number, entries in enumerate(indices):
            dispatch.expand_block(out[number], scaled, base[number], Block(entries, 0, 0, size))
        return out

    def reduce(indices: list[Entries]) -> Tensor:
        sums = GroupSums(D, cpu)
        for number, entries in enumerate(indices):
            sums.add_block(grads[number], Block(entries, 0, 0, size))
        return sums.total(torch.float32)

    sources: dict[str, list[Entries]] = {
        f"{8 * dtype.itemsize} bits": [partition.groups(i * size, (i + 1) * size, cpu, dtype) for i in range(WEIGHTS)]
        for dtype in (torch.int16, torch.int32)
    }
    sources["computed"] = [ComputedIndices(partition, i * size, size, cpu) for i in range(WEIGHTS)]
    library, reason = dispatch.cpu_library()
    if library is None:
        raise SystemExit(f"cpu.c is not used here, there is nothing to compare: {reason}")
    least = {"C": dispatch.LEAST, "torch": 1 << 62}  # the smallest stretch that C is used for
    operations: dict[str, Callable[[list[Entries]], Tensor]] = {"expand": expand, "reduce": reduce}
    ways = [(name, by, source) for name in operations for by in least for source in sources]

    def run(name: str, by: str, source: str) -> Tensor:
        dispatch.LEAST = least[by]
        return operations[name](sources[source])

    for name in operations:
        first, *others = (run(*way).clone() for way in ways if way[0] == name)
        if not all(torch.equal(first, other) for other in others):
            raise SystemExit(f"{name}: not all ways give the same numbers")
    samples: dict[str, list[float]] = {", ".join(way): [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            start = time.perf_counter()
            run(*way)
            samples[", ".join(way)].append(1e3 * (time.perf_counter() - start))
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
